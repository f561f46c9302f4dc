"""Variance components: what the spread of a difference is made of.

For each level of the design, for the seed, and for the sampling of test
examples: how far a difference moves when that alone is drawn anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from kd.evaluate.design import Design

SEED, TEST = "seed", "test"  # their keys, beside those of the levels
DRAWS = 10_000  # of each generalised pivotal quantity
_TAIL = 0.025


def of(
  d: Float[np.ndarray, " U"],
  design: Design,
  each: tuple[Sequence[Any], Sequence[Any]] | None = None,
  clusters: Any = None,
) -> dict[str, dict[str, float]]:
  """Estimates the components of a paired difference.

  Args:
    d: differences of the runs, NaN where either side was lost; units with a
      lost run are left out.
    design: how the runs are nested.
    each: for either arm and each run the test examples' values [n], whose mean
      is the metric, NaN for an example that it leaves out; or None.
    clusters: ids [n] of examples that belong together, for all runs or a list
      of one (or None) for each.

  Returns:
    Name -> {"sd", "low", "high"}: a standard deviation in the metric's units
    with its 95 % interval. Names are the levels', SEED, and TEST; two levels of
    which the inner has one group in each of the outer cannot be told apart, and
    share a name ("split + seed"). What cannot be estimated is left out.
  """
  found = {}
  names, x = _balanced(d, design)
  if names:
    variance, low, high = (v.tolist() for v in nested(x, len(names)))
    for name, *v in zip(names, variance, low, high, strict=True):
      found[name] = _sd(*v)
  if each is not None:
    sampled = _test(*each, design, clusters)
    if sampled is not None:
      found[TEST] = _sd(*sampled)
  return found


def nested(
  x: Float[np.ndarray, "..."], depth: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  r"""Estimates the variance components of balanced nested data.

  With mean squares MS_k of df_k degrees of freedom and n_k runs in a group of
  level k, the method of moments gives

      \sigma_k^2 = max(0, (MS_k - MS_{k+1}) / n_k),    \sigma_last^2 = MS_last

  and the interval holds the middle 95 % of its generalised pivotal quantity,
  in which df_k MS_k / \chi^2_{df_k} stands for each mean square.

  Source: Searle, Casella, McCulloch 1992, section 3.5; Weerahandi 1993, JASA
  88(423), "Generalized confidence intervals".

  Args:
    x: [..., g_1, ..., g_depth], outermost level first, the runs last; at least
      two groups in each.
    depth: how many levels, with the runs.
    seed: of the chi-squares.

  Returns:
    Variance, low and high, [..., depth] each.
  """
  sums, dofs, sizes = _squares(x, depth)
  rng = np.random.default_rng(seed)
  drawn = sums[..., None] / np.stack([rng.chisquare(v, DRAWS) for v in dofs])
  pivots = _moments(drawn, sizes)  # [..., depth, DRAWS]
  low, high = np.quantile(pivots, [_TAIL, 1 - _TAIL], axis=-1)
  variance = _moments((sums / dofs)[..., None], sizes)[..., 0]
  return variance, low, high


def _squares(x, depth):
  """Returns sums of squares [..., depth], their dfs and groups' sizes."""
  shape, whole = x.shape[x.ndim - depth :], tuple(range(-depth, 0))
  rounding = 1e-12 * np.abs(x).max(axis=whole)
  sums, dofs, sizes = [], [], []
  for k in range(depth):
    inner = tuple(range(x.ndim - depth + k + 1, x.ndim))
    size = math.prod(shape[k + 1 :])
    means = x.mean(axis=inner)
    gaps = means - means.mean(axis=-1, keepdims=True)
    least = rounding.reshape(*rounding.shape, *[1] * (k + 1))
    gaps = np.where(np.abs(gaps) > least, gaps, 0.0)
    over = tuple(range(x.ndim - depth, gaps.ndim))
    sums.append(size * (gaps**2).sum(axis=over))
    dofs.append(math.prod(shape[:k]) * (shape[k] - 1))
    sizes.append(size)
  return np.stack(sums, -1), np.array(dofs), np.array(sizes)


def _moments(squares, sizes):
  """Turns mean squares [..., depth, B] into components, 0 at least."""
  inner = np.zeros_like(squares)
  inner[..., :-1, :] = squares[..., 1:, :]
  return np.maximum(squares - inner, 0) / sizes[:, None]


def _balanced(d, design: Design) -> tuple[list[str], np.ndarray]:
  """Arranges runs as [g_1, ..., g_depth] with the levels' names, or none."""
  units = design.units(len(d))
  whole = ~np.isin(units, units[~np.isfinite(d)])
  names = [*(level.name for level in design.levels), SEED]
  paths = [p[whole] for p in design.paths]
  groups = [np.unique(p, return_counts=True)[1] for p in paths]
  counts = [1, *map(len, groups), int(whole.sum())]
  shape = [b // max(a, 1) for a, b in itertools.pairwise(counts)]
  even = all(len(set(g.tolist())) == 1 for g in groups)
  if not even or shape[0] < 2 or math.prod(shape) != counts[-1]:
    return [], d
  order = np.lexsort(paths[::-1]) if paths else slice(None)
  merged, kept = [names[0]], [shape[0]]
  for name, g in zip(names[1:], shape[1:], strict=True):
    if g > 1:
      merged.append(name)
      kept.append(g)
    else:
      merged[-1] += f" + {name}"
  return merged, d[whole][order].reshape(kept)


def _test(ours, theirs, design: Design, clusters):
  """Returns the variance of a unit's difference over other test examples.

  It is the variance of a paired bootstrap over test examples, clusters drawn
  whole, in the limit of many resamples: with D_i an example's difference, the
  mean over the unit's runs, and clusters c,

      v = sum_c (sum_{i in c} (D_i - mean D))^2 / n^2

  averaged over the units. The interval is normal in log v, with the spread of
  the sum's own terms; None where no example differs.
  """
  units = design.units(len(ours))
  one = design.test_sets(2) == 1  # the same examples in every unit
  same = one and "split" not in design.vary  # and in the same order
  found = []  # each unit's differences, and its examples' clusters
  for unit in np.unique(units):
    of = [
      u
      for u in np.flatnonzero(units == unit)
      if ours[u] is not None and theirs[u] is not None
    ]
    if of:
      d = [np.subtract(ours[u], theirs[u], dtype=float) for u in of]
      ids = clusters if _is_ids(clusters) else clusters and clusters[of[0]]
      found.append((np.mean(d, axis=0), ids))
  whole = np.all([np.isfinite(d) for d, _ in found], axis=0) if same else None
  terms: list[np.ndarray] = []
  for d, ids in found:
    told = np.isfinite(d) if whole is None else whole
    if told.any():
      gaps = (d[told] - d[told].mean()) / told.sum()
      if ids is not None:
        ids = np.unique(np.asarray(ids)[told], return_inverse=True)[1]
        gaps = np.bincount(ids, gaps)
      terms.append(gaps**2)
  if not terms:
    return None
  if same:
    terms = [np.mean(terms, axis=0)]
  v = float(np.mean([t.sum() for t in terms]))
  if v == 0:
    return None
  each = [math.sqrt(len(t) * t.var()) for t in terms]
  spread = sum(each) if one else math.hypot(*each)
  width = float(special.ndtri(1 - _TAIL)) * spread / (v * len(terms))
  return v, v * math.exp(-width), v * math.exp(width)


def _is_ids(clusters) -> bool:
  return isinstance(clusters, np.ndarray) and clusters.ndim == 1


def _sd(variance: float, low: float, high: float) -> dict[str, float]:
  values = (variance, low, high)
  return dict(zip(("sd", "low", "high"), map(math.sqrt, values), strict=True))
