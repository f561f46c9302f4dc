"""What results.json says of scores outside: intervals, tests and a verdict.

Two numbers of each run make the verdict: the accuracy that it loses from inside
to outside, and the share of what is outside that it answers wrongly with a
confidence above 0.9; each a mean over the config's names, whatever the number
of their severities. Imports no jax.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kd.config.outside import TEST
from kd.evaluate import registry, stats
from kd.evaluate.design import Design

if TYPE_CHECKING:  # which is made with jax
  from kd.evaluate.outside import Found, Scores

TEACHER = "(teacher)"  # no arm's name
LOST, CONFIDENT = "accuracy_lost", "wrong_confident"

Runs = dict[str, list[stats.Value]]  # metric -> a value for each run


def summary(
  found: Sequence["Found"],
  baselines: Mapping[str, str | None],
  seeds: Sequence[int],
  design: Design,
  coverage: Sequence[float],
) -> dict[str, Any]:
  """Returns `outside` of results.json.

  Args:
    found: of each replicate.
    baselines: arm -> the arm that it is compared with, or None.
    seeds: how many runs each replicate has.
    design: how the runs are nested.
    coverage: of the curves.
  """
  first = found[0]
  own = {a: b if b in first.arms else None for a, b in baselines.items()}
  own = {a: b for a, b in own.items() if a in first.arms}
  sets = {
    name: {**facts, "examples": _sizes([f.sets[name] for f in found])}
    for name, facts in first.sets.items()
  }
  arms: dict[str, dict[str, Any]] = {a: {} for a in own}
  for name in sets:
    values, teacher = _values(found, seeds, name)
    worth = registry.worths(
      {m for runs in values.values() for m in runs},
      [np.zeros(f.sets[name]["examples"]) for f in found],
    )
    for a, entry in _compared(values, teacher, own, design, worth).items():
      arms[a][name] = entry
  return {
    "sets": sets,
    "teacher": _teacher(first, found),
    "arms": arms,
    "verdict": _verdict(found, own, seeds, design),
    "curves": {
      "coverage": [float(c) for c in coverage],
      **_each(found, "curves", _mean_of_lists),
    },
    "reliability": _each(found, "reliability", stats.pooled_bins),
    "parts": _each(found, "parts", _mean_of_parts),
  }


def _values(
  found: Sequence["Found"], seeds: Sequence[int], name: str
) -> tuple[dict[str, Runs], Runs | None]:
  """Returns a set's values of all runs, of the arms and of their teachers."""
  arms = {
    a: {
      m: [v for f in found for v in f.arms[a].values[name][m]]
      for m in scores.values[name]
    }
    for a, scores in found[0].arms.items()
  }
  of = [f.teacher.values[name] for f in found if f.teacher is not None]
  if not of:
    return arms, None
  teacher = {
    m: [v for one, n in zip(of, seeds, strict=True) for v in one[m] * n]
    for m in of[0]
  }
  return arms, teacher


def _compared(
  values: dict[str, Runs],
  teacher: Runs | None,
  baselines: Mapping[str, str | None],
  design: Design,
  worth: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
  """Compares arms with their baselines and with the teacher of each run's
  replicate: on one metric, one family of Holm's."""
  every, versus = dict(values), []
  if teacher is not None:
    every[TEACHER] = teacher
    versus = [f"{a} - {TEACHER}" for a in values]
  arms, told = stats.summarise(
    every,
    {**baselines, **({TEACHER: None} if teacher is not None else {})},
    design=design,
    contrasts=versus,
    worth=worth,
  )
  for a in values:
    of = told.get(f"{a} - {TEACHER}", {"metrics": {}})["metrics"]
    for metric, entry in arms[a].items():
      entry["versus_teacher"] = of.get(metric)
  return {a: arms[a] for a in values}


def _verdict(
  found: Sequence["Found"],
  baselines: Mapping[str, str | None],
  seeds: Sequence[int],
  design: Design,
) -> dict[str, Any]:
  """Compares the two numbers of the verdict, and those of each name."""
  facts = found[0].sets
  sizes = {n: min(f.sets[n]["examples"] for f in found) for n in facts}
  of_set = {name: _values(found, seeds, name) for name in facts}

  def judged(only: str | None) -> dict[str, Any]:
    of = {
      LOST: _names({n: s for n, s in facts.items() if s["labelled"]}),
      CONFIDENT: _names(facts),
    }
    of = {
      metric: {n: s for n, s in names.items() if only in (None, n)}
      for metric, names in of.items()
    }
    of = {metric: names for metric, names in of.items() if names}

    def numbers(pick) -> Runs:
      """Of one arm, or the teacher: `pick` of its values on a set."""
      made: Runs = {}
      for metric, names in of.items():
        plain = "accuracy" if metric == LOST else metric
        known = [
          np.mean([stats.floats(pick(of_set[s])[plain]) for s in sets], axis=0)
          for sets in names.values()
        ]
        mean = np.mean(known, axis=0)
        if metric == LOST:
          mean = stats.floats(pick(of_set[TEST])["accuracy"]) - mean
        made[metric] = [float(v) if np.isfinite(v) else None for v in mean]
      return made

    values = {a: numbers(lambda pair, a=a: pair[0][a]) for a in baselines}
    teacher, means = None, {}
    if found[0].teacher is not None:
      teacher = numbers(lambda pair: pair[1])
      means = {
        m: _mean(design.means(stats.floats(v)).tolist())
        for m, v in teacher.items()
      }
    outer = sum(sizes[s] for sets in of[CONFIDENT].values() for s in sets)
    worth = {LOST: 1 / sizes[TEST], CONFIDENT: 1 / outer}
    return {
      "over": {metric: list(names) for metric, names in of.items()},
      "teacher": means,
      "arms": _compared(values, teacher, baselines, design, worth),
    }

  each = {name: judged(name) for name in _names(facts)}
  return {**judged(None), **({"each": each} if len(each) > 1 else {})}


def _names(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
  """Gathers the sets outside by the config's names."""
  found: dict[str, list[str]] = {}
  for name, own in facts.items():
    if name != TEST:
      found.setdefault(own["of"], []).append(name)
  return found


def _teacher(first: "Found", found: Sequence["Found"]) -> dict[str, Any]:
  """Returns the teacher's values, a mean over replicates."""
  if first.teacher is None:
    return {}
  return {
    name: {
      m: _mean([f.teacher.values[name][m][0] for f in found if f.teacher])
      for m in own
    }
    for name, own in first.teacher.values.items()
  }


def _each(found: Sequence["Found"], key: str, together) -> dict[str, Any]:
  """Puts what is shown of each set together over replicates."""

  def of(pick) -> dict[str, Any]:
    scores: list[Scores] = [pick(f) for f in found]
    return {
      name: together([getattr(s, key)[name] for s in scores])
      for name in getattr(scores[0], key)
    }

  made = {"arms": {a: of(lambda f, a=a: f.arms[a]) for a in found[0].arms}}
  if found[0].teacher is not None:
    made["teacher"] = of(lambda f: f.teacher)
  return made


def _sizes(facts: Sequence[Mapping[str, Any]]) -> int | list[int]:
  sizes = [f["examples"] for f in facts]
  return sizes[0] if len(set(sizes)) == 1 else sizes


def _mean(values: Sequence[stats.Value]) -> stats.Value:
  known = [v for v in values if v is not None]
  return float(np.mean(known)) if known else None


def _mean_of_lists(lists: Sequence[list[stats.Value]]) -> list[stats.Value]:
  return [_mean(values) for values in zip(*lists, strict=True)]


def _mean_of_parts(parts: Sequence[Mapping[str, stats.Value]]):
  return {part: _mean([p[part] for p in parts]) for part in parts[0]}
