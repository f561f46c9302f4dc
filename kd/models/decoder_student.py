"""A decoder from scratch, for a student."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from kd.config import rules
from kd.errors import UserError
from kd.models import adapters, config_json
from kd.models.attention import IMPLEMENTATIONS, Implementation
from kd.models.decoder import Decoder, padded_from
from kd.models.rope import Rope
from kd.models.spec import REMAT, LayerSpec, Numerics, Spec

DTYPES = ("float32", "bfloat16")


class DecoderStudent(Decoder):
  """A plain Llama, or with `qk_norm` a plain Qwen 3.

  Weights begin as GPT-2's: normal, of standard deviation 0.02, and less by
  sqrt(2 layers) where they add to the stream of a layer.

  Instead of its widths it may be said what it begins with, `from_teacher`; then
  kd.study.students makes `config` of that.

  Args:
    input_shape: (2, L) or (3, L), see `Decoder.__call__`.
    num_classes: V.
    layers, width, heads, head_dim: their numbers; a head's width is
      width / heads unless given.
    kv_heads: key heads, which divide `heads`; None is as many.
    mlp: the width of the MLP; None is 8 / 3 of the width, rounded up to
      a multiple of 8.
    tie: the head is the table of embeddings.
    window: the tokens that attention goes back, its own included; None is all.
    qk_norm: normalise each head's queries and keys.
    rope_theta, norm_eps: see `Rope` and `Spec`.
    dtype, param_dtype, remat, attention: see `Numerics`.
    config: what a config.json would say, instead of all of the widths.
    freeze, lora: which weights train, see kd.models.adapters.
    rngs: of the initialisation.
  """

  OPTIONS: ClassVar = {
    "layers": rules.integer(1, 1024),
    "width": rules.integer(1, 2**16),
    "heads": rules.integer(1, 2**12),
    "kv_heads": rules.optional(rules.integer(1, 2**12)),
    "head_dim": rules.optional(rules.integer(2, 2**12)),
    "mlp": rules.optional(rules.integer(1, 2**18)),
    "tie": rules.FLAG,
    "window": rules.optional(rules.integer(1)),
    "qk_norm": rules.FLAG,
    "rope_theta": dataclasses.replace(rules.number(above=1), traced=False),
    "norm_eps": dataclasses.replace(
      rules.number(above=0, below=1), traced=False
    ),
    "dtype": rules.choice(*DTYPES),
    "param_dtype": rules.choice(*DTYPES),
    "remat": rules.choice(*REMAT),
    "attention": rules.choice(*IMPLEMENTATIONS),
    "config": rules.TEXT,
    "from_teacher": adapters.SECTION,
    **adapters.OPTIONS,
  }

  def __init__(
    self,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    mlp: int | None = None,
    tie: bool = True,
    window: int | None = None,
    qk_norm: bool = False,
    rope_theta: float = 10_000.0,
    norm_eps: float = 1e-5,
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: str = "none",
    attention: Implementation = "auto",
    config: str = "",
    freeze: Sequence[str] = (),
    lora: Mapping[str, Any] | None = None,
    rngs: nnx.Rngs,
  ):
    if len(input_shape) != 2 or input_shape[0] not in (2, 3):
      raise UserError(
        "name = 'decoder': reads tokens, and the task's inputs have shape "
        f"{tuple(input_shape)}; expected task.tokens.length >= 2"
      )
    numerics = Numerics(
      jnp.dtype(dtype), jnp.dtype(param_dtype), remat, attention
    )
    self.freeze, self.adapted = tuple(freeze), lora is not None
    if config:
      spec = config_json.read(json.loads(config), "student.config")
      super().__init__(spec, numerics, rngs=rngs)
      self.vocab_size = padded_from(spec.vocab_size, num_classes, "student")
      if lora is not None:
        adapters.adapt(self, lora, rngs)
      return
    kv_heads = kv_heads or heads
    if heads % kv_heads or (head_dim is None and width % heads):
      raise UserError(
        f"name = 'decoder', width = {width}, heads = {heads}, kv_heads = "
        f"{kv_heads}: expected heads that divide the width (or head_dim) and "
        "key heads that divide the heads"
      )
    head_dim = head_dim or width // heads
    if head_dim % 2:
      raise UserError(
        f"name = 'decoder': heads of width {head_dim}, expected an even width"
      )
    # Which of transformers' classes has what is asked for.
    plain = "llama" if window is None else "mistral"
    spec = Spec(
      family="qwen3" if qk_norm else plain,
      vocab_size=num_classes,
      width=width,
      mlp_width=mlp or -(-width // 3) * 8,
      heads=heads,
      kv_heads=kv_heads,
      head_dim=head_dim,
      layers=(LayerSpec(window, Rope(float(rope_theta))),) * layers,
      norm_eps=norm_eps,
      qk_norm="head" if qk_norm else None,
      attention_scale=head_dim**-0.5,
      tie=tie,
    )
    super().__init__(spec, numerics, rngs=rngs)

  def is_frozen(self, path: str) -> bool:
    """Whether a weight is shared by all runs, and stays as it was."""
    return adapters.is_frozen(path, self.freeze, self.adapted)
