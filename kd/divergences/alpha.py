"""Amari's alpha-divergence, from reverse KL over Hellinger to forward KL."""

import jax.numpy as jnp

from kd.divergences.forms import Divergence, Parameter, select, unit_interval
from kd.divergences.series import difference, expm1_over, floored, is_near


def alpha_divergence(alpha: Parameter) -> Divergence:
  """Makes Amari's alpha-divergence, in the form for positive measures.

  D = sum_v [alpha p + (1 - alpha) q - p^alpha q^(1 - alpha)]
      / (alpha (1 - alpha))

  which is (1 - sum_v p^alpha q^(1 - alpha)) / (alpha (1 - alpha)) when p and q
  are normalised. Limits, reached smoothly: alpha -> 1 is KL(p || q) (with
  terms p (lp - lq) - p + q, all >= 0), alpha -> 0 is KL(q || p); alpha = 1/2 is
  four times the squared Hellinger distance 1 - sum_v sqrt(p q). Source: Amari
  (1985); Cichocki and Amari, Entropy 12 (2010), eq. 16.

  Args:
    alpha: in [0, 1]; may be traced.

  Returns:
    phi(lq, lp).

  Raises:
    ValueError: alpha is concrete and outside [0, 1].

  >>> p, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
  >>> print(alpha_divergence(0.5)(jnp.log(q), jnp.log(p)).sum())
  4.0
  """
  alpha = unit_interval("alpha_divergence", "alpha", alpha)
  if isinstance(alpha, float) and alpha == 0.5:
    return _hellinger
  # D_alpha(p, q) = D_(1 - alpha)(q, p): on the side a <= 1/2, 1 / (1 - a) is
  # harmless, and 1 / a is divided out by G where a x is small.
  flip = alpha > 0.5
  a = select(flip, 1 - alpha, alpha)
  per_a = 1 / select(a > 1e-30, a, 1.0)

  def phi(lq, lp):
    # exp of lq, lp as given: kernels know those.
    q = select(flip, jnp.exp(lp), jnp.exp(lq))
    less = select(flip, -1.0, 1.0) * difference(lq, lp)
    lq, lp = floored(lq), floored(lp)
    lq, lp = select(flip, lp, lq), select(flip, lq, lp)
    x = lq - lp
    ax = a * x
    near = is_near(ax)
    # (q - p^a q^(1-a)) / a, whose limit at a = 0 is q x.
    slope = jnp.where(
      near,
      q * x * expm1_over(jnp.where(near, -ax, 0.0)),
      (q - jnp.exp(lq - ax)) * per_a,
    )
    return (slope - less) / (1 - a)

  return phi


def _hellinger(lq, lp):
  """Returns 2 (sqrt q - sqrt p)^2, which loses nothing near q = p."""
  d = jnp.exp(0.5 * floored(lq)) - jnp.exp(0.5 * floored(lp))
  return 2 * (d * d)
