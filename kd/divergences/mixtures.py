"""Divergences from a mixture of p and q: JSD, and skewed KL both ways."""

import jax.numpy as jnp

from kd.divergences.forms import (
  Divergence,
  Forms,
  Parameter,
  floored_log,
  unit_interval,
  with_slopes,
)
from kd.divergences.series import (
  cumulants,
  difference,
  horner,
  log_mean_ratio,
  log_mixture,
  log_ratio,
  mixture,
  near_ratio,
  weighted_mixture,
)


def jsd(beta: Parameter) -> Forms:
  """Makes the generalised Jensen-Shannon divergence.

  D = beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

  It goes to 0 at beta = 0 and at beta = 1, smoothly; forward and reverse KL are
  not its limits. Source: Agarwal et al., GKD (2023), 2306.13649, without that
  paper's rescaling.

  Args:
    beta: weight of the teacher, in [0, 1]; may be traced.

  Returns:
    phi(lq, lp).

  Raises:
    ValueError: beta is concrete and outside [0, 1].

  >>> p, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
  >>> print(f"{jsd(0.5)(jnp.log(q), jnp.log(p)).sum():.4f}")  # log 2
  0.6931
  """
  beta = unit_interval("jsd", "beta", beta)
  if isinstance(beta, float) and 0.25 <= beta <= 0.75:
    phi = _middle_jsd(beta)
  else:
    phi = _any_jsd(beta)
  return Forms(phi, _plain_jsd(beta))


def _any_jsd(beta: Parameter) -> Divergence:
  w = 1 - beta
  logs = floored_log(beta), floored_log(w)

  def phi(lq, lp):
    x, near, x_near = log_ratio(lq, lp)
    p, q = jnp.exp(lp), jnp.exp(lq)
    # Both terms are second order in x: nothing of first order has to cancel.
    mean = beta * p + w * q
    series = beta * w * x_near * difference(lq, lp)
    series = series - mean * log_mean_ratio(x_near, w)
    lm_lp, lm_lq = log_mixture(x, *logs)
    return jnp.where(near, series, -(beta * p * lm_lp + w * q * lm_lq))

  return phi


def _plain_jsd(beta: Parameter) -> Divergence:
  def parts(lq, lp, v):
    """Returns (1 - v) q (lq - lm) and v p (lp - lm)."""
    q, p, lq_lm, lp_lm = weighted_mixture(v, lq, lp)
    return q * lq_lm, p * lp_lm

  return with_slopes(lambda *args: sum(parts(*args)), parts, beta)


def _middle_jsd(beta: float) -> Divergence:
  w = 1 - beta
  # phi = m (x K' - K), K(x) = log(beta + w e^x), near x = 0.
  series = [(n + 1) * k for n, k in enumerate(cumulants(w)[1:])]

  def value(lq, lp):
    q, p, m, lq_lm, lp_lm = mixture(beta, lq, lp)
    far = beta * (p * lp_lm) + w * (q * lq_lm)
    x, near = near_ratio(lq, lp, 0.25)
    poly = horner(series, x, near=0.25)
    return jnp.where(near, m * (x * x) * poly, far)

  def slopes(lq, lp):
    q, p, _, lq_lm, lp_lm = mixture(beta, lq, lp)
    return w * (q * lq_lm), beta * (p * lp_lm)

  return with_slopes(value, slopes)


def skew_kl(alpha: Parameter) -> Forms:
  """Makes D = KL(p || alpha p + (1 - alpha) q), which is bounded for alpha > 0.

  alpha = 0 is forward KL, alpha = 1 is 0. Source: Ko et al., DistiLLM (2024),
  2402.03898 (which uses 0.1).

  Args:
    alpha: the teacher's share of the mixture, in [0, 1]; may be traced.

  Returns:
    phi(lq, lp).

  Raises:
    ValueError: alpha is concrete and outside [0, 1].

  >>> p, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
  >>> print(f"{skew_kl(0.1)(jnp.log(q), jnp.log(p)).sum():.4f}")  # log 10
  2.3026
  """
  alpha = unit_interval("skew_kl", "alpha", alpha)
  if isinstance(alpha, float) and 1e-3 <= alpha <= 0.25:
    phi = _little_skew_kl(alpha)
  else:
    phi = _any_skew_kl(alpha)
  return Forms(phi, _plain_skew_kl(alpha))


def _any_skew_kl(alpha: Parameter) -> Divergence:
  w = 1 - alpha
  logs = floored_log(alpha), floored_log(w)

  def phi(lq, lp):
    x, near, x_near = log_ratio(lq, lp)
    series = w * x_near + log_mean_ratio(x_near, w)
    lm_lp, _ = log_mixture(x, *logs)
    return -jnp.exp(lp) * jnp.where(near, series, lm_lp)

  return phi


def _plain_skew_kl(alpha: Parameter) -> Divergence:
  def value(lq, lp, v):
    *_, lp_lm = weighted_mixture(v, lq, lp)
    return jnp.exp(lp) * lp_lm

  def slopes(lq, lp, v):
    q, _, _, lp_lm = weighted_mixture(v, lq, lp)
    u = -q * jnp.exp(lp_lm)
    return u, jnp.exp(lp) * lp_lm - u

  return with_slopes(value, slopes, alpha)


def _little_skew_kl(alpha: float) -> Divergence:
  w = 1 - alpha
  kappa = cumulants(w)

  def parts(lq, lp):
    """Returns q, p, m and log(p / m)."""
    q, p, m, _, lp_lm = mixture(alpha, lq, lp)
    x, near = near_ratio(lq, lp)
    return q, p, m, jnp.where(near, -x * horner(kappa, x, 1), lp_lm)

  def value(lq, lp):
    _, p, _, lp_lm = parts(lq, lp)
    return p * lp_lm

  def slopes(lq, lp):
    q, p, m, lp_lm = parts(lq, lp)
    u = -w * (q * (p / m))  # on a CPU a quotient takes less than another exp
    return u, p * lp_lm - u

  return with_slopes(value, slopes)


def skew_reverse_kl(alpha: Parameter) -> Forms:
  """Makes D = KL(q || alpha q + (1 - alpha) p).

  alpha = 0 is reverse KL, alpha = 1 is 0. Source: Ko et al., DistiLLM (2024),
  2402.03898.

  Args:
    alpha: the student's share of the mixture, in [0, 1]; may be traced.

  Returns:
    phi(lq, lp).

  Raises:
    ValueError: alpha is concrete and outside [0, 1].

  >>> p, q = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
  >>> print(f"{skew_reverse_kl(0.1)(jnp.log(q), jnp.log(p)).sum():.4f}")
  2.3026
  """
  swapped = skew_kl(unit_interval("skew_reverse_kl", "alpha", alpha))
  return Forms(_exchanged(swapped.phi), _exchanged(swapped.for_bfloat16))


def _exchanged(phi: Divergence) -> Divergence:
  return lambda lq, lp: phi(lp, lq)
