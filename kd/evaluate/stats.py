"""Compares arms over seeds: paired intervals and corrected p-values.

Every arm of a study sees the same initialisations and batches for the same
seed, so arms are compared *per seed*: all statistics here are of the paired
differences. Nothing here needs jax, and nothing here draws unseeded numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from scipy import stats as sps

from kd.errors import UserError
from kd.evaluate import registry

Value = float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Holds a paired comparison; None where too few seeds are left to tell."""

  difference: Value  # mean over seeds of value - baseline, metric's units
  low: Value
  high: Value
  p: Value  # two-sided, uncorrected
  n: int  # seeds that both sides finished


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
    if is_finite(a) and is_finite(b)
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
    tested = not registry.is_seconds(metric)
    corrected = holm([v["p_raw"] if tested else None for v in versus.values()])
    for (arm, v), p in zip(versus.items(), corrected, strict=True):
      v["p"] = p
      v["p_raw"] = v["p_raw"] if tested else None
      summary[arm][metric]["versus_baseline"] = v
  return summary


def _describe(values: Sequence[Value]) -> dict[str, Any]:
  kept = [float(v) if is_finite(v) else None for v in values]
  finite = np.asarray([v for v in kept if v is not None], np.float64)
  return {
    "values": kept,
    "mean": float(finite.mean()) if len(finite) else None,
    "std": float(finite.std(ddof=1)) if len(finite) > 1 else None,
    "versus_baseline": None,
  }


def is_finite(value: Value) -> TypeGuard[float]:
  return value is not None and math.isfinite(value)
