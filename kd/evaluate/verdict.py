"""Judges which arms are told apart, which is best, and what is no number.

Reads what results.json holds. Imports no jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kd.evaluate import registry, stats

_LEVEL = 0.05  # of the corrected p-value that names a winner
_MIN_PAIRS = 3  # two seeds that happen to agree are no evidence


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Says which arm is best on one metric and whether that may be claimed.

  Attributes:
    metric: the metric judged.
    best: the arm of best mean among those that finished every run, or None.
    named: whether `best` may be called the winner; see `winner`.
    reasons: why it may not, in words; empty when named.
    tied: arms not told apart from `best`: their paired interval against it
      includes 0, or fewer than three seeds were compared.
    better: arms told apart from their own baseline, in the good direction.
    worse: likewise, in the bad direction.
    set_aside: arms of a better mean than `best` that lost a run.
  """

  metric: str
  best: str | None
  named: bool
  reasons: tuple[str, ...]
  tied: tuple[str, ...]
  better: tuple[str, ...]
  worse: tuple[str, ...]
  set_aside: tuple[str, ...]


def told_apart(versus: Mapping[str, Any] | None) -> int:
  """Returns the sign of a difference that may be claimed, else 0.

  It may when the interval excludes 0, the corrected p is below 0.05 and at
  least three seeds were compared.
  """
  if not versus or versus["low"] is None or versus["p"] is None:
    return 0
  if versus["p"] >= _LEVEL or versus["n"] < _MIN_PAIRS:
    return 0
  return int(versus["low"] > 0) - int(versus["high"] < 0)


def winner(results: Mapping[str, Any], metric: str | None = None) -> Verdict:
  """Judges which arm is best, and whether that may be said.

  The best arm is the one of best mean among the arms that finished all their
  runs. It is named only if it is told apart from its own baseline, in the good
  direction (`told_apart`).

  Args:
    results: what results.json holds.
    metric: the metric to judge by; the study's primary one by default.

  Returns:
    The verdict, with the reasons where no arm is named.

  Raises:
    UserError: for a metric whose good direction is not known.
  """
  metric = metric or str(results["metric"])
  sign = registry.direction(metric)
  arms = {
    name: arm["metrics"][metric]
    for name, arm in results["arms"].items()
    if arm["metrics"].get(metric, {}).get("mean") is not None
  }
  complete = [
    name
    for name, m in arms.items()
    if not results["arms"][name].get("diverged")
    and all(stats.is_finite(v) for v in m["values"])
  ]
  moved = {
    a: sign * told_apart(m.get("versus_baseline")) for a, m in arms.items()
  }
  better = tuple(a for a, s in moved.items() if s > 0)
  worse = tuple(a for a, s in moved.items() if s < 0)
  if not complete:
    reasons = ("no arm finished all its runs",)
    return Verdict(metric, None, False, reasons, (), better, worse, ())
  best = max(complete, key=lambda a: sign * arms[a]["mean"])
  reasons = _reasons(arms[best].get("versus_baseline"), sign)
  tied = tuple(a for a in arms if a != best and not _apart(arms, a, best))
  ahead = tuple(
    a
    for a in arms
    if a not in complete and sign * (arms[a]["mean"] - arms[best]["mean"]) > 0
  )
  return Verdict(metric, best, not reasons, reasons, tied, better, worse, ahead)


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


def _reasons(versus: Mapping[str, Any] | None, sign: int) -> tuple[str, ...]:
  """Lists why an arm cannot be named against its baseline."""
  if versus is None:
    return ("it is itself a baseline",)
  if versus["low"] is None:
    return ("fewer than two paired seeds give no interval",)
  reasons = []
  if versus["n"] < _MIN_PAIRS:
    reasons.append(f"{versus['n']} seeds are too few to claim a difference")
  if versus["low"] <= 0 <= versus["high"]:
    reasons.append("the interval includes 0")
  elif sign * versus["difference"] < 0:
    reasons.append("its baseline is better")
  if versus["p"] is None or versus["p"] >= _LEVEL:
    reasons.append("the corrected p is not below 0.05")
  return tuple(reasons)


def _apart(arms: Mapping[str, Any], arm: str, best: str) -> bool:
  """Tells whether an arm's paired interval against the best excludes 0.

  Between an arm and its baseline the corrected judgement holds, so that a
  report cannot say both that they are and that they are not told apart.
  """
  for one, other in ((arm, best), (best, arm)):
    versus = arms[one].get("versus_baseline")
    if versus and versus["baseline"] == other:
      return told_apart(versus) != 0
  c = stats.compare(arms[arm]["values"], arms[best]["values"])
  if c.low is None or c.high is None or c.n < _MIN_PAIRS:
    return False
  return not c.low <= 0 <= c.high
