"""The Mosaic-GPU kernel itself: one row per cluster, three sweeps over it.

kernels.gpu.plans says when it is used and what becomes of its outputs. Layout
of the work, and why: there. Evidence for what is said of the compiler: read in
jax 0.12.0.1, and compiled for H100 (kernels.report.gpu).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import algebra, tile
from kernels.gpu import lowering
from kernels.gpu.tiling import Tile
from kernels.phi import Phi

f32 = jnp.float32
STATS = ("s_s", "log2_s", "s_t", "log2_t", "d", "u", "top", "s_h")
LOG2E, LN2 = 1 / math.log(2), math.log(2)


@dataclasses.dataclass(frozen=True)
class Call:
  """What is static about one kernel.

  Attributes:
    tile: see there.
    phi, hard, hard_slope, unit_temperature: as in plan.Spec.
    vocab_size: None where no column is padding.
    dtype: of dz; None computes none.
    interpreted: exchange through device memory, no inline assembly.
    alias: dz overwrites z_s.
    soft_cap: as in plan.Spec.
  """

  tile: Tile
  phi: Phi | None
  hard: bool
  hard_slope: bool
  unit_temperature: bool
  vocab_size: int | None
  dtype: jnp.dtype | None
  interpreted: bool
  alias: bool
  soft_cap: float | None = None

  @property
  def own_softmax(self) -> bool:
    """Whether the hard term needs a softmax at T = 1 of its own."""
    return self.hard and (self.phi is None or not self.unit_temperature)


class Refs(NamedTuple):
  """The kernel's operands and results in device memory."""

  z_s: Any  # [N, V]
  z_t: Any  # [N, V] or None, as whatever the call does not need
  inv_t: Any  # [1]
  soft_scale: Any  # [N]
  hard_scale: Any  # [N]
  labels: Any  # [N]
  consts: list  # of [1]
  stats: Any  # [N, 8]
  dz: Any  # [N, V]
  peers: Any  # [N, C, 16]


def name_refs(call: Call, refs) -> Refs:
  """Returns the references under their names."""
  refs = list(refs)
  take = lambda wanted=True: refs.pop(0) if wanted else None
  inputs = [take(), take(call.phi is not None), take(), take(), take()]
  inputs.append(take(call.hard))
  own_dz = call.dtype is not None and not call.alias
  results = 1 + own_dz + call.interpreted
  consts = [take() for _ in range(len(refs) - results)]
  stats, dz, peers = take(), take(own_dz), take(call.interpreted)
  dz = inputs[0] if call.alias else dz
  return Refs(*inputs, consts=consts, stats=stats, dz=dz, peers=peers)


class Softmax(NamedTuple):
  """p = 2^(c (z - top) - log2 s) of one row, in base 2 for the hardware's ex2.

  The difference first: it is exact where it matters, whatever z's size.
  """

  ref: Any  # of z, in shared memory
  c: Any  # log2(e) / T
  top: Any  # max z
  s: Any  # sum 2^(c (z - top))
  log2_s: Any


@dataclasses.dataclass(frozen=True)
class Cta:
  """One CTA at work: its call, its references, its place."""

  call: Call
  refs: Refs
  scratch: dict
  row: Any
  rank: Any
  layout: Any
  iota: Any  # [chunk] int32

  @property
  def sources(self) -> list:
    """Returns (device memory, shared memory) of each row."""
    out = [(self.refs.z_s, self.scratch["z_s"])]
    if self.call.phi is not None:
      out.append((self.refs.z_t, self.scratch["z_t"]))
    return out

  def full(self, x, dtype=f32):
    chunk = (self.call.tile.chunk,)
    return plgpu.layout_cast(jnp.full(chunk, x, dtype), self.layout)

  def columns(self, at):
    """Returns the columns of V that a chunk holds, [chunk]."""
    return self.rank * self.call.tile.width + at[1] + self.iota

  def load(self, ref, at, dtype=f32):
    """Returns a chunk of logits, FLOOR beyond V; dtype None: as they are."""
    here = ref.at[pl.ds(at[0], self.call.tile.chunk)]
    z = plgpu.load(here, layout=self.layout).astype(dtype or ref.dtype)
    if self.call.vocab_size is None:
      return z
    floor = jnp.asarray(tile.FLOOR, z.dtype)
    return jnp.where(self.columns(at) < self.call.vocab_size, z, floor)

  def sweep(self, body, carry, wait=False):
    """Folds body(carry, at, fresh) over the CTA's chunks.

    Args:
      body: gets at = (place in shared memory, column) and which of the chunk's
        columns were not in the one before, [chunk] bool (None: all).
      carry: pytree.
      wait: whether to wait for the copies.
    """
    cut = self.call.tile
    main, rest = cut.width // cut.chunk * cut.chunk, cut.width % cut.chunk
    pieces = cut.pieces() if wait else [(0, 0, main)]
    for i, (_, place, size) in enumerate(pieces):
      if wait:
        plgpu.barrier_wait(self.scratch["copied"].at[i])
      if place == main:
        continue

      def step(k, carry, place=place):
        return body(carry, (place + k * cut.chunk,) * 2, None)

      carry = lax.fori_loop(0, size // cut.chunk, step, carry)
    if rest:
      fresh = self.iota >= cut.chunk - rest
      carry = body(carry, (main, cut.width - cut.chunk), fresh)
    return carry

  def meet(self, i: int):
    """Waits until all of the cluster's CTAs are here; each i once.

    The barrier's own release and acquire order the CTA only, and single threads
    arrive on it: hence the fences and the CTA's barrier. It is another one each
    time, as an arrival for the second use could be counted for the first.
    """
    if not self.call.interpreted:
      _order(sync=True)
    plgpu.barrier_arrive_and_wait(self.scratch["met"].at[i])
    if not self.call.interpreted:
      _order(sync=False)

  def exchange(self, i: int, values):
    """Returns every CTA's values, [C][len(values)], this one's among them."""
    if self.call.tile.cluster == 1:
      return [values]
    in_gmem, slots = self.call.interpreted, range(8 * i, 8 * i + len(values))
    peers = self.refs.peers if in_gmem else self.scratch["peers"]
    mine = peers.at[self.row, self.rank] if in_gmem else peers
    for slot, x in zip(slots, values, strict=True):
      plgpu.store(mine.at[slot], x)
    self.meet(i)

    def theirs(c, slot):
      if in_gmem:
        return peers[self.row, c, slot]
      return plgpu.load(plgpu.cluster_ref(peers, {"cta": c}).at[slot])

    clusters = range(self.call.tile.cluster)
    return [[theirs(c, slot) for slot in slots] for c in clusters]


def _order(sync: bool):
  """Orders accesses to the cluster's shared memory; sync: of all threads."""

  @plgpu.inline_mgpu()
  def order(ctx):
    del ctx
    if sync:
      mgpu.warpgroup_barrier()
    mgpu.utils.inline_ptx("fence.acq_rel.cluster;", has_side_effects=True)

  order()


def copy_in(cta: Cta):
  """Starts the copies of this CTA's columns into shared memory."""
  base = cta.rank * cta.call.tile.width
  for i, (column, place, size) in enumerate(cta.call.tile.pieces()):
    for gmem, smem in cta.sources:
      plgpu.copy_gmem_to_smem(
        gmem.at[cta.row, pl.ds(base + column, size)],
        smem.at[pl.ds(place, size)],
        cta.scratch["copied"].at[i],
        oob_mode=plgpu.OOBFillMode.PROMISE_IN_BOUNDS,
      )


def exp2(cta: Cta, x):
  """Returns 2^x by the hardware's ex2.approx, within 2 units in the last place.

  Mosaic GPU's exp costs 10 instructions, and this kernel issues more of them
  than an H100 has memory traffic for (kernels.report.gpu).
  """
  if cta.call.interpreted:
    return jnp.exp2(x)
  shape = plgpu.ShapeDtypeStruct(x.shape, jnp.dtype(f32), cta.layout)

  @plgpu.inline_mgpu(arg_types=(cta.layout,), return_type=shape)
  def approximate(ctx, x):
    del ctx
    return x.exp2(approx=True)

  return approximate(x)


def maxima(cta: Cta) -> list:
  """Returns the maxima of this CTA's logits, in their dtype until the end."""

  def body(carry, at, fresh):
    del fresh
    loaded = [cta.load(ref, at, None) for _, ref in cta.sources]
    return tuple(map(jnp.maximum, carry, loaded))

  init = tuple(cta.full(tile.FLOOR, ref.dtype) for _, ref in cta.sources)
  tops = cta.sweep(body, init, wait=True)
  # FLOOR is -inf in float16.
  return [jnp.maximum(jnp.max(m.astype(f32)), tile.FLOOR) for m in tops]


def softmaxes(cta: Cta) -> list[Softmax]:
  """Returns those of student, teacher and, if need be, student at T = 1.

  Sums are taken at this CTA's own maxima and brought to the row's afterwards.
  """
  tops = maxima(cta)
  terms = []  # (logits, index of their maximum, c)
  if cta.call.phi is not None:
    c = cta.refs.inv_t[0] * LOG2E
    terms += [(ref, i, c) for i, (_, ref) in enumerate(cta.sources)]
  if cta.call.own_softmax:
    terms.append((cta.scratch["z_s"], 0, f32(LOG2E)))

  def sums(carry, at, fresh):
    each = [exp2(cta, (cta.load(ref, at) - tops[i]) * c) for ref, i, c in terms]
    return tuple(s + _keep(e, fresh) for s, e in zip(carry, each, strict=True))

  parts = cta.sweep(sums, tuple(cta.full(0.0) for _ in terms))
  parts = cta.exchange(0, tops + [jnp.sum(s) for s in parts])
  out = []
  for k, (ref, i, c) in enumerate(terms):
    top = functools.reduce(jnp.maximum, [p[i] for p in parts])
    s = sum(p[len(tops) + k] * jnp.exp2((p[i] - top) * c) for p in parts)
    s = jnp.maximum(s, tile.TINY)
    out.append(Softmax(ref, c, top, s, jnp.log2(s)))
  return out


def _keep(x, fresh):
  return x if fresh is None else jnp.where(fresh, x, 0.0)


def probabilities(cta: Cta, soft: Softmax, at):
  """Returns (log2 p, p) of a chunk."""
  log2_p = (cta.load(soft.ref, at) - soft.top) * soft.c - soft.log2_s
  log2_p = jnp.maximum(log2_p, tile.FLOOR)
  return log2_p, exp2(cta, log2_p)


def terms(phi: Phi, consts, log2_q, log2_p, q, p):
  """Returns phi and u of a chunk; 0 where both sides are masked.

  As `Phi.terms`, with what kernels.algebra knows: constant factors, guards
  that are not needed, and equal operations, which cost a quarter to a half of
  the instructions of a divergence as jvp leaves it (kernels.report.gpu).
  """
  logs = [algebra.Value(LN2, x, -1e27, 1e-3) for x in (log2_q, log2_p)]
  out = algebra.value_and_slope(phi, consts, *logs, q, p)
  dead = jnp.maximum(log2_q, log2_p) < tile.DEAD
  return [jnp.where(dead, 0.0, algebra.array(v, q)) for v in out]


def phi_terms(cta: Cta, soft: list[Softmax], at):
  """Returns (phi, u, q) of a chunk."""
  (log2_q, q), (log2_p, p) = (probabilities(cta, s, at) for s in soft[:2])
  consts, phi = [ref[0] for ref in cta.refs.consts], cta.call.phi
  assert phi is not None
  fn = functools.partial(terms, phi)
  return *lowering.call(fn, consts, log2_q, log2_p, q, p), q


def divergence(cta: Cta, soft: list[Softmax]):
  """Returns (D, U) of the row."""

  def body(carry, at, fresh):
    new = phi_terms(cta, soft, at)[:2]
    return tuple(c + _keep(x, fresh) for c, x in zip(carry, new, strict=True))

  parts = cta.sweep(body, (cta.full(0.0), cta.full(0.0)))
  parts = cta.exchange(1, [jnp.sum(x) for x in parts])
  return tuple(sum(p[i] for p in parts) for i in range(2))


def write_gradient(cta: Cta, soft: list[Softmax], total):
  """Writes dz. A row whose scales are both 0 may hold anything, NaN too."""
  call, refs = cta.call, cta.refs
  soft_scale, hard_scale = refs.soft_scale[cta.row], refs.hard_scale[cta.row]
  alive = (soft_scale != 0) | (hard_scale != 0)
  label = refs.labels[cta.row] if call.hard_slope else None
  base = cta.rank * call.tile.width

  def body(carry, at, fresh):
    del fresh
    u = q = softmax = onehot = None
    if call.phi is not None:
      _, u, q = phi_terms(cta, soft, at)
    if call.hard_slope:
      softmax = probabilities(cta, soft[-1], at)[1] if call.own_softmax else q
      onehot = jnp.where(cta.columns(at) == label, 1.0, 0.0)
    dz = tile.gradient(u, q, total, soft_scale, softmax, onehot, hard_scale)
    if call.soft_cap is not None:
      dz = dz * tile.cap_slope(cta.load(cta.scratch["z_s"], at), call.soft_cap)
    dz = jnp.where(alive, dz, 0.0).astype(call.dtype)
    plgpu.store(refs.dz.at[cta.row, pl.ds(base + at[1], call.tile.chunk)], dz)
    return carry

  cta.sweep(body, ())


def cta_kernel(call: Call, *refs, **scratch):
  """One CTA's share of one row.

  One warpgroup per CTA: with more, full reductions would share their scratch
  without saying so (jax 0.12.0.1, _reduce_lowering_rule).
  """
  chunk = call.tile.chunk
  layout = plgpu.Layout.WG_STRIDED((chunk,), vec_size=call.tile.vector)
  cta = Cta(
    call=call,
    refs=name_refs(call, refs),
    scratch=scratch,
    row=lax.axis_index("row"),
    rank=lax.axis_index("cta"),
    layout=layout,
    iota=plgpu.broadcasted_iota(jnp.int32, (chunk,), 0, layout=layout),
  )
  copy_in(cta)
  soft = softmaxes(cta)
  d = total = f32(0)
  if call.phi is not None:
    d, total = divergence(cta, soft)

  @pl.when(cta.rank == 0)
  def _():
    stats = [f32(0)] * 6
    if call.phi is not None:
      q, p = soft[:2]
      stats = [q.s, q.log2_s, p.s, p.log2_s, d, total]
    if call.hard:
      hard = soft[-1] if call.own_softmax else soft[0]
      stats += [hard.top, hard.s]
    for i, x in enumerate(stats):
      plgpu.store(cta.refs.stats.at[cta.row, i], x)

  if call.dtype is not None:
    write_gradient(cta, soft, total)
  if call.tile.cluster > 1:
    cta.meet(2)  # leave when no one reads this CTA's shared memory
