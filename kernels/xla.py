"""Row functions in plain XLA: for CPUs, older GPUs, and wherever else.

Two ways to the same numbers. `stash=True` (CPU): max and sum apart, and the
exponentials of the first pass are kept for q and p; a chunk sits in cache and
exp is what costs. `stash=False` (accelerators): max and sum of student and
teacher in one variadic lax.reduce and nothing kept; memory traffic is what
costs: 7 N V b in three sweeps (statistics; D and U = sum u; dz), labels and
all, where plain JAX takes 9 to 12 (compiled for TPU: kernels.report.traffic).
5 is what forward KL alone can do, for which U is known to be -1.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernels import chunked, tile
from kernels.plan import Plan, vary, varying
from kernels.softmax import Softmax, norms, row_sums, softmax_of, softmaxes
from kernels.types import Head

f32 = jnp.float32
BLOCK = 1 << 18  # numbers of a row block in cache


def columns(chunk, v: int):
  """Returns the global ids of the columns, [1, V]."""
  return chunk.offset + lax.broadcasted_iota(jnp.int32, (1, v), 1)


def valid_columns(spec, chunk):
  """Returns [1, V] bool, or None where no column is padding."""
  v = chunk.z_s.shape[1]
  shards = lax.axis_size(spec.vocab_axis) if spec.vocab_axis else 1
  if spec.vocab_size == v * shards:
    return None
  return columns(chunk, v) < spec.vocab_size


def share(x, axis: str | None):
  """Returns x on the first shard, 0 on the others: what is added up once."""
  return x if axis is None else jnp.where(lax.axis_index(axis) == 0, x, 0.0)


def pick(z, ids, offset, inv_t):
  """Returns (x = z / T at global ids [C, K], which of them are on this shard).

  Gathered before scaling, so that no scaled copy of [C, V] is written; 0 where
  the id is another shard's.
  """
  local = ids - offset
  here = (local >= 0) & (local < z.shape[1])
  z = jnp.take_along_axis(z, jnp.where(here, local, 0), 1)
  x = jnp.maximum(tile.scaled(z, inv_t), tile.FLOOR)
  return jnp.where(here, x, 0.0), here


def fitted(z, v: int):
  """Returns z [C, V'] with v columns: padding columns dropped or added."""
  missing = v - z.shape[1]
  if missing > 0:
    return jnp.pad(z, ((0, 0), (0, missing)))
  return z[:, :v] if missing else z


def through_cap(spec, z, dz):
  """Returns dloss/d(scale y) from dloss/dz, see `types.Head`."""
  if spec.soft_cap is None:
    return dz
  return dz * tile.cap_slope(z, spec.soft_cap)


def hard_term(spec, chunk, z, soft: Softmax, stash: bool):
  """Returns (CE [C], softmax [C, V], onehot [C, V]) at T = 1."""
  labels = chunk.labels[:, None]
  onehot = columns(chunk, z.shape[1]) == labels
  if stash:  # a gather of C numbers beats a sweep on a CPU
    z_label, _ = pick(chunk.z_s, labels, chunk.offset, 1.0)
  else:
    z_label = jnp.where(onehot, z, 0.0).sum(1, keepdims=True)
  ce = share(soft.lse + soft.fix, spec.vocab_axis) - z_label
  if not spec.hard_slope:
    return ce[:, 0], None, None
  return ce[:, 0], soft.p, onehot.astype(f32)


def dense_rows(spec, chunk, dtype, *, stash: bool):
  """Row function for Head and Logits teachers, or none."""
  axis = spec.vocab_axis
  valid = valid_columns(spec, chunk)
  inv_t = 1.0 if spec.unit_temperature else chunk.inv_t
  zero = jnp.zeros(chunk.z_s.shape[0], f32)
  d, ce, total = zero, zero, None
  softmax = onehot = u = q = None
  student: Any = None
  if spec.phi is not None:
    chunk = dataclasses.replace(
      chunk, teacher=fitted(chunk.teacher, chunk.z_s.shape[1])
    )
  hard_z = tile.scaled(chunk.z_s, 1.0, valid)
  xs = []
  if spec.phi is not None:
    xs = [tile.scaled(z, inv_t, valid) for z in (chunk.z_s, chunk.teacher)]
  own = spec.hard and not (xs and spec.unit_temperature)
  # All at once, for one sweep where `online_max_sum` makes them.
  every = norms(xs + [hard_z] * own, axis, stash)

  def soft_terms(z_s, z_t):
    """Returns (the student's softmax, the teacher's, phi, u)."""
    xs = [tile.scaled(z, inv_t, valid) for z in (z_s, z_t)]
    a, b = map(softmax_of, xs, every[:2])
    args = (chunk.consts, a.log_p, b.log_p, a.p, b.p)
    return a, b, *spec.phi.terms(*args)

  if spec.phi is not None:
    student, teacher, value, u = soft_terms(chunk.z_s, chunk.teacher)
    q = student.p
    d, total = row_sums(value, u, stash)
    # First-order correction for log s (tile.split_log). dD/dlp = D - U for
    # every phi that is homogeneous in (q, p), as f-divergences are; for others
    # this is of the order of the rounding that it corrects.
    d = (d - total * student.fix - (d - total) * teacher.fix)[:, 0]
    total = lax.psum(total, axis) if axis else total
  if spec.hard:
    hard = softmax_of(hard_z, every[-1]) if own else student
    ce, softmax, onehot = hard_term(spec, chunk, hard_z, hard, stash)
  if dtype is None or (u is None and softmax is None):
    dz = None if dtype is None else jnp.zeros(chunk.z_s.shape, dtype)
    return d, ce, dz
  if u is not None and not stash:
    # u and q again, behind a barrier: left alone, XLA may keep u in float32,
    # [C, V] through memory twice (compiled for tpu7x: 10 NV b instead of 7).
    *z, total = lax.optimization_barrier((chunk.z_s, chunk.teacher, total))
    student, _, _, u = soft_terms(*z)
    q = student.p
  scales = (chunk.soft_scale[:, None], chunk.hard_scale[:, None])
  dz = tile.gradient(u, q, total, scales[0], softmax, onehot, scales[1])
  return d, ce, through_cap(spec, chunk.z_s, dz).astype(dtype)


def topk_rows(spec, chunk, dtype, *, stash: bool):
  """Row function for TopK teachers.

  Bucket: with r the rest's lse, D = sum_k phi(lq_k, lp_k) + phi(r - lse, lp_r),
  dx_v = u_v - q_v U at the K ids and q_v (u_r / q_r - U) elsewhere, U including
  u_r. Renormalize: dx_v = u_v - q_v U at the K ids, 0 elsewhere.
  """
  axis = spec.vocab_axis
  z, topk = chunk.z_s, chunk.teacher
  c, v = z.shape
  valid = valid_columns(spec, chunk)
  x = tile.scaled(z, chunk.inv_t, valid)
  x_k, here = pick(z, topk.ids, chunk.offset, chunk.inv_t)
  x_k = lax.psum(x_k, axis) if axis else x_k
  index = jnp.arange(c)[:, None], jnp.where(here, topk.ids - chunk.offset, v)
  put = lambda a, values: a.at[index].set(values, mode="drop")

  lp = topk.log_probs
  bucket = topk.tail == "bucket"
  if bucket:
    rest = put(x, tile.FLOOR)
    (rest,) = softmaxes([rest], axis, stash)
    lse_r = rest.lse + rest.fix
    lp_r = tile.log_rest(lp)
    empty = (lse_r < tile.DEAD) & (lp_r < -13.8)  # K = V: p_r is rounding
    x_k = jnp.concatenate([x_k, lse_r], 1)
    lp = jnp.concatenate([lp, jnp.where(empty, tile.FLOOR, lp_r)], 1)
  else:
    lp = jax.nn.log_softmax(lp)
  lq = jax.nn.log_softmax(x_k)
  q = jnp.exp(lq)
  value, u = spec.phi.terms(chunk.consts, lq, lp, q, jnp.exp(lp))
  d = share(value.sum(1), axis)
  total = u.sum(1, keepdims=True)
  ce = jnp.zeros(c, f32)
  softmax = onehot = None
  if spec.hard:
    hard_z = tile.scaled(z, 1.0, valid)
    (hard,) = softmaxes([hard_z], axis, stash)
    ce, softmax, onehot = hard_term(spec, chunk, hard_z, hard, stash)
  if dtype is None:
    return d, ce, None
  dx_k = u - q * total
  k = topk.ids.shape[1]
  dx = rest.p * dx_k[:, k:] if bucket else jnp.zeros_like(x)
  dz = chunk.soft_scale[:, None] * put(dx, dx_k[:, :k])
  if softmax is not None:
    dz = dz + chunk.hard_scale[:, None] * (softmax - onehot)
  return d, ce, through_cap(spec, z, dz).astype(dtype)


def in_blocks(rows, spec, chunk, dtype):
  """Applies a row function to a few of a chunk's rows at a time.

  GEMMs want many rows, the sweeps over a row want it in cache: about 2^18
  numbers, 1 MiB. (Forward KL, 128 x 65536, ms: 28 at 2 rows, 24 at 4, 22 at 8,
  25 at 16, 43 at 32, 57 at 128.) dz overwrites z_s, which halves the memory of
  a chunk next to z_t.
  """
  c, v = chunk.z_s.shape
  block = max(1, BLOCK // v)
  if c <= block or spec.vocab_axis is not None:
    return rows(spec, chunk, dtype)
  in_place = dtype == chunk.z_s.dtype and c % block == 0
  zeros = jnp.zeros(c, f32)
  dz = None
  if dtype is not None:
    dz = chunk.z_s if in_place else jnp.zeros((c, v), dtype)
  init = vary((zeros, zeros, dz), varying(chunk))

  def body(carry, start, fresh):
    del fresh
    read, write = chunked.at(start, block, c)
    # The barrier makes XLA copy the block. Otherwise its consumers read the
    # whole carry, and the update in place becomes a copy of [C, V] per block.
    z_s, teacher = lax.optimization_barrier(
      jax.tree.map(read, (carry[2] if in_place else chunk.z_s, chunk.teacher))
    )
    part = dataclasses.replace(
      chunk,
      z_s=z_s,
      teacher=teacher,
      labels=None if chunk.labels is None else read(chunk.labels),
      soft_scale=read(chunk.soft_scale),
      hard_scale=read(chunk.hard_scale),
    )
    new = rows(spec, part, dtype)
    return tuple(
      None if old is None else write(old, x)
      for old, x in zip(carry, new, strict=True)
    )

  return chunked.over_chunks(c, block, body, init)


def cpu_rule(n: int, v: int, student, teacher) -> int:
  """Returns C for a CPU: 2^24 logits, 64 MiB for each model.

  GEMMs gain from more rows, memory says stop: 133 MiB of temporaries is a tenth
  of what naive JAX takes on the shapes below. CPU seconds (both cores) of
  value_and_grad of forward KL;
  N, H_s, H_t, V; naive JAX; C = 32 / 64 / 128 / 256:
  1024, 64, 64, 65536; 1.42; 0.79 / 0.69 / 0.64 / 0.65
  512, 128, 256, 131072; 2.70; 1.90 / 1.48 / 1.33 / -
  1024, 512, 1024, 65536; 4.90; - / 5.03 / 4.33 / 3.89
  """
  block = max(1, BLOCK // v)  # a multiple, so that dz can overwrite z_s
  return max(block, (1 << 24) // v // block * block)


def cpu_width(h: int, v: int) -> int:
  """Returns the columns of dW to accumulate at a time on a CPU.

  dW of 512 rows in chunks of 128, ms whole / by 4096 / by 16384 columns:
  H 64, V 65536 37 / 77 / 60; H 128, V 131072 243 / 157 / 156; H 512, V 65536
  308 / 350 / 282. So whole while dW is within the last-level cache.
  """
  return v if h * v * 4 <= 1 << 25 else 1 << 14


def accelerator_rule(n: int, v: int, student, teacher) -> int:
  """Returns C where [C, V] lies in device memory: about 256 MiB of float32.

  Given logits are not chunked: their gradient has their size anyway.
  """
  del teacher
  if not isinstance(student, Head):
    return n
  return max(256, (1 << 26) // v // 128 * 128)


def _rows(rows, stash: bool):
  rows = functools.partial(rows, stash=stash)
  return functools.partial(in_blocks, rows) if stash else rows


CPU = Plan(
  rows=_rows(dense_rows, True),
  topk_rows=_rows(topk_rows, True),
  rule=cpu_rule,
  width=cpu_width,
  stash=True,
)
ACCELERATOR = Plan(
  rows=_rows(dense_rows, False),
  topk_rows=_rows(topk_rows, False),
  rule=accelerator_rule,
  logits_dtype=None,
)
