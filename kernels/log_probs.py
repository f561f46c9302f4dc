"""log softmax(z / T) at one id per row, with a gradient per row.

Every row has its own cotangent g_n, unknown in the forward pass, so backward
computes a chunk's logits again: dz = g / T (onehot - q), q = exp(x - lse) from
the saved lse.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from kernels import softmax, tile, xla
from kernels.accumulate import add_head_gradient, zero_gradient
from kernels.chunked import at, chunk_logits, column_offset, over_chunks
from kernels.plan import Plan, on_platform, vary, varying
from kernels.types import (
  Logits,
  num_columns,
  num_rows,
  operand_dtype,
  scale,
  soft_cap,
)

f32 = jnp.float32


def _columns(v: int, vocab_size: int, axis: str | None):
  """Returns (first global id, global ids [1, V], validity [1, V] or None)."""
  offset = column_offset(v, axis)
  ids = offset + lax.broadcasted_iota(jnp.int32, (1, v), 1)
  padded = v * (lax.axis_size(axis) if axis else 1) != vocab_size
  return offset, ids, ids < vocab_size if padded else None


def forward(plan: Plan, vocab_size, axis, scores, ids, temperature):
  """Returns (this shard's share of log q [N], lse [N] of x = z / T)."""
  n, v = num_rows(scores), num_columns(scores)
  c = plan.chunk_rows(n, v, scores, None)
  offset, _, valid = _columns(v, vocab_size, axis)
  inv_t = 1 / temperature
  init = vary((jnp.zeros(n, f32),) * 2, varying((scores, ids, temperature)))

  def body(carry, start, fresh):
    del fresh
    read, write = at(start, c, n)
    alive = jnp.ones(c, bool)
    _, z = chunk_logits(scores, read, alive, plan.logits_dtype)
    x = tile.scaled(z, inv_t, valid)
    lse = softmax.log_sum_exp(x, axis, plan.stash)
    x_id, _ = xla.pick(z, read(ids)[:, None], offset, inv_t)
    log_q = x_id - xla.share(lse, axis)
    return write(carry[0], log_q[:, 0]), write(carry[1], lse[:, 0])

  return over_chunks(n, c, body, init)


def backward(
  plan: Plan, vocab_size, axis, scores, ids, temperature, lse, cotangent
):
  """Returns the gradient of sum_n cotangent_n log q_n, in float32."""
  n, v = num_rows(scores), num_columns(scores)
  c = plan.chunk_rows(n, v, scores, None)
  _, columns, valid = _columns(v, vocab_size, axis)
  inv_t = 1 / temperature
  everything = (scores, ids, temperature, lse, cotangent)
  init = vary(zero_gradient(scores), varying(everything))

  def body(grads, start, fresh):
    read, write = at(start, c, n)
    g = read(cotangent)
    alive = g != 0  # a row that nothing depends on may hold anything
    h, z = chunk_logits(scores, read, alive, plan.logits_dtype)
    x = tile.scaled(z, inv_t, valid)
    q = jnp.exp(x - jnp.where(alive, read(lse), 0)[:, None])
    onehot = (columns == read(ids)[:, None]).astype(f32)
    dz = (g * (inv_t * scale(scores)))[:, None] * (onehot - q)
    if (cap := soft_cap(scores)) is not None:
      dz = dz * tile.cap_slope(z, cap)
    dz = jnp.where(alive[:, None], dz, 0).astype(operand_dtype(scores))
    if isinstance(scores, Logits):
      return Logits(write(grads.values, dz), scores.vocab_size)
    return add_head_gradient(plan, scores, grads, write, h, dz, fresh)

  return over_chunks(n, c, body, init)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def token_log_probs(plans, vocab_size, axis, scores, ids, temperature):
  """Returns this shard's share of log softmax(z / T)[ids], [N] float32."""
  fn = lambda plan, *args: forward(plan, vocab_size, axis, *args)
  return on_platform(plans, fn, scores, ids, temperature)[0]


def _fwd(plans, vocab_size, axis, scores, ids, temperature):
  fn = lambda plan, *args: forward(plan, vocab_size, axis, *args)
  log_q, lse = on_platform(plans, fn, scores, ids, temperature)
  return log_q, (scores, ids, temperature, lse)


def _bwd(plans, vocab_size, axis, residuals, cotangent):
  fn = lambda plan, *args: backward(plan, vocab_size, axis, *args)
  grads = on_platform(plans, fn, *residuals, cotangent)
  scores = residuals[0]
  return jax.tree.map(lambda g, x: g.astype(x.dtype), grads, scores), None, None


token_log_probs.defvjp(_fwd, _bwd)
