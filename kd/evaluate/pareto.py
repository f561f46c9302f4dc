"""Sets what arms are worth against what they ask of a device.

Reads what results.json holds; imports no jax. All is by measured means, and how
sure that is stands beside it: paired comparisons over units of evidence, as
elsewhere (docs/evidence.md). Arms of different budgets are never set against
each other, nor is one that lost a run against any.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from kd.evaluate import registry, stats, verdict
from kd.evaluate.design import Design

# What a model asks of a device, the less the better.
COSTS = ("bytes", "latency_seconds", "throughput_seconds", "peak_bytes")
# Of the primary metric, in its own unit: a point of accuracy, 0.01 nats.
MARGIN = 0.01


@dataclasses.dataclass(frozen=True)
class Dominance:
  """Says that another arm is no worse and costs no more, and one of the two.

  Attributes:
    arm: that is dominated.
    by: of the arms that dominate it, the one of best quality.
    quality: arm - by, a comparison as of results.json, its `p` corrected by
      Holm's procedure over all pairs of this front of which one dominates.
    times: the mean cost of `arm` over that of `by`, at least 1.
    cost: arm - by likewise, `p` not corrected.
  """

  arm: str
  by: str
  quality: Mapping[str, Any]
  times: float
  cost: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Front:
  """Holds a front: the arms that no other dominates, the cheapest first."""

  quality: str
  cost: str
  arms: tuple[str, ...]
  dominated: tuple[Dominance, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
  """Says which arm to take where one thing is scarce.

  Attributes:
    scarce: a metric of COSTS, or the primary one.
    arm: the best one on `scarce` among those that are shown to lose no more
      than the margin to the study's best arm: the 95 % interval excludes it.
    least: the best on `scarce` of all arms, whatever it loses.
    open: one that is better on `scarce` than `arm` and within the margin by
      its mean, which is not shown; or None.
  """

  scarce: str
  arm: str
  least: str
  open: str | None = None


def dominates(
  quality: Float[np.ndarray, "A"], cost: Float[np.ndarray, "A"]
) -> Bool[np.ndarray, "A A"]:
  """Tells whether row i dominates column j: no worse, no dearer, not equal.

  >>> dominates(np.array([2.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.5])).any(0)
  array([False,  True, False])
  """
  q, c = quality[:, None] - quality, cost[:, None] - cost
  return (q >= 0) & (c <= 0) & ((q > 0) | (c < 0))


def front(results: Mapping[str, Any], quality: str, cost: str) -> Front | None:
  """Returns the front of two metrics; None where under two arms have both.

  Raises:
    UserError: for a quality whose good direction is not known.
  """
  arms = _measured(results, quality, cost)
  if len(arms) < 2:
    return None
  worth, price = (
    np.array([_entry(results, a, m)["mean"] for a in arms])
    for m in (quality, cost)
  )
  strata = [verdict.stratum(results["arms"][a]) for a in arms]
  over = dominates(registry.direction(quality) * worth, price)
  over &= np.array(strata)[:, None] == np.array(strata)
  pairs = [(int(i), int(j)) for i, j in np.argwhere(over)]
  known = [compare(results, quality, arms[j], arms[i]) for i, j in pairs]
  p = stats.holm(stats.floats([c["p"] for c in known]))
  best = {}  # dominated -> its pair
  for k, (i, j) in enumerate(pairs):
    if j not in best or abs(worth[i] - worth[j]) > best[j][0]:
      best[j] = abs(worth[i] - worth[j]), k
  dominated = []
  for j, (_, k) in sorted(best.items()):
    i, p_of = pairs[k][0], float(p[k])
    corrected = {**known[k], "p": p_of if np.isfinite(p_of) else None}
    times = float(price[j] / price[i]) if price[i] else 1.0
    dearer = compare(results, cost, arms[j], arms[i])
    dominated.append(Dominance(arms[j], arms[i], corrected, times, dearer))
  left = np.flatnonzero(~over.any(0))
  order = left[np.lexsort((-worth[left], price[left]))]
  names = tuple(arms[i] for i in order)
  return Front(quality, cost, names, tuple(dominated))


def choices(results: Mapping[str, Any], margin: float = MARGIN) -> list[Choice]:
  """Returns which arm to take for each thing that may be scarce.

  Those of the first budget, where arms differ in it; none where the study has
  no arm that finished.

  Args:
    results: what results.json holds.
    margin: how much of the primary metric may be lost to the best arm.
  """
  metric = str(results["metric"])
  judged = verdict.judge(results)[0]
  best, sign = judged.best, registry.direction(metric)
  if best is None:
    return []
  found = [Choice(metric, best, best)]
  for cost in COSTS:
    arms = [
      a
      for a in _measured(results, metric, cost)
      if verdict.stratum(results["arms"][a]) == judged.stratum
    ]
    if best not in arms or len(arms) < 2:
      continue
    loses = {a: compare(results, metric, a, best) for a in arms if a != best}
    lost = {a: -sign * c["difference"] for a, c in loses.items()}
    shown = {a for a, c in loses.items() if _worst(c, sign) < margin}
    price = {a: _entry(results, a, cost)["mean"] for a in arms}
    order = sorted(arms, key=lambda a: (price[a], lost.get(a, 0.0)))
    take = next(a for a in order if a == best or a in shown)
    near = [a for a in order if a in lost and lost[a] <= margin]
    ahead = near[0] if near and price[near[0]] < price[take] else None
    found.append(Choice(cost, take, order[0], ahead))
  return found


def compare(
  results: Mapping[str, Any], metric: str, arm: str, other: str
) -> dict[str, Any]:
  """Compares two arms of a study on a metric, arm - other, as results.json
  does; `p` is not corrected."""
  own, base = (_entry(results, a, metric) for a in (arm, other))
  made = stats.compare(
    own["values"],
    base["values"],
    design=Design.of(results),
    worth=own.get("worth", 0.0),
  )
  return dataclasses.asdict(made)


def _worst(versus: Mapping[str, Any], sign: int) -> float:
  """Returns the most that may be lost: the far end of the interval."""
  ends = versus["low"], versus["high"]
  return np.inf if None in ends else max(-sign * end for end in ends)


def _measured(results: Mapping[str, Any], *metrics: str) -> list[str]:
  """Returns the arms of which all runs have all metrics."""
  return [
    arm
    for arm, entry in results["arms"].items()
    if all(_is_whole(entry["metrics"].get(m)) for m in metrics)
  ]


def _is_whole(entry: Mapping[str, Any] | None) -> bool:
  values: Sequence[stats.Value] = (entry or {}).get("values") or ()
  return bool(values) and all(stats.is_finite(v) for v in values)


def _entry(results: Mapping[str, Any], arm: str, metric: str) -> Any:
  return results["arms"][arm]["metrics"][metric]
