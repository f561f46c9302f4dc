"""The TPU kernel for rows that fit in VMEM; see kernels.tpu.sweeps.

Wrapper, block sizes and plans: kernels.tpu.plans.
"""

import jax.numpy as jnp

from kernels.tpu.parts import (
  LANES,
  OUT,
  Kernel,
  Refs,
  f32,
  label_logits,
  lanes_of,
)
from kernels.tpu.sweeps import divergences, linear_soft, slopes, statistics


def write_out(kernel: Kernel, refs: Refs):
  unknown = {"d", "m_t", "s_t", "l_t"} if not kernel.soft else set()
  unknown |= {"total"} if not (kernel.soft and kernel.grad) else set()
  unknown |= {"z_l"} if not kernel.hard else set()
  lane = lanes_of(refs.out)
  out = jnp.zeros(refs.out.shape, f32)
  for i, name in enumerate(OUT):
    if name not in unknown:
      out = jnp.where(lane == i, getattr(refs.stats, name), out)
  refs.out[...] = out


def scalars_of(kernel: Kernel, refs: Refs):
  """Returns (1/T, T, phi's constants), the first two [rows, 128]."""
  row = refs.scalars[...]
  consts = [row[0, 2 + i] for i in range(len(kernel.shapes))]
  consts = [
    jnp.full(s, c) if s else c
    for c, s in zip(consts, kernel.shapes, strict=True)
  ]
  shape = kernel.rows, LANES
  inv_t, t = (jnp.broadcast_to(row[:, i : i + 1], shape) for i in (0, 1))
  return inv_t, t, consts


def resident(kernel: Kernel, *refs):
  """The kernel for rows that fit: all sweeps in one grid step."""
  refs = Refs(kernel, refs)
  inv_t, t, consts = scalars_of(kernel, refs)
  stats, soft = refs.stats, None
  rest = statistics(kernel, refs, inv_t, t)
  if kernel.short:
    soft = linear_soft(kernel, stats, rest)
  elif kernel.soft:
    soft = divergences(kernel, refs, inv_t, consts)
  if soft is not None:
    stats.d = soft.d
    if kernel.grad:
      stats.total = soft.total
  if kernel.hard:
    stats.z_l = label_logits(kernel, refs)
  if kernel.grad:
    slopes(kernel, refs, inv_t, consts, soft)
  write_out(kernel, refs)
