"""Divergences without a parameter: forward and reverse KL, total variation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd.divergences.series import floored


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
