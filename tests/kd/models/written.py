"""Small decoders and prompts for the tests of what decoders write."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd.models.decoder import Decoder
from kd.models.rope import Rope
from kd.models.spec import LayerSpec, Numerics, Spec

V, LENGTH = 29, 7
LENGTHS = np.array([3, 7, 1, 6])
# By name: shared key heads; windows shorter than the text, caps and norms.
SPECS = {
  "plain": {},
  "gemma": {
    "layers": (LayerSpec(3, Rope(1e4)), LayerSpec(None, Rope(1e6))),
    "norm": "one_plus",
    "post_norm": True,
    "qk_norm": "head",
    "attention_cap": 5.0,
    "logits_cap": 8.0,
    "logits_scale": 2.0,
    "embed_scale": 4.0,
  },
}


@functools.cache
def decoder(kind: str = "plain") -> Decoder:
  """Returns a decoder whose next token hangs on all that it sees."""
  options = {
    "layers": (LayerSpec(None, Rope(1e4)),) * 2,
    "attention_scale": 0.5,
    **SPECS[kind],
  }
  spec = Spec(
    family="llama",
    vocab_size=V,
    width=16,
    mlp_width=24,
    heads=4,
    kv_heads=2,
    head_dim=4,
    **options,
  )
  model = Decoder(spec, Numerics(), rngs=nnx.Rngs(0))
  state = nnx.state(model, nnx.Param)
  nnx.update(
    model, jax.tree.map(lambda x: x * (15 if x.ndim > 1 else 1), state)
  )
  return model


def prompts(padding: str) -> np.ndarray:
  """Returns LENGTHS' prompts, filled up with ids that are none."""
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, V, n) for n in LENGTHS]
  fill = np.full((len(rows), LENGTH), 99 if padding == "left" else -7, np.int32)
  for row, ids in zip(fill, rows, strict=True):
    row[slice(-len(ids), None) if padding == "left" else slice(len(ids))] = ids
  return fill


def texts() -> list[list[int]]:
  rows = zip(prompts("right"), LENGTHS, strict=True)
  return [row[:n].tolist() for row, n in rows]


@functools.cache
def _logits(model: Decoder):
  graphdef, state = nnx.split(model)
  return jax.jit(lambda ids: nnx.merge(graphdef, state).logits(ids)[0])


def log_probs(model: Decoder, ids: list[int]) -> np.ndarray:
  """Returns log q of what follows each token [L, V], without a cache."""
  padded = np.zeros((1, 24), np.int32)
  padded[0, : len(ids)] = ids  # later tokens change nothing before them
  logits = np.float64(_logits(model)(jnp.array(padded)))[: len(ids)]
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
