"""Elementwise divergences phi(lq, lp), all of which the kernels fuse."""

from kd.divergences.alpha import alpha_divergence
from kd.divergences.forms import Divergence, Forms, Parameter, centred
from kd.divergences.kl import forward_kl, reverse_kl, tvd
from kd.divergences.mixtures import jsd, skew_kl, skew_reverse_kl
from kd.divergences.registry import DIVERGENCES, get

__all__ = [
  "DIVERGENCES",
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
