"""The TPU kernel itself: four sweeps over rows that lie in VMEM.

    0  m = max z
    1  x = c z - c m, s = sum 2^x                  c = log2(e) / T; x is kept
    2  log2 q = x - log2 s, D = sum phi, U = sum u; q and u are kept
    3  dz = k (u - q U) + k_hard (softmax - onehot)

Sums are per lane, [rows, 128], and cross lanes once per row. The one-hot is not
compared in every lane: the 128 lanes that hold a row's label are written twice.
Wrapper, block sizes and plans: kernels.tpu.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import algebra, tile

f32 = jnp.float32
LANES = 128
LOG2E = math.log2(math.e)
LN2 = math.log(2)
LOW = tile.DEAD  # least logit: whatever was masked is equal on both sides


def padded(v: int) -> int:
  return -(-v // LANES) * LANES


@dataclasses.dataclass(frozen=True)
class Kernel:
  """What is static about one kernel.

  Attributes:
    phi, hard, unit_temperature: as in `scan.Spec`.
    hard_slope: as in `scan.Spec`, and a gradient is wanted.
    shapes: of phi's constants, each of size 1.
    vocab: the true V; columns beyond it are padding.
    grad: whether dz is wanted.
    guard: whether rows of weight 0 may hold NaN.
    select: whether phi or u may be other than 0 where both sides are masked.
    rows: of a block.
    stash: how many [rows, V] float32 arrays there are for x_s, x_t, q and u: 4,
      or 2 (q and u overwrite x), or 0 (all is computed again).
    narrow: whether maxima are taken in the logits' dtype.
    steps: of `Generation`.
    block: V lanes per grid step in phases; 0 means that rows are resident.
  """

  phi: tile.Phi | None
  hard: bool
  hard_slope: bool
  unit_temperature: bool
  shapes: tuple[tuple[int, ...], ...]
  vocab: int
  grad: bool
  guard: bool
  select: bool
  rows: int = 16
  stash: int = 0
  narrow: bool = False
  steps: tuple[tuple[int, int], ...] = ()
  block: int = 0

  @property
  def soft(self) -> bool:
    return self.phi is not None

  @property
  def second(self) -> bool:
    """Whether CE needs a softmax at T = 1 of its own."""
    return self.hard and self.soft and not self.unit_temperature


class Refs:
  """A kernel's references by name; None where there is none."""

  def __init__(self, kernel: Kernel, refs):
    refs = list(refs)

    def take(wanted) -> Any:
      return refs.pop(0) if wanted else None

    self.info = take(True)  # [rows, 4]: label, k, k_hard, alive
    self.scalars = take(True)  # [1, 1 + number of constants]: 1/T, constants
    self.z_s = take(True)
    self.z_t = take(kernel.soft)
    self.out = take(True)  # [rows, 128], see OUT
    self.dz = take(kernel.grad)
    self.x_s = self.q = take(kernel.stash)
    self.x_t = self.u = take(kernel.stash)
    if kernel.stash == 4:
      self.q, self.u = take(True), take(True)
    self.state = take(kernel.block)  # [STATE, rows, 128]


OUT = ("d", "total", "m_s", "s_s", "l_s", "m_t", "s_t", "l_t", "s_1", "z_l")


class Stats:
  """Row statistics [rows, 1]: maxima of z, sums, their log2."""

  m_s: Any = None
  s_s: Any = None
  l_s: Any = None
  m_t: Any = None
  s_t: Any = None
  l_t: Any = None
  s_1: Any = None


def fold(x, op, width=LANES):
  """Returns [rows, width]: op over the groups of that many lanes of x."""
  parts = [x[:, i : i + width] for i in range(0, x.shape[1], width)]
  while len(parts) > 1:
    half = len(parts) // 2
    pairs = [op(parts[2 * i], parts[2 * i + 1]) for i in range(half)]
    parts = pairs + parts[2 * half :]
  return parts[0]


def row_sum(x):
  return x.sum(1, keepdims=True)


def lanes_of(x):
  return lax.broadcasted_iota(jnp.int32, x.shape, 1)


def load(kernel: Kernel, ref, at, valid, floor=True):
  """Returns z [rows, lanes], LOW from lane `valid` on (None: all valid).

  Unless not `floor`, what is lower (-inf, -1e30) becomes LOW. A TPU that
  computes in bfloat16 does that before widening, two numbers at a time.
  """
  z = ref[:, at]
  low = jnp.asarray(LOW, z.dtype)
  if floor and kernel.narrow:
    z = jnp.maximum(z, low)
  z = z.astype(f32)
  if floor and not kernel.narrow:
    z = jnp.maximum(z, low.astype(f32))
  if valid is None:
    return z
  return jnp.where(lanes_of(z) < valid, z, low.astype(f32))


def sweep(kernel: Kernel, index: int, body, init, limit=None):
  """Folds body(carry, lanes, valid) over V lanes.

  Args:
    index: which sweep, for its steps.
    body: `lanes` is a slice of V, `valid` None or how many of its lanes exist.
    limit: in phases, how many lanes of the grid's block exist (traced).
  """
  step, part = (n * 1024 // kernel.rows for n in kernel.steps[index])
  columns = kernel.vocab if limit is None else kernel.block
  steps, start = columns // step, columns // step * step

  def run(i, carry):
    for offset in range(0, step, part):
      at = i * step + offset
      valid = None if limit is None else limit - at
      carry = body(carry, pl.ds(pl.multiple_of(at, LANES), part), valid)
    return carry

  carry = lax.fori_loop(0, steps, run, init) if steps else init
  whole, ragged = columns // LANES * LANES, columns % LANES
  for at in range(start, whole, part):
    valid = None if limit is None else limit - at
    carry = body(carry, pl.ds(at, min(part, whole - at)), valid)
  return body(carry, pl.ds(whole, LANES), ragged) if ragged else carry


def maxima(kernel: Kernel, refs: Refs, limit=None):
  """Sweep 0: returns (max z_s, max z_t or None), [rows, 1]."""
  models = [refs.z_s, refs.z_t] if kernel.soft else [refs.z_s]
  dtypes = [r.dtype if kernel.narrow else f32 for r in models]
  width = 2 * LANES if kernel.narrow else LANES

  def body(carry, at, valid):
    out = []
    for top, ref, dtype in zip(carry, models, dtypes, strict=True):
      z = ref[:, at].astype(dtype)
      if valid is not None:
        z = load(kernel, ref, at, valid).astype(dtype)
      if z.shape[1] % width:
        z = jnp.concatenate([z, z[:, -LANES:]], 1)
      out.append(jnp.maximum(top, fold(z, jnp.maximum, width)))
    return tuple(out)

  init = tuple(jnp.full((kernel.rows, width), LOW, d) for d in dtypes)
  out = sweep(kernel, 0, body, init, limit)
  out = [x.astype(f32).max(1, keepdims=True) for x in out]
  return (*out, None)[:2]


def scale_of(kernel: Kernel, inv_t):
  """Returns c = log2(e) / T of the first softmax."""
  if kernel.unit_temperature or not kernel.soft:
    return LOG2E
  return inv_t * LOG2E


def sums(kernel: Kernel, refs: Refs, stats: Stats, inv_t, limit=None):
  """Sweep 1: returns lane sums of 2^x, x = c (z - max z); keeps x."""
  c = scale_of(kernel, inv_t)
  top_s = stats.m_s * c
  top_1 = stats.m_s * LOG2E
  top_t = stats.m_t * c if kernel.soft else None

  def body(carry, at, valid):
    z_s = load(kernel, refs.z_s, at, valid)
    x_s = z_s * c - top_s
    new = [jnp.exp2(x_s)]
    if kernel.soft:
      x_t = load(kernel, refs.z_t, at, valid) * c - top_t
      new.append(jnp.exp2(x_t))
      if kernel.stash:
        refs.x_s[:, at], refs.x_t[:, at] = x_s, x_t
    if kernel.second:
      new.append(jnp.exp2(z_s * LOG2E - top_1))
    return tuple(a + fold(e, jnp.add) for a, e in zip(carry, new, strict=True))

  zero = jnp.zeros((kernel.rows, LANES), f32)
  init = (zero,) * (1 + kernel.soft + kernel.second)
  return sweep(kernel, 1, body, init, limit)


def pair(kernel: Kernel, refs: Refs, stats: Stats, inv_t, at, valid):
  """Returns (log2 q, log2 p, q, p) of a slice."""
  c = scale_of(kernel, inv_t)
  if kernel.stash:
    log_q, log_p = refs.x_s[:, at] - stats.l_s, refs.x_t[:, at] - stats.l_t
  else:
    z_s = load(kernel, refs.z_s, at, valid)
    z_t = load(kernel, refs.z_t, at, valid)
    log_q = z_s * c - (stats.m_s * c + stats.l_s)
    log_p = z_t * c - (stats.m_t * c + stats.l_t)
  return log_q, log_p, jnp.exp2(log_q), jnp.exp2(log_p)


def reciprocal(x):
  """Returns 1 / x, x normal: the unit's approximation and a Newton step.

  A division is a dozen vector operations. The step squares the relative error:
  1.5e-5 even if the approximation were good to 8 bits only, as interpret mode
  has it.
  """
  r = pltpu.reciprocal(x, approx=True)
  return r * (2.0 - x * r)


def terms(kernel: Kernel, consts, parts, valid):
  """Returns (factor, phi / factor), (factor, u / factor); 0 where masked.

  The factors are Python numbers, see kernels.algebra. u is None if no gradient
  is wanted.
  """
  log_q, log_p, q, p = parts
  logs = [algebra.Value(LN2, x, -1e27, 1e-3) for x in (log_q, log_p)]
  args: Any = (kernel.phi, consts, *logs, q, p, reciprocal)
  if kernel.grad:
    new = algebra.value_and_slope(*args)
  else:
    new = (algebra.value(*args),)
  out = []
  for v in new:
    factor, x = (v.factor, v.x) if v.x is not None else (1.0, None)
    x = algebra.array(v, q) if x is None else x
    if kernel.select:
      x = jnp.where(jnp.maximum(log_q, log_p) > 0.5 * LOW, x, 0.0)
    if valid is not None:
      x = jnp.where(lanes_of(x) < valid, x, 0.0)
    out.append((factor, x))
  return out[0], out[1] if kernel.grad else (1.0, None)


def divergences(
  kernel: Kernel, refs: Refs, stats: Stats, inv_t, consts, limit=None
):
  """Sweep 2: returns [D, U or none], [rows, 1]; keeps q and u.

  Also returns the constant factor that the kept u lacks. Where u is a multiple
  of q or p (forward KL), U is that factor, as both sum to 1.
  """
  traced = {}  # what body finds out

  def body(carry, at, valid):
    parts = pair(kernel, refs, stats, inv_t, at, valid)
    (f_d, value), (f_u, u) = terms(kernel, consts, parts, valid)
    same = u is not None and (u is parts[2] or u is parts[3])
    if valid is None or not traced:
      traced.update(factors=(f_d, f_u), normalised=same and limit is None)
    if kernel.grad and kernel.stash:
      refs.q[:, at], refs.u[:, at] = parts[2], u
    new = [value] if u is None else [value, None if same else u]
    return tuple(
      a if x is None else a + fold(x, jnp.add)
      for a, x in zip(carry, new, strict=True)
    )

  zero = jnp.zeros((kernel.rows, LANES), f32)
  out = sweep(kernel, 2, body, (zero,) * (1 + kernel.grad), limit)
  factors = traced["factors"]
  out = [row_sum(x) * f for x, f in zip(out, factors, strict=False)]
  if traced["normalised"]:
    out[1] = jnp.full((kernel.rows, 1), factors[1], f32)
  return out, factors[1]


def slopes(
  kernel: Kernel, refs: Refs, stats: Stats, inv_t, consts, total, factor,
  base=0, limit=None,
):  # fmt: skip
  """Sweep 3: writes dz; then again, with the one-hot, where labels are.

  Args:
    total: U [rows, 1], or None.
    factor: what the kept u must be multiplied by.
    base, limit: in phases, the first column of the block, and `sweep`.
  """
  k, k_hard = refs.info[:, 1:2], refs.info[:, 2:3]
  alive = refs.info[:, 3:4] != 0
  c = scale_of(kernel, inv_t)
  shared = kernel.hard_slope and not kernel.second
  on_q = k_hard if shared else jnp.zeros_like(k)
  if kernel.soft:
    on_q = on_q - k * total
  if not kernel.soft:
    on_q = on_q / stats.s_s
  if kernel.second:
    top_1, on_1 = stats.m_s * LOG2E, k_hard / stats.s_1
  labels = refs.info[:, 0:1].astype(jnp.int32) - base

  def write(at, valid, onehot=None):
    if kernel.stash:
      q, f, u = refs.q[:, at], factor, refs.u[:, at]
    elif kernel.soft:
      parts = pair(kernel, refs, stats, inv_t, at, valid)
      q, (f, u) = parts[2], terms(kernel, consts, parts, valid)[1]
    else:
      z = load(kernel, refs.z_s, at, valid)
      q, u = jnp.exp2(z * c - stats.m_s * c), None
    dz = on_q * q if u is None else (k * f) * u + on_q * q
    if kernel.second and kernel.hard_slope:
      z = load(kernel, refs.z_s, at, valid, floor=False)
      dz = dz + on_1 * jnp.exp2(z * LOG2E - top_1)
    if onehot is not None:
      dz = dz - jnp.where(onehot, k_hard, 0.0)
    if kernel.guard:
      dz = jnp.where(alive, dz, 0.0)
    refs.dz[:, at] = dz.astype(refs.dz.dtype)

  sweep(kernel, 3, lambda _, at, valid: write(at, valid), None, limit)
  if kernel.hard_slope:
    for start, at, valid in label_blocks(kernel, refs, base, limit):
      write(at, valid, start + lanes_of(refs.out) == labels)
  if not kernel.block:  # padding columns
    for start in range(padded(kernel.vocab), refs.dz.shape[1], LANES):
      zeros = jnp.zeros((kernel.rows, LANES), refs.dz.dtype)
      refs.dz[:, pl.ds(start, LANES)] = zeros


def label_blocks(kernel: Kernel, refs: Refs, base=0, limit=None):
  """Yields (start, lanes, valid) of the 128 lanes that hold a row's label."""
  columns = kernel.vocab if limit is None else kernel.block
  for row in range(kernel.rows):
    label = refs.info[row : row + 1, 0:1].max().astype(jnp.int32) - base
    start = jnp.clip(label, 0, columns - 1) & -LANES
    start = pl.multiple_of(start, LANES)
    total = kernel.vocab if limit is None else limit
    yield start, pl.ds(start, LANES), total - start


def label_logits(kernel: Kernel, refs: Refs, base=0, limit=None):
  """Returns the label's z in its own lane, else 0: [rows, 128]."""
  out = jnp.zeros((kernel.rows, LANES), f32)
  rows = lax.broadcasted_iota(jnp.int32, out.shape, 0)
  labels = refs.info[:, 0:1].astype(jnp.int32) - base
  blocks = label_blocks(kernel, refs, base, limit)
  for row, (start, at, _) in enumerate(blocks):
    here = (rows == row) & (start + lanes_of(out) == labels)
    out = out + jnp.where(here, refs.z_s[:, at].astype(f32), 0.0)
  return out


def set_stats(kernel: Kernel, stats: Stats, lane_sums):
  """Fills in s and log2 s from lane sums."""
  totals = [jnp.maximum(row_sum(x), tile.TINY) for x in lane_sums]
  stats.s_s = totals.pop(0)
  stats.l_s = jnp.log2(stats.s_s)
  if kernel.soft:
    stats.s_t = totals.pop(0)
    stats.l_t = jnp.log2(stats.s_t)
  stats.s_1 = totals.pop(0) if kernel.second else stats.s_s


def write_out(refs: Refs, stats: Stats, **columns):
  columns = {**vars(stats), **columns}
  lane = lanes_of(refs.out)
  out = jnp.zeros(refs.out.shape, f32)
  for i, name in enumerate(OUT):
    if columns.get(name) is not None:
      out = jnp.where(lane == i, columns[name], out)
  refs.out[...] = out


def scalars_of(kernel: Kernel, refs: Refs):
  """Returns (1/T, phi's constants)."""
  read = lambda i: refs.scalars[0:1, i : i + 1].max()
  consts = [read(1 + i) for i in range(len(kernel.shapes))]
  consts = [
    jnp.full(s, c) if s else c
    for c, s in zip(consts, kernel.shapes, strict=True)
  ]
  return read(0), consts


def resident(kernel: Kernel, *refs):
  """The kernel for rows that fit: all sweeps in one grid step."""
  refs = Refs(kernel, refs)
  inv_t, consts = scalars_of(kernel, refs)
  stats = Stats()
  stats.m_s, stats.m_t = maxima(kernel, refs)
  set_stats(kernel, stats, sums(kernel, refs, stats, inv_t))
  columns = {}
  factor = None
  if kernel.soft:
    out, factor = divergences(kernel, refs, stats, inv_t, consts)
    columns = dict(zip(("d", "total"), out, strict=False))
  if kernel.hard:
    columns["z_l"] = row_sum(label_logits(kernel, refs))
  if kernel.grad:
    total = columns.get("total")
    slopes(kernel, refs, stats, inv_t, consts, total, factor)
  write_out(refs, stats, **columns)


STATE = ("m_s", "s_s", "m_t", "s_t", "s_1", "d", "total", "z_l")


def phased(kernel: Kernel, *refs):
  """The kernel for rows that do not fit: grid (rows, 3 phases, blocks of V)."""
  refs = Refs(kernel, refs)
  phase, j = pl.program_id(1), pl.program_id(2)
  base = j * kernel.block
  limit = kernel.vocab - base
  inv_t, consts = scalars_of(kernel, refs)
  row = {name: refs.state.at[i] for i, name in enumerate(STATE)}
  column = lambda name: row[name][:, 0:1]
  put = lambda name, x: row[name].__setitem__(
    ..., jnp.broadcast_to(x, row[name].shape)
  )

  @pl.when((phase == 0) & (j == 0))
  def _():
    for name in STATE:
      put(name, f32(LOW if name[0] == "m" else 0))

  @pl.when(phase == 0)
  def _():
    stats = Stats()
    new = maxima(kernel, refs, limit)
    stats.m_s = jnp.maximum(column("m_s"), new[0])
    if kernel.soft:
      stats.m_t = jnp.maximum(column("m_t"), new[1])
    lanes = sums(kernel, refs, stats, inv_t, limit)
    c = scale_of(kernel, inv_t)
    names = [("m_s", "s_s", c)]
    names += [("m_t", "s_t", c)] if kernel.soft else []
    names += [("m_s", "s_1", LOG2E)] if kernel.second else []
    for (m, s, c), x in zip(names, lanes, strict=True):
      shrink = jnp.exp2((column(m) - getattr(stats, m)) * c)
      put(s, column(s) * shrink + row_sum(x))
    put("m_s", stats.m_s)
    if kernel.soft:
      put("m_t", stats.m_t)
    if kernel.hard:
      z = row_sum(label_logits(kernel, refs, base, limit))
      put("z_l", column("z_l") + z)

  def stats_now():
    stats = Stats()
    stats.m_s, stats.m_t = column("m_s"), column("m_t")
    names = ["s_s"] + ["s_t"] * kernel.soft + ["s_1"] * kernel.second
    set_stats(kernel, stats, [column(n) for n in names])
    return stats

  if kernel.soft:

    @pl.when(phase == 1)
    def _():
      args = (kernel, refs, stats_now(), inv_t, consts)
      out, _ = divergences(*args, limit)
      for name, x in zip(("d", "total"), out, strict=False):
        put(name, column(name) + x)

  @pl.when(phase == 2)
  def _():
    stats = stats_now()
    if kernel.grad:
      total = column("total") if kernel.soft else None
      slopes(kernel, refs, stats, inv_t, consts, total, None, base, limit)
    rest = {name: column(name) for name in ("d", "total", "z_l")}
    write_out(refs, stats, **rest)
