"""Row function in Pallas for TPUs: two reads of [N, V] and one write.

A block of rows of both models stays in VMEM while four sweeps go over it:

    0  m = max z
    1  e = exp2(c z - c m), s = sum e             c = log2(e) / T; e is kept
    2  lq, lp, q = e_s / s_s, p = e_t / s_t; D = sum phi, U = sum u; u is kept
    3  dz = k (u - q U) + k_hard (softmax - onehot)

Sums are per lane, [rows, 128], and cross lanes once per row. Where rows do not
fit, the sweeps become grid phases over blocks of V: six reads and one write.

Compiled for TPUs, not run on one (ACCELERATORS.md section 1); run in interpret
mode. `python -m kernels.report` says what the compiler makes of it.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import scan, tile, xla

f32 = jnp.float32
LANES = 128
LOG2E = math.log2(math.e)
LOW = tile.DEAD  # least log-probability: masked on both sides is equal
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Generation:
  """What a TPU generation allows.

  Attributes:
    vmem: bytes of VMEM per core. Source: jax._src.tpu_info of jax 0.12.0.1.
    bandwidth: HBM bytes per second per core. Source: as above; v5e and v6e
      agree with Google's public figures (ACCELERATORS.md).
    clock: Hz. Source: Google's public figures for v5e and v6e; the others
      follow from peak = 2 mxus 128^2 clock of tpu_info (see kernels/targets).
    bf16: whether the vector unit computes in bfloat16. Source: jax's Mosaic
      lowering (v6e and later).
    lanes: V lanes per step of a sweep. Source: `kernels.report`, compiled.
  """

  vmem: int
  bf16: bool
  lanes: int = 1024


GENERATIONS = {
  "v4": Generation(16 * MIB, False),
  "v5e": Generation(128 * MIB, False),
  "v5p": Generation(64 * MIB, False),
  "v6e": Generation(128 * MIB, True),
  "tpu7x": Generation(64 * MIB, True),
}
UNKNOWN = Generation(64 * MIB, False)  # right for all of them but v4

KINDS = {
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "tpu7x",
}


def generation() -> Generation:
  """Returns that of the device that is compiled for, or UNKNOWN.

  The abstract device of the current mesh, if it has one (`jax.set_mesh`,
  `jax.sharding.use_abstract_mesh`), else the default backend's device. Without
  either (compiled ahead of time with no mesh) UNKNOWN, which fits all
  generations but v4; there the compiler raises.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None and jax.default_backend() == "tpu":
    device = jax.devices()[0]
  kind = getattr(device, "device_kind", None)
  return GENERATIONS.get(KINDS.get(kind, ""), UNKNOWN)


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
    rows, lanes: of a block of rows and of a step of a sweep.
    stash: whether e and u are kept (8 bytes a pair) or computed again.
    narrow: whether maxima are taken in the logits' dtype.
    block: V lanes per grid step in phases; None means that rows are resident.
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
  rows: int
  lanes: int
  stash: bool
  narrow: bool
  block: int | None = None

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
    take = lambda wanted: refs.pop(0) if wanted else None
    self.info = take(True)  # [rows, 4]: label, k, k_hard, alive
    self.scalars = take(True)  # [1, 1 + number of constants]: 1/T, constants
    self.z_s = take(True)
    self.z_t = take(kernel.soft)
    self.out = take(True)  # [rows, 128], see OUT
    self.dz = take(kernel.grad)
    self.e_s = take(kernel.stash)
    self.e_t = take(kernel.stash)  # e of the teacher, then u
    self.state = take(kernel.block is not None)  # [STATE, rows, 128]


OUT = ("d", "total", "m_s", "s_s", "lse_s", "m_t", "s_t", "lse_t", "s_1", "z_l")


class Stats:
  """Row statistics [rows, 1]: maxima of z, sums, log-sum-exps."""

  m_s = s_s = lse_s = m_t = s_t = lse_t = s_1 = None


def fold(x, op):
  """Returns [rows, 128]: op over the groups of 128 lanes of x."""
  parts = [x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)]
  while len(parts) > 1:
    half = len(parts) // 2
    pairs = [op(parts[2 * i], parts[2 * i + 1]) for i in range(half)]
    parts = pairs + parts[2 * half :]
  return parts[0]


def row_sum(x):
  return x.sum(1, keepdims=True)


def lanes_of(x):
  return lax.broadcasted_iota(jnp.int32, x.shape, 1)


def load(ref, at, valid, dtype=f32):
  """Returns z [rows, lanes], FLOOR from lane `valid` on (None: all valid)."""
  z = ref[:, at].astype(dtype)
  if valid is None:
    return z
  return jnp.where(lanes_of(z) < valid, z, jnp.asarray(tile.FLOOR, dtype))


def sweep(kernel: Kernel, body, init, limit=None):
  """Folds body(carry, lanes, valid) over V lanes.

  Args:
    body: `lanes` is a slice of V, `valid` None or how many of its lanes exist.
    limit: in phases, how many lanes of the grid's block exist (traced).
  """
  columns = kernel.vocab if limit is None else kernel.block
  steps, rest = divmod(columns, kernel.lanes)

  def step(i, carry):
    start = pl.multiple_of(i * kernel.lanes, LANES)
    valid = None if limit is None else limit - start
    return body(carry, pl.ds(start, kernel.lanes), valid)

  carry = lax.fori_loop(0, steps, step, init)
  whole, ragged = divmod(rest, LANES)
  start = steps * kernel.lanes
  if whole:
    carry = body(carry, pl.ds(start, whole * LANES), None)
  if ragged:
    start = start + whole * LANES
    carry = body(carry, pl.ds(start, LANES), ragged)
  return carry


def maxima(kernel: Kernel, refs: Refs, limit=None):
  """Sweep 0: returns (max z_s, max z_t or None), [rows, 1]."""
  models = [refs.z_s, refs.z_t] if kernel.soft else [refs.z_s]
  dtypes = [r.dtype if kernel.narrow else f32 for r in models]

  def body(carry, at, valid):
    new = [load(r, at, valid, d) for r, d in zip(models, dtypes, strict=True)]
    new = [fold(z, jnp.maximum) for z in new]
    return tuple(jnp.maximum(a, b) for a, b in zip(carry, new, strict=True))

  shape = (kernel.rows, LANES)
  init = tuple(jnp.full(shape, tile.FLOOR, d) for d in dtypes)
  out = sweep(kernel, body, init, limit)
  out = [x.astype(f32).max(1, keepdims=True) for x in out]
  return (*out, None)[:2]


def scale_of(kernel: Kernel, inv_t):
  """Returns c = log2(e) / T of the first softmax."""
  if kernel.unit_temperature or not kernel.soft:
    return LOG2E
  return inv_t * LOG2E


def sums(kernel: Kernel, refs: Refs, stats: Stats, inv_t, limit=None):
  """Sweep 1: returns lane sums of exp(x - max x); keeps the exponentials."""
  c = scale_of(kernel, inv_t)
  top_s = stats.m_s * c
  top_1 = stats.m_s * LOG2E
  top_t = stats.m_t * c if kernel.soft else None

  def body(carry, at, valid):
    z_s = load(refs.z_s, at, valid)
    e_s = jnp.exp2(z_s * c - top_s)
    new = [e_s]
    if kernel.soft:
      e_t = jnp.exp2(load(refs.z_t, at, valid) * c - top_t)
      new.append(e_t)
      if kernel.stash:
        refs.e_s[:, at], refs.e_t[:, at] = e_s, e_t
    if kernel.second:
      new.append(jnp.exp2(z_s * LOG2E - top_1))
    return tuple(
      a + fold(e, jnp.add) for a, e in zip(carry, new, strict=True)
    )

  zero = jnp.zeros((kernel.rows, LANES), f32)
  init = (zero,) * (1 + kernel.soft + kernel.second)
  return sweep(kernel, body, init, limit)


def pair(kernel: Kernel, refs: Refs, stats: Stats, inv_t, at, valid):
  """Returns (lq, lp, q, p) of a slice."""
  c = scale_of(kernel, inv_t)
  out = []
  for z, e, lse, s in (
    (refs.z_s, refs.e_s, stats.lse_s, stats.s_s),
    (refs.z_t, refs.e_t, stats.lse_t, stats.s_t),
  ):
    z = load(z, at, valid)
    x = z if kernel.unit_temperature else z * inv_t
    log_p = jnp.maximum(x - lse, LOW)
    if kernel.stash:
      p = e[:, at] * (1 / s)
    else:
      p = jnp.exp2(z * c - lse * LOG2E)
    out += [log_p, p]
  return out[0], out[2], out[1], out[3]


def terms(kernel: Kernel, consts, parts, valid):
  """Returns (phi, u or None), 0 where masked on both sides."""
  lq, lp, q, p = parts
  if kernel.grad:
    new = kernel.phi.value_and_slope(consts, lq, lp, q, p)
  else:
    new = (kernel.phi.value(consts, lq, lp, q, p),)
  if kernel.select:
    alive = jnp.maximum(lq, lp) > LOW
    new = [jnp.where(alive, x, 0.0) for x in new]
  if valid is not None:
    new = [jnp.where(lanes_of(x) < valid, x, 0.0) for x in new]
  return (*new, None)[:2]


def divergences(
  kernel: Kernel, refs: Refs, stats: Stats, inv_t, consts, limit=None
):
  """Sweep 2: returns lane sums (D, U or none); keeps u."""

  def body(carry, at, valid):
    parts = pair(kernel, refs, stats, inv_t, at, valid)
    value, u = terms(kernel, consts, parts, valid)
    new = [value] if u is None else [value, u]
    if kernel.grad and kernel.stash:
      refs.e_t[:, at] = u
    return tuple(a + fold(x, jnp.add) for a, x in zip(carry, new, strict=True))

  zero = jnp.zeros((kernel.rows, LANES), f32)
  return sweep(kernel, body, (zero,) * (1 + kernel.grad), limit)


def slopes(
  kernel: Kernel, refs: Refs, stats: Stats, inv_t, consts, total, base=0,
  limit=None,
):  # fmt: skip
  """Sweep 3: writes dz; then again, with the one-hot, where labels are."""
  k, k_hard = refs.info[:, 1:2], refs.info[:, 2:3]
  alive = refs.info[:, 3:4] != 0
  c = scale_of(kernel, inv_t)
  shared = kernel.hard_slope and not kernel.second
  on_q = k_hard if shared else jnp.zeros_like(k)
  if kernel.soft:
    on_q = on_q - k * total
  if kernel.stash or not kernel.soft:
    on_q = on_q / stats.s_s
  if kernel.second:
    top_1, on_1 = stats.m_s * LOG2E, k_hard / stats.s_1
  labels = refs.info[:, 0:1].astype(jnp.int32) - base

  def write(at, valid, onehot=None):
    if kernel.stash:
      q, u = refs.e_s[:, at], refs.e_t[:, at]
    elif kernel.soft:
      parts = pair(kernel, refs, stats, inv_t, at, valid)
      q, u = parts[2], terms(kernel, consts, parts, valid)[1]
    else:
      q, u = jnp.exp2(load(refs.z_s, at, valid) * c - stats.m_s * c), None
    dz = on_q * q if u is None else k * u + on_q * q
    if kernel.second and kernel.hard_slope:
      z = load(refs.z_s, at, valid)
      dz = dz + on_1 * jnp.exp2(z * LOG2E - top_1)
    if onehot is not None:
      dz = dz - jnp.where(onehot, k_hard, 0.0)
    if kernel.guard:
      dz = jnp.where(alive, dz, 0.0)
    refs.dz[:, at] = dz.astype(refs.dz.dtype)

  sweep(kernel, lambda _, at, valid: write(at, valid), None, limit)
  if kernel.hard_slope:
    for start, at, valid in label_blocks(kernel, refs, base, limit):
      write(at, valid, start + lanes_of(refs.out) == labels)
  if kernel.block is None:  # padding columns
    for start in range(-(-kernel.vocab // LANES) * LANES, refs.dz.shape[1], LANES):
      refs.dz[:, pl.ds(start, LANES)] = jnp.zeros(
        (kernel.rows, LANES), refs.dz.dtype
      )


def label_blocks(kernel: Kernel, refs: Refs, base=0, limit=None):
  """Yields (start, lanes, valid) of the 128 lanes that hold a row's label."""
  columns = kernel.vocab if limit is None else kernel.block
  for row in range(kernel.rows):
    label = refs.info[row : row + 1, 0:1].max().astype(jnp.int32) - base
    start = jnp.clip(label, 0, columns - 1) // LANES * LANES
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


def set_stats(kernel: Kernel, stats: Stats, lane_sums, inv_t):
  """Fills in s and lse = max x + log s from lane sums."""
  unit = kernel.unit_temperature or not kernel.soft
  totals = [jnp.maximum(row_sum(x), tile.TINY) for x in lane_sums]
  stats.s_s = totals.pop(0)
  stats.lse_s = stats.m_s * (1.0 if unit else inv_t) + jnp.log(stats.s_s)
  if kernel.soft:
    stats.s_t = totals.pop(0)
    stats.lse_t = stats.m_t * (1.0 if unit else inv_t) + jnp.log(stats.s_t)
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
  consts = [jnp.reshape(read(1 + i), s) for i, s in enumerate(kernel.shapes)]
  return read(0), consts


def resident(kernel: Kernel, *refs):
  """The kernel for rows that fit: all sweeps in one grid step."""
  refs = Refs(kernel, refs)
  inv_t, consts = scalars_of(kernel, refs)
  stats = Stats()
  stats.m_s, stats.m_t = maxima(kernel, refs)
  set_stats(kernel, stats, sums(kernel, refs, stats, inv_t), inv_t)
  columns = {}
  total = None
  if kernel.soft:
    out = divergences(kernel, refs, stats, inv_t, consts)
    columns["d"] = row_sum(out[0])
    if kernel.grad:
      columns["total"] = total = row_sum(out[1])
  if kernel.hard:
    columns["z_l"] = row_sum(label_logits(kernel, refs))
  if kernel.grad:
    slopes(kernel, refs, stats, inv_t, consts, total)
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
      put(name, f32(tile.FLOOR if name[0] == "m" else 0))

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
    set_stats(kernel, stats, [column(n) for n in names], inv_t)
    return stats

  if kernel.soft:

    @pl.when(phase == 1)
    def _():
      out = divergences(kernel, refs, stats_now(), inv_t, consts, limit)
      for name, x in zip(("d", "total"), out, strict=False):
        put(name, column(name) + row_sum(x))

  @pl.when(phase == 2)
  def _():
    stats = stats_now()
    if kernel.grad:
      slopes(
        kernel, refs, stats, inv_t, consts, column("total"), base, limit
      )
    rest = {name: column(name) for name in ("d", "total", "z_l")}
    write_out(refs, stats, **rest)


def padded(v: int) -> int:
  return -(-v // LANES) * LANES


def need(kernel: Kernel, v: int, itemsizes: tuple[int, ...]) -> int:
  """Returns bytes of VMEM: blocks doubly buffered, stash, row statistics."""
  width = kernel.block or padded(v)
  per_pair = 2 * sum(itemsizes) + 8 * kernel.stash
  state = 0 if kernel.block is None else len(STATE) * 4 * LANES
  return kernel.rows * (width * per_pair + state + 2 * 2 * 4 * LANES)


def fit(kernel: Kernel, gen: Generation, v: int, itemsizes) -> tuple:
  """Returns (kernel with block sizes, vmem limit in bytes).

  Most rows first, then the stash, then phases. 16 rows fill a bfloat16 tile.
  """
  room = gen.vmem * 15 // 16
  stash = (True, False) if kernel.soft and kernel.grad else (False,)
  lanes = min(gen.lanes, padded(kernel.vocab))
  kernel = dataclasses.replace(kernel, lanes=lanes, narrow=gen.bf16)
  for rows in (32, 16, 8):
    if rows == 32 and v > 32768:
      continue
    for keep in stash:
      new = dataclasses.replace(kernel, rows=rows, stash=keep)
      bytes_ = need(new, v, itemsizes)
      if bytes_ * 11 // 10 + MIB <= room:
        return new, bytes_ * 11 // 10 + MIB
  new = dataclasses.replace(kernel, rows=32, stash=False, block=8 * gen.lanes)
  return new, need(new, v, itemsizes) * 11 // 10 + 4 * MIB


def call(kernel: Kernel, limit: int, arrays, dtype, alias: bool, interpret):
  """Runs the kernel on (info, scalars, z_s, z_t or none); returns its outputs.

  Returns [out [N, 128]] and, if a gradient is wanted, dz [N, V].
  """
  (n, v), rows = arrays[2].shape, kernel.rows
  width = kernel.block or padded(v)
  if kernel.block is None:
    grid = (pl.cdiv(n, rows),)
    by_row = lambda i: (i, 0)
    whole = lambda i: (0, 0)
    read = write = by_row
    semantics = ("parallel",)
  else:
    grid = (pl.cdiv(n, rows), 3, pl.cdiv(kernel.vocab, width))
    by_row = lambda i, phase, j: (i, 0)
    whole = lambda i, phase, j: (0, 0)
    read = lambda i, phase, j: (i, j)
    write = lambda i, phase, j: (i, jnp.where(phase == 2, j, 0))
    semantics = ("parallel", "arbitrary", "arbitrary")
  info, scalars, *logits = arrays
  in_specs = [
    pl.BlockSpec((rows, info.shape[1]), by_row),
    pl.BlockSpec(scalars.shape, whole),
    *(pl.BlockSpec((rows, width), read) for _ in logits),
  ]
  out_specs = [pl.BlockSpec((rows, LANES), by_row)]
  manual = jax.typeof(arrays[2]).mat  # scan.run has made all vary alike
  struct = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=manual)
  out_shape = [struct((n, LANES), f32)]
  if kernel.grad:
    out_specs.append(pl.BlockSpec((rows, width), write))
    out_shape.append(struct((n, v), dtype))
  scratch = []
  if kernel.stash:
    scratch += [pltpu.VMEM((rows, width), f32)] * 2
  if kernel.block is not None:
    scratch.append(pltpu.VMEM((len(STATE), rows, LANES), f32))
  moved = sum(x.size * x.dtype.itemsize for x in logits)
  moved += n * v * jnp.dtype(dtype).itemsize if kernel.grad else 0
  return pl.pallas_call(
    functools.partial(resident if kernel.block is None else phased, kernel),
    grid=grid,
    in_specs=in_specs,
    out_specs=out_specs,
    out_shape=out_shape,
    scratch_shapes=scratch,
    input_output_aliases={2: 1} if alias and kernel.grad else {},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=semantics, vmem_limit_bytes=limit
    ),
    cost_estimate=pl.CostEstimate(
      flops=20 * n * v, transcendentals=3 * n * v, bytes_accessed=moved
    ),
    interpret=interpret,
    name="distill_rows",
  )(*arrays)


def silent_where_masked(phi: tile.Phi, consts, grad: bool) -> bool:
  """Whether phi and u are known to be 0 where both sides are masked."""
  if any(isinstance(c, jax.core.Tracer) for c in consts):
    return False
  with jax.ensure_compile_time_eval():
    low, zero = jnp.full((1, 1), LOW, f32), jnp.zeros((1, 1), f32)
    args = (consts, low, low, zero, zero)
    new = phi.value_and_slope(*args) if grad else (phi.value(*args),)
    return all(float(x[0, 0]) == 0 for x in new)


def dense_rows(
  spec: scan.Spec,
  chunk: scan.Chunk,
  dtype,
  *,
  alias: bool,
  gen: Generation | None = None,
  interpret: Any = False,
  tweak=lambda kernel: kernel,
):
  """Row function for Head and Logits teachers, or none."""
  grad = dtype is not None
  n, v = chunk.z_s.shape
  phi, consts = spec.phi, list(chunk.consts)
  zero = jnp.zeros(n, f32)
  if phi is None and not spec.hard:
    return zero, zero, jnp.zeros((n, v), dtype) if grad else None
  kernel = Kernel(
    phi=phi,
    hard=spec.hard,
    hard_slope=grad and spec.hard_slope,
    unit_temperature=spec.unit_temperature,
    shapes=tuple(jnp.shape(c) for c in consts),
    vocab=spec.vocab_size,
    grad=grad,
    guard=not alias,
    select=phi is not None and not silent_where_masked(phi, consts, grad),
    rows=0, lanes=0, stash=False, narrow=False,
  )  # fmt: skip
  logits = [chunk.z_s] + ([] if phi is None else [chunk.teacher])
  itemsizes = [z.dtype.itemsize for z in logits]
  itemsizes += [jnp.dtype(dtype).itemsize] if grad else []
  kernel, limit = fit(kernel, gen or generation(), v, itemsizes)
  kernel = tweak(kernel)
  labels = zero if chunk.labels is None else chunk.labels.astype(f32)
  alive = (chunk.soft_scale != 0) | (chunk.hard_scale != 0)
  columns = (labels, chunk.soft_scale, chunk.hard_scale, alive.astype(f32))
  scalars = [chunk.inv_t, *(jnp.reshape(c, ()) for c in consts)]
  scalars = jnp.stack([s.astype(f32) for s in scalars])[None]
  alias = alias and dtype == chunk.z_s.dtype
  arrays = (jnp.stack(columns, 1), scalars, *logits)
  out, *dz = call(kernel, limit, arrays, dtype, alias, interpret)
  out = {name: out[:, i] for i, name in enumerate(OUT)}
  d = ce = zero
  unit = kernel.unit_temperature or phi is None
  inv_t = 1.0 if unit else chunk.inv_t
  if phi is not None:
    fix_s = excess(out["m_s"] * inv_t, out["s_s"], out["lse_s"])
    fix_t = excess(out["m_t"] * inv_t, out["s_t"], out["lse_t"])
    d, total = out["d"], out["total"]
    if grad:  # first order in the rounding of lse, as in kernels.xla
      d = d - total * fix_s - (d - total) * fix_t
  if spec.hard:
    hi, lo = tile.split_log(out["s_1"])
    ce = (out["m_s"] - out["z_l"]) + hi + lo
  return d, ce, dz[0] if grad else None


def excess(m, s, lse):
  """Returns (m + log s) - lse, to float32's accuracy of the difference."""
  hi, lo = tile.split_log(s)
  return ((m - lse) + hi) + lo


def head_rule(n: int, v: int, student, teacher) -> int:
  """Returns C: both models' logits take 512 MiB in bfloat16.

  V = 131072: C = 1024, 513 MiB of temporaries; 512 would take half and give
  the GEMMs half the rows (ACCELERATORS.md, compiled).
  """
  del teacher
  if not isinstance(student, scan.Head):
    return n
  return max(256, (1 << 27) // v // 128 * 128)


def plan(student, gen: Generation | None = None, interpret: Any = False, **kw):
  """Returns the plan for a student.

  dz overwrites the logits of a Head, which nothing else sees. Given logits are
  mostly not ours to overwrite: XLA would copy them first, two more N V b than
  the third buffer costs. So they are left alone.
  """
  alias = isinstance(student, scan.Head)
  rows = functools.partial(
    dense_rows, alias=alias, gen=gen, interpret=interpret, **kw
  )
  return dataclasses.replace(xla.ACCELERATOR, rows=rows, rule=head_rule)


def plans(spec: scan.Spec | None, student, teacher) -> dict | str:
  """Returns {"tpu": compiled, "cpu": interpreted}, see `api.select_plans`.

  What the kernel does not do runs in XLA on a TPU too, in the same chunks:
  TopK teachers (gathers of K numbers), token_log_probs, a sharded V (its
  statistics cross shards between the sweeps, so that a kernel would move as
  much as XLA does), and a phi that closes over more than scalars.
  """
  if unsupported(spec):
    fallback = dataclasses.replace(xla.ACCELERATOR, rule=head_rule)
    return {"tpu": fallback, "cpu": fallback}
  return {"tpu": plan(student), "cpu": plan(student, interpret=True)}


def unsupported(spec: scan.Spec | None) -> bool:
  if spec is None or spec.vocab_axis is not None:
    return True
  if spec.phi is None:
    return False
  consts = spec.phi.constants()
  return any(
    jnp.size(c) != 1 or jnp.result_type(c) != f32 for c in consts
  )
