"""What is adjusted after training, by the validation split: biases of classes
that the transfer set lacks, and the temperature of the softmax."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kd import metrics

SHIFTS = np.round(np.arange(-15.0, 15.05, 0.1), 1)  # nats


def best_shift(logits, labels, classes: Sequence[int]) -> float:
  """Chooses one shift of some classes' biases that fits a split best.

  Hinton et al. 2015 (section 3) shift the bias of a class that the transfer
  set lacks; they chose it on the test set, we are given another split. Of
  equally accurate shifts the smallest is taken.

  Returns:
    Nats; NaN where the logits do not tell.
  """
  is_class = np.isin(np.arange(logits.shape[-1]), classes)
  rest = np.where(is_class, -np.inf, logits)
  some = np.where(is_class, logits, -np.inf)
  # With a shift b the prediction is the best of `some` where it exceeds the
  # best of the rest by more than -b.
  with np.errstate(invalid="ignore"):
    margin = some.max(-1) - rest.max(-1)
  if np.isnan(margin).any():
    return float("nan")
  right_some = some.argmax(-1) == labels
  right_rest = rest.argmax(-1) == labels
  chosen = margin[:, None] + SHIFTS > 0
  accuracy = np.where(chosen, right_some[:, None], right_rest[:, None]).mean(0)
  order = np.lexsort((np.abs(SHIFTS), -accuracy))
  return float(SHIFTS[order[0]])


def shifted(logits, shift: float, classes: Sequence[int]):
  """Adds `shift` to the logits of `classes`."""
  return logits.at[..., jnp.asarray(classes)].add(shift)


def tempered(
  held: Float[Array, "M V"],
  held_labels: Int[np.ndarray, "M"],
  logits: Float[Array, "N V"],
  labels: Int[np.ndarray, "N"],
  bins: int,
) -> dict[str, float]:
  """Returns what a temperature that is fitted on another split makes of the
  NLL and the calibration error."""
  found = _tempered(held, held_labels, logits, labels, bins)
  return {name: float(value) for name, value in found.items()}


@functools.partial(jax.jit, static_argnames="bins")
def _tempered(held, held_labels, logits, labels, bins):
  temperature = metrics.fit_temperature(held, held_labels)
  cooled = logits / temperature
  return {
    "temperature": temperature,
    "nll_tempered": metrics.nll_from_logits(cooled, labels),
    "ece_tempered": metrics.ece(jax.nn.softmax(cooled), labels, bins),
  }
