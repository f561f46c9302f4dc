"""GEMMs of a chunk, and the gradients of a head that they add up to."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from kernels.plan import Plan
from kernels.types import Logits

f32 = jnp.float32


def dot(a, b, contract: tuple[int, int]):
  """Returns a GEMM over the given axes, in the operands' dtype, in float32."""
  dims = (((contract[0],), (contract[1],)), ((), ()))
  return lax.dot_general(a, b, dims, preferred_element_type=f32)


def add_outer(plan: Plan, dw, h, dz, last=False):
  """Returns dW [H, V] + h^T dz, `plan.width` columns at a time.

  XLA does not accumulate into a GEMM's output: dW + h^T dz in one piece writes
  another [H, V] and reads it again. Where that is beyond the cache, blocks of
  columns save the memory and, on a CPU, time (`kernels.xla.cpu_width`).
  """
  v = dz.shape[1]
  width = plan.width(h.shape[1], v)
  if isinstance(dw, tuple):
    return _add_outer_halves(plan, dw, h, dz, last)
  if width >= v:
    return dw + dot(h, dz, (0, 0))

  def add(dw, start, width):
    dz_block = lax.dynamic_slice_in_dim(dz, start, width, 1)
    block = lax.dynamic_slice_in_dim(dw, start, width, 1)
    block = block + dot(h, dz_block, (0, 0))
    return lax.dynamic_update_slice_in_dim(dw, block, start, 1)

  dw = lax.fori_loop(0, v // width, lambda i, a: add(a, i * width, width), dw)
  return dw if v % width == 0 else add(dw, v - v % width, v % width)


def _add_outer_halves(plan: Plan, halves, h, dz, last):
  """As `add_outer`, dW as `split32` gives it; rounds the last sum."""
  shape = (h.shape[1], dz.shape[1])
  v, width = shape[1], min(plan.width(*shape), shape[1])
  order = Layout((1, 0) if plan.by_columns(*shape) else (0, 1))

  def add(halves, start, width):
    read = lambda a: lax.dynamic_slice_in_dim(a, start, width, 1)
    block = join32(*map(read, halves)) + dot(h, read(dz), (0, 0))
    # As the result will lie: TPUs would choose, and copy all of dW in the end.
    block = with_layout_constraint(block, order)
    high, low = split32(block)
    high = jnp.where(last, block.astype(high.dtype), high)
    return tuple(
      lax.dynamic_update_slice_in_dim(a, x, start, 1)
      for a, x in zip(halves, (high, low), strict=True)
    )

  step = lambda i, a: add(a, i * width, width)
  halves = lax.fori_loop(0, v // width, step, halves)
  return halves if v % width == 0 else add(halves, v - v % width, v % width)


def split32(x):
  """Returns a float32 array as (its upper half, bfloat16; its lower, uint16).

  Exact, and the upper half can lie where a bfloat16 result will.
  """
  bits = lax.bitcast_convert_type(x, jnp.uint32)
  high = lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
  return high, bits.astype(jnp.uint16)


def join32(high, low):
  """Returns the float32 array that `split32` split."""
  high = lax.bitcast_convert_type(high, jnp.uint16).astype(jnp.uint32)
  bits = (high << 16) | low.astype(jnp.uint32)
  return lax.bitcast_convert_type(bits, f32)


def zero_gradient(student):
  """Returns float32 zeros for a Head, zeros of the logits' dtype for Logits."""
  if isinstance(student, Logits):
    return jax.tree.map(jnp.zeros_like, student)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, f32), student)


def add_head_gradient(plan: Plan, head, grads, write, h, dz, fresh, last=False):
  """Adds a chunk to float32 gradients (dh, dW, db), see `over_chunks`.

  Args:
    head: the Head.
    grads: Head of gradients so far.
    write: puts the chunk's rows into [N, H].
    h, dz: [C, H] and [C, V], in the dtype of the GEMMs.
    fresh: [C] bool or None: dh is written, but dW and db are summed.
  """
  w, dw = head.kernel.astype(dz.dtype), grads.kernel
  if fresh is not None:
    h = jnp.where(fresh[:, None], h, jnp.zeros((), h.dtype))
  if plan.gemms is not None and isinstance(dw, tuple) and plan.gemms.fits(h, w):
    dh, dw = plan.gemms.gradients(h, w, dz, dw, last)
  else:
    dh = dot(dz, w, (1, 1))
    dw = add_outer(plan, dw, h, dz, last)
  dh = write(grads.hidden, dh)
  db = None
  if head.bias is not None:
    db = dz if fresh is None else jnp.where(fresh[:, None], dz, 0)
    db = grads.bias + db.astype(f32).sum(0)
  return dataclasses.replace(head, hidden=dh, kernel=dw, bias=db)
