"""The optimiser of one arm, as optax has it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def create(
  name: str, train: Mapping[str, Any], numbers: Mapping[str, Any]
) -> optax.GradientTransformation:
  """Makes an optimiser whose numbers may be traced, so that arms share it.

  Args:
    name: "sgd", "adam" or "adamw".
    train: the config's section: `steps`, `schedule` and `warmup_steps`.
    numbers: `learning_rate`, `weight_decay` and `momentum`.
  """
  shape = _schedule(train)

  def rate(count):
    return numbers["learning_rate"] * shape(count)

  decay = numbers["weight_decay"]
  if name == "adamw":
    return optax.adamw(rate, weight_decay=decay)
  if name == "adam":
    return optax.adam(rate)
  return optax.chain(
    optax.add_decayed_weights(decay), optax.sgd(rate, numbers["momentum"])
  )


def keep_zeros() -> optax.GradientTransformation:
  """Returns what leaves the zeros of matrices alone, after an optimiser."""

  def kept(updates, params):
    return jax.tree.map(
      lambda u, p: jnp.where(p != 0, u, 0) if p.ndim > 1 else u, updates, params
    )

  return optax.stateless(kept)


def _schedule(train: Mapping[str, Any]) -> optax.Schedule:
  """Returns what the learning rate is multiplied with at each step."""
  steps, warmup = train["steps"], train["warmup_steps"]
  if train["schedule"] == "cosine":
    if warmup:
      return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)
    return optax.cosine_decay_schedule(1.0, steps)
  if warmup:
    return optax.warmup_constant_schedule(0.0, 1.0, warmup)
  return optax.constant_schedule(1.0)
