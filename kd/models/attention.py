"""Causal attention within documents, by the library that a platform has.

Which one computes is chosen for the platform that a program is lowered for:
jax.nn.dot_product_attention in plain XLA on CPUs and GPUs, splash attention (a
Pallas kernel of jax) on TPUs, where the scores then never lie in memory.
cuDNN's flash attention is asked for by name: jax cannot trace it where cuDNN is
not installed, and it takes no float32.
"""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
from jaxtyping import Array, Bool, Float, Int

from kd.errors import UserError, why

Implementation = Literal["auto", "xla", "cudnn"]
IMPLEMENTATIONS = get_args(Implementation)
LANES = 128  # what splash attention wants a row to be a multiple of
PARTS = 4  # of a row's queries in XLA, each with the keys up to its end
NEVER = -1e30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
  """Where the tokens of rows stand.

  Attributes:
    segments: the document, from 1 in order; 0 is padding, a document of its
      own to which nothing that counts attends.
    positions: within the document, rising by one from token to token.
  """

  segments: Int[Array, "B L"]
  positions: Int[Array, "B L"]


def visible(
  queries: Places, keys: Places, window: int | None
) -> Bool[Array, "B L S"]:
  """Returns which keys each query sees: its document's, up to itself.

  Args:
    window: the last so many alone, the query's own included.
  """
  behind = queries.positions[:, :, None] - keys.positions[:, None, :]
  seen = (queries.segments[:, :, None] == keys.segments[:, None, :]) & (
    behind >= 0
  )
  return seen if window is None else seen & (behind < window)


@functools.partial(
  jax.jit, static_argnames=("scale", "window", "cap", "implementation")
)
def attend(
  q_BxLxHxd: Float[Array, "B L H d"],
  k_BxSxKxd: Float[Array, "B S K d"],
  v_BxSxKxd: Float[Array, "B S K d"],
  queries: Places,
  keys: Places | None = None,
  *,
  scale: float,
  window: int | None = None,
  cap: float | None = None,
  implementation: Implementation = "auto",
) -> Float[Array, "B L H d"]:
  r"""Computes softmax(c tanh(s q k^T / c)) v over the keys that a query sees.

  The softmax is float32. A program is traced once for all layers of a kind.

  Args:
    q_BxLxHxd, k_BxSxKxd, v_BxSxKxd: H is a multiple of K; query head h reads
      key head h // (H / K).
    queries, keys: where they stand; keys of None are the queries' own tokens.
    scale: s.
    window: see `visible`.
    cap: c; None is no cap.
    implementation: of IMPLEMENTATIONS. "auto" is splash attention on TPUs where
      the keys are the queries' own and L is a multiple of 128, else XLA.

  Raises:
    UserError: cuDNN is asked for what it cannot do, or is not installed.
  """

  def plain(q, k, v, queries, keys):
    mask = visible(queries, keys, window)
    if cap is not None:
      return _capped(q, k, v, mask, scale, cap)
    return jax.nn.dot_product_attention(
      q, k, v, mask=mask[:, None], scale=scale, implementation="xla"
    )

  def in_parts(q, k, v, queries, keys):
    del keys  # the same
    length, parts = q.shape[1], []
    size = -(-length // (PARTS * LANES)) * LANES
    cut = lambda start, end: jax.tree.map(lambda x: x[:, start:end], queries)
    for start in range(0, length, size):
      end = start + size
      rows = q[:, start:end], k[:, :end], v[:, :end]
      parts.append(plain(*rows, cut(start, end), cut(0, end)))
    return jnp.concatenate(parts, axis=1)

  def tpu(q, k, v, queries, keys):
    del keys  # the same
    return splash(
      q, k, v, queries.segments, scale=scale, window=window, cap=cap
    )

  own = keys is None and q_BxLxHxd.shape[1] % LANES == 0
  # A query sees no key further on in its row: half need not be computed.
  xla = plain if keys is not None else in_parts
  arrays = q_BxLxHxd, k_BxSxKxd, v_BxSxKxd, queries, keys or queries
  if implementation == "cudnn":
    return _cudnn(*arrays[:3], visible(*arrays[3:], window), scale, cap)
  if implementation == "xla" or not own:
    return xla(*arrays)
  return jax.lax.platform_dependent(*arrays, tpu=tpu, default=xla)


def _cudnn(q_BxLxHxd, k_BxSxKxd, v_BxSxKxd, mask_BxLxS, scale, cap) -> Array:
  try:
    if cap is not None:
      raise NotImplementedError("it has no cap on scores")
    return jax.nn.dot_product_attention(
      q_BxLxHxd,
      k_BxSxKxd,
      v_BxSxKxd,
      mask=mask_BxLxS[:, None],
      scale=scale,
      implementation="cudnn",
    )
  except (RuntimeError, NotImplementedError, ValueError) as error:
    raise UserError(
      f"attention = 'cudnn': {why(error)}; expected 'auto' or 'xla' here"
    ) from error


def _capped(q_BxLxHxd, k_BxSxKxd, v_BxSxKxd, mask_BxLxS, scale, cap) -> Array:
  b, length, heads, dim = q_BxLxHxd.shape
  kv_heads = k_BxSxKxd.shape[2]
  q = q_BxLxHxd.reshape(b, length, kv_heads, heads // kv_heads, dim)
  scores = jnp.einsum(
    "blkgd,bskd->bkgls", q, k_BxSxKxd, preferred_element_type=jnp.float32
  )
  scores = cap * jnp.tanh(scale * scores / cap)
  scores = jnp.where(mask_BxLxS[:, None, None], scores, NEVER)
  probs = jax.nn.softmax(scores).astype(v_BxSxKxd.dtype)
  out = jnp.einsum("bkgls,bskd->blkgd", probs, v_BxSxKxd)
  return out.reshape(b, length, heads, dim)


def splash(
  q_BxLxHxd, k_BxLxKxd, v_BxLxKxd, segments_BxL, *, scale, window, cap,
  interpret: bool = False,
) -> Array:  # fmt: skip
  """Is `attend` by jax's kernel for TPUs; `interpret` runs it elsewhere."""
  length, heads = q_BxLxHxd.shape[1:3]
  shape = (length, length)
  one = (
    splash_mask.CausalMask(shape)
    if window is None
    else splash_mask.LocalMask(shape, (window - 1, 0), 0)
  )
  block = next(size for size in (512, 256, LANES) if length % size == 0)
  names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute")
  names += ("q_dq", "kv_dq")
  sizes: dict[str, Any] = {f"block_{name}": block for name in names}
  kernel = splash_kernel.make_splash_mha_single_device(
    splash_mask.MultiHeadMask([one] * heads),
    block_sizes=splash_kernel.BlockSizes(**sizes),
    attn_logits_soft_cap=cap,
    interpret=interpret,
  )
  q, k, v = (
    x.swapaxes(1, 2) for x in (q_BxLxHxd * scale, k_BxLxKxd, v_BxLxKxd)
  )
  ids = splash_kernel.SegmentIds(segments_BxL, segments_BxL)
  return jax.vmap(kernel)(q, k, v, ids).swapaxes(1, 2).astype(q_BxLxHxd.dtype)
