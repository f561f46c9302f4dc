"""Prompts read into a cache: what writing and scoring completions begin with.

Prompts of a batch may differ in length. A prefix that all prompts share, as the
examples of a few-shot prompt, is read once for all batches (`read_prefix`).

Axes: B prompts, L tokens of a prompt, P tokens of the prefix, D width.
"""

import functools
from typing import Literal

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from kd.models.decoder import Cache, Decoder

Padding = Literal["right", "left"]


def read_prefix(model: Decoder, ids: Int[ArrayLike, "P"]) -> Cache:
  """Reads what many prompts begin with, for `generate` and `token_scores`.

  Raises:
    ValueError: a token that the model does not have.
  """
  ids_P = jnp.asarray(ids, jnp.int32)
  check_ids(model, "prefix", ids_P, True)
  graphdef, weights = nnx.split(model)
  return _read_prefix(weights, ids_P, graphdef=graphdef)


@functools.partial(jax.jit, static_argnames="graphdef")
def _read_prefix(weights, ids_P, *, graphdef):
  model = nnx.merge(graphdef, weights)
  ids_1xP = ids_P[None]
  return model.hidden(ids_1xP, cache=model.empty_cache(*ids_1xP.shape))[1]


def read(
  model: Decoder, prompts_BxL, segments_BxL, prefix: Cache | None, more: int
) -> tuple[Float[Array, "B D"], Cache, Int[Array, "B"]]:
  """Returns each prompt's last hidden state, a cache with room for `more`
  tokens, and the position of the first of them."""
  batch, length = prompts_BxL.shape
  before = 0 if prefix is None else prefix.keys[0].shape[1]
  cache = model.empty_cache(batch, before + length + more)
  if prefix is not None:
    cache = jax.tree.map(
      lambda room, kept: room.at[:, :before].set(kept), cache, prefix
    )
  hidden_BxLxD, cache = model.hidden(
    prompts_BxL,
    segments_BxL=segments_BxL,
    positions_BxL=before + jnp.cumsum(segments_BxL, axis=1) - 1,
    cache=cache,
  )
  last = length - 1 - jnp.argmax(segments_BxL[:, ::-1], axis=1)
  hidden_BxD = hidden_BxLxD[jnp.arange(batch), last]
  return hidden_BxD, cache, before + jnp.sum(segments_BxL, axis=1)


def segments(
  model: Decoder, prompts, lengths, padding: Padding
) -> Int[Array, "B L"]:
  """Returns 1 for the tokens of a prompt and 0 for what fills it up; raises
  ValueError for what is no prompt."""
  lengths = jnp.asarray(lengths, jnp.int32)
  batch, length = jnp.shape(prompts)
  if lengths.shape != (batch,):
    raise ValueError(f"lengths: shape {lengths.shape}; accepted: {(batch,)}")
  check(lengths, 1, length, "lengths", f"1 to {length}")
  if padding not in ("right", "left"):
    raise ValueError(f"padding is {padding!r}; accepted: 'right', 'left'")
  index = jnp.arange(length)[None]
  if padding == "left":
    index = length - 1 - index
  there = index < lengths[:, None]
  check_ids(model, "prompts", prompts, there)
  return there.astype(jnp.int32)


def check_ids(model: Decoder, name: str, ids, there) -> None:
  """Raises ValueError for a token that the model does not have."""
  last = model.spec.vocab_size - 1
  check(jnp.where(there, ids, 0), 0, last, name, f"ids from 0 to {last}")


def check(values, low, high, name: str, accepted: str) -> None:
  """Raises ValueError for what is out of range, unless it is being traced."""
  if is_traced(values):
    return
  given = np.ravel(jax.device_get(values))
  wrong = given[~((low <= given) & (given <= high))]
  if len(wrong):
    raise ValueError(f"{name}: {wrong[0]}; accepted: {accepted}")


def is_traced(value) -> bool:
  """Whether a value is known only when a program runs."""
  return isinstance(value, jax.core.Tracer)
