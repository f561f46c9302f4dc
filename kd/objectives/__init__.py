"""Losses for each example from logits; in a config, by name (registry)."""

from kd.objectives.logits import (
  Scalar,
  dist,
  dkd,
  hard,
  soft,
  top_k,
  top_k_teacher,
)

__all__ = [
  "Scalar",
  "dist",
  "dkd",
  "hard",
  "soft",
  "top_k",
  "top_k_teacher",
]
