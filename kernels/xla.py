"""Row functions in plain XLA: for CPUs, older GPUs, and wherever else.

Two ways to the same numbers. `stash=True` (CPU): max and sum apart, and the
exponentials of the first pass are kept for q and p; a chunk sits in cache and
exp is what costs. `stash=False` (accelerators): max and sum of student and
teacher in one variadic lax.reduce and nothing kept; memory traffic is what
costs: 7 N V b in three sweeps (statistics; D and U = sum u; dz), labels and
all, where plain JAX takes 9 to 12 (compiled for TPU: kernels.report.traffic).
5 is what forward KL alone can do, for which U is known to be -1. On this CPU
the variadic reduce takes 6.9 ms per 2.1M elements, max and a stashed exp with
its sum 0.56 ms.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels import chunked, tile

f32 = jnp.float32
LANES = 256  # of the first level of a sum
BLOCK = 1 << 18  # numbers of a row block in cache


class Softmax(NamedTuple):
  """log_p = x - m - log s, p = exp(log_p), lse = m + log s, fix = its error."""

  log_p: jax.Array
  p: jax.Array
  lse: jax.Array  # [C, 1]
  fix: jax.Array  # [C, 1]


def row_sum(x, stash: bool = True):
  """Returns sum_v x [C, 1]; on a CPU (`stash`) in two levels.

  One running sum of 65,536 terms can be off by 4e-6, which shows in D at high
  T. Accelerators sum in many lanes anyway, and might copy for the reshape.
  """
  v = x.shape[1]
  main = v // LANES * LANES
  if v < 2 * LANES or not stash:
    return x.sum(1, keepdims=True)
  blocks = x[:, :main].reshape(len(x), -1, LANES).sum(1)
  total = blocks.sum(1, keepdims=True)
  return total if main == v else total + x[:, main:].sum(1, keepdims=True)


def row_sums(a, b, stash: bool):
  """Returns the sums over V of two arrays, [C, 1].

  On GPUs as those of one complex array: of two reductions, or of a variadic
  one, XLA there makes several consumers of what a and b share, and writes
  logarithms out for them (JSD, compiled for H100: 18 NV b, so 7).
  """

  def apart(a, b):
    return row_sum(a, stash), row_sum(b, stash)

  def at_once(a, b):
    both = lax.complex(a, b).sum(1, keepdims=True)
    return both.real, both.imag

  if stash:
    return apart(a, b)
  gpus = dict(cuda=at_once, rocm=at_once)
  return lax.platform_dependent(a, b, default=apart, **gpus)


def row_max(x):
  """Returns max_v x [C, 1], finite unless an x is NaN or +inf."""
  return jnp.maximum(x.max(1, keepdims=True), tile.FLOOR)


def online_max_sum(*xs):
  """Returns [(max, sum exp(x - max))] of each x, [C, 1], in one pass."""

  def combine(a, b):
    out = []
    for m_a, s_a, m_b, s_b in zip(
      a[::2], a[1::2], b[::2], b[1::2], strict=True
    ):
      m = jnp.maximum(m_a, m_b)
      out += [m, s_a * jnp.exp(m_a - m) + s_b * jnp.exp(m_b - m)]
    return tuple(out)

  operands = [o for x in xs for o in (x, jnp.ones_like(x))]
  init = [f32(tile.FLOOR), f32(0)] * len(xs)
  out = lax.reduce(tuple(operands), tuple(init), combine, (1,))
  out = [o[:, None] for o in out]
  return list(zip(out[::2], out[1::2], strict=True))


class Norm(NamedTuple):
  """What a softmax divides by: log_p = (x - m) - log_s."""

  m: jax.Array  # [C, 1], as are the next three
  s: jax.Array
  log_s: jax.Array
  fix: jax.Array
  exps: jax.Array | None  # [C, V] exp(x - m), if kept


def norms(xs, axis: str | None, stash: bool) -> list[Norm]:
  """Returns the normaliser of each x [C, V], over all shards of `axis`."""
  if not xs:
    return []
  exps = [None] * len(xs)
  if stash:
    maxima = [row_max(x) for x in xs]
    maxima = [lax.pmax(m, axis) for m in maxima] if axis else maxima
    # x itself may hold -inf; only log_p is floored, where that costs no pass.
    exps = [jnp.exp(x - m) for x, m in zip(xs, maxima, strict=True)]
    sums = [row_sum(e) for e in exps]
  else:
    stats = online_max_sum(*(jnp.maximum(x, tile.FLOOR) for x in xs))
    local = [m for m, _ in stats]
    maxima = [lax.pmax(m, axis) for m in local] if axis else local
    sums = [
      s * jnp.exp(m - top) for (m, s), top in zip(stats, maxima, strict=True)
    ]
  sums = lax.psum(sums, axis) if axis else sums
  sums = [jnp.maximum(s, tile.TINY) for s in sums]  # all -inf: no NaN, p = 0
  return [
    Norm(m, s, *tile.split_log(s), e)
    for m, s, e in zip(maxima, sums, exps, strict=True)
  ]


def softmax_of(x, norm: Norm) -> Softmax:
  x = x if norm.exps is not None else jnp.maximum(x, tile.FLOOR)
  log_p = jnp.maximum((x - norm.m) - norm.log_s, tile.FLOOR)
  p = jnp.exp(log_p) if norm.exps is None else norm.exps * (1 / norm.s)
  return Softmax(log_p, p, norm.m + norm.log_s, norm.fix)


def softmaxes(xs, axis: str | None, stash: bool) -> list[Softmax]:
  """Returns the softmax over V of each x [C, V]; over all shards of `axis`."""
  return list(map(softmax_of, xs, norms(xs, axis, stash)))


def log_sum_exp(x, axis: str | None, stash: bool):
  """Returns the lse [C, 1] of x over V, over all shards of `axis`."""
  if stash:
    m = row_max(x)
    s = row_sum(jnp.exp(x - m))
  else:
    ((m, s),) = online_max_sum(jnp.maximum(x, tile.FLOOR))
  if axis:
    top = lax.pmax(m, axis)
    m, s = top, lax.psum(s * jnp.exp(m - top), axis)
  hi, lo = tile.split_log(jnp.maximum(s, tile.TINY))
  return (m + hi) + lo


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
    args = (spec.phi, chunk.consts, a.log_p, b.log_p, a.p, b.p)
    return a, b, *tile.terms(*args)

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
  return d, ce, dz.astype(dtype)


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
  value, u = tile.terms(spec.phi, chunk.consts, lq, lp, q, jnp.exp(lp))
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
  return d, ce, dz.astype(dtype)


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
  init = chunked.vary((zeros, zeros, dz), chunked.varying(chunk))

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
  if not isinstance(student, chunked.Head):
    return n
  return max(256, (1 << 26) // v // 128 * 128)


def _rows(rows, stash: bool):
  rows = functools.partial(rows, stash=stash)
  return functools.partial(in_blocks, rows) if stash else rows


CPU = chunked.Plan(
  rows=_rows(dense_rows, True),
  topk_rows=_rows(topk_rows, True),
  rule=cpu_rule,
  width=cpu_width,
  stash=True,
)
ACCELERATOR = chunked.Plan(
  rows=_rows(dense_rows, False),
  topk_rows=_rows(topk_rows, False),
  rule=accelerator_rule,
  logits_dtype=None,
)
