"""How the teacher and every arm do outside of the task: one replicate's scores.

Made of what is known of each example (kd.evaluate.outside_rows). Sets of a size
up to the same power of two share the programs that score them.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd import metrics
from kd.config.outside import TEST
from kd.data.outside import Outside
from kd.data.task import Task
from kd.evaluate import cascade, registry, scores
from kd.evaluate.outside_rows import Placed, judge, power, temperature
from kd.evaluate.scores import Each
from kd.models import functional
from kd.teachers.teacher import Teacher
from kd.train.arms import Group
from kd.train.step import TrainState

COVERAGE = np.linspace(0.05, 1.0, 20)  # of a curve that is kept
LEAST = 512  # examples that a set is filled up to


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a model, or each run of an arm, does on the sets.

  Attributes:
    values: set -> metric -> [R], None where a run diverged or it is no number.
    curves: set -> the accuracy at each of COVERAGE, a mean over runs; of a set
      without labels together with the inside, where every answer outside is
      wrong.
    reliability: set -> as of kd.evaluate.scores, of all runs.
    parts: set -> shift -> accuracy, a mean over runs.
  """

  values: dict[str, dict[str, list[float | None]]]
  curves: dict[str, list[float | None]]
  reliability: dict[str, dict[str, list]]
  parts: dict[str, dict[str, float | None]]


@dataclasses.dataclass(frozen=True)
class Found:
  """A replicate's scores outside.

  Attributes:
    sets: set -> what it is: `words`, `of`, `severity`, `examples`, `labelled`.
    teacher: None of a black box, which is asked about the test split alone.
    arms: arm -> its scores.
  """

  sets: dict[str, dict[str, Any]]
  teacher: Scores | None
  arms: dict[str, Scores]


def find(
  settings: Mapping[str, Any],
  task: Task,
  teacher: Teacher | None,
  groups: Sequence[Group],
  states: Mapping[str, TrainState],
  cascades: Mapping[str, Sequence[cascade.Curve | None]],
) -> Found | None:
  """Scores the teacher and all runs of all arms on all sets.

  A cascade hands on outside what it would inside; without a teacher to hand on
  to it has no scores.

  Args:
    settings: the resolved config; of `evaluate` the sets, and how to score.
    task: its test split is inside, its validation split serves temperatures.
    teacher: None where only its answers are known.
    groups, states: every arm's.
    cascades: arm -> each run's, of those that are cascades.

  Returns:
    None where the config names no set.
  """
  options = settings["evaluate"]
  if not options["outside"]:
    return None
  batch, bins, metric = (options[k] for k in ("batch_size", "bins", "metric"))
  placed = Placed.of(
    options["outside"], task, teacher, batch, settings["signal"]["k"]
  )
  best = registry.selection(metric) == "best"
  arms: dict[str, Scores] = {}
  for name, group in ((n, g) for g in groups for n in g.names):
    if name in cascades and placed.teacher is None:
      continue
    state = states[name]
    look = functional.forward(group.student, task.signature, batch, judge)
    logits = functional.forward(group.student, task.signature, batch)
    runs = []
    for s, own in enumerate(
      scores.by_seed(state.best if best else state.weights)
    ):
      rows = placed.run(look, own, temperature(logits, own, task))
      if curve := cascades.get(name, {s: None})[s]:
        assert placed.teacher is not None
        handed = rows["confidence"] < curve.threshold
        rows = cascade.mixed(rows, placed.teacher, handed)
      runs.append(rows)
    lost = np.asarray(state.diverged) > 0
    arms[name] = _scored(placed, runs, bins, lost.tolist())
  facts = {
    s.name: {
      "words": s.words,
      "of": s.of,
      "severity": s.severity,
      "examples": len(s.split),
      "labelled": s.labelled,
    }
    for s in placed.sets
  }
  of_teacher = None
  if placed.teacher is not None:
    of_teacher = _scored(placed, [placed.teacher], bins, [False])
  return Found(facts, of_teacher, arms)


def _scored(
  placed: Placed, runs: Sequence[Each], bins: int, lost: Sequence[bool]
) -> Scores:
  """Scores runs from what is known of each example, [N] each."""
  cut, made = [placed.cut(rows) for rows in runs], Scores({}, {}, {}, {})
  within = [_filled(own[TEST]) for own in cut]
  for s in placed.sets:
    found, curves, diagrams, parts = [], [], [], []
    for own, inside, bad in zip(cut, within, lost, strict=True):
      rows = dict(own[s.name])
      if not s.labelled:  # nobody could be right
        rows["accuracy"] = np.zeros(len(s.split), np.float32)
      values, curve, diagram = jax.tree.map(
        np.asarray,
        _scores(_filled(rows), inside, bins=bins, labelled=s.labelled),
      )
      if s.name == TEST:
        values = {k: v for k, v in values.items() if k not in _DETECTION}
      found.append({k: None if bad else _number(v) for k, v in values.items()})
      if not bad:
        curves.append(curve)
        diagrams.append(diagram)
        parts.append(_parts(rows["accuracy"], s))
    made.values[s.name] = {k: [f[k] for f in found] for k in found[0]}
    made.curves[s.name] = _means(np.reshape(curves, (-1, len(COVERAGE))))
    made.reliability[s.name] = _diagram(np.reshape(diagrams, (-1, 3, bins)))
    if s.labelled and s.part is not None:
      means = _means(np.reshape(parts, (-1, len(s.parts))))
      made.parts[s.name] = dict(zip(s.parts, means, strict=True))
  return made


_OF_ALL = ("agreement", "kl_to_teacher")
_OF_LABELS = ("accuracy", "nll", "brier", "nll_tempered")
_BOTH = ("confidence", "accuracy", "energy")
_DETECTION = ("auroc", "fpr95", "auroc_energy", "fpr95_energy")


@functools.partial(jax.jit, static_argnames=("bins", "labelled"))
def _scores(rows, inside, *, bins: int, labelled: bool):
  """Returns a run's metrics on a set, its curve [C], and of each bin the
  examples and their sums of confidence and accuracy [3, bins].

  Args:
    rows, inside: padded, [P] and [Q], of the set and of the inside.
    bins: of calibration errors.
    labelled: whether an answer outside can be right.
  """
  counts, within = rows["counts"], inside["counts"]
  mean = lambda x: jnp.sum(jnp.where(counts, x, 0.0)) / jnp.sum(counts)
  sure, right = rows["confidence"], rows["accuracy"]
  found = {k: mean(rows[k]) for k in _OF_ALL if k in rows}
  found["mean_confidence"] = mean(sure)
  found["wrong_confident"] = mean((sure > metrics.CONFIDENT) * (1 - right))
  mixed = {k: jnp.concatenate([inside[k], rows[k]]) for k in _BOTH}
  both = jnp.concatenate([within, counts])
  answered = (mixed["confidence"], mixed["accuracy"], both)
  if labelled:
    found |= {k: mean(rows[k]) for k in _OF_LABELS}
    error = functools.partial(
      metrics.calibration_error, correct=right, bins=bins, where=counts
    )
    found["ece"] = error(sure)
    found["ece_equal_mass"] = error(sure, equal_mass=True)
    found["ece_tempered"] = error(rows["confidence_tempered"])
    answered = (sure, right, counts)
  found["aurc"] = metrics.aurc(*answered)
  positive = jnp.arange(both.size) < within.size
  for score, name in (("confidence", ""), ("energy", "_energy")):
    seen = mixed[score], positive
    found[f"auroc{name}"] = metrics.auroc(*seen, both)
    found[f"fpr95{name}"] = metrics.fpr_at_tpr(*seen, where=both)
  last = jnp.ceil(COVERAGE * jnp.sum(answered[2])).astype(jnp.int32) - 1
  known = counts & jnp.isfinite(sure) & jnp.isfinite(right)
  which = metrics.bin_of(sure, bins)
  diagram = [
    jnp.bincount(which, jnp.where(known, x, 0.0), length=bins)
    for x in (jnp.ones_like(sure), sure, right)
  ]
  curve = metrics.selective_accuracy(*answered)[last]
  return found, curve, jnp.stack(diagram)


def _filled(rows: Each) -> dict[str, np.ndarray]:
  """Pads rows [N] to a power of two; `counts` says which are any."""
  size = len(rows["confidence"])
  more = max(power(size), LEAST) - size
  names = {*_OF_ALL, *_OF_LABELS, *_BOTH, "confidence_tempered"}
  found = {
    k: np.pad(np.asarray(x, np.float32), (0, more))
    for k, x in rows.items()
    if k in names
  }
  return found | {"counts": np.arange(size + more) < size}


def _parts(right: np.ndarray, s: Outside) -> list[float]:
  """Returns the accuracy under each shift of a set; [] where it is none."""
  return [float(np.mean(right[s.part == i])) for i in range(len(s.parts))]


def _diagram(sums: np.ndarray) -> dict[str, list]:
  """Returns the reliability of runs together, from their sums [R, 3, bins]."""
  count, sure, right = sums.sum(0, dtype=np.float64)
  mean = lambda x: [
    float(t / n) if n else None for t, n in zip(x, count, strict=True)
  ]
  return {
    "confidence": mean(sure),
    "accuracy": mean(right),
    "count": count.astype(int).tolist(),
  }


def _number(value: np.ndarray) -> float | None:
  return float(value) if np.isfinite(value) else None


def _means(x: np.ndarray) -> list[float | None]:
  """Returns the mean over the first axis; None where it is no number."""
  if not len(x):
    return [None] * x.shape[1]
  return [_number(v) for v in x.mean(0)]
