"""Judges which arms are told apart, which may be best, and what is no number.

Reads what results.json holds. Imports no jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kd.evaluate import registry, selection, stats
from kd.evaluate.design import Design

_MIN_UNITS = 3  # two units that happen to agree are no evidence


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Says what may be claimed of a stratum's arms on one metric.

  Attributes:
    metric: the metric judged.
    stratum: the budget that its arms share, "" where all arms of the study do;
      arms of different strata are never ranked against each other.
    best: the arm of best mean among those that finished every run, or None.
    named: whether `best` may be called the best arm: no other may be best
      (`tied`), and it is told apart from its own baseline, where it has one.
    beats_baseline: whether `best` is told apart from its own baseline, in the
      good direction and for all that it was chosen (`low`, `high`).
    reasons: why it is not, or why it is not named, in words; empty when named.
    low: of the 95 % interval of best - its baseline, corrected for its being
      chosen; None without one.
    high: likewise.
    among: how many arms it was chosen from.
    tied: the other arms that may be best: the rest of a 95 % model confidence
      set.
    better: arms told apart from their own baseline, in the good direction.
    worse: likewise, in the bad direction.
    set_aside: arms that lost a run, of which nothing is claimed.
    ahead: those of them whose mean over the runs left is better than `best`'s.
    fragile: arms of which something is claimed that would not be, were a single
      test example answered otherwise.
  """

  metric: str
  stratum: str
  best: str | None
  named: bool = False
  beats_baseline: bool = False
  reasons: tuple[str, ...] = ()
  low: float | None = None
  high: float | None = None
  among: int = 0
  tied: tuple[str, ...] = ()
  better: tuple[str, ...] = ()
  worse: tuple[str, ...] = ()
  set_aside: tuple[str, ...] = ()
  ahead: tuple[str, ...] = ()
  fragile: tuple[str, ...] = ()


def comparisons(
  results: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any], float | None]]:
  """Yields (arm, comparison, margin) of what is compared on the primary metric:
  each arm with its baseline, then the contrasts."""
  metric = results["metric"]
  for arm, entry in results["arms"].items():
    if versus := entry["metrics"].get(metric, {}).get("versus_baseline"):
      yield arm, versus, None
  for contrast in (results.get("contrasts") or {}).values():
    if versus := contrast["metrics"].get(metric):
      yield contrast["arm"], versus, contrast["within"]


def told_apart(versus: Mapping[str, Any] | None) -> int:
  """Returns the sign of a difference that may be claimed, else 0.

  It may when the interval excludes 0, the corrected p is below 0.05, at least
  three units were compared and neither side lost a run.
  """
  if not versus or versus["low"] is None or not _is_significant(versus):
    return 0
  return int(versus["low"] > 0) - int(versus["high"] < 0)


def equivalent(contrast: Mapping[str, Any], metric: str) -> bool:
  """Tells whether a contrast's two arms may be called equal within its margin.

  Args:
    contrast: of results.json.
    metric: the study's primary one, whose unit the margin has.
  """
  versus = contrast["metrics"].get(metric)
  return bool(contrast["within"] and versus and _is_significant(versus))


def _is_significant(versus: Mapping[str, Any]) -> bool:
  enough = versus["n"] >= _MIN_UNITS and not versus.get("lost")
  return enough and versus["p"] is not None and versus["p"] < stats.LEVEL


def judge(
  results: Mapping[str, Any], metric: str | None = None
) -> tuple[Verdict, ...]:
  """Judges each stratum of a study, in the order of its arms.

  Args:
    results: what results.json holds.
    metric: the metric to judge by; the study's primary one by default.

  Raises:
    UserError: for a metric whose good direction is not known.
  """
  metric = metric or str(results["metric"])
  registry.direction(metric)
  strata = dict.fromkeys(stratum(arm) for arm in results["arms"].values())
  return tuple(_judge(results, metric, name) for name in strata)


def stratum(arm: Mapping[str, Any]) -> str:
  """Returns the budget that an arm shares with those it is ranked against."""
  return str(arm.get("stratum") or "")


def _judge(results: Mapping[str, Any], metric: str, name: str) -> Verdict:
  sign, design = registry.direction(metric), Design.of(results)
  arms = {
    arm: entry["metrics"][metric]
    for arm, entry in results["arms"].items()
    if stratum(entry) == name
    and entry["metrics"].get(metric, {}).get("mean") is not None
  }
  complete = [
    arm
    for arm, m in arms.items()
    if not results["arms"][arm].get("diverged")
    and all(stats.is_finite(v) for v in m["values"])
  ]
  aside = tuple(a for a in arms if a not in complete)
  moved = {
    a: sign * told_apart(arms[a].get("versus_baseline")) for a in complete
  }
  if not complete:
    reasons = ("no arm finished all its runs",)
    return Verdict(metric, name, None, reasons=reasons, set_aside=aside)
  x = sign * np.stack(
    [design.means(stats.floats(arms[a]["values"])) for a in complete]
  )
  row = int(x.mean(-1).argmax())
  best, n = complete[row], x.shape[1]
  worth = max(arms[a].get("worth", 0.0) for a in complete)
  example = worth / design.test_sets(n)
  kept = _may_be_best(x, worth)
  versus = arms[best].get("versus_baseline")
  among = sum(bool(arms[a].get("versus_baseline")) for a in complete)
  low, high = _corrected(versus, n, among)
  apart = low is not None and high is not None and not low <= 0 <= high
  if not apart:
    moved[best] = 0
  tied = tuple(
    a for a, k in zip(complete, kept, strict=True) if k and a != best
  )
  reasons = _reasons(versus, sign, apart)
  if len(complete) < 2:
    reasons += ("no other arm finished all its runs",)
  elif tied:
    reasons += ("other arms may be best",)
  named = not reasons
  nudged = x - example * (np.arange(len(x)) == row)[:, None]
  fragile = [
    a
    for a, way in moved.items()
    if way and _turns(arms[a]["versus_baseline"], example)
  ]
  if named and _may_be_best(nudged, worth).sum() > 1:
    fragile.append(best)
  return Verdict(
    metric,
    name,
    best,
    named=named,
    beats_baseline=moved[best] > 0,
    reasons=reasons,
    low=low,
    high=high,
    among=among,
    tied=tied,
    better=tuple(a for a, way in moved.items() if way > 0),
    worse=tuple(a for a, way in moved.items() if way < 0),
    set_aside=aside,
    ahead=tuple(
      a for a in aside if sign * (arms[a]["mean"] - arms[best]["mean"]) > 0
    ),
    fragile=tuple(dict.fromkeys(fragile)),
  )


def _may_be_best(x: np.ndarray, worth: float) -> np.ndarray:
  """Tells which arms [m] may be best, given [m, n] units, higher better."""
  if x.shape[1] < _MIN_UNITS:
    return np.ones(len(x), bool)
  return selection.confidence_set(x, worth)


def _corrected(versus: Mapping[str, Any] | None, n: int, among: int):
  """Widens an interval by what choosing its arm costs: (low, high)."""
  if not versus or versus["low"] is None or versus["n"] != n:
    return None, None
  wider = selection.chosen(n, among) / stats.quantile(n)
  middle = versus["difference"]
  return (
    middle - wider * (middle - versus["low"]),
    middle + wider * (versus["high"] - middle),
  )


def _turns(versus: Mapping[str, Any], example: float) -> bool:
  """Tells whether one test example, which moves the difference by `example`,
  would turn a difference that is told apart."""
  if not example:
    return False
  n, p_raw = versus["n"], versus["p_raw"]
  factor = versus["p"] / p_raw if p_raw else 1.0  # with many units p may be 0
  error = (versus["high"] - versus["low"]) / 2 / stats.quantile(n)
  left = max(abs(versus["difference"]) - example, 0.0)
  p = float(stats.p_values(np.asarray(left), np.asarray(error), n))
  return factor * p >= stats.LEVEL


def _reasons(
  versus: Mapping[str, Any] | None, sign: int, apart: bool
) -> tuple[str, ...]:
  """Lists why an arm is not better than its baseline; () where it has none."""
  if versus is None:
    return ()
  if versus["low"] is None:
    return ("fewer than two paired units give no interval",)
  reasons = []
  if versus["n"] < _MIN_UNITS:
    reasons.append(f"{versus['n']} units are too few to claim a difference")
  if versus.get("lost"):
    reasons.append("its baseline lost a run")
  if not apart:
    reasons.append("the interval includes 0")
  elif sign * versus["difference"] < 0:
    reasons.append("its baseline is better")
  if versus["p"] is None or versus["p"] >= stats.LEVEL:
    reasons.append("the corrected p is not below 0.05")
  return tuple(reasons)


def warnings(results: Mapping[str, Any]) -> list[str]:
  """Says which metrics of the teacher and of runs that finished are no number.

  They are None in `values`, as those of a run that diverged are. A value for
  each class is not looked at: it is None where the class has no examples.
  """
  said = []
  if names := [m for m, v in results["teacher"].items() if _is_lost(m, v)]:
    said.append(f"The teacher: {', '.join(names)} not finite, hence null.")
  for arm, entry in results["arms"].items():
    finished = [
      (s, seed)
      for s, seed in enumerate(results["seeds"])
      if str(seed) not in entry.get("diverged", {})
    ]
    lost = {
      metric: seeds
      for metric, m in entry["metrics"].items()
      if (seeds := [n for s, n in finished if _is_lost(metric, m["values"][s])])
    }
    if lost:
      seeds = sorted({seed for seeds in lost.values() for seed in seeds})
      said.append(
        f"Arm {arm}, seed {', '.join(map(str, seeds))}: {', '.join(lost)} not "
        "finite, hence null, and left out of means and tests."
      )
  return said


def _is_lost(metric: str, value: stats.Value) -> bool:
  each = registry.lookup(metric).per_class
  return not each and not stats.is_finite(value)
