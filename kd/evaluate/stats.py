"""Compares arms over units of evidence: intervals and corrected p-values.

Every arm of a study sees the same split, teacher, initialisation and batches in
the same run, so arms are compared *run by run*: all statistics here are of the
paired differences, averaged to units of evidence (kd.evaluate.design). Nothing
here needs jax, and nothing here draws unseeded numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Float
from scipy import special

from kd.config.contrasts import Contrast, parse
from kd.errors import UserError
from kd.evaluate import components, registry
from kd.evaluate.design import Design

Value = float | None

LEVEL = 0.05  # of corrected p-values; intervals have 1 - LEVEL
# Of a metric's size: what float32 leaves of a mean over examples. A difference
# or a spread below it is rounding.
ROUNDING = 8 * float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Holds a paired comparison; None where too few units are left to tell."""

  difference: Value  # mean over units of value - baseline, metric's units
  low: Value
  high: Value
  p: Value  # two-sided, uncorrected; of an equivalence where that is asked
  n: int  # units that both sides finished, if not with all their runs
  lost: int  # runs that either side lost


def standard_error(
  d: Float[np.ndarray, "... n"], worth=0.0, rounding=0.0
) -> Float[np.ndarray, "..."]:
  """Returns the standard error of a mean difference, its spread floored.

      max(std, worth) / sqrt(n)

  A few runs on a small test set may differ from the baseline by the very same
  number of examples. Their spread of 0 says that the test set is coarse, not
  that other runs would differ alike, so no spread counts as less than what one
  test example is worth.

  Args:
    d: differences, n >= 2.
    worth: what one test example is worth in a unit, in the metric's units.
    rounding: a spread that is none.
  """
  n = d.shape[-1]
  std = d.std(axis=-1, ddof=1)
  std = np.where(std <= rounding, 0.0, std)
  return np.maximum(std, worth) / math.sqrt(n)


def quantile(n: int, confidence: float = 1 - LEVEL) -> float:
  """Returns Student's t for a two-sided interval of n units."""
  return float(special.stdtrit(n - 1, (1 + confidence) / 2))


def p_values(
  mean: Float[np.ndarray, "..."],
  error: Float[np.ndarray, "..."],
  n: int,
  within: float | None = None,
) -> Float[np.ndarray, "..."]:
  r"""Returns p-values of Student's t over n units.

  Of a difference, two-sided: 2 P(t_{n-1} > |mean| / error). Of an equivalence
  within a margin, the larger of two one-sided tests' (Schuirmann 1987):
  P(t_{n-1} > (margin - |mean|) / error).

  NaN where there is no spread to measure a difference by: none was seen and no
  test example is worth anything. A difference of 0 has p = 1 there.
  """
  size = np.abs(mean)
  gap, sides = (size, 2) if within is None else (within - size, 1)
  with np.errstate(divide="ignore", invalid="ignore"):
    p = sides * special.stdtr(n - 1, -gap / error)
  return np.where(error > 0, p, np.where(gap == 0, 1.0, np.nan))


def compare(
  values: Sequence[Value],
  baseline: Sequence[Value],
  *,
  design: Design | None = None,
  worth: float = 0.0,
  within: float | None = None,
) -> Comparison:
  """Compares two arms unit by unit.

  The interval is Student's t of the units' differences, whatever their number:
  exact for normal ones, and no resampling of few units does better.

  Args:
    values: [U] one per run; None or non-finite for a run that diverged.
    baseline: [U] likewise, of the same runs in the same order.
    design: how runs make units; by default each is one.
    worth: what one test example is worth (`standard_error`).
    within: asks whether the two are equal within this margin, for p.

  Returns:
    The mean of values - baseline over the n units that both finished. With
    n = 0 all is None; with n = 1 there is a difference but no interval and no
    p. Without any spread (`p_values`) a difference that is not 0 has neither.

  Raises:
    ValueError: if the two differ in length.

  >>> compare([0.75, 0.5, None], [0.5, 0.25, 0.5])
  Comparison(difference=0.25, low=None, high=None, p=None, n=2, lost=1)
  >>> compare([0.75, 0.5, 0.5], [0.5, 0.25, 0.25], worth=0.01).low > 0
  True
  """
  a, b = floats(values), floats(baseline)
  if len(a) != len(b):
    raise ValueError(f"{len(a)} values beside {len(b)}")
  both = np.isfinite(a) & np.isfinite(b)
  lost = int(np.sum(~both))
  d = (design or Design()).means(a - b)
  d = d[np.isfinite(d)]
  n = len(d)
  if n == 0:
    return Comparison(None, None, None, None, 0, lost)
  rounding = ROUNDING * float(np.abs([a[both], b[both]]).max())
  mean = float(d.mean())
  mean = 0.0 if abs(mean) <= rounding and np.ptp(d) <= rounding else mean
  if n == 1:
    return Comparison(mean, None, None, None, 1, lost)
  error = standard_error(d, worth, rounding)
  p = float(p_values(np.asarray(mean), error, n, within))
  if math.isnan(p):
    return Comparison(mean, None, None, None, n, lost)
  half = quantile(n) * float(error)
  return Comparison(mean, mean - half, mean + half, p, n, lost)


def holm(p: Float[np.ndarray, "... m"]) -> Float[np.ndarray, "... m"]:
  """Adjusts p-values for being several, by Holm's step-down procedure.

  With p_(1) <= ... <= p_(m), adjusted_(i) = max_{j<=i} min(1, (m-j+1) p_(j)).
  NaN passes through and does not count in m.

  Source: Holm 1979, Scandinavian Journal of Statistics 6(2).

  >>> holm(np.array([0.01, np.nan, 0.04])).tolist()
  [0.02, nan, 0.04]
  """
  order = np.argsort(p, axis=-1)  # NaN last
  ranked = np.take_along_axis(p, order, -1)
  left = np.isfinite(p).sum(-1, keepdims=True) - np.arange(p.shape[-1])
  scaled = np.where(np.isfinite(ranked), np.minimum(1, left * ranked), -np.inf)
  running = np.maximum.accumulate(scaled, axis=-1)
  running = np.where(np.isfinite(ranked), running, np.nan)
  adjusted = np.empty(p.shape)
  np.put_along_axis(adjusted, order, running, -1)
  return adjusted


Arms = Mapping[str, Mapping[str, Sequence[Value]]]


def summarise(
  values: Arms,
  baselines: Mapping[str, str | None],
  *,
  metric: str | None = None,
  design: Design | None = None,
  contrasts: Sequence[str] = (),
  worth: Mapping[str, float] | None = None,
  each: Mapping[str, Sequence[np.ndarray | None]] | None = None,
  clusters: Any = None,
) -> tuple[dict[str, dict[str, dict[str, Any]]], dict[str, dict[str, Any]]]:
  """Builds "metrics" of each arm, and "contrasts", of results.json.

  Args:
    values: arm -> metric -> [U] one value per run, None where diverged.
    baselines: arm -> the arm it is compared with, or None.
    metric: the primary one: its comparisons get variance components, and the
      contrasts' margins are of it.
    design: how the runs are nested.
    contrasts: what else is compared (kd.config.contrasts), for every metric.
    worth: metric -> what one test example is worth in a unit
      (`registry.worths`); 0 by default.
    each: arm -> for each run the primary metric's values of the test examples
      [n], or None; the sampling of test examples is estimated from them.
    clusters: ids [n] of examples that belong together, for all runs or a list
      of one (or None) for each.

  Returns:
    arm -> metric -> {"values", "mean", "std", "worth", "versus_baseline"}, and
    contrast -> {"arm", "baseline", "within", "metrics"}, metric -> comparison;
    floats and None only. mean and std (ddof = 1, None below two) are over
    units. "p" is Holm-corrected within the metric, over all arms that have a
    baseline and all contrasts; "p_raw" is not; metrics named *_seconds have
    neither.

  Raises:
    UserError: if an arm's baseline is no arm of the study, or a contrast names
      none.
  """
  for arm, baseline in baselines.items():
    if baseline is not None and baseline not in values:
      have = ", ".join(values)
      raise UserError(f"arms.{arm}.baseline={baseline!r}: no such arm; {have}")
  design, worth = design or Design(), worth or {}
  asked = [parse(text, values) for text in contrasts]
  versus = [Contrast("", a, b) for a, b in baselines.items() if b is not None]
  arms: dict[str, dict[str, dict[str, Any]]] = {
    arm: {m: _describe(v, design, worth.get(m, 0.0)) for m, v in own.items()}
    for arm, own in values.items()
  }
  told: dict[str, dict[str, Any]] = {
    c.text: {
      "arm": c.arm, "baseline": c.other, "within": c.within, "metrics": {},
    }
    for c in asked
  }  # fmt: skip
  for name in dict.fromkeys(m for own in values.values() for m in own):
    family = [
      dataclasses.replace(c, within=c.within if name == metric else None)
      for c in (*versus, *asked)
      if name in values[c.arm] and name in values[c.other]
    ]
    for c, made in zip(
      family, _family(family, values, name, design, worth), strict=True
    ):
      if name == metric:
        made["components"] = components.of(
          floats(values[c.arm][name]) - floats(values[c.other][name]),
          design,
          (each[c.arm], each[c.other]) if each else None,
          clusters,
        )
      if c.text:
        told[c.text]["metrics"][name] = made
      else:
        arms[c.arm][name]["versus_baseline"] = made
  return arms, told


def _family(
  family: Sequence[Contrast], values: Arms, metric: str, design: Design, worth
) -> list[dict[str, Any]]:
  """Compares what is corrected together; one hypothesis counts once."""
  tested = not registry.is_seconds(metric)
  made: list[dict[str, Any]] = []
  first: dict[Any, int] = {}
  for c in family:
    compared = compare(
      values[c.arm][metric],
      values[c.other][metric],
      design=design,
      worth=worth.get(metric, 0.0),
      within=c.within,
    )
    entry = dataclasses.asdict(compared)
    entry["p_raw"] = entry["p"] = compared.p if tested else None
    made.append({**entry, "baseline": c.other})
    first.setdefault((frozenset((c.arm, c.other)), c.within), len(made) - 1)
  corrected = holm(floats([made[i]["p_raw"] for i in first.values()]))
  p = dict(zip(first, corrected, strict=True))
  for c, entry in zip(family, made, strict=True):
    own = float(p[frozenset((c.arm, c.other)), c.within])
    entry["p"] = own if math.isfinite(own) else None
  return made


def _describe(
  values: Sequence[Value], design: Design, worth: float
) -> dict[str, Any]:
  units = design.means(floats(values))
  units = units[np.isfinite(units)]
  return {
    "values": [float(v) if is_finite(v) else None for v in values],
    "mean": float(units.mean()) if len(units) else None,
    "std": float(units.std(ddof=1)) if len(units) > 1 else None,
    "worth": worth,
    "versus_baseline": None,
  }


def floats(values: Sequence[Value]) -> Float[np.ndarray, " n"]:
  """Returns values as float64, NaN where there is none or it is infinite."""
  return np.array(
    [v if is_finite(v) else np.nan for v in values], dtype=np.float64
  )


def is_finite(value: Value) -> TypeGuard[float]:
  return value is not None and math.isfinite(value)


def pooled_bins(diagrams: Sequence[Mapping[str, list] | None]):
  """Returns the reliability diagram of all replicates' predictions together;
  None where there is none."""
  known = [d for d in diagrams if d is not None]
  if len(known) < 2:
    return diagrams[0]
  counts = np.array([d["count"] for d in known])
  total = counts.sum(0)

  def mean(key):
    each = np.array([[v or 0.0 for v in d[key]] for d in known])
    sums = (each * counts).sum(0)
    return [
      float(x / n) if n else None for x, n in zip(sums, total, strict=True)
    ]

  return {
    "confidence": mean("confidence"),
    "accuracy": mean("accuracy"),
    "count": total.tolist(),
  }
