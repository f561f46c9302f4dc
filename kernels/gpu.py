"""The logits kernel for Hopper and newer: Pallas, Mosaic GPU.

A cluster of C CTAs takes one row. Each CTA copies its V / C columns of both
rows into shared memory and keeps them there for three sweeps, so that device
memory sees two reads and one write, 3 N V b bytes:

    1. max z_s, max z_t, then sum exp(x - max)      -> lse of both
    2. phi and u = dphi/dlq, with q and p given     -> D and U = sum u
    3. the same u again                             -> dz, to device memory

After sweeps 1 and 2 the CTAs read each other's partial sums through distributed
shared memory (in interpret mode, which has none, through device memory).

What it does not do, `plans` says in words; "auto" then takes kernels.xla, as it
does for every GPU older than compute capability 9, where Mosaic GPU aborts the
process. Registers, spills, shared memory: `python -m kernels.report`. Evidence:
interpreted on a CPU (numerics) and compiled for H100; never run on a GPU.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import lowerable, scan, tile, xla
from kernels.types import Head, TopK

f32 = jnp.float32
THREADS = 128  # of a CTA: one warpgroup, see `_kernel`
ALIGN = 16  # bytes, of a bulk copy's address and size
COMFORT = 72 << 10  # bytes of rows per CTA: three CTAs fit an SM's 227 KiB
LIMIT = 220 << 10  # bytes of rows per CTA at most
CLUSTERS = (1, 2, 4, 8)  # 8 is the largest portable cluster
# Device kinds of compute capability 9 and 10, for devices that are not here.
CAPABLE = re.compile(r"\b(G?H100|G?H200|H800|H20|G?B100|G?B200|G?B300)\b")
STATS = ("s_s", "log_s", "s_t", "log_t", "d", "u", "m_h", "s_h")


@dataclasses.dataclass(frozen=True)
class Tile:
  """How a row is cut.

  Attributes:
    cluster: C, CTAs per row.
    width: W = V / C, columns of one CTA.
    vector: columns of one thread at a time.
    piece: columns of one bulk copy.
  """

  cluster: int
  width: int
  vector: int
  piece: int

  @property
  def chunk(self) -> int:
    """Columns that the CTA's threads have in registers at a time."""
    return THREADS * self.vector

  @property
  def held(self) -> int:
    """Columns in shared memory: W, filled up to whole chunks."""
    return -(-self.width // self.chunk) * self.chunk

  def pieces(self) -> list[tuple[int, int, int]]:
    """Returns (column, place in shared memory, columns) of each bulk copy.

    Mosaic GPU copies multiples of 128 columns. Where chunks do not divide W the
    last chunk holds W's last columns, some of them for the second time: they
    come from L2, and copies do not overlap in shared memory.
    """
    main = self.width // self.chunk * self.chunk
    starts = range(0, main, self.piece)
    out = [(s, s, min(self.piece, main - s)) for s in starts]
    if main != self.width:
      out.append((self.width - self.chunk, main, self.chunk))
    return out


def tiling(v: int, itemsizes, cluster=None, vector=None) -> Tile | str:
  """Returns how to cut a row of V columns, or why it cannot be.

  C is the smallest that leaves at most 72 KiB of both rows per CTA, so that
  three CTAs share an SM and one's copies hide behind another's arithmetic.

  Args:
    v: columns.
    itemsizes: bytes per logit of student and teacher (one, if there is none).
    cluster, vector: to override the rules, in tests and tuning.
  """
  align = ALIGN // min(itemsizes)
  clusters = [cluster] if cluster else CLUSTERS
  fits = [c for c in clusters if v % (align * c) == 0]
  size = lambda c: v // c * sum(itemsizes)
  good = [c for c in fits if size(c) <= COMFORT] or fits[-1:]
  if not good:
    return (
      f"'auto' or 'xla' for V = {v}: the GPU kernel copies {ALIGN} bytes at a"
      f" time, so V must be a multiple of {align}"
    )
  if size(good[0]) > LIMIT:
    return (
      f"'auto' or 'xla' for V = {v}: a row takes {size(good[0])} bytes of"
      f" shared memory in each of {good[0]} CTAs, more than {LIMIT}"
    )
  width = v // good[0]
  vectors = [vector] if vector else [4, 2, 1]
  vectors = [n for n in vectors if n * THREADS <= width]
  if not vectors:
    return f"'auto' or 'xla' for V = {v}: the GPU kernel wants V >= {THREADS}"
  chunk = vectors[0] * THREADS
  piece = min(4096, width) // chunk * chunk
  return Tile(good[0], width, vectors[0], piece)


@dataclasses.dataclass(frozen=True)
class Call:
  """What is static about one kernel.

  Attributes:
    tile: see there.
    phi, hard, hard_slope, unit_temperature: as in scan.Spec.
    vocab_size: None where no column is padding.
    dtype: of dz; None computes none.
    peers_in_gmem: exchange through device memory: interpret mode.
  """

  tile: Tile
  phi: tile.Phi | None
  hard: bool
  hard_slope: bool
  unit_temperature: bool
  vocab_size: int | None
  dtype: jnp.dtype | None
  peers_in_gmem: bool

  @property
  def own_softmax(self) -> bool:
    """Whether the hard term needs a softmax at T = 1 of its own."""
    return self.hard and (self.phi is None or not self.unit_temperature)


def _fence():
  """Orders memory accesses in the cluster's shared memory.

  The barrier's own acquire and release reach as far as the CTA only.
  """

  @plgpu.inline_mgpu()
  def fence(ctx):
    del ctx
    from jax.experimental.mosaic.gpu import utils

    utils.inline_ptx("fence.acq_rel.cluster;", has_side_effects=True)

  fence()


def _kernel(call: Call, *refs, **scratch):
  """One CTA's share of one row; see the module.

  One warpgroup per CTA: with more, full reductions would share their scratch
  without saying so (jax 0.12.0.1, _reduce_lowering_rule).
  """
  cut, soft = call.tile, call.phi is not None
  refs = list(refs)
  take = lambda wanted=True: refs.pop(0) if wanted else None
  z_s_ref, z_t_ref = take(), take(soft)
  inv_t_ref, soft_ref, hard_ref = take(), take(), take()
  labels_ref = take(call.hard)
  out = 1 + (call.dtype is not None) + call.peers_in_gmem
  consts = [ref[0] for ref in refs[: len(refs) - out]]
  refs = refs[len(refs) - out :]
  stats_ref, dz_ref = take(), take(call.dtype is not None)
  gmem_ref = take(call.peers_in_gmem)
  z_s, z_t = scratch["z_s"], scratch.get("z_t")
  row, rank = lax.axis_index("row"), lax.axis_index("cta")
  base = rank * cut.width
  chunk = cut.chunk
  layout = plgpu.Layout.WG_STRIDED((chunk,), vec_size=cut.vector)
  full = lambda x: plgpu.layout_cast(jnp.full((chunk,), x, f32), layout)
  sources = [(z_s_ref, z_s)] + ([(z_t_ref, z_t)] if soft else [])

  for i, (column, place, size) in enumerate(cut.pieces()):
    for gmem, smem in sources:
      plgpu.copy_gmem_to_smem(
        gmem.at[row, pl.ds(base + column, size)],
        smem.at[pl.ds(place, size)],
        scratch["copied"].at[i],
        oob_mode=plgpu.OOBFillMode.PROMISE_IN_BOUNDS,
      )

  inv_t = inv_t_ref[0]
  iota = plgpu.broadcasted_iota(jnp.int32, (chunk,), 0, layout=layout)

  def load(ref, at):
    place, column = at
    x = plgpu.load(ref.at[pl.ds(place, chunk)], layout=layout).astype(f32)
    if call.vocab_size is None:
      return x
    return jnp.where(base + column + iota < call.vocab_size, x, tile.FLOOR)

  def sweep(body, carry, wait=False):
    """Folds body(carry, at, fresh) over chunks; at = (place, column).

    `fresh` [chunk] says which columns of the last chunk were not in the one
    before (None where all).
    """
    main, rest = cut.width // chunk * chunk, cut.width % chunk
    pieces = cut.pieces() if wait else [(0, 0, main)]
    for i, (_, place, size) in enumerate(pieces):
      if wait:
        plgpu.barrier_wait(scratch["copied"].at[i])
      if place < main:

        def step(k, carry, place=place):
          return body(carry, (place + k * chunk,) * 2, None)

        carry = lax.fori_loop(0, size // chunk, step, carry)
    if rest:
      carry = body(carry, (main, cut.width - chunk), iota >= chunk - rest)
    return carry

  def keep(x, fresh):
    return x if fresh is None else jnp.where(fresh, x, 0.0)

  def exchange(slot, values):
    """Returns every CTA's values, [C][len(values)], this one's among them."""
    if cut.cluster == 1:
      return [values]
    mine = gmem_ref.at[row, rank] if call.peers_in_gmem else scratch["peers"]
    for i, x in enumerate(values):
      plgpu.store(mine.at[slot + i], x)
    if not call.peers_in_gmem:
      _fence()
    plgpu.barrier_arrive_and_wait(scratch["exchanged"])
    if not call.peers_in_gmem:
      _fence()

    def theirs(c, i):
      if call.peers_in_gmem:
        return gmem_ref[row, c, slot + i]
      peer = plgpu.cluster_ref(scratch["peers"], {"cta": c})
      return plgpu.load(peer.at[slot + i])

    return [
      [theirs(c, i) for i in range(len(values))] for c in range(cut.cluster)
    ]

  # Sweep 1: the maxima of raw logits (a maximum commutes with * inv_t > 0) ...
  def maxima(carry, at, fresh):
    del fresh
    return tuple(
      jnp.maximum(m, load(ref, at))
      for m, (_, ref) in zip(carry, sources, strict=True)
    )

  top = sweep(maxima, tuple(full(tile.FLOOR) for _ in sources), wait=True)
  top = [jnp.max(m) for m in top]
  # ... and the sums at this CTA's own maxima, brought to one maximum later.
  scales = [inv_t] * len(sources) if soft else []
  terms = [(ref, i, scales[i]) for i, (_, ref) in enumerate(sources) if soft]
  if call.own_softmax:
    terms.append((z_s, 0, 1.0))

  def sums(carry, at, fresh):
    return tuple(
      s + keep(jnp.exp(load(ref, at) * scale - top[i] * scale), fresh)
      for s, (ref, i, scale) in zip(carry, terms, strict=True)
    )

  parts = sweep(sums, tuple(full(0.0) for _ in terms))
  parts = exchange(0, top + [jnp.sum(s) for s in parts])
  zmax = [
    functools.reduce(jnp.maximum, [p[i] for p in parts])
    for i in range(len(top))
  ]
  lse = []  # (max, sum, log sum) of each term
  for k, (_, i, scale) in enumerate(terms):
    m = zmax[i] * scale
    s = sum(p[len(top) + k] * jnp.exp(p[i] * scale - m) for p in parts)
    s = jnp.maximum(s, tile.TINY)
    lse.append((m, s, jnp.log(s)))

  def log_softmax(k, at):
    ref, _, scale = terms[k]
    m, _, log_s = lse[k]
    x = load(ref, at) * scale
    log_p = jnp.maximum((x - m) - log_s, tile.FLOOR)
    return log_p, jnp.exp(log_p)

  def phi_terms(at):
    (lq, q), (lp, p) = log_softmax(0, at), log_softmax(1, at)
    fn = lambda *args: tile.terms(call.phi, *args)
    return *lowerable.call(fn, consts, lq, lp, q, p), q

  # Sweep 2: D and U.
  d, u_sum = f32(0), f32(0)
  if soft:

    def divergence(carry, at, fresh):
      value, u, _ = phi_terms(at)
      return carry[0] + keep(value, fresh), carry[1] + keep(u, fresh)

    d, u_sum = sweep(divergence, (full(0.0), full(0.0)))
    parts = exchange(8, [jnp.sum(d), jnp.sum(u_sum)])
    d, u_sum = (sum(p[i] for p in parts) for i in range(2))

  @pl.when(rank == 0)
  def _():
    hard = lse[-1] if call.hard else (f32(0), f32(1))
    out = [lse[0][1], lse[0][2], lse[1][1], lse[1][2], d, u_sum] if soft else []
    for i, x in enumerate(out or [f32(0)] * 6):
      plgpu.store(stats_ref.at[row, i], x)
    if call.hard:
      hard = lse[-1] if call.own_softmax else lse[0]
      plgpu.store(stats_ref.at[row, 6], hard[0])
      plgpu.store(stats_ref.at[row, 7], hard[1])

  # Sweep 3: dz. A row whose scales are both 0 may hold anything, NaN too.
  if call.dtype is not None:
    soft_scale, hard_scale = soft_ref[row], hard_ref[row]
    alive = (soft_scale != 0) | (hard_scale != 0)

    def gradient(carry, at, fresh):
      del fresh
      u = q = softmax = onehot = None
      if soft:
        _, u, q = phi_terms(at)
      if call.hard_slope:
        softmax = log_softmax(-1, at)[1] if call.own_softmax else q
        hit = base + at[1] + iota == labels_ref[row]
        onehot = jnp.where(hit, 1.0, 0.0)
      dz = tile.gradient(u, q, u_sum, soft_scale, softmax, onehot, hard_scale)
      dz = jnp.where(alive, dz, 0.0).astype(call.dtype)
      plgpu.store(dz_ref.at[row, pl.ds(base + at[1], chunk)], dz)
      return carry

    sweep(gradient, ())
  if cut.cluster > 1:  # leave when no one reads this CTA's shared memory
    plgpu.barrier_arrive_and_wait(scratch["exchanged"])


def _launch(call: Call, operands, n: int, v: int, interpret):
  """Returns [stats [N, 8], dz [N, V] if asked for] of the kernel."""
  cut = call.tile
  out_type = [jax.ShapeDtypeStruct((n, len(STATS)), f32)]
  if call.dtype is not None:
    out_type.append(jax.ShapeDtypeStruct((n, v), call.dtype))
  if call.peers_in_gmem:
    out_type.append(jax.ShapeDtypeStruct((n, cut.cluster, 16), f32))
  smem = lambda x: plgpu.SMEM((cut.held,), x.dtype)
  scratch = {"z_s": smem(operands[0])}
  arrivals = 1
  if call.phi is not None:
    scratch["z_t"], arrivals = smem(operands[1]), 2
  pieces = len(cut.pieces())
  scratch["copied"] = plgpu.Barrier(num_arrivals=arrivals, num_barriers=pieces)
  if cut.cluster > 1:
    scratch["exchanged"] = plgpu.ClusterBarrier(collective_axes=("cta",))
    if not call.peers_in_gmem:
      scratch["peers"] = plgpu.SMEM((16,), f32)
  kernel = plgpu.kernel(
    functools.partial(_kernel, call),
    out_type=tuple(out_type),
    scratch_types=scratch,
    grid=(n,),
    grid_names=("row",),
    cluster=(cut.cluster,),
    cluster_names=("cta",),
    compiler_params=plgpu.CompilerParams(
      # Every region of shared memory is written once: by copies, or by scalar
      # stores of which each thread makes all.
      unsafe_no_auto_barriers=True,
      lowering_semantics=plgpu.LoweringSemantics.Lane,
    ),
    interpret=interpret,
    kernel_name="distill_rows",
  )
  return kernel(*operands)


def rows(spec, chunk, dtype, *, interpret=False, cluster=None, vector=None):
  """Row function (scan.RowFunction) of the kernel."""
  if spec.phi is None and not spec.hard:
    return xla.dense_rows(spec, chunk, dtype, stash=False)
  z_s, z_t = chunk.z_s, chunk.teacher
  n, v = z_s.shape
  soft = spec.phi is not None
  itemsizes = [z.dtype.itemsize for z in ([z_s, z_t] if soft else [z_s])]
  cut = tiling(v, itemsizes, cluster, vector)
  if isinstance(cut, str):
    raise ValueError(cut)  # `plans` has asked before
  call = Call(
    tile=cut,
    phi=spec.phi,
    hard=spec.hard,
    hard_slope=spec.hard_slope,
    unit_temperature=spec.unit_temperature,
    vocab_size=None if spec.vocab_size == v else spec.vocab_size,
    dtype=None if dtype is None else jnp.dtype(dtype),
    peers_in_gmem=bool(interpret),
  )
  operands = [z_s] + ([z_t] if soft else [])
  operands += [chunk.inv_t.reshape(1), chunk.soft_scale, chunk.hard_scale]
  operands += [chunk.labels] if spec.hard else []
  operands += [jnp.asarray(c).reshape(1) for c in chunk.consts] if soft else []
  out = _launch(call, operands, n, v, interpret)
  stats, dz = out[0], out[1] if dtype is not None else None
  stats = dict(zip(STATS, stats.T, strict=True))
  d = ce = jnp.zeros(n, f32)
  if soft:  # the correction of xla.dense_rows, for log s as the kernel has it
    fix = lambda s, log_s: (lambda hi, lo: (hi - log_s) + lo)(
      *tile.split_log(s)
    )
    d, u = stats["d"], stats["u"]
    fix_s = fix(stats["s_s"], stats["log_s"])
    fix_t = fix(stats["s_t"], stats["log_t"])
    d = d - u * fix_s - (d - u) * fix_t
  if spec.hard:
    hi, lo = tile.split_log(stats["s_h"])
    z_label, _ = xla.pick(z_s, chunk.labels[:, None], chunk.offset, 1.0)
    ce = ((stats["m_h"] + hi) - z_label[:, 0]) + lo
  return d, ce, dz


def rule(n: int, v: int, student, teacher) -> int:
  """Returns C rows per chunk: [C, V] of logits in 128 MiB.

  Modelled, not measured: a chunk's GEMMs should fill an H100 (132 CTAs of 128 x
  256 outputs want 512 rows), and z_s, z_t and dz of a chunk are temporaries.
  """
  if not isinstance(student, Head):
    return n
  bytes_per_row = v * scan.operand_dtype(student).itemsize
  return max(256, (128 << 20) // bytes_per_row // 128 * 128)


def make_plan(interpret=False, cluster=None, vector=None) -> scan.Plan:
  """Returns the plan; cluster and vector override `tiling`."""
  return scan.Plan(
    rows=functools.partial(
      rows, interpret=interpret, cluster=cluster, vector=vector
    ),
    topk_rows=xla.ACCELERATOR.topk_rows,
    rule=rule,
    logits_dtype=None,
    skips_dead=True,
  )


def capable() -> bool:
  """Whether the target devices are GPUs that Mosaic GPU can compile for.

  Asked while tracing, from the mesh in effect (jax.set_mesh or shard_map; with
  ahead-of-time compilation its devices are not attached), else from the
  attached devices. An unknown device counts as not capable.
  """
  target = jax.sharding.get_abstract_mesh().abstract_device
  attached = jax.devices()
  if target is not None:
    attached = [d for d in attached if d.device_kind == target.device_kind]
    if not attached:
      return target.platform == "gpu" and bool(
        CAPABLE.search(target.device_kind)
      )
  return all(_capability(d) in (9, 10) for d in attached)


def _capability(device) -> int | None:
  """Returns 9 of "9.0"; None for what is no NVIDIA GPU ("gfx90a", a CPU)."""
  if device.platform != "gpu":
    return None
  major = str(getattr(device, "compute_capability", "")).split(".")[0]
  return int(major) if major.isdigit() else None


def plans(spec, student, teacher) -> dict[str, scan.Plan] | str:
  """Returns {platform: plan}, or what to use instead and why.

  "cuda" where the target can run it (`capable`), "cpu" in interpret mode.
  """
  if spec is None:
    return "'auto' or 'xla' for token_log_probs: the GPU kernel is of the loss"
  if isinstance(teacher, TopK):
    return "'auto' or 'xla' for TopK teachers: the GPU kernel wants logits"
  if spec.vocab_axis is not None:
    return "'auto' or 'xla' with vocab_axis: a cluster holds whole rows"
  scores = [s for s in (student, teacher) if s is not None]
  dtypes = [scan.operand_dtype(s) for s in scores]
  for dtype in dtypes:
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
      return f"'auto' or 'xla' for {dtype}: the GPU kernel takes 16 or 32 bits"
  cut = tiling(scan.num_columns(student), [d.itemsize for d in dtypes])
  if isinstance(cut, str):
    return cut
  if spec.phi is not None:
    for const in spec.phi.constants():
      if jnp.size(const) != 1 or jnp.ndim(const) != 0:
        return (
          "'auto' or 'xla' for a divergence that closes over an array of shape"
          f" {jnp.shape(const)}: the GPU kernel takes scalars"
        )
    unknown = _unknown(spec.phi)
    if unknown:
      return (
        "'auto' or 'xla' for a divergence made of"
        f" {', '.join(sorted(unknown))}, which Mosaic GPU cannot lower"
      )
  found = {"cpu": make_plan(plgpu.InterpretGPUParams())}
  if capable():
    found["cuda"] = make_plan()
  return found


def _unknown(phi) -> set[str]:
  """Returns the primitives in phi and its slope that cannot be lowered."""
  x = jnp.zeros((THREADS,), f32)
  fn = lambda consts, *args: tile.terms(phi, consts, *args)
  closed = jax.make_jaxpr(fn)(phi.constants(), x, x, x, x)
  return lowerable.missing(closed.jaxpr)
