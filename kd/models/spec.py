"""What a decoder is, and how it computes, as data."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kd.models.attention import Implementation
from kd.models.rope import Rope

ACTIVATIONS: dict[str, Callable] = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
# What of a layer's forward pass is kept for its backward pass.
REMAT: dict[str, Any] = {
  "none": None,
  "layer": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class LayerSpec:
  """What one layer's attention sees: its last `window` tokens, its own
  included (None: all), turned by `rope` (None: not at all)."""

  window: int | None
  rope: Rope | None


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a decoder is.

  Attributes:
    family: the Hugging Face model_type that it is saved as.
    vocab_size, width, mlp_width, heads, kv_heads, head_dim: V, D, F, H, K, d.
    layers: each layer's own.
    norm: how an RMSNorm multiplies what it normalised, x / rms(x): "round"
      rounds to x's dtype, then multiplies by w; "float32" multiplies, then
      rounds; "one_plus" the same with 1 + w.
    norm_eps: added to the mean square.
    pre_norm, post_norm: normalise what attention and MLP take, and what they
      give.
    qk_norm: normalises queries and keys: each "head", the whole "width", None.
    qkv_bias, o_bias, mlp_bias: which projections have a bias.
    activation: of ACTIVATIONS.
    embed_scale: multiplies embeddings, rounded to their dtype.
    attention_scale: s, see `attend`.
    residual_scale: multiplies what a layer adds.
    attention_cap: see `attend`.
    logits_scale, logits_cap: logits are c tanh(s h W / c).
    tie: the head is the table of embeddings.
    kept: what else its config.json said, as JSON; it changes nothing here.
  """

  family: str
  vocab_size: int
  width: int
  mlp_width: int
  heads: int
  kv_heads: int
  head_dim: int
  layers: tuple[LayerSpec, ...]
  norm: Literal["round", "float32", "one_plus"] = "round"
  norm_eps: float = 1e-6
  pre_norm: bool = True
  post_norm: bool = False
  qk_norm: Literal["head", "width"] | None = None
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  activation: str = "silu"
  embed_scale: float = 1.0
  attention_scale: float = 1.0
  residual_scale: float = 1.0
  attention_cap: float | None = None
  logits_scale: float = 1.0
  logits_cap: float | None = None
  tie: bool = False
  kept: str = "{}"


@dataclasses.dataclass(frozen=True)
class Numerics:
  """How it computes, which changes nothing but rounding, time and memory.

  Attributes:
    dtype: of activations and products; norms, softmax, angles and logits are
      float32 whatever it is.
    param_dtype: of the weights, which are rounded to `dtype` where used.
    remat: of REMAT: "none" keeps all for the backward pass, "dots" the products
      with weights, "layer" a layer's inputs alone.
    attention: see `attend`.
  """

  dtype: Any = "float32"
  param_dtype: Any = "float32"
  remat: str = "none"
  attention: Implementation = "auto"

  def __post_init__(self):
    for name in ("dtype", "param_dtype"):  # equal ones are one program
      object.__setattr__(self, name, jnp.dtype(getattr(self, name)))
