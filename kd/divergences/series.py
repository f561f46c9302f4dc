"""Log-probabilities near one another, to float32's relative accuracy.

What kd.divergences is made of: differences and logs of mixtures of p and q, by
series in x = lq - lp where that is small. Only operations that every kernel can
lower and differentiate; see there.
"""

import math

import jax.numpy as jnp

FLOOR = -1e30  # finite, and with room for T^2 below overflow
NEAR = 0.5  # |x| below which the series are used
NEARER = 0.125  # the same, of the short ones
LEAST = 1e-28  # the least probability of a mixture: its log is finite


def floored(log_prob):
  # Not max: its derivative is 1/2 at the floor. NaN passes through.
  return jnp.where(log_prob < FLOOR, FLOOR, log_prob)


def is_near(x):
  return (x < NEAR) & (x > -NEAR)


def expm1_over(x):
  """Returns (e^x - 1) / x for |x| < 1/2, within 2e-8."""
  return nested(x, 2)


def expm1_less(x):
  """Returns e^x - 1 - x for |x| < 1/2, within 1e-8 of itself."""
  return 0.5 * x * x * nested(x, 3)


def nested(x, first, last=8):
  """Returns 1 + x / first (1 + x / (first + 1) (1 + ...))."""
  y = 1 + x * (1 / last)
  for k in range(last - 1, first - 1, -1):
    y = 1 + x * (1 / k) * y
  return y


def log_ratio(lq, lp):
  """Returns x = lq - lp, whether it is small, and x where it is, else 0."""
  x = floored(lq) - floored(lp)
  near = is_near(x)
  return x, near, jnp.where(near, x, 0.0)


def difference(lq, lp):
  """Returns q - p, to float32's relative accuracy also near q = p."""
  _, near, x = log_ratio(lq, lp)
  p = jnp.exp(lp)
  return jnp.where(near, p * x * expm1_over(x), jnp.exp(lq) - p)


def log_mean_ratio(x, w):
  """Returns log of arithmetic over geometric mean of p and q, |x| < 1/2.

  log(((1 - w) p + w q) / (p^(1 - w) q^w)), second order in x: log(1 + r) with
  r = (1 - w) h(-w x) + w h((1 - w) x), h(y) = e^y - 1 - y, 0 <= r < 1/30.
  """
  return log1p_small((1 - w) * expm1_less(-w * x) + w * expm1_less((1 - w) * x))


def log1p_small(r):
  """Returns log(1 + r) for 0 <= r <= 1/20, within 1e-7 of itself."""
  return r * (1 - r * (1 / 2 - r * (1 / 3 - r * (1 / 4 - r * (1 / 5)))))


def log_mixture(x, log_v, log_w):
  """Returns (log m - lp, log m - lq) for m = v p + w q, v + w = 1."""
  # log(v + w e^x), from its larger term.
  a, b = log_v, log_w + x
  q_larger = b > a
  high, low = jnp.where(q_larger, b, a), jnp.where(q_larger, a, b)
  ratio = jnp.exp(low - high)  # small where w is, and 1 + ratio would round it
  small = ratio < 0.05
  series = log1p_small(jnp.where(small, ratio, 0.0))
  rest = jnp.where(small, series, jnp.log(1 + ratio))
  # The second is not the first less x: an x of 1e8 would swallow log w.
  return high + rest, jnp.where(q_larger, log_w, log_v - x) + rest


def mixture(v: float, lq, lp):
  """Returns q, p, m = v p + (1 - v) q, lq - log m, lp - log m."""
  q, p = jnp.exp(lq), jnp.exp(lp)  # of lq, lp as given: kernels know those
  m = jnp.maximum(v * p + (1 - v) * q, LEAST)
  lm = jnp.log(m)
  return q, p, m, floored(lq) - lm, floored(lp) - lm


def weighted_mixture(v, lq, lp):
  """Returns (1 - v) q, v p, lq - log m, lp - log m, for their sum m."""
  v = jnp.minimum(jnp.maximum(v, 0.0), 1.0)  # tells kernels the range
  q, p = (1 - v) * jnp.exp(lq), v * jnp.exp(lp)
  lm = jnp.log(jnp.maximum(q + p, LEAST))
  return q, p, floored(lq) - lm, floored(lp) - lm


def near_ratio(lq, lp, near=NEARER):
  """Returns x = lq - lp, clipped to +-near, and whether it was within."""
  x = floored(lq) - floored(lp)
  clipped = jnp.maximum(jnp.minimum(x, near), -near)
  return clipped, clipped == x


def cumulants(w: float) -> list[float]:
  """Returns k_n / n!, n = 1 to 6, of a Bernoulli variable with mean w.

  log(1 - w + w e^x) = sum k_n x^n / n!.
  """
  s, d = w * (1 - w), 1 - 2 * w
  k5, k6 = s * d * (1 - 12 * s), s * (1 - 30 * s + 120 * s * s)
  return [w, s / 2, s * d / 6, s * (1 - 6 * s) / 24, k5 / 120, k6 / 720]


def horner(c, x, second=0, near=NEARER):
  """Returns sum c_i x^i for |x| <= near.

  What is 4e-6 of D or less is left out, c[second] being what makes up D.
  """
  size = lambda i: abs(c[i]) * near**i
  orders = [i for i in range(len(c)) if size(i) > 4e-6 * size(second)]
  y, at = c[orders[-1]], orders[-1]
  for i in reversed(orders[:-1]):
    y, at = c[i] + math.prod([x] * (at - i)) * y, i
  return y
