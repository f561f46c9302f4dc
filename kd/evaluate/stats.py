"""Compares arms over seeds: paired intervals, corrected p-values, verdicts.

Every arm of a study sees the same initialisations and batches for the same
seed, so arms are compared *per seed*: all statistics here are of the paired
differences. Nothing here needs jax, and nothing here draws unseeded numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from scipy import stats as sps

from kd.errors import UserError

Value = float | None

_HIGHER = {"accuracy", "agreement", "recall", "auroc"}
_LOWER = {"nll", "ece", "brier", "kl_to_teacher", "kl", "loss", "fpr_at_tpr"}
_LEVEL = 0.05  # of the corrected p-value that names a winner
_MIN_PAIRS = 3  # two seeds that happen to agree are no evidence


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Holds a paired comparison; None where too few seeds are left to tell."""

  difference: Value  # mean over seeds of value - baseline, metric's units
  low: Value
  high: Value
  p: Value  # two-sided, uncorrected
  n: int  # seeds that both sides finished


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


def family(metric: str) -> str:
  """Strips what does not change a metric's meaning.

  >>> family("recall_7_best"), family("validation_accuracy")
  ('recall', 'accuracy')
  """
  metric = metric.removesuffix("_best").removeprefix("validation_")
  metric = metric.removesuffix("_shifted")
  return re.sub(r"_\d+$", "", metric)


def direction(metric: str) -> int:
  """Returns +1 where higher is better, -1 where lower is.

  Raises:
    UserError: for a metric whose good direction is not known.

  >>> direction("accuracy_best"), direction("nll")
  (1, -1)
  """
  name = family(metric)
  if name in _HIGHER:
    return 1
  if name in _LOWER or is_seconds(metric):
    return -1
  known = ", ".join(sorted(_HIGHER | _LOWER))
  raise UserError(f"metric {metric!r}: no known good direction; have {known}")


def is_seconds(metric: str) -> bool:
  """Tells times, which are never tested against each other."""
  return metric.removesuffix("_best").endswith("_seconds")


def resampling_reaches(n: int, confidence: float = 0.95) -> bool:
  """Tells whether n pairs let a percentile interval reach its confidence.

  A bootstrap mean lies between the smallest and the largest difference, so the
  interval misses the centre of a symmetric distribution whenever all n
  differences fall on one side of it: its coverage is at most 1 - 2^(1-n),
  which is 0.75 for 3 seeds and 0.94 for 5, whatever the quantile levels.

  >>> [n for n in range(2, 9) if resampling_reaches(n)]
  [6, 7, 8]
  """
  return 1 - 2.0 ** (1 - n) >= confidence


def bootstrap_interval(
  differences: Sequence[float] | np.ndarray,
  *,
  confidence: float = 0.95,
  resamples: int = 10_000,
  seed: int = 0,
  expanded: bool = True,
) -> tuple[float, float]:
  r"""Computes the expanded percentile interval of the mean.

  The plain percentile interval is too narrow for small n, by sqrt((n-1)/n) and
  for using normal in place of Student quantiles. Both are undone by taking the
  bootstrap distribution's quantiles at the level

      \alpha' = \Phi(-\sqrt{n/(n-1)} t_{1-\alpha/2, n-1})

  on either side, in place of \alpha/2.

  Args:
    differences: [n] paired differences, n >= 2.
    confidence: 1 - alpha.
    resamples: bootstrap samples.
    seed: of the resampling.
    expanded: False gives the plain percentile interval.

  Returns:
    (low, high) in the units of `differences`.

  Source: Hesterberg 2015, arXiv 1411.5279, section 5.3.
  """
  d = np.asarray(differences, np.float64)
  n, tail = len(d), (1 - confidence) / 2
  if expanded:
    tail = sps.norm.cdf(-math.sqrt(n / (n - 1)) * sps.t.ppf(1 - tail, n - 1))
  result = sps.bootstrap(
    (d,),
    np.mean,
    n_resamples=resamples,
    confidence_level=float(1 - 2 * tail),
    method="percentile",
    vectorized=True,
    rng=np.random.default_rng(seed),
  )
  interval = result.confidence_interval
  return float(interval.low), float(interval.high)


def compare(
  values: Sequence[Value],
  baseline: Sequence[Value],
  *,
  confidence: float = 0.95,
  resamples: int = 10_000,
  seed: int = 0,
) -> Comparison:
  """Compares two arms seed by seed.

  The interval is the expanded percentile bootstrap over seeds where that can
  reach the confidence (`resampling_reaches`: 6 seeds or more at 0.95), and
  Student's t interval below, where no resampling can. p is the paired t-test's.

  Args:
    values: [S] one per seed; None or non-finite for a run that diverged.
    baseline: [S] likewise, of the same seeds in the same order.
    confidence: of the interval.
    resamples: bootstrap samples.
    seed: of the resampling; the same inputs always give the same interval.

  Returns:
    The mean of values - baseline over the n seeds that both finished. With
    n = 0 all is None; with n = 1 there is a difference but no interval and no
    p. Differences that are all equal give a point interval and p = 0, or
    p = 1 when they are all 0.

  Raises:
    ValueError: if the two differ in length.

  >>> compare([0.75, 0.5, None], [0.5, 0.25, 0.5])
  Comparison(difference=0.25, low=0.25, high=0.25, p=0.0, n=2)
  """
  pairs = [
    (a, b)
    for a, b in zip(values, baseline, strict=True)
    if _finite(a) and _finite(b)
  ]
  n = len(pairs)
  if n == 0:
    return Comparison(None, None, None, None, 0)
  a, b = np.asarray(pairs, np.float64).T
  d = a - b
  # Rounding in a - b must pass neither for spread nor for a difference.
  rounding = 1e-12 * max(np.abs(a).max(), np.abs(b).max())
  mean = float(d.mean())
  if abs(mean) <= rounding and np.ptp(d) <= rounding:
    mean = 0.0
  if n == 1:
    return Comparison(mean, None, None, None, 1)
  if np.ptp(d) <= rounding:
    return Comparison(mean, mean, mean, 0.0 if mean else 1.0, n)
  p = float(sps.ttest_rel(a, b).pvalue)
  if resampling_reaches(n, confidence):
    low, high = bootstrap_interval(
      d, confidence=confidence, resamples=resamples, seed=seed
    )
  else:
    half = sps.t.ppf((1 + confidence) / 2, n - 1) * sps.sem(d)
    low, high = mean - float(half), mean + float(half)
  return Comparison(mean, low, high, p, n)


def holm(p_values: Sequence[Value]) -> list[Value]:
  """Adjusts p-values for being several, by Holm's step-down procedure.

  With p_(1) <= ... <= p_(m), adjusted_(i) = max_{j<=i} min(1, (m-j+1) p_(j)).
  None passes through and does not count in m.

  Source: Holm 1979, Scandinavian Journal of Statistics 6(2).

  >>> holm([0.01, None, 0.04])
  [0.02, None, 0.04]
  """
  present = [i for i, p in enumerate(p_values) if p is not None]
  adjusted: list[Value] = [None] * len(p_values)
  running = 0.0
  order = sorted(present, key=lambda i: p_values[i] or 0.0)
  for rank, i in enumerate(order):
    scaled = (len(order) - rank) * float(p_values[i] or 0.0)
    running = max(running, min(1.0, scaled))
    adjusted[i] = running
  return adjusted


def summarise(
  values: Mapping[str, Mapping[str, Sequence[Value]]],
  baselines: Mapping[str, str | None],
) -> dict[str, dict[str, dict[str, Any]]]:
  """Builds the "metrics" entries of results.json.

  Args:
    values: arm -> metric -> [S] one value per seed, None where diverged.
    baselines: arm -> the arm it is compared with, or None.

  Returns:
    arm -> metric -> {"values", "mean", "std", "versus_baseline"}, holding
    floats and None only. std has ddof = 1 and is None below two values. "p" is
    Holm-corrected over all compared arms within the metric, "p_raw" is not;
    metrics named *_seconds have neither.

  Raises:
    UserError: if an arm's baseline is no arm of the study.
  """
  for arm, baseline in baselines.items():
    if baseline is not None and baseline not in values:
      have = ", ".join(values)
      raise UserError(f"arms.{arm}.baseline={baseline!r}: no such arm; {have}")
  summary: dict[str, dict[str, dict[str, Any]]] = {
    arm: {metric: _describe(v) for metric, v in metrics.items()}
    for arm, metrics in values.items()
  }
  for metric in dict.fromkeys(m for ms in values.values() for m in ms):
    versus = {}
    for arm in values:
      baseline = baselines.get(arm)
      if baseline is None or metric not in values[arm]:
        continue
      if metric in values[baseline]:
        c = compare(values[arm][metric], values[baseline][metric])
        versus[arm] = {**dataclasses.asdict(c), "p_raw": c.p}
        versus[arm]["baseline"] = baseline
    tested = not is_seconds(metric)
    corrected = holm([v["p_raw"] if tested else None for v in versus.values()])
    for (arm, v), p in zip(versus.items(), corrected, strict=True):
      v["p"] = p
      v["p_raw"] = v["p_raw"] if tested else None
      summary[arm][metric]["versus_baseline"] = v
  return summary


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
  sign = direction(metric)
  arms = {
    name: arm["metrics"][metric]
    for name, arm in results["arms"].items()
    if arm["metrics"].get(metric, {}).get("mean") is not None
  }
  complete = [
    name
    for name, m in arms.items()
    if not results["arms"][name].get("diverged")
    and all(_finite(v) for v in m["values"])
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
  c = compare(arms[arm]["values"], arms[best]["values"])
  if c.low is None or c.high is None or c.n < _MIN_PAIRS:
    return False
  return not c.low <= 0 <= c.high


def _describe(values: Sequence[Value]) -> dict[str, Any]:
  kept = [float(v) if _finite(v) else None for v in values]
  finite = np.asarray([v for v in kept if v is not None], np.float64)
  return {
    "values": kept,
    "mean": float(finite.mean()) if len(finite) else None,
    "std": float(finite.std(ddof=1)) if len(finite) > 1 else None,
    "versus_baseline": None,
  }


def _finite(value: Value) -> TypeGuard[float]:
  return value is not None and math.isfinite(value)
