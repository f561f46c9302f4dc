"""Choosing among arms: which may be best, and what the choice costs.

The arm of best mean is chosen for its mean. A comparison of the others with it
is therefore one of all pairs, and its own difference is the largest of several;
both are corrected here by critical values that are simulated, once for each
number of units and of arms, from independent normal arms that are equal.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float

from kd.evaluate import stats

STUDIES = 50_000  # simulated for a critical value
_PART = 2_000_000  # numbers held at a time


def confidence_set(
  values: Float[np.ndarray, "... m n"], worth: float = 0.0
) -> Bool[np.ndarray, "... m"]:
  """Tells which arms may be the one of highest mean: a model confidence set.

  Of all pairs of arms left, that of the largest paired |t| is judged against
  the critical value for so many arms (`critical`); where it is beyond, the
  worse arm of the pair is put out, until no pair is. In 95 % of studies none
  of the truly best arms is put out. The arm of highest mean never is.

  Source: Hansen, Lunde, Nason 2011, Econometrica 79(2), with its statistic
  T_R, calibrated by simulation in place of a bootstrap.

  Args:
    values: higher is better, one for each arm and unit, n >= 2.
    worth: what one test example is worth (`stats.standard_error`).
  """
  m, n = values.shape[-2:]
  t = pairwise_t(values, worth)
  kept = np.ones(values.shape[:-1], bool)
  limits = critical(n, m)
  for _ in range(m - 1):
    pairs = kept[..., :, None] & kept[..., None, :]
    left = np.where(pairs, t, -np.inf).reshape(*t.shape[:-2], m * m)
    beyond = left.max(-1) > limits[kept.sum(-1)]
    if not beyond.any():
      break
    loser = left.argmax(-1) % m
    out = beyond[..., None] & (np.arange(m) == loser[..., None])
    kept = kept & ~out
  return kept


def pairwise_t(
  values: Float[np.ndarray, "... m n"], worth: float = 0.0
) -> Float[np.ndarray, "... m m"]:
  """Returns the paired t of every two arms; 0 where it cannot be told."""
  d = values[..., :, None, :] - values[..., None, :, :]
  size = np.abs(values).max(axis=(-1, -2), initial=0)[..., None, None]
  error = stats.standard_error(d, worth, stats.ROUNDING * size)
  mean = d.mean(-1)
  return np.divide(mean, error, out=np.zeros_like(mean), where=error > 0)


@functools.lru_cache
def critical(n: int, m: int) -> Float[np.ndarray, " m+1"]:
  """Returns what the largest |t| of k arms' pairs stays below in 95 %.

  Entry k, 2 <= k <= m, is of k equal arms over n units; the first two are
  infinite.
  """
  most = np.full((m + 1, STUDIES), -np.inf)
  for k, t in enumerate(_new_arms(n, m), start=1):
    most[k] = np.maximum(most[k - 1], np.abs(t).max(-1, initial=-np.inf))
  limits = np.full(m + 1, np.inf)
  limits[2:] = np.quantile(most[2:], 1 - stats.LEVEL, axis=1)
  limits[2:3] = stats.quantile(n)  # exact
  return limits


@functools.lru_cache
def chosen(n: int, k: int) -> float:
  """Returns the t with which a chosen arm's interval covers in 95 %.

  The arm is that of the best mean among k equal ones and their baseline over n
  units, and is compared with the baseline; studies whose best mean is the
  baseline's have no such interval. With k = 1 it is Student's t; arms that are
  not equal leave less to choose, and are covered more often.
  """
  if k == 1:
    return stats.quantile(n)
  rng = np.random.default_rng([n, k, 1])
  picked = []
  for part in _parts(n * (k + 1)):
    x = rng.standard_normal((part, k + 1, n))
    best = x[:, 1:].mean(-1).argmax(-1)
    d = x[np.arange(part), 1 + best] - x[:, 0]
    t = d.mean(-1) / stats.standard_error(d)
    picked.append(t[t > 0])
  return float(np.quantile(np.concatenate(picked), 1 - stats.LEVEL))


def _new_arms(n: int, m: int):
  """Yields, arm by arm, the t of the pairs that it makes with those before.

  Entry k is the same whatever m is: each arm has draws of its own.
  """
  arms: list[np.ndarray] = []
  for k in range(m):
    rng = np.random.default_rng([n, k])
    new = rng.standard_normal((STUDIES, n))
    t = np.empty((STUDIES, k))
    for i, old in enumerate(arms):
      d = new - old
      t[:, i] = d.mean(-1) / stats.standard_error(d)
    arms.append(new)
    yield t


def _parts(size: int):
  """Cuts STUDIES into parts of at most _PART numbers."""
  part = max(1, min(STUDIES, _PART // size))
  for start in range(0, STUDIES, part):
    yield min(part, STUDIES - start)
