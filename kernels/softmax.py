"""Softmaxes over V in plain XLA, on one device or several.

Two ways to the same numbers. `stash=True` (CPU): max and sum apart, and the
exponentials are kept. `stash=False` (accelerators): max and sum of all inputs
in one variadic lax.reduce, and nothing kept. On this CPU the variadic reduce
takes 6.9 ms per 2.1M elements, max and a stashed exp with its sum 0.56 ms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels import tile

f32 = jnp.float32
LANES = 256  # of the first level of a sum


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
