"""Elementwise divergences between a teacher p and a student q.

A divergence is a function phi(lq, lp) of the student's and the teacher's
natural log-probabilities, with D = sum_v phi in nats. The fused kernels trace
it, and its `jax.jvp`, inside a tile; so only exp, log, comparisons, selects and
arithmetic are used here, and parameters may be traced scalars.

Zero probabilities. -1e4, -1e30 and -inf all mean a probability of 0 on either
side. Log-probabilities are floored at -1e30, which keeps values and gradients
finite: where a KL is infinite, its value here is of the order 1e30.

Accuracy. Written naively, terms of order p x, with x = lq - lp, leave rounding
errors of order 1e-7 in a sum of order x^2. Below |x| = 0.5, differences q - p
and logs of mixtures therefore come from series in x (kd.divergences.series),
with neither log1p, expm1 nor derivatives of a division by an array, which
Mosaic GPU cannot lower. Where x enters as strongly as that (jsd about 1/2,
skew_kl of a small alpha), shorter series do, below 1/4 and 1/8, and slopes, of
first order, are given in closed form: in a kernel, a fifth of the operations.
Logits of 8 bits need no series: `for_bfloat16` of what jsd, skew_kl and
skew_reverse_kl return is the definition itself, with closed slopes. That leaves
the rounding of lq and lp themselves. A phi of first order in x passes it on,
and `centred(phi)` removes it for normalised p and q. Forward and reverse KL
keep the plain form p (lp - lq) all the same: the Bregman form p (lp - lq) - p +
q has the same gradient through a softmax and is as accurate as `centred`, but
its value is another one for a teacher cut to its top k.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from kd.divergences.series import (
  FLOOR,
  cumulants,
  difference,
  expm1_over,
  floored,
  horner,
  is_near,
  log_mean_ratio,
  log_mixture,
  log_ratio,
  mixture,
  near_ratio,
  weighted_mixture,
)

Divergence = Callable[[Float[Array, "..."], Float[Array, "..."]], Array]
Parameter = float | Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Forms:
  """phi(lq, lp), and what may stand for it where logits are bfloat16.

  Attributes:
    phi: to float32's relative accuracy, however near q is to p.
    for_bfloat16: its definition, with 1e-6 nats of rounding per unit of
      probability, of either sign; slopes are as accurate as phi's. kernels
      take it for bfloat16 logits.
  """

  phi: Divergence
  for_bfloat16: Divergence

  def __call__(self, lq, lp):
    return self.phi(lq, lp)


def forward_kl(
  lq: Float[Array, "*shape"], lp: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """Returns KL(p || q) terms: phi = p (lp - lq).

  The teacher's entropy is included, so D = 0 at p = q. Unnormalised lp get the
  same formula. Source: Hinton, Vinyals, Dean (2015), 1503.02531.

  >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
  >>> print(f"{forward_kl(jnp.log(q), jnp.log(p)).sum():.4f}")
  0.1438
  """
  return jnp.exp(lp) * (floored(lp) - floored(lq))


def reverse_kl(
  lq: Float[Array, "*shape"], lp: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """Returns KL(q || p) terms: phi = q (lq - lp).

  Source: Gu et al., MiniLLM (2023), 2306.08543.

  >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
  >>> print(f"{reverse_kl(jnp.log(q), jnp.log(p)).sum():.4f}")
  0.1308
  """
  return forward_kl(lp, lq)


def tvd(
  lq: Float[Array, "*shape"], lp: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """Returns total variation terms: phi = |p - q| / 2.

  D lies in [0, 1]; the derivative at p = q is 0. Source: Wen et al.,
  f-divergence distillation (2023), 2307.15190.

  >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
  >>> print(tvd(jnp.log(q), jnp.log(p)).sum())
  0.25
  """
  return _tvd(lq, lp)


@jax.custom_jvp
def _tvd(lq, lp):
  return 0.5 * jnp.abs(jnp.exp(lq) - jnp.exp(lp))


@_tvd.defjvp
def _tvd_slopes(primals, tangents):
  q, p = map(jnp.exp, primals)
  d = 1e8 * (q - p)  # 0, or more than q and p: a difference has 24 bits
  clip = lambda x: jnp.maximum(jnp.minimum(d, x), -x)
  tangent = clip(q) * tangents[0] - clip(p) * tangents[1]
  return _tvd(*primals), 0.5 * tangent


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
  beta = _unit_interval("jsd", "beta", beta)
  if isinstance(beta, float) and 0.25 <= beta <= 0.75:
    phi = _middle_jsd(beta)
  else:
    phi = _any_jsd(beta)
  return Forms(phi, _plain_jsd(beta))


def _any_jsd(beta: Parameter) -> Divergence:
  w = 1 - beta
  logs = _log(beta), _log(w)

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

  return _with_slopes(lambda *args: sum(parts(*args)), parts, beta)


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

  return _with_slopes(value, slopes)


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
  alpha = _unit_interval("skew_kl", "alpha", alpha)
  if isinstance(alpha, float) and 1e-3 <= alpha <= 0.25:
    phi = _little_skew_kl(alpha)
  else:
    phi = _any_skew_kl(alpha)
  return Forms(phi, _plain_skew_kl(alpha))


def _any_skew_kl(alpha: Parameter) -> Divergence:
  w = 1 - alpha
  logs = _log(alpha), _log(w)

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

  return _with_slopes(value, slopes, alpha)


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

  return _with_slopes(value, slopes)


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
  swapped = skew_kl(_unit_interval("skew_reverse_kl", "alpha", alpha))
  return Forms(_exchanged(swapped.phi), _exchanged(swapped.for_bfloat16))


def _exchanged(phi: Divergence) -> Divergence:
  return lambda lq, lp: phi(lp, lq)


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
  alpha = _unit_interval("alpha_divergence", "alpha", alpha)
  if isinstance(alpha, float) and alpha == 0.5:
    return _hellinger
  # D_alpha(p, q) = D_(1 - alpha)(q, p): on the side a <= 1/2, 1 / (1 - a) is
  # harmless, and 1 / a is divided out by G where a x is small.
  flip = alpha > 0.5
  a = _select(flip, 1 - alpha, alpha)
  per_a = 1 / _select(a > 1e-30, a, 1.0)

  def phi(lq, lp):
    # exp of lq, lp as given: kernels know those.
    q = _select(flip, jnp.exp(lp), jnp.exp(lq))
    less = _select(flip, -1.0, 1.0) * difference(lq, lp)
    lq, lp = floored(lq), floored(lp)
    lq, lp = _select(flip, lp, lq), _select(flip, lq, lp)
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


def centred(phi: Divergence, slope: Parameter | None = None) -> Divergence:
  """Returns phi - c (q - p), which has phi's sum if p and q are normalised.

  c = dphi/dlq at p = q = 1. In every divergence here dphi/dlq = c p at p = q,
  so the terms become second order in x = lq - lp, and so does the effect of
  rounded log-probabilities: with unit-variance logits, V = 257 and T = 20,
  forward KL's largest relative error falls from 2e-4 to 1e-6
  (tests/kd/objectives_test.py). Whatever the constant, sums of normalised p and
  q stay as they are, so divergences from elsewhere are safe too. Terms that are
  not normalised (a top-k without its rest) must use phi itself.

  Args:
    phi: an elementwise divergence.
    slope: c, if known; a kernel should give it, as a number. None finds it.

  Returns:
    The centred phi(lq, lp).

  >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
  >>> print(f"{centred(forward_kl)(jnp.log(q), jnp.log(p)).sum():.4f}")
  0.1438
  """

  def centred_phi(lq, lp):
    c = slope
    if c is None:
      zero, one = jnp.float32(0), jnp.float32(1)
      _, c = jax.jvp(lambda at: phi(at, zero), (zero,), (one,))
      c = jnp.where(jnp.isfinite(c), c, 0.0)
    return phi(lq, lp) - c * difference(lq, lp)

  return centred_phi


_PLAIN = {f.__name__: f for f in (forward_kl, reverse_kl, tvd)}
_MAKERS = {
  f.__name__: f for f in (jsd, skew_kl, skew_reverse_kl, alpha_divergence)
}


def get(name: str, **parameters: Parameter) -> Divergence:
  """Returns the divergence of that name, for configs.

  Args:
    name: forward_kl, reverse_kl, tvd, jsd, skew_kl, skew_reverse_kl or
      alpha_divergence.
    **parameters: beta for jsd, alpha for the last three, none for the others.

  Returns:
    phi(lq, lp).

  Raises:
    ValueError: the name is unknown; a parameter is missing, unknown or out of
      range.

  >>> get("jsd", beta=1.5)
  Traceback (most recent call last):
    ...
  ValueError: divergence 'jsd': beta is 1.5; accepted: a number in [0, 1]
  """
  if name in _PLAIN:
    accepted = []
  elif name in _MAKERS:
    accepted = list(inspect.signature(_MAKERS[name]).parameters)
  else:
    names = ", ".join(sorted([*_PLAIN, *_MAKERS]))
    raise ValueError(f"divergence {name!r} is unknown; accepted: {names}")
  takes = ", ".join(accepted) or "no parameters"
  for key in parameters:
    if key not in accepted:
      raise ValueError(
        f"divergence {name!r}: unknown parameter {key!r}; accepted: {takes}"
      )
  for key in accepted:
    if key not in parameters:
      found = ", ".join(parameters) or "none"
      raise ValueError(
        f"divergence {name!r}: parameter {key!r} is missing, found {found};"
        f" accepted: {takes}, a number in [0, 1]"
      )
  return _MAKERS[name](**parameters) if accepted else _PLAIN[name]


def _unit_interval(name, key, value):
  """Returns a parameter, checked if it is concrete (Python floats stay so)."""
  if isinstance(value, jax.core.Tracer):
    return value
  array = np.asarray(value)
  if array.dtype.kind not in "fiu" and array.dtype != jnp.bfloat16:
    ok = False
  else:
    ok = bool(np.all((array >= 0) & (array <= 1)))
  if not ok:
    raise ValueError(
      f"divergence {name!r}: {key} is {value!r}; accepted: a number in [0, 1]"
    )
  # A kernel inlines a Python float; an array would be a captured constant.
  return jnp.asarray(value) if array.ndim else float(array)


def _select(condition, if_true, if_false):
  """Selects, at trace time where the condition is concrete."""
  if isinstance(condition, (bool, np.bool_)):
    return if_true if condition else if_false
  return jnp.where(condition, if_true, if_false)


def _log(w):
  """Returns log w, floored, of a parameter."""
  if isinstance(w, float):
    return math.log(w) if w > 0 else FLOOR
  return jnp.where(w > 0, jnp.log(jnp.where(w > 0, w, 1.0)), FLOOR)


def _with_slopes(value, slopes, *parameters) -> Divergence:
  """Returns `value` with its derivatives by lq and lp in closed form.

  Both take (lq, lp, *parameters); parameters get no derivative.
  """
  phi = jax.custom_jvp(value)

  def rule(primals, tangents):
    out = phi(*primals)
    terms = [
      slope * dot
      for slope, dot in zip(slopes(*primals), tangents[:2], strict=True)
      if not isinstance(dot, SymbolicZero)
    ]
    return out, sum(terms[1:], start=terms[0]) if terms else 0 * out

  phi.defjvp(rule, symbolic_zeros=True)
  return lambda lq, lp: phi(lq, lp, *parameters)
