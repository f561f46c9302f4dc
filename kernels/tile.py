"""Arithmetic on a tile of rows that every implementation shares.

With x = z / T, lq = x_s - lse_s, lp = x_t - lse_t, q = exp(lq), p = exp(lp), a
divergence D = sum_v phi(lq, lp) and u = dphi/dlq (kernels.phi):

    U = sum_v u
    dD/dx_s = u - q U     since dlq_v/dx_w = [v = w] - q_w

The functions take float32 tiles of any shape and hold elementwise jnp
operations only, so that XLA and the Pallas kernels share them.
"""

import jax.numpy as jnp

FLOOR = -1e30  # log-probability of what never happens: finite, unlike -inf
DEAD = -1e25  # below it on both sides, a column contributes nothing
TINY = 1e-37  # least probability that phi sees; still a normal float32
STEEP = 1e30  # bound on |u|: U and q U stay finite for V up to 1e8


def scaled(z, inv_t, valid=None):
  """Returns x = z / T in float32, FLOOR where not valid."""
  x = z.astype(jnp.float32) * inv_t
  return x if valid is None else jnp.where(valid, x, FLOOR)


def finished(y, scale: float, soft_cap: float | None):
  """Returns a head's z from its GEMM's y, float32, see `types.Head`.

  What is masked (a bias of -inf or -1e30) stays so.
  """
  if soft_cap is None:
    return y if scale == 1 else y * scale
  z = soft_cap * jnp.tanh(y * (scale / soft_cap))
  return jnp.where(y < DEAD, FLOOR, z)


def cap_slope(z, soft_cap: float):
  """Returns dz/d(scale y) = 1 - (z / soft_cap)^2 of `finished`, float32.

  A rounded z may be beyond its cap; what is masked gets 0.
  """
  t = z.astype(jnp.float32) * (1 / soft_cap)
  return jnp.maximum(1 - t * t, 0.0)


def gradient(u, q, total, soft_scale, softmax, onehot, hard_scale):
  """Returns dloss/dz = soft_scale (u - q U) + hard_scale (softmax - onehot).

  Args:
    u, q, total: of the soft term, total = U [C, 1]; None if there is none.
    soft_scale: [C, 1], weights soft_weight T (T^2 of the loss, 1/T of dx/dz).
    softmax, onehot, hard_scale: of the hard term, or None; hard_scale [C, 1] is
      weights hard_weight.
  """
  dz = 0.0
  if u is not None:
    dz = soft_scale * (u - q * total)
  if softmax is not None:
    dz = dz + hard_scale * (softmax - onehot)
  return dz


def frexp(s):
  """Returns (f, k), float32, with s = f 2^k and f around 1: 0.707 to 1.414."""
  f, k = jnp.frexp(s)
  k = k.astype(jnp.float32)
  small = f < 0.70710678
  return jnp.where(small, 2 * f, f), jnp.where(small, k - 1, k)


def split_log(s):
  """Returns (hi, lo) with hi + lo = log(s) to 2e-8, hi a rounded float32.

  log s is about log V, whose rounding (5e-7 at V = 65536) is common to a whole
  row, so it adds U times itself to D: 1e-3 of D at T = 20. `lo` corrects it.
  With s = f 2^k, log s = k ln 2 + log f, and k times 0x1.62ep-1 is exact.
  """
  f, k = frexp(s)
  exact = k * 0.693145751953125
  rest = jnp.log(f) + k * 1.42860682030941723212e-6
  hi = exact + rest
  return hi, (exact - hi) + rest


def log_rest(log_probs):
  """Returns log(1 - sum_k p_k) [..., 1] of a top-k teacher, at least log TINY.

  1 - p_1 = -expm1(lp_1) is exact to rounding for the largest p_1, so that a
  rest of 1e-6 keeps its digits where 1 - sum p would leave one.
  """
  best = jnp.argmax(log_probs, -1, keepdims=True)
  is_best = jnp.arange(log_probs.shape[-1]) == best
  others = jnp.where(is_best, 0.0, jnp.exp(log_probs)).sum(-1, keepdims=True)
  rest = -jnp.expm1(log_probs.max(-1, keepdims=True)) - others
  return jnp.log(jnp.maximum(rest, TINY))
