"""What elementwise divergences of a teacher p and a student q are made of.

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
import math
from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from kd.divergences.series import FLOOR, difference

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


def centred(phi: Divergence, slope: Parameter | None = None) -> Divergence:
  """Returns phi - c (q - p), which has phi's sum if p and q are normalised.

  c = dphi/dlq at p = q = 1. In every divergence here dphi/dlq = c p at p = q,
  so the terms become second order in x = lq - lp, and so does the effect of
  rounded log-probabilities: with unit-variance logits, V = 257 and T = 20,
  forward KL's largest relative error falls from 2e-4 to 1e-6
  (tests/kd/objectives/logits_test.py). Whatever the constant, sums of
  normalised p and q stay as they are, so divergences from elsewhere are safe
  too. Terms that are not normalised (a top-k without its rest) must use phi
  itself.

  Args:
    phi: an elementwise divergence.
    slope: c, if known; a kernel should give it, as a number. None finds it.

  Returns:
    The centred phi(lq, lp).

  >>> from kd.divergences import forward_kl
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


def unit_interval(name, key, value):
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


def select(condition, if_true, if_false):
  """Selects, at trace time where the condition is concrete."""
  if isinstance(condition, (bool, np.bool_)):
    return if_true if condition else if_false
  return jnp.where(condition, if_true, if_false)


def floored_log(w):
  """Returns log w, floored, of a parameter."""
  if isinstance(w, float):
    return math.log(w) if w > 0 else FLOOR
  return jnp.where(w > 0, jnp.log(jnp.where(w > 0, w, 1.0)), FLOOR)


def with_slopes(value, slopes, *parameters) -> Divergence:
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
