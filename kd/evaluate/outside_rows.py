"""What is known of each example outside of the task, and inside.

All sets lie behind each other in blocks of one shape, so that a student's
forward pass is compiled once for all of them. "Inside" is the test split, less
the classes that a set is of.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kd import metrics, signals
from kd.data import outside
from kd.data.outside import Outside
from kd.data.task import Task
from kd.evaluate import scores
from kd.evaluate.scores import Each, Said
from kd.models.outputs import Outputs
from kd.signals import Dense
from kd.teachers.teacher import Teacher

MOST_BYTES = 2**27  # of a block's inputs


def judge(
  outputs: Outputs | Dense,
  labels: Int[Array, "N"],
  temperature: Float[Array, "N"],
  said: Said | None = None,
) -> dict[str, Array]:
  """Returns `scores.judge`, and the energy, and what the softmax at the
  temperature makes of the NLL and the confidence, [N] each."""
  each = scores.judge(outputs, labels, said)

  def one(logits, label, t):
    cooled = logits.astype(jnp.float32) / t
    return {
      "energy": metrics.energy(logits),
      "nll_tempered": metrics.nll_from_logits(cooled, label),
      "confidence_tempered": jnp.max(jax.nn.softmax(cooled)),
    }

  return each | outputs.each(one, labels, temperature)


@dataclasses.dataclass(frozen=True)
class _Teacher:
  """`judge` of a teacher, and what it says: all logits, or of k classes."""

  k: int

  def __call__(self, outputs: Outputs, labels, temperature):
    said = signals.top_k(outputs, self.k) if self.k else outputs.logits
    return judge(outputs, labels, temperature), said


@dataclasses.dataclass(frozen=True)
class Placed:
  """All sets, placed once for all arms.

  Attributes:
    sets: the inside first.
    blocks: (inputs, labels, what the teacher says if it is known), all of one
      shape; what fills the last one has the label -1.
    teacher: the teacher's `judge` of each example of all sets, or None.
  """

  sets: Sequence[Outside]
  blocks: Sequence[tuple[Any, ...]]
  teacher: Each | None

  @classmethod
  def of(
    cls,
    sections: Mapping[str, Any],
    task: Task,
    teacher: Teacher | None,
    batch: int,
    k: int,
  ) -> "Placed":
    """Makes the sets, and asks the teacher about them.

    Args:
      sections: `evaluate.outside`.
      task: whose test split is inside.
      teacher: None where only its answers are known.
      batch: examples in one forward pass.
      k: of the teacher's likeliest classes, where all are too many.
    """
    sets = outside.sets(sections, task)
    labels = np.concatenate([s.split.labels() for s in sets])
    each, said = None, ()
    if teacher is not None:
      few = len(labels) * task.num_classes <= scores.MOST_LOGITS
      look = _Teacher(0 if few else min(k, task.num_classes))
      t = _temperature_of(teacher, task, batch)
      found = [_ask(teacher, s, task, batch, look, t) for s in sets]
      each, known = jax.tree.map(lambda *xs: np.concatenate(xs), *found)
      said = (known,)
    inputs = np.concatenate([s.split.arrays()[0] for s in sets])
    most = max(1, MOST_BYTES // task.test.form.bytes)
    size = min(power(len(labels)), 8 * batch, most)
    blocks = [
      jax.tree.map(
        lambda x, i=i: jnp.asarray(_padded(x[i : i + size], size)),
        (inputs, labels, *said),
      )
      for i in range(0, len(labels), size)
    ]
    return cls(sets, blocks, each)

  def cut(self, rows: Each) -> dict[str, Each]:
    """Returns each set's part of what there is of all examples."""
    ends = np.cumsum([len(s.split) for s in self.sets])
    return {
      s.name: {k: x[end - len(s.split) : end] for k, x in rows.items()}
      for s, end in zip(self.sets, ends, strict=True)
    }

  def run(self, look, weights, temperature: float) -> Each:
    """Returns a run's `judge` of all examples."""
    found = []
    for inputs, labels, *said in self.blocks:
      t = jnp.full(len(labels), temperature, jnp.float32)
      found.append(look(weights, inputs, labels, t, *said))
    whole = jax.tree.map(lambda *xs: np.concatenate(xs), *found)
    count = sum(len(s.split) for s in self.sets)
    return {k: x[:count] for k, x in whole.items()}


def _ask(teacher: Teacher, of: Outside, task: Task, batch: int, look, t):
  labels = of.split.labels()
  arrays = [labels, np.full(len(labels), t, np.float32)]
  rows = np.arange(len(labels))
  return teacher.ask(of.split, rows, task, batch, look, arrays)


def _temperature_of(teacher: Teacher, task: Task, batch: int) -> float:
  """Fits the teacher's temperature on validation; NaN where it is too large."""
  held = task.validation
  if len(held) * task.num_classes > scores.MOST_LOGITS:
    return float("nan")
  logits = teacher.ask(held, np.arange(len(held)), task, batch)
  return float(metrics.fit_temperature(logits, held.labels()))


def temperature(logits, weights, task: Task) -> float:
  """Fits a run's, likewise."""
  held, labels = task.validation.arrays()
  if len(labels) * task.num_classes > scores.MOST_LOGITS:
    return float("nan")
  return float(metrics.fit_temperature(logits(weights, held), labels))


def power(size: int) -> int:
  return 1 << max(size - 1, 0).bit_length()


def _padded(x: np.ndarray, size: int) -> np.ndarray:
  """Fills up with zeros, and labels with -1."""
  labels = x.ndim == 1 and x.dtype.kind == "i"
  more = [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)]
  return np.pad(x, more, constant_values=-1 if labels else 0)
