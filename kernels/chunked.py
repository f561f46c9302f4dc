"""The chunked driver that all fused implementations share.

Rows are taken C at a time. A chunk's logits come from the heads' GEMMs, a
plan's row function turns them into losses and dz = dloss/dz, and dz goes
straight into the GEMMs of dh and dW. Only [C, V] ever exists, and both passes
are one: the loss is a scalar, so its cotangent only scales the gradients.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernels import tile
from kernels.accumulate import add_head_gradient, split32, zero_gradient
from kernels.plan import Chunk, Operands, Plan, Spec, on_platform, vary, varying
from kernels.types import (
  Head,
  Logits,
  Rows,
  TopK,
  num_columns,
  num_rows,
  operand_dtype,
  scale,
)

f32 = jnp.float32


def chunk_logits(
  scores, rows, alive, logits_dtype, skips_dead=False, gemms=None
):
  """Returns (h, z) of a chunk: h [C, H] or None, z [C, V]; masked rows are 0.

  Args:
    scores: Head or Logits of all rows.
    rows: slices a chunk out of [N, ...].
    alive: [C] bool; other rows may hold anything, NaN too.
    logits_dtype, skips_dead, gemms: see `Plan`.
  """
  mask = lambda x: jnp.where(alive[:, None], x, jnp.zeros((), x.dtype))
  if isinstance(scores, Logits):
    z = rows(scores.values)
    return None, z if skips_dead else mask(z)
  dtype = operand_dtype(scores)
  h = mask(rows(scores.hidden)).astype(dtype)
  w = scores.kernel.astype(dtype)
  finish = functools.partial(
    tile.finished, scale=scores.scale, soft_cap=scores.soft_cap
  )
  if gemms is not None and gemms.fits(h, w):
    return h, gemms.scores(h, w, scores.bias, logits_dtype or dtype, finish)
  y = jnp.dot(h, w, preferred_element_type=f32)
  if scores.bias is not None:
    y = y + scores.bias.astype(f32)
  return h, finish(y).astype(logits_dtype or dtype)


def column_offset(v: int, axis: str | None):
  """Returns the global id of this shard's first column."""
  return jnp.int32(0) if axis is None else lax.axis_index(axis) * v


def over_chunks(n: int, c: int, body, init):
  """Folds body(carry, start, fresh) over chunks of c rows.

  Where c does not divide n, the last chunk starts early, at n - c: no padding,
  so no copy of the input. It sees rows that were done before, and `fresh` [c]
  says which are not. Writing a row twice is harmless; sums must use `fresh`
  (None where all are).
  """
  if n <= c:
    return body(init, 0, None)

  def step(carry, i):
    start = jnp.minimum(i * c, n - c)
    fresh = None if n % c == 0 else start + jnp.arange(c) >= i * c
    return body(carry, start, fresh), None

  return lax.scan(step, init, jnp.arange(-(-n // c)))[0]


def at(start, c: int, n: int):
  """Returns functions that read and write c rows of [n, ...] at start."""
  if c == n:
    return (lambda a: a), (lambda a, x: x.astype(a.dtype))
  read = lambda a: lax.dynamic_slice_in_dim(a, start, c)
  write = lambda a, x: lax.dynamic_update_slice_in_dim(
    a, x.astype(a.dtype), start, 0
  )
  return read, write


def run(plan: Plan, spec: Spec, student, ops: Operands, grad: bool):
  """Returns (loss, rows, gradients of the loss or None).

  Under vocab_axis these are this shard's share of the loss and rows, and the
  gradients of the whole loss with respect to what this shard has.
  """
  n, v = num_rows(student), num_columns(student)
  c = plan.chunk_rows(n, v, student, ops.teacher)
  is_topk = isinstance(ops.teacher, TopK)
  row_function = plan.topk_rows if is_topk else plan.rows
  alive = ops.weights != 0
  slope = ops.weights * scale(student)
  soft_scale = slope * ops.soft_weight * ops.temperature
  hard_scale = slope * ops.hard_weight
  labels, bad_label = ops.labels, None
  if labels is not None:  # a label out of range shows as NaN
    bad_label = alive & ((labels < 0) | (labels >= spec.vocab_size))
    hard_scale = jnp.where(bad_label, jnp.nan, hard_scale)
    labels = jnp.clip(labels, 0, spec.vocab_size - 1)
  usable, bad_ids = alive, None
  if is_topk:  # so does an id of the teacher
    bad_ids = alive & ops.teacher.invalid(spec.vocab_size)
    soft_scale = jnp.where(bad_ids, jnp.nan, soft_scale)
    usable = alive & ~bad_ids
  zeros = jnp.zeros(n, f32)
  grads: Any = zero_gradient(student) if grad else None
  narrow = grad and isinstance(student, Head)
  narrow = narrow and student.kernel.dtype == jnp.bfloat16
  if narrow and plan.halves:
    grads = dataclasses.replace(grads, kernel=split32(grads.kernel))
  init = (zeros, zeros, grads)
  init = vary(init, varying((student, ops)))
  offset = column_offset(v, spec.vocab_axis)

  def body(carry, start, fresh):
    soft, hard, grads = carry
    read, write = at(start, c, n)
    alive_c = read(alive)
    skips_dead = plan.skips_dead and not is_topk
    args = (read, alive_c, plan.logits_dtype, skips_dead, plan.gemms)
    h, z_s = chunk_logits(student, *args)
    teacher = ops.teacher
    if isinstance(teacher, TopK):
      teacher = mask_topk(jax.tree.map(read, teacher), read(usable))
    elif teacher is not None:
      teacher = chunk_logits(teacher, *args)[1]
    chunk = Chunk(
      z_s=z_s,
      teacher=teacher,
      labels=None if labels is None else read(labels),
      soft_scale=read(soft_scale),
      hard_scale=read(hard_scale),
      inv_t=1 / ops.temperature,
      offset=offset,
      consts=ops.consts,
    )
    dtype = operand_dtype(student) if grad else None
    d, ce, dz = row_function(spec, chunk, dtype)
    soft, hard = write(soft, d), write(hard, ce)
    if grad and isinstance(student, Head):
      last = start == n - c
      grads = add_head_gradient(plan, student, grads, write, h, dz, fresh, last)
    elif grad:
      grads = Logits(write(grads.values, dz), student.vocab_size)
    return soft, hard, grads

  soft, hard, grads = over_chunks(n, c, body, init)
  if narrow:  # all plans alike (on_platform); see Plan.halves
    dw = grads.kernel[0] if plan.halves else grads.kernel
    grads = dataclasses.replace(grads, kernel=dw.astype(jnp.bfloat16))
  soft = jnp.where(alive, ops.temperature**2 * soft, 0)
  hard = jnp.where(alive, hard, 0)
  if bad_ids is not None:
    soft = jnp.where(bad_ids, jnp.nan, soft)
  if bad_label is not None:
    hard = jnp.where(bad_label, jnp.nan, hard)
  each = ops.soft_weight * soft + ops.hard_weight * hard
  loss = jnp.where(alive, ops.weights * each, 0).sum()
  # All plans must return the same types (on_platform): a constant hard term,
  # say, would vary over no mesh axis.
  return vary((loss, Rows(soft, hard), grads), varying((student, ops)))


def mask_topk(teacher: TopK, usable) -> TopK:
  """Returns the chunk with harmless ids and log-probabilities elsewhere."""
  k = jnp.arange(teacher.ids.shape[1], dtype=teacher.ids.dtype)
  ids = jnp.where(usable[:, None], teacher.ids, k)
  lp = jnp.where(usable[:, None], teacher.log_probs.astype(f32), 0)
  return TopK(ids, jnp.maximum(lp, tile.FLOOR), teacher.tail)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def loss_and_rows(plans, spec: Spec, student, ops: Operands):
  """Returns this shard's share of (loss, rows); the value alone.

  Differentiable in the student. Everything in `ops` is constant: it gets no
  cotangent, whether or not it was traced.
  """
  fn = lambda plan, *args: run(plan, spec, *args, grad=False)[:2]
  return on_platform(plans, fn, student, ops)


def _fwd(plans, spec, student, ops):
  fn = lambda plan, *args: run(plan, spec, *args, grad=True)
  loss, rows, grads = on_platform(plans, fn, student, ops)
  # Arrays of size 0 carry the dtypes: the student itself need not be kept.
  dtypes = jax.tree.map(lambda x: jnp.zeros((0,), x.dtype), student)
  return (loss, rows), (grads, dtypes)


def _bwd(plans, spec, residuals, cotangents):
  del plans, spec
  grads, dtypes = residuals
  scale = cotangents[0]  # rows carry no gradients
  scaled = lambda g, x: (scale * g.astype(f32)).astype(x.dtype)
  return jax.tree.map(scaled, grads, dtypes), None


loss_and_rows.defvjp(_fwd, _bwd)
