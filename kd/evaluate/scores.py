"""Score trained runs on the test split: results.json's numbers.

Every number is of one run; means, intervals and tests are made of them in
kd.evaluate.stats. Choices (the best weights, a shift of biases) were made on
the validation split.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kd import metrics
from kd.data.task import Task
from kd.evaluate import registry
from kd.models import functional
from kd.train.arms import Group
from kd.train.step import TrainState

SHIFTS = np.round(np.arange(-15.0, 15.05, 0.1), 1)  # nats


def logits_of(
  group: Group, weights: Mapping[str, Any], inputs, task: Task, batch: int
) -> Float[Array, "S N V"]:
  """Returns each seed's logits, one seed after another on the device."""
  forward = functional.forward(group.student, task.signature, batch)
  return jnp.stack(
    [
      forward(jax.tree.map(lambda x, s=s: x[s], weights), inputs)
      for s in range(len(jax.tree.leaves(weights)[0]))
    ]
  )


@functools.partial(jax.jit, static_argnames=("bins", "num_classes"))
def scores(
  logits: Float[Array, "N V"],
  labels: Int[Array, "N"],
  teacher: Float[Array, "N V"] | Int[Array, "N"] | None,
  *,
  bins: int,
  num_classes: int,
) -> dict[str, Array]:
  """Returns the metrics of one run, by name; nats, or fractions in [0, 1].

  `teacher` is its logits; or its answers, -1 where there is none; or None, and
  then what compares with it is left out.
  """
  probs = jax.nn.softmax(logits)
  run = registry.Run(logits, probs, labels, teacher, bins, num_classes)
  has = {"": True, "teacher": teacher is not None}
  has["logits"] = teacher is not None and teacher.ndim == logits.ndim
  values: dict[str, Array] = {}
  for name, metric in registry.METRICS.items():
    if metric.value is None or not has[metric.reads]:
      continue
    if not metric.per_class:
      values[name] = metric.value(metrics, run)
    elif num_classes <= registry.RECALLS_UP_TO:
      each = metric.value(metrics, run)
      values |= {f"{name}_{c}": each[c] for c in range(num_classes)}
  return values


@functools.partial(jax.jit, static_argnames=("metric",))
def each(
  logits: Float[Array, "N V"],
  labels: Int[Array, "N"],
  teacher: Float[Array, "N V"] | Int[Array, "N"] | None,
  *,
  metric: str,
) -> Float[Array, "N"] | None:
  """Returns the test examples' own values of a metric that is their mean.

  NaN for an example that the metric leaves out (another class, no answer of a
  black box); None for a metric that is no mean over examples.
  """
  entry, c = registry.lookup(metric), registry.class_of(metric)
  compute, num_classes = entry.value, logits.shape[-1]
  if compute is None or not entry.over_examples:
    return None
  if entry.reads and teacher is None:
    return None

  def alone(*example):
    x, y, said = (v if v is None else v[None] for v in example)
    run = registry.Run(x, jax.nn.softmax(x), y, said, 1, num_classes)
    value = compute(metrics, run)
    return value if c is None else value[c]

  return jax.vmap(alone)(logits, labels, teacher)


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


def reliability(logits, labels, bins: int) -> dict[str, list]:
  """Counts a reliability diagram, all runs of an arm pooled.

  The bins are those of metrics.ece; predictions whose logits are not finite
  are in none.
  """
  probs = np.asarray(jax.nn.softmax(logits))
  right = probs.argmax(-1) == np.asarray(labels)
  kept = np.isfinite(probs).all(-1)
  confidence, right = probs.max(-1)[kept], right[kept]
  index = np.asarray(metrics.bin_of(confidence, bins))
  count = np.bincount(index, minlength=bins)

  def mean(x):
    total = np.bincount(index, x.astype(np.float64), minlength=bins)
    return [
      float(t / n) if n else None for t, n in zip(total, count, strict=True)
    ]

  return {
    "confidence": mean(confidence),
    "accuracy": mean(right),
    "count": count.tolist(),
  }


@dataclasses.dataclass(frozen=True)
class Scored:
  """Holds an arm's numbers.

  Attributes:
    values: metric -> a value for each run, None for one that diverged and
      where it is not finite. Metrics ending in "_best" are of the weights that
      were best on validation, the others of the last.
    reliability: of the runs that finished.
    each: for each run the primary metric's values of the test examples [N]
      (`each`); None for one that diverged, and for a metric that has none.
  """

  values: dict[str, list[float | None]]
  reliability: dict[str, Any]
  each: list[np.ndarray | None]


def arm(
  group: Group,
  state: TrainState,
  task: Task,
  said: np.ndarray | None,
  *,
  batch: int,
  bins: int,
  shift_classes: Sequence[int],
  metric: str,
) -> Scored:
  """Scores an arm's runs.

  Args:
    group: that holds the arm, for its student.
    state: the arm's, from kd.train.loop.fit.
    task: its test split is scored, its validation split serves choices.
    said: the teacher's logits or answers on the test split, as in `scores`.
    batch: examples in one forward pass.
    bins: of the calibration error.
    shift_classes: whose biases are shifted for the metrics "_shifted".
    metric: the study's primary one.
  """
  inputs, labels = task.test.arrays()
  inputs = jnp.asarray(inputs)  # once for all runs
  score = functools.partial(
    scores,
    labels=labels,
    teacher=said,
    bins=bins,
    num_classes=task.num_classes,
  )
  logits = logits_of(group, state.weights, inputs, task, batch)
  best = logits_of(group, state.best, inputs, task, batch)
  rows = [score(x) for x in logits]
  judged = list(best if registry.selection(metric) == "best" else logits)
  for row, x in zip(rows, best, strict=True):
    row |= {
      f"{k}_best": v
      for k, v in score(x).items()
      if not registry.lookup(k).per_class
    }
  if shift_classes:
    held, held_labels = task.validation.arrays()
    held_logits = np.asarray(logits_of(group, state.weights, held, task, batch))
    for s, (row, v) in enumerate(zip(rows, held_logits, strict=True)):
      row["bias_shift"] = shift = best_shift(v, held_labels, shift_classes)
      moved = shifted(logits[s], shift, shift_classes)
      row |= {f"{k}_shifted": value for k, value in score(moved).items()}
      if metric.endswith("_shifted"):
        judged[s] = moved
  for row, step in zip(rows, state.best_step, strict=True):
    row["best_step"] = step
  stopped = np.asarray(state.diverged) > 0
  values = {
    key: [
      None if bad else _number(row[key])
      for row, bad in zip(rows, stopped, strict=True)
    ]
    for key in rows[0]
  }
  examples = [
    None if bad else each(x, labels, said, metric=metric)
    for x, bad in zip(judged, stopped, strict=True)
  ]
  return Scored(
    values,
    reliability(logits[~stopped], labels, bins),
    [None if v is None else np.asarray(v) for v in examples],
  )


def teacher(
  logits: np.ndarray, labels: np.ndarray, *, bins: int, num_classes: int
) -> tuple[dict[str, float | None], dict[str, Any]]:
  """Scores the teacher: ({metric: value}, reliability)."""
  values = scores(logits, labels, None, bins=bins, num_classes=num_classes)
  return (
    {k: _number(v) for k, v in values.items()},
    reliability(logits, labels, bins),
  )


def black_box(
  answers: np.ndarray, labels: np.ndarray
) -> dict[str, float | None]:
  """Scores a black box's answers, -1 where it was not asked: accuracy over
  those it gave, and coverage, their share of the test examples."""
  known = answers >= 0
  scored: dict[str, float | None] = {"coverage": float(known.mean())}
  if known.any():
    scored["accuracy"] = float(np.mean(answers[known] == labels[known]))
  return scored


def _number(value) -> float | None:
  value = float(value)
  return value if np.isfinite(value) else None
