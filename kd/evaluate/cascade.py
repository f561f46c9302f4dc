"""A cascade: the student answers, and where it is unsure the teacher does.

    answer_n = student's where confidence_n >= threshold, else the teacher's

The confidence is the highest probability. The threshold is chosen on the
validation split: the lowest at which the cascade is no less accurate there than
the teacher less a margin. The curve of the test split says what any other share
handed on would have given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from kd.data.task import Task
from kd.evaluate import break_even, registry, scores
from kd.evaluate.design import Design
from kd.evaluate.scores import Each, Scored
from kd.models import functional
from kd.train.arms import Group
from kd.train.step import TrainState

GRID = np.linspace(0.0, 1.0, 21)  # shares handed on
OF_ANSWERS = (
  "accuracy",
  "recall",
  "agreement",
)  # metrics without probabilities
# What the teacher says of its own answers.
OF_TEACHER = {"agreement": 1.0, "kl_to_teacher": 0.0}


def order(confidence: Float[np.ndarray, "N"]) -> np.ndarray:
  """Returns the examples from the least sure on; ties in their order."""
  return np.argsort(confidence, kind="stable")


def accuracies(
  confidence: Float[np.ndarray, "N"],
  student: Float[np.ndarray, "N"],
  teacher: Float[np.ndarray, "N"],
) -> Float[np.ndarray, "N+1"]:
  """Returns the accuracy with the m least sure examples handed on, m = 0..N.

  Args:
    confidence: the student's.
    student, teacher: whether each is right.

  >>> accuracies(np.array([0.9, 0.5]), np.array([1, 0]), np.array([1, 1]))
  array([0.5, 1. , 1. ])
  """
  least = order(confidence)
  gains = (teacher - student)[least]
  whole = np.concatenate([[0.0], np.cumsum(gains)])
  return (student.sum() + whole) / len(student)


def threshold(
  confidence: Float[np.ndarray, "N"],
  student: Float[np.ndarray, "N"],
  teacher: Float[np.ndarray, "N"],
  margin: float,
) -> float:
  """Chooses the confidence below which examples are handed on.

  Args:
    confidence, student, teacher: as of `accuracies`, of the validation split.
    margin: what the accuracy may be below the teacher's.

  Returns:
    The confidence of the least sure example that is kept, and of all equally
    sure ones; 0 where all are kept, infinity where none is.

  >>> sure = np.array([0.9, 0.5, 0.7])
  >>> right = np.array([1.0, 0.0, 1.0])
  >>> float(threshold(sure, right, np.ones(3), 0.0))
  0.7
  """
  found = accuracies(confidence, student, teacher)
  ranked = np.append(confidence[order(confidence)], np.inf)
  # Not between equals, which no threshold parts.
  cuts = np.append(True, np.diff(ranked) > 0)
  ranked[0] = 0.0
  enough = found >= teacher.mean() - margin - 1e-9
  return float(ranked[np.flatnonzero(cuts & enough)[0]])


def mixed(student: Each, teacher: Each, handed: Bool[np.ndarray, "N"]) -> Each:
  """Returns `scores.judge` of a cascade: the teacher's where it was asked.

  What the teacher's lacks (a black box leaves no probabilities) is NaN there,
  and so are metrics made of it, which `arm` leaves out.
  """
  of = lambda name: teacher.get(name, OF_TEACHER.get(name, np.nan))
  return {name: np.where(handed, of(name), x) for name, x in student.items()}


@dataclasses.dataclass(frozen=True)
class Curve:
  """What a run of a cascade chose, and what others would have.

  Attributes:
    threshold: that validation chose; infinity where all is handed on.
    deferred: the share of test examples below it.
    accuracy: on the test split at each share of GRID.
  """

  threshold: float
  deferred: float
  accuracy: Float[np.ndarray, "G"]


def curve(
  confidence: Float[np.ndarray, "N"],
  student: Float[np.ndarray, "N"],
  teacher: Float[np.ndarray, "N"],
) -> Float[np.ndarray, "G"]:
  """Returns the accuracy at each share of GRID, of the test split."""
  found = accuracies(confidence, student, teacher)
  return found[np.round(GRID * len(student)).astype(int)]


def arm(
  group: Group,
  state: TrainState,
  task: Task,
  test: scores.Test,
  teacher: Mapping[str, Each],
  *,
  margin: float,
  batch: int,
  bins: int,
  metric: str,
) -> tuple[Scored, list[Curve | None]]:
  """Scores the cascades of an arm's runs.

  Args:
    group, state: of the arm that answers first.
    task, test: as of `scores.arm`.
    teacher: of "validation" and "test", `scores.judge` of its answers; of a
      black box `accuracy` alone, NaN where it was not asked and so nothing is
      handed on.
    margin: of `threshold`.
    batch, bins, metric: as of `scores.arm`.

  Returns:
    Its scores, with `deferred`, the share handed on; and each run's Curve, by
    the weights that the metric scores.
  """
  labels = np.asarray(test.labels)[test.places]
  look = functional.forward(group.student, task.signature, batch, scores.judge)
  held = task.validation.arrays()
  rest = (test.labels,) if test.said is None else (test.labels, test.said)
  teacher = {
    split: {k: np.asarray(x, np.float64) for k, x in each.items()}
    for split, each in teacher.items()
  }
  chosen = registry.selection(metric)
  rows: list[dict[str, Any]] = [{} for _ in state.best_step]
  kept: list[Each] = []
  curves: list[Curve | None] = []
  for which, weights in (("last", state.weights), ("best", state.best)):
    for row, own in zip(rows, scores.by_seed(weights), strict=True):
      held_each, test_each = (
        {k: np.asarray(x, np.float64) for k, x in look(own, *of).items()}
        for of in (held, (test.inputs, *rest))
      )
      first = {"validation": held_each, "test": test_each}
      each, own_curve = _run(first, teacher, margin)
      found = scores.values(
        each, labels, bins=bins, num_classes=task.num_classes
      )
      if "nll" not in teacher["test"]:  # a black box has no probabilities
        found = {
          k: v for k, v in found.items() if registry.family(k) in OF_ANSWERS
        }
      found["deferred"] = own_curve.deferred
      suffix = "" if which == "last" else "_best"
      row |= {
        f"{k}{suffix}": v
        for k, v in found.items()
        if not suffix or not registry.lookup(k).per_class
      }
      if which == chosen:
        kept.append(each)
        curves.append(own_curve)
  found = scores.gathered(rows, state, labels, metric, bins, kept, kept)
  return found, curves


def _run(
  first: Mapping[str, Each], teacher: Mapping[str, Each], margin: float
) -> tuple[Each, Curve]:
  """Returns how a run's answers on the test split are judged, and its curve.

  Args:
    first, teacher: of "validation" and "test", how their answers are judged.
    margin: of `threshold`.
  """
  own = first["test"]
  of = lambda split, by: by[split]["accuracy"]
  least = threshold(
    first["validation"]["confidence"],
    of("validation", first),
    of("validation", teacher),
    margin,
  )
  told = np.isfinite(of("test", teacher))
  handed = (own["confidence"] < least) & told
  right = np.where(told, of("test", teacher), own["accuracy"])
  at = curve(own["confidence"], own["accuracy"], right)
  each = mixed(own, teacher["test"], handed)
  return each, Curve(least, float(handed.mean()), at)


def summary(
  curves: Sequence[Curve | None], of: str, margin: float, design: Design
) -> dict[str, Any]:
  """Returns what results.json says of a cascade.

  Args:
    curves: of each run, None for one that diverged.
    of: the arm that answers first.
    margin: of its config.
    design: how the runs are nested.
  """
  gone = Curve(np.nan, np.nan, np.full(len(GRID), np.nan))
  every = [c or gone for c in curves]
  at = np.stack([c.accuracy for c in every], -1)  # [G, U]
  found = [break_even.estimate(x) for x in design.means(at)]
  return {
    "of": of,
    "margin": margin,
    "thresholds": [
      float(c.threshold) if np.isfinite(c.threshold) else None for c in every
    ],
    "curve": {
      "deferred": GRID.tolist(),
      "accuracy": [x.value for x in found],
      "low": [x.low for x in found],
      "high": [x.high for x in found],
    },
  }
