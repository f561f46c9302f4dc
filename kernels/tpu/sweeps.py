"""The sweeps of the TPU kernel, over rows that lie in VMEM.

    0  m = max z, of a row's first columns, or 0: see `statistics`
    1  x = c z - c m, s = sum 2^x                 c = log2(e) / T; c z is kept
    2  log2 q = x - log2 s, D = sum phi, U = sum u; q and u are kept instead
    3  dz = k (u - q U) + k_hard (softmax - onehot), times a cap's slope

A phi that is linear in lq and lp (`linear.Linear`: the KLs) needs no sweep 2:
sweep 1 sums 2^x x too, and keeps 2^x and u.
Sums are per lane, [rows, 128], and cross lanes once per row. The one-hot is not
compared in every lane: the 128 lanes that hold a row's label are written twice.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import algebra, tile
from kernels.linear import Linear
from kernels.tpu.parts import (
  LANES,
  LN2,
  LOG2E,
  LOW,
  Kernel,
  Refs,
  Soft,
  Stats,
  f32,
  fold,
  label_blocks,
  label_lanes,
  lanes_of,
  load,
  padded,
  row_sum,
  scale_of,
  spread,
  sweep,
  wide,
)

LEAST, MOST = 2.0**-90, 2.0**90  # sums of 2^x that serve, see `statistics`


def maxima(kernel: Kernel, refs: Refs, limit=None, columns=None):
  """Sweep 0: returns (max z_s, max z_t or None), [rows, 128].

  columns: as in `sweep`.
  """
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
  out = sweep(kernel, 0, body, init, limit, columns)
  out = [wide(x.astype(f32).max(1, keepdims=True)) for x in out]
  return (*out, None)[:2]


def sums(kernel: Kernel, refs: Refs, inv_t, t, limit=None, shifted=True):
  """Sweep 1: returns lane sums of 2^x, x = c (z - m); keeps c z.

  m is known to be 0 unless `shifted`.

  If `kernel.short`, also the lane sums of `linear_terms`; keeps 2^x and u.
  """
  of: Any = kernel.linear
  c, stats = scale_of(kernel, inv_t), refs.stats
  top_s = stats.m_s * c
  top_t = stats.m_t * c if kernel.soft else None

  def body(carry, at, valid):
    z_s = load(kernel, refs.z_s, at, valid)
    cz_s = z_s * spread(c, z_s)
    x_s = cz_s - spread(top_s, z_s) if shifted else cz_s
    new = [jnp.exp2(x_s)]
    if kernel.soft:
      z_t = load(kernel, refs.z_t, at, valid)
      cz_t = z_t * spread(c, z_t)
      x_t = cz_t - spread(top_t, z_t) if shifted else cz_t
      new.append(jnp.exp2(x_t))
    if kernel.second:
      new.append(second(refs, x_s, t, at))
    if kernel.short:
      terms = linear_terms(of, new[0], new[1], x_s, x_t)
      new += [x for _, x in terms if x is not None]
      if kernel.stash:
        refs.q[:, at] = new[0]
        refs.u[:, at] = new[1] if terms[0][1] is None else terms[0][1]
    elif kernel.stash:
      refs.x_s[:, at], refs.x_t[:, at] = cz_s, cz_t
    return tuple(a + fold(e, jnp.add) for a, e in zip(carry, new, strict=True))

  zero = jnp.zeros((kernel.rows, LANES), f32)
  count = 1 + kernel.soft + kernel.second
  if kernel.short:
    terms = linear_terms(of, zero, zero, zero, zero)
    count += sum(x is not None for _, x in terms)
  return sweep(kernel, 1, body, (zero,) * count, limit)


def statistics(kernel: Kernel, refs: Refs, inv_t, t) -> list:
  """Sweeps 0 and 1: fills in m, s and log2 s; returns what sums are left.

  m need not be the maximum, only such that no sum overflows or is lost. So that
  of a row's first columns serves, or 0 where only log sum 2^(c z) is wanted,
  unless sums turn out huge or tiny (or NaN; where m is 0, if a log-sum-exp of
  z / T is beyond +-62): only then are all maxima taken and sweep 1 done again,
  for the whole block of rows: about 8 bundles per 1,024 pairs more. The
  compiler's estimate counts little of that: a loop of unknown length.
  """
  stats, zero = refs.stats, jnp.zeros((kernel.rows, LANES), f32)

  def attempt(kernel, columns=None, shifted=True):
    m_s = m_t = zero
    if shifted:
      m_s, m_t = maxima(kernel, refs, columns=columns)
    stats.m_s = m_s
    if kernel.soft:
      stats.m_t = m_t
    lanes = sums(kernel, refs, inv_t, t, shifted=shifted)
    totals = [row_sum(x) for x in lanes]
    return set_stats(kernel, stats, totals, scale_of(kernel, inv_t))

  # Rare: of little code rather than fast.
  slow = dataclasses.replace(kernel, steps=((16, 16), (8, 4)))
  shifted = kernel.short or not kernel.soft
  first = kernel.steps[0][0] * 1024 // kernel.rows
  rest = attempt(kernel, min(first, kernel.vocab), shifted)
  if first < kernel.vocab or not shifted:
    found = [stats.s_s, stats.s_1] + [stats.s_t] * kernel.soft
    low = functools.reduce(jnp.minimum, found)
    high = functools.reduce(jnp.maximum, found)
    lost = jnp.where((low > LEAST) & (high < MOST), 0.0, 1.0)
    # Of rows only: all lanes hold the same.
    again = lost.max(0, keepdims=True)[0, 0].astype(jnp.int32)
    rest = lax.fori_loop(0, again, lambda *_: attempt(slow), rest)
  return rest


def second(refs: Refs, x_s, t, at):
  """Returns 2^x at T = 1, x = T c (z - max z); keeps it for sweep 3."""
  e_1 = jnp.exp2(x_s * spread(t, x_s))
  if refs.e_1 is not None:
    refs.e_1[:, at] = e_1
  return e_1


def linear_terms(of: Linear, e_s, e_t, x_s, x_t):
  """Returns e_s (a x_s + b x_t) and e_t (d x_s + e x_t) as (factor, array)."""

  def term(e, a, b):
    if not b:
      return (a, e * x_s) if a else (0.0, None)
    if not a:
      return b, e * x_t
    return b, e * (x_t - x_s if a == -b else x_t + x_s * (a / b))

  return term(e_s, of.a, of.b), term(e_t, of.d, of.e)


def scaled_pair(kernel: Kernel, refs: Refs, inv_t, at, valid):
  """Returns c z of a slice, of both models."""
  if kernel.stash:
    return refs.x_s[:, at], refs.x_t[:, at]
  c = scale_of(kernel, inv_t)
  z_s = load(kernel, refs.z_s, at, valid)
  z_t = load(kernel, refs.z_t, at, valid)
  return z_s * spread(c, z_s), z_t * spread(c, z_t)


def log_sums(stats: Stats, c):
  """Returns log2 sum 2^(c z) of both models, [rows, 128]."""
  return (jnp.round(stats.m_s * c) + stats.l_s,
          jnp.round(stats.m_t * c) + stats.l_t)  # fmt: skip


def pair(xs, lse):
  """Returns (log2 q, log2 p, q, p) of a slice."""
  log_q, log_p = (x - spread(s, x) for x, s in zip(xs, lse, strict=True))
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
  """Returns (f, (phi - share u) / f), (f, u / f), share; 0 where masked.

  The factors f and share are Python numbers, see kernels.algebra. u is None if
  no gradient is wanted.
  """
  log_q, log_p, q, p = parts
  logs = [algebra.Value(LN2, x, -1e27, 1e-3) for x in (log_q, log_p)]
  args: Any = (kernel.phi, consts, *logs, q, p, reciprocal)
  share = 0.0
  if kernel.grad:
    value, u = algebra.value_and_slope(*args)
    value, share = algebra.without(value, u)
    new = (value, u)
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
  return out[0], out[1] if kernel.grad else (1.0, None), share


def linear_soft(kernel: Kernel, stats: Stats, sums) -> Soft:
  """Returns D and U from sweep 1's sums of `linear_terms`."""
  of: Any = kernel.linear
  one = jnp.ones_like(stats.s_s)
  terms = linear_terms(of, one, one, one, one)
  sums = list(sums)
  per_s, per_t = 1 / stats.s_s, 1 / stats.s_t
  means = [
    factor * sums.pop(0) * scale if x is not None else 0.0 * one
    for (factor, x), scale in zip(terms, (per_s, per_t), strict=True)
  ]
  # means are sums of q (a x_s + b x_t), p (d x_s + e x_t); lq = x_s - l_s.
  on_q = means[0] - (of.a * stats.l_s + of.b * stats.l_t)
  on_p = means[1] - (of.d * stats.l_s + of.e * stats.l_t)
  d = LN2 * (on_q + on_p) + (of.c + of.f)
  total = LN2 * on_q + (of.a + of.c + of.d)
  factor, x = terms[0]
  if x is None:  # u is p, and q
    return Soft(d, total, of.d * per_t, of.d, per_s)
  return Soft(d, total, LN2 * factor * per_s, LN2 * means[0], per_s)


def divergences(kernel: Kernel, refs: Refs, inv_t, consts, limit=None) -> Soft:
  """Sweep 2: keeps q and u; U is None if no gradient is wanted.

  Where u is a multiple of q or p, U is that factor, as both sum to 1.
  """
  traced = {}  # what body finds out
  stats = refs.stats
  stats.lse_s, stats.lse_t = log_sums(stats, scale_of(kernel, inv_t))

  def body(carry, at, valid, xs):
    # Read in each part: where registers are scarce, loads are not.
    parts = pair(xs, (stats.lse_s, stats.lse_t))
    (f_d, value), (f_u, u), share = terms(kernel, consts, parts, valid)
    same = u is not None and (u is parts[2] or u is parts[3])
    if valid is None or not traced:
      traced.update(factors=(f_d, f_u), share=share)
      traced.update(normalised=same and limit is None)
    new = [value] if u is None else [value, None if same else u]
    if kernel.grad and kernel.stash:
      refs.q[:, at], refs.u[:, at] = parts[2], u
    return tuple(
      a if x is None else a + fold(x, jnp.add)
      for a, x in zip(carry, new, strict=True)
    )

  zero = jnp.zeros((kernel.rows, LANES), f32)
  init = (zero,) * (1 + kernel.grad)
  read = functools.partial(scaled_pair, kernel, refs, inv_t)
  out = sweep(kernel, 2, body, init, limit, read=read)
  factors = traced["factors"]
  out = [row_sum(x) * f for x, f in zip(out, factors, strict=False)]
  if traced["normalised"]:
    out[1] = jnp.full((kernel.rows, LANES), factors[1], f32)
  if not kernel.grad:
    return Soft(out[0], None, 1.0, None)
  d, total = out[0] + traced["share"] * out[1], out[1]
  return Soft(d, total, factors[1] if kernel.stash else 1.0, total)


def slopes(
  kernel: Kernel, refs: Refs, inv_t, consts, soft: Soft | None,
  base=0, limit=None,
):  # fmt: skip
  """Sweep 3: writes dz; then again, with the one-hot, where labels are.

  Args:
    soft: None if there is no soft term.
    base, limit: in phases, the first column of the block, and `sweep`.
  """
  k, k_hard, alive = (wide(refs.info[:, i : i + 1]) for i in (1, 2, 3))
  alive = alive != 0
  c, stats = scale_of(kernel, inv_t), refs.stats
  shared = kernel.hard_slope and not kernel.second
  on_q = k_hard if shared else jnp.zeros_like(k)
  if soft is not None:
    on_q, on_u = (on_q - k * soft.centre) * soft.q_scale, k * soft.on_u
    lse = log_sums(stats, c)
  else:
    on_q, top = on_q / stats.s_s, stats.m_s * c
  if kernel.second:
    top_1, on_1 = stats.m_s * LOG2E, k_hard / stats.s_1
  labels = label_lanes(refs, base) if kernel.hard_slope else None

  def read(at, valid):
    return load(kernel, refs.z_s, at, valid, floor=False)

  def write(at, valid, z_s=None, start=None):
    if kernel.stash:
      q, u = refs.q[:, at], refs.u[:, at]
    elif kernel.soft:
      parts = pair(scaled_pair(kernel, refs, inv_t, at, valid), lse)
      q, (f, u) = parts[2], terms(kernel, consts, parts, valid)[1]
      u = u * f
    else:
      z = load(kernel, refs.z_s, at, valid)
      q, u = jnp.exp2(z * spread(c, z) - spread(top, z)), None
    dz = spread(on_q, q) * q
    if u is not None:
      dz = spread(on_u, q) * u + dz
    if kernel.second and kernel.hard_slope:
      if kernel.keeps_second:
        e_1 = refs.e_1[:, at]
      else:
        z = read(at, valid)
        e_1 = jnp.exp2(z * LOG2E - spread(top_1, z))
      dz = dz + spread(on_1, q) * e_1
    if start is not None:
      dz = dz - jnp.where(labels == start, k_hard, 0.0)
    if kernel.soft_cap is not None:
      dz = dz * tile.cap_slope(z_s, kernel.soft_cap)
    if kernel.guard:
      dz = jnp.where(spread(alive, dz), dz, 0.0)
    refs.dz[:, at] = dz.astype(refs.dz.dtype)

  capped = kernel.soft_cap is not None
  body = lambda _, *part: write(*part)
  sweep(kernel, 3, body, None, limit, read=read if capped else None)
  if kernel.hard_slope:
    for start, at, valid in label_blocks(kernel, refs, base, limit):
      write(at, valid, read(at, valid) if capped else None, start)
  if not kernel.block:  # padding columns
    for start in range(padded(kernel.vocab), refs.dz.shape[1], LANES):
      zeros = jnp.zeros((kernel.rows, LANES), refs.dz.dtype)
      refs.dz[:, pl.ds(start, LANES)] = zeros


def set_stats(kernel: Kernel, stats: Stats, sums, c) -> list:
  """Fills in s and log2 s from sums [rows, 128]; returns what sums are left.

  Where sweep 2 wants the log of sum 2^(c z) itself, log2 s is what that holds
  of it after rounding, so that the error is known (`plans.excess`): s is
  relative to an integer near c m, which can be added and taken off exactly.
  """
  sums = list(sums)
  take = lambda: jnp.maximum(sums.pop(0), tile.TINY)

  def split(s, m):
    if kernel.short or not kernel.soft:
      return s, jnp.log2(s)
    near = jnp.round(m * c)
    s = s * jnp.exp2(m * c - near)
    return s, (near + jnp.log2(s)) - near

  first = take()
  stats.s_s, stats.l_s = split(first, stats.m_s)
  if kernel.soft:
    stats.s_t, stats.l_t = split(take(), stats.m_t)
  stats.s_1 = take() if kernel.second else first
  return sums
