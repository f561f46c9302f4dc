"""Score trained runs on the test split: results.json's numbers.

Every number is of one run; means, intervals and tests are made of them in
kd.evaluate.stats. Choices (the best weights, a shift of biases) were made on
the validation split. What a metric is the mean of is computed for each label in
turn, so that the logits of a large vocabulary are never there all at once.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kd import metrics, signals
from kd.data.task import Split, Task
from kd.evaluate import adjusted, registry
from kd.models import functional
from kd.models.outputs import Outputs
from kd.signals import Dense, TopK
from kd.train.arms import Group
from kd.train.step import TrainState

# Of a run on a split; where there are more, no temperature is fitted.
MOST_LOGITS = 2**26

# What a teacher says of N labels: its logits [N, V], those of its likeliest
# classes, or answers [N], -1 where there is none.
Said = Float[Array, "N V"] | TopK | Int[Array, "N"] | np.ndarray
Each = Mapping[str, np.ndarray]


def judge(
  outputs: Outputs | Dense, labels: Int[Array, "N"], said: Said | None = None
) -> dict[str, Array]:
  """Returns what metrics are means of, [N] each: nats, or fractions, NaN for a
  label that is no class. And the `answer`; the `confidence`, its probability;
  and the `distance` to what the teacher says, their total variation."""
  known = said is not None
  answers = known and not isinstance(said, TopK) and said.ndim == 1
  has = {"": True, "teacher": known, "logits": known and not answers}
  asked = {
    name: m.each
    for name, m in registry.METRICS.items()
    if m.each is not None and has[m.reads]
  }

  def one(logits, label, *said):
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    at = registry.Position(logits, probs, label, *(said or (None,)))
    values = {name: each(metrics, at) for name, each in asked.items()}
    values |= {"answer": jnp.argmax(logits), "confidence": jnp.max(probs)}
    if known:
      values["distance"] = metrics.total_variation(logits, *said)
    return values

  return outputs.each(one, labels, *(() if said is None else (said,)))


@dataclasses.dataclass(frozen=True)
class Teacher:
  """What is asked of a teacher on a split: `judge`, and what it says itself.

  Attributes:
    k: of its likeliest classes; 0 is all logits.
  """

  k: int

  def __call__(self, outputs: Outputs, labels):
    if self.k:
      return judge(outputs, labels), signals.top_k(outputs, self.k)
    return judge(outputs, labels), outputs.logits


_of_logits = jax.jit(lambda logits, *rest: judge(Dense(logits), *rest))


def of_logits(logits, labels, said: Said | None = None) -> dict[str, Any]:
  """Returns `judge` of logits [N, V], as numpy."""
  rest = (labels,) if said is None else (labels, said)
  return jax.tree.map(np.asarray, _of_logits(jnp.asarray(logits), *rest))


def values(
  each: Each,
  labels: Int[np.ndarray, "N"],
  *,
  bins: int,
  num_classes: int,
  given: Bool[np.ndarray, "N"] | None = None,
) -> dict[str, float]:
  """Returns the metrics of one run, by name.

  Args:
    each: of `judge`.
    labels: y.
    bins: of the calibration error.
    num_classes: V.
    given: where the teacher gave an answer; None is everywhere.
  """
  run = registry.Run(each, labels, bins, num_classes)
  found: dict[str, float] = {}
  for name, metric in registry.METRICS.items():
    if name in each:
      own = each[name]
      if metric.reads and given is not None:
        own = own[given]
      found[name] = float(np.mean(own, dtype=np.float64))
    elif metric.value is not None and not metric.per_class:
      found[name] = float(metric.value(metrics, run))
    elif metric.value is not None and num_classes <= registry.RECALLS_UP_TO:
      per_class = metric.value(metrics, run)
      found |= {f"{name}_{c}": v for c, v in enumerate(per_class)}
  return found


def primary(
  each: Each, labels: Int[np.ndarray, "N"], metric: str
) -> np.ndarray | None:
  """Returns each label's own value of a metric that is their mean.

  NaN for one that the metric leaves out (another class, no answer of a black
  box); None for a metric that is no such mean.
  """
  if not registry.lookup(metric).over_examples:
    return None
  c = registry.class_of(metric)
  if c is not None:
    return np.where(labels == c, each["accuracy"], np.nan)
  return each.get(registry.family(metric))


def reliability(each: Each, bins: int) -> dict[str, list]:
  """Counts a reliability diagram.

  The bins are those of metrics.ece; predictions whose logits are not finite
  are in none.
  """
  confidence, right = each["confidence"], each["accuracy"]
  kept = np.isfinite(confidence) & np.isfinite(right)
  confidence, right = confidence[kept], right[kept]
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
    reliability: of the runs that finished, pooled.
    each: for each run the primary metric's values of the test labels [N]
      (`primary`); None for one that diverged, and for a metric that has none.
    first: of `judge`, of the first run that finished, by the weights that the
      primary metric scores.
  """

  values: dict[str, list[float | None]]
  reliability: dict[str, Any]
  each: list[np.ndarray | None]
  first: Each = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Test:
  """The test split, placed once for all arms.

  Attributes:
    inputs, labels: of it.
    said: what the teacher says of the labels; None, and then what compares with
      it is left out.
    places: of the labels that count.
  """

  inputs: Array
  labels: Array
  said: Said | None
  places: np.ndarray

  @classmethod
  def of(cls, split: Split, said: Said | None) -> "Test":
    inputs, labels = split.arrays()
    said = None if said is None else jax.tree.map(jnp.asarray, said)
    placed = jnp.asarray(inputs), jnp.asarray(labels)
    return cls(*placed, said, places(split))


def places(split: Split) -> np.ndarray:
  """Returns the labels of a split that count."""
  counts, count = split.counts(), len(split.labels())
  return np.arange(count) if counts is None else np.flatnonzero(counts)


def arm(
  group: Group,
  state: TrainState,
  task: Task,
  test: Test,
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
    task: its validation split serves choices.
    test: its test split, which is scored.
    batch: examples in one forward pass.
    bins: of the calibration error.
    shift_classes: whose biases are shifted for the metrics "_shifted".
    metric: the study's primary one.
  """
  labels, said = np.asarray(test.labels)[test.places], test.said
  dense = said is None or isinstance(said, TopK) or said.ndim > 1
  score = functools.partial(
    values,
    labels=labels,
    bins=bins,
    num_classes=task.num_classes,
    given=None if dense else np.asarray(said)[test.places] >= 0,
  )
  look = functional.forward(group.student, task.signature, batch, judge)
  rest = (test.labels,) if said is None else (test.labels, said)

  def each(weights) -> list[Each]:
    cut = lambda x: np.asarray(x)[test.places]
    known: dict[bytes, Each] = {}  # a teacher's runs are all the same
    found = []
    for own in by_seed(weights):
      key = _digest(own)
      if key not in known:
        known[key] = jax.tree.map(cut, look(own, test.inputs, *rest))
      found.append(known[key])
    return found

  last = each(state.weights)
  alike = jax.tree.map(lambda a, b: a is b, state.weights, dict(state.best))
  best = last if all(jax.tree.leaves(alike)) else each(state.best)
  rows: list[dict[str, Any]] = [
    score(run)
    | {
      f"{k}_best": v
      for k, v in score(kept).items()
      if not registry.lookup(k).per_class
    }
    for run, kept in zip(last, best, strict=True)
  ]
  judged = list(best if registry.selection(metric) == "best" else last)
  few = max(len(task.validation), len(labels)) * task.num_classes <= MOST_LOGITS
  fits = few and task.tokens is None
  if not fits and not shift_classes:
    return gathered(rows, state, labels, metric, bins, last, judged)
  logits = functional.forward(group.student, task.signature, batch)
  held, held_labels = task.validation.arrays()
  looked: dict[bytes, tuple[Array, Array]] = {}  # as above
  for s, (row, own) in enumerate(
    zip(rows, by_seed(state.weights), strict=True)
  ):
    key = _digest(own)
    if key not in looked:
      looked[key] = logits(own, held), logits(own, test.inputs)
    on_held, on_test = looked[key]
    if fits:
      row |= adjusted.tempered(on_held, held_labels, on_test, labels, bins)
    if shift_classes:
      row["bias_shift"] = shift = adjusted.best_shift(
        np.asarray(on_held), held_labels, shift_classes
      )
      moved = adjusted.shifted(on_test, shift, shift_classes)
      of_moved = of_logits(moved, *rest)
      row |= {f"{k}_shifted": v for k, v in score(of_moved).items()}
      if metric.endswith("_shifted"):
        judged[s] = of_moved
  return gathered(rows, state, labels, metric, bins, last, judged)


def gathered(
  rows: Sequence[dict[str, Any]],
  state: TrainState,
  labels: Int[np.ndarray, "N"],
  metric: str,
  bins: int,
  pooled: Sequence[Each],
  judged: Sequence[Each],
) -> Scored:
  """Gathers the runs of an arm; of one that diverged nothing is said.

  Args:
    rows: {metric: value} of each run.
    state: theirs.
    labels: of the test split.
    metric: the study's primary one.
    bins: of the reliability diagram.
    pooled: what that is made of, of each run.
    judged: what the primary metric is made of.
  """
  stopped = np.asarray(state.diverged) > 0
  rows = [
    row | {"best_step": step}
    for row, step in zip(rows, state.best_step, strict=True)
  ]
  finished = [run for run, bad in zip(pooled, stopped, strict=True) if not bad]
  return Scored(
    {
      key: [
        None if bad else _number(row[key])
        for row, bad in zip(rows, stopped, strict=True)
      ]
      for key in rows[0]
    },
    reliability(_pooled(finished), bins),
    [
      None if bad else primary(run, labels, metric)
      for run, bad in zip(judged, stopped, strict=True)
    ],
    next((r for r, bad in zip(judged, stopped, strict=True) if not bad), {}),
  )


def _digest(weights) -> bytes:
  digest = hashlib.sha256()
  for x in jax.tree.leaves(weights):
    digest.update(np.ascontiguousarray(x).tobytes())
  return digest.digest()


def by_seed(weights):
  """Returns each run's weights."""
  count = len(jax.tree.leaves(weights["params"])[0])
  return [functional.of_run(weights, s) for s in range(count)]


def _pooled(runs: Sequence[Each]) -> Each:
  """Returns what a reliability diagram needs of all runs together."""
  return {
    key: np.concatenate([np.zeros(0), *(run[key] for run in runs)])
    for key in ("confidence", "accuracy")
  }


def teacher(
  each: Each, labels: np.ndarray, *, bins: int, num_classes: int
) -> tuple[dict[str, float | None], dict[str, Any]]:
  """Scores the teacher: ({metric: value}, reliability)."""
  found = values(each, labels, bins=bins, num_classes=num_classes)
  return {k: _number(v) for k, v in found.items()}, reliability(each, bins)


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
