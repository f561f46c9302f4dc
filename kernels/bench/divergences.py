"""Divergences as a researcher writes them down, for benches and reports.

What a study uses is kd.divergences, whose forms keep more digits near q = p;
`resolve` finds those by their path.
"""

import importlib
import re
from collections.abc import Callable

import jax.numpy as jnp


def forward_kl(lq, lp):
  return jnp.exp(lp) * (lp - lq)


def reverse_kl(lq, lp):
  return jnp.exp(lq) * (lq - lp)


def tvd(lq, lp):
  return 0.5 * jnp.abs(jnp.exp(lp) - jnp.exp(lq))


def jsd(lq, lp):
  p, q = jnp.exp(lp), jnp.exp(lq)
  lm = jnp.log(0.5 * (p + q))
  return 0.5 * (p * (lp - lm) + q * (lq - lm))


def skew_kl(lq, lp):
  p, q = jnp.exp(lp), jnp.exp(lq)
  return p * (lp - jnp.log(0.1 * p + 0.9 * q))


def skew_reverse_kl(lq, lp):
  return skew_kl(lp, lq)


def alpha_divergence(lq, lp):
  return 4 * (0.5 * jnp.exp(lp) + 0.5 * jnp.exp(lq) - jnp.exp(0.5 * (lp + lq)))


NAMES = (
  "forward_kl",
  "reverse_kl",
  "tvd",
  "jsd",
  "skew_kl",
  "skew_reverse_kl",
  "alpha_divergence",
)


def resolve(path: str) -> Callable:
  """Returns the phi that a path names.

  >>> resolve("jsd") is jsd
  True

  Args:
    path: a name of NAMES, "module:function", or "module:maker(number)" as in
      "kd.divergences:jsd(0.5)".

  Raises:
    ValueError: it is none of these.
  """
  if path in NAMES:
    return globals()[path]
  match = re.fullmatch(r"([\w.]+):(\w+)(?:\(([\d.]+)\))?", path)
  if match is None:
    raise ValueError(
      f"divergence: got {path!r}, expected one of {', '.join(NAMES)} or "
      "'module:name(number)'"
    )
  module, name, number = match.groups()
  phi = getattr(importlib.import_module(module), name)
  return phi if number is None else phi(float(number))
