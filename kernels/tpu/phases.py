"""The TPU kernel for rows that do not fit in VMEM: its sweeps as grid phases.

A grid step sees a block of V; statistics of a row lie in VMEM between steps.
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.tpu.kernel import scalars_of, write_out
from kernels.tpu.parts import (
  LANES,
  LOG2E,
  LOW,
  OUT,
  Kernel,
  Refs,
  Soft,
  f32,
  label_logits,
  row_sum,
  scale_of,
)
from kernels.tpu.sweeps import divergences, maxima, set_stats, slopes, sums


def phased(kernel: Kernel, *refs):
  """The kernel for rows that do not fit: grid (rows, 3 phases, blocks of V)."""
  refs = Refs(kernel, refs)
  phase, j = pl.program_id(1), pl.program_id(2)
  base = j * kernel.block
  limit = kernel.vocab - base
  inv_t, t, consts = scalars_of(kernel, refs)
  stats, soft = refs.stats, kernel.soft

  @pl.when((phase == 0) & (j == 0))
  def _():
    for name in OUT:
      low = LOW if name[0] == "m" else 0.0
      setattr(stats, name, jnp.full((kernel.rows, LANES), low, f32))

  @pl.when(phase == 0)
  def _():
    c = scale_of(kernel, inv_t)
    names = [("m_s", "s_s", c)] + [("m_t", "s_t", c)] * soft
    names += [("m_s", "s_1", LOG2E)] * kernel.second
    before = [(getattr(stats, m), getattr(stats, s)) for m, s, _ in names]
    m_s, m_t = maxima(kernel, refs, limit)
    stats.m_s = jnp.maximum(stats.m_s, m_s)
    if soft:
      stats.m_t = jnp.maximum(stats.m_t, m_t)
    lanes = sums(kernel, refs, inv_t, t, limit)
    for (m, s, c), old, x in zip(names, before, lanes, strict=True):
      shrink = jnp.exp2((old[0] - getattr(stats, m)) * c)
      setattr(stats, s, old[1] * shrink + row_sum(x))
    if kernel.hard:
      stats.z_l = stats.z_l + label_logits(kernel, refs, base, limit)

  @pl.when((phase == 1) & (j == 0))
  def _():
    names = ["s_s"] + ["s_t"] * soft + ["s_1"] * kernel.second
    found = [getattr(stats, n) for n in names]
    set_stats(kernel, stats, found, scale_of(kernel, inv_t))

  if soft:

    @pl.when(phase == 1)
    def _():
      new = divergences(kernel, refs, inv_t, consts, limit)
      stats.d = stats.d + new.d
      if kernel.grad:
        stats.total = stats.total + new.total

  @pl.when(phase == 2)
  def _():
    if kernel.grad:
      total = stats.total
      found = Soft(stats.d, total, 1.0, total) if soft else None
      slopes(kernel, refs, inv_t, consts, found, base, limit)
    write_out(kernel, refs)
