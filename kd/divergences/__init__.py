"""Elementwise divergences phi(lq, lp), all of which the kernels fuse."""

from kd.divergences.forms import (
  Divergence,
  Forms,
  Parameter,
  alpha_divergence,
  centred,
  forward_kl,
  get,
  jsd,
  reverse_kl,
  skew_kl,
  skew_reverse_kl,
  tvd,
)

__all__ = [
  "Divergence",
  "Forms",
  "Parameter",
  "alpha_divergence",
  "centred",
  "forward_kl",
  "get",
  "jsd",
  "reverse_kl",
  "skew_kl",
  "skew_reverse_kl",
  "tvd",
]
