"""The TPU kernel for rows that do not fit in VMEM: its sweeps as grid phases.

A grid step sees a block of V; statistics of a row lie in VMEM between steps.
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.tpu_kernel import (
  divergences,
  label_logits,
  maxima,
  scalars_of,
  set_stats,
  slopes,
  sums,
  write_out,
)
from kernels.tpu_parts import (
  LANES,
  LOG2E,
  LOW,
  Kernel,
  Refs,
  Soft,
  Stats,
  f32,
  row_sum,
  scale_of,
)

STATE = ("m_s", "s_s", "m_t", "s_t", "s_1", "d", "total", "z_l")


def phased(kernel: Kernel, *refs):
  """The kernel for rows that do not fit: grid (rows, 3 phases, blocks of V)."""
  refs = Refs(kernel, refs)
  phase, j = pl.program_id(1), pl.program_id(2)
  base = j * kernel.block
  limit = kernel.vocab - base
  inv_t, t, consts = scalars_of(kernel, refs)
  row = {name: refs.state.at[i] for i, name in enumerate(STATE)}
  column = lambda name: row[name][...]
  put = lambda name, x: row[name].__setitem__(..., x)

  @pl.when((phase == 0) & (j == 0))
  def _():
    for name in STATE:
      low = LOW if name[0] == "m" else 0.0
      put(name, jnp.full((kernel.rows, LANES), low, f32))

  @pl.when(phase == 0)
  def _():
    stats = Stats()
    new = maxima(kernel, refs, limit)
    stats.m_s = jnp.maximum(column("m_s"), new[0])
    if kernel.soft:
      stats.m_t = jnp.maximum(column("m_t"), new[1])
    lanes = sums(kernel, refs, stats, inv_t, t, limit)
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
      z = label_logits(kernel, refs, base, limit)
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
      args = (kernel, refs, stats_now(), inv_t, t, consts)
      soft = divergences(*args, limit)
      put("d", column("d") + soft.d)
      if kernel.grad:
        put("total", column("total") + soft.total)

  @pl.when(phase == 2)
  def _():
    stats = stats_now()
    if kernel.grad:
      total = column("total")
      soft = Soft(column("d"), total, 1.0, total) if kernel.soft else None
      slopes(kernel, refs, stats, inv_t, consts, soft, base, limit)
    rest = {name: column(name) for name in ("d", "total", "z_l")}
    write_out(refs, stats, **rest)
