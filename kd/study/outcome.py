"""What results.json says: the scores of all replicates, and what they tell."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd.config import made
from kd.evaluate import cascade, outside_stats, registry, stats
from kd.evaluate.design import Design
from kd.evaluate.outside import COVERAGE, Found
from kd.evaluate.scores import Scored


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A replicate's scores.

  Attributes:
    seeds: of its S runs.
    teacher: {metric: value}.
    teacher_reliability: as of kd.evaluate.scores, or None.
    arms: {arm: its scores}.
    diverged: {arm: the step at which each run was stopped [S], 0 for none}.
    funnels: {filter: what its steps kept}.
    labels: [N], of the test split.
    answers: a black box's there [N], -1 where it gave none; or None.
    groups: [N], which test examples belong together; or None.
    bought: {arm: the teacher's tokens that it costs}, of tasks of tokens.
    written: of a few test prompts, everybody's words.
    cascades: {arm: each run's curve}, of those that are cascades.
    disagreements: of kd.evaluate.disagreements; or None.
    outside: of kd.evaluate.outside, where the config has such sets.
  """

  seeds: Sequence[int]
  teacher: Mapping[str, stats.Value]
  teacher_reliability: Mapping[str, list] | None
  arms: Mapping[str, Scored]
  diverged: Mapping[str, np.ndarray]
  funnels: Mapping[str, list[dict[str, Any]]]
  labels: np.ndarray
  answers: np.ndarray | None
  groups: np.ndarray | None
  bought: Mapping[str, float] = dataclasses.field(default_factory=dict)
  written: Sequence[Mapping[str, Any]] = ()
  cascades: Mapping[str, Sequence[cascade.Curve | None]] = dataclasses.field(
    default_factory=dict
  )
  disagreements: Mapping[str, Any] | None = None
  outside: Found | None = None


def results(
  settings: Mapping[str, Any],
  scored: Sequence[Outcome],
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns what results.json holds, but for models, warnings and provenance.

  Args:
    settings: the resolved config.
    scored: of each replicate.
    facts: `signal` and `replicates`, and `tune` where arms were tuned.
  """
  arms, metric = settings["arms"], settings["evaluate"]["metric"]
  first = scored[0]
  values = {
    arm: {
      m: [v for one in scored for v in one.arms[arm].values[m]]
      for m in first.arms[arm].values
    }
    for arm in arms
  }
  summary, contrasts = stats.summarise(
    values,
    {name: arm["baseline"] for name, arm in arms.items()},
    metric=metric,
    design=Design.of(facts),
    contrasts=settings["contrasts"],
    worth=registry.worths(
      {m for own in values.values() for m in own},
      [one.labels for one in scored],
      first.answers,
    ),
    each={
      arm: [x for one in scored for x in one.arms[arm].each] for arm in arms
    },
    clusters=[one.groups for one in scored for _ in one.seeds],
  )
  strata, leaders = _strata(arms), made.leaders(arms)
  funnels = {k: _total([s.funnels[k] for s in scored]) for k in first.funnels}
  return {
    "study": settings["study"],
    "metric": metric,
    "selection": registry.selection(metric),
    "margin": settings["evaluate"]["margin"],
    **{k: facts[k] for k in ("replicates", "tune") if k in facts},
    "teacher": {
      m: _mean([s.teacher[m] for s in scored]) for m in first.teacher
    },
    "teacher_reliability": stats.pooled_bins(
      [s.teacher_reliability for s in scored]
    ),
    "signal": {**({"funnels": funnels} if funnels else {}), **facts["signal"]},
    "baseline": settings["baseline"],
    "seeds": [seed for s in scored for seed in s.seeds],
    "arms": {
      name: {
        "config": arm,
        "baseline": arm["baseline"],
        **({"trained": leaders[name]} if leaders[name] != name else {}),
        "stratum": strata[name],
        "diverged": {
          str(seed): int(step)
          for s in scored
          for seed, step in zip(s.seeds, s.diverged[name], strict=True)
          if step
        },
        "reliability": stats.pooled_bins(
          [s.arms[name].reliability for s in scored]
        ),
        "metrics": summary[name],
        **_versus_teacher(summary[name].get(metric), scored, metric, facts),
        **(
          {"teacher_tokens": _mean([s.bought[name] for s in scored])}
          if first.bought
          else {}
        ),
      }
      for name, arm in arms.items()
    },
    **({"contrasts": contrasts} if contrasts else {}),
    **({"written": list(first.written)} if first.written else {}),
    **_cascades(arms, scored, facts),
    **({"disagreements": first.disagreements} if first.disagreements else {}),
    **_outside(arms, scored, facts),
  }


def _cascades(
  arms: Mapping[str, Mapping[str, Any]],
  scored: Sequence[Outcome],
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns what cascades chose and their curves, where there are any."""
  found = {
    name: cascade.summary(
      [curve for one in scored for curve in one.cascades[name]],
      arms[name]["of"],
      arms[name]["margin"],
      Design.of(facts),
    )
    for name in scored[0].cascades
  }
  return {"cascades": found} if found else {}


def _outside(
  arms: Mapping[str, Mapping[str, Any]],
  scored: Sequence[Outcome],
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns how all do outside of the task, where the config has sets."""
  found = [one.outside for one in scored if one.outside is not None]
  if not found:
    return {}
  made = outside_stats.summary(
    found,
    {name: arm["baseline"] for name, arm in arms.items()},
    [len(one.seeds) for one in scored],
    Design.of(facts),
    COVERAGE.tolist(),
  )
  return {"outside": made}


def _versus_teacher(
  entry: Mapping[str, Any] | None,
  scored: Sequence[Outcome],
  metric: str,
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns how far an arm is from its teacher on the primary metric, paired
  with the teacher of each run's replicate; nothing where it has no value."""
  plain = metric.removesuffix("_best").removesuffix("_shifted")
  if entry is None or any(plain not in s.teacher for s in scored):
    return {}
  found = stats.compare(
    entry["values"],
    [s.teacher[plain] for s in scored for _ in s.seeds],
    design=Design.of(facts),
    worth=entry["worth"],
  )
  said = {k: v for k, v in dataclasses.asdict(found).items() if k != "p"}
  return {"versus_teacher": said}


def _strata(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
  """Names each arm's budget, the size of its transfer set, where they differ:
  arms are ranked among those of one budget."""
  sizes = {name: arm["signal"]["size"] for name, arm in arms.items()}
  if len(set(sizes.values())) == 1:
    return dict.fromkeys(arms, "")
  return {
    name: "all examples" if size is None else f"{size} examples"
    for name, size in sizes.items()
  }


def _mean(values: Sequence[stats.Value]) -> stats.Value:
  """Returns the mean over replicates, None where one has no value."""
  known = [v for v in values if v is not None]
  return float(np.mean(known)) if len(known) == len(values) else None


def _total(funnels: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
  """Returns what a filter's steps kept of all replicates' examples, with the
  first replicate's examples of what they removed."""
  return [
    {
      **steps[0],
      **{
        key: sum(step[key] for step in steps)
        for key in ("in", "out", "samples_in", "samples_out")
      },
    }
    for steps in zip(*funnels, strict=True)
  ]
