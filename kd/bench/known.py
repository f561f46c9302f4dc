"""Studies whose truth is known, and what our statistics say of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from kd.evaluate import selection, stats

_PART = 1_000_000  # numbers held at a time

Make = Callable[[np.random.Generator, tuple[int, int, int]], np.ndarray]


class Kind(NamedTuple):
  """A kind of study of equal arms.

  Attributes:
    words: what it is, in the table.
    make: (rng, [B, m, n]) -> values of m arms over n units, equal on average.
    worth: what one test example is worth.
  """

  words: str
  make: Make
  worth: float = 0.0


def normal(rng: np.random.Generator, shape) -> np.ndarray:
  """Draws independent arms; what units share drops out of differences."""
  return rng.standard_normal(shape)


def _scaled(*rows: int) -> Make:
  def make(rng, shape):
    x = normal(rng, shape)
    x[:, list(rows)] *= 10
    return x

  return make


def _spread(rng, shape):
  return np.geomspace(1, 10, shape[1])[:, None] * normal(rng, shape)


def _alike(rng, shape):
  """Arms that share 90 % of their variance, and not with the baseline."""
  x = np.sqrt(0.1) * normal(rng, shape)
  x[:, 1:] += np.sqrt(0.9) * normal(rng, (shape[0], 1, shape[2]))
  x[:, 0] *= np.sqrt(10)
  return x


def _pairs(rng, shape):
  """Arms of which every two are nearly the same."""
  of = np.arange(shape[1]) // 2
  return normal(rng, shape)[:, of] + 0.1 * normal(rng, shape)


def _walk(rng, shape):
  """Each arm a step from the one before, as in a sweep."""
  return normal(rng, shape).cumsum(axis=1)


def _counts(examples: int, unsure: int, p: float) -> Kind:
  """Seeds move `unsure` of a test set's examples, right with probability p."""
  return Kind(
    f"{examples} test examples, of which seeds move {unsure}"
    + ("" if p == 0.5 else f", right in {100 * p:.0f} %"),
    lambda rng, shape: rng.binomial(unsure, p, shape) / examples,
    1 / examples,
  )


KINDS = (
  Kind("normal", normal),
  Kind("one arm of 10 x the spread", _scaled(-1)),
  Kind("the baseline of 10 x the spread", _scaled(0)),
  Kind("all of different spread, 1 to 10 x", _spread),
  Kind("arms correlated 0.9, but the baseline", _alike),
  Kind("arms in nearly identical pairs", _pairs),
  Kind("each arm a step from the one before", _walk),
  _counts(100, 1, 0.5),
  _counts(100, 2, 0.5),
  _counts(100, 5, 0.9),
  _counts(200, 20, 0.5),
  _counts(360, 60, 0.8),
)


class Claims(NamedTuple):
  """What B studies of m arms say.

  Attributes:
    alone: [B, m-1] an uncorrected t test tells an arm from the baseline.
    apart: [B, m-1] told apart from the baseline.
    covered: [B, m-1] the arm's interval holds its true difference.
    kept: [B, m] may be the best arm.
    shown: [B] the arm of best mean has a baseline, hence a corrected interval.
    chosen: [B] that interval holds the true difference.
    naive: [B] an uncorrected one would.
    named: [B] an arm is called the best.
  """

  alone: Bool[np.ndarray, "B k"]
  apart: Bool[np.ndarray, "B k"]
  covered: Bool[np.ndarray, "B k"]
  kept: Bool[np.ndarray, "B m"]
  shown: Bool[np.ndarray, " B"]
  chosen: Bool[np.ndarray, " B"]
  naive: Bool[np.ndarray, " B"]
  named: Bool[np.ndarray, " B"]


def claims(
  x: Float[np.ndarray, "B m n"], worth: float = 0.0, truth=0.0
) -> Claims:
  """Judges studies as `verdict.judge` does, all at once.

  Args:
    x: values of each arm and unit, higher is better, the baseline first.
    worth: what one test example is worth.
    truth: of each arm [m]; by default they are equal.
  """
  b, m, n = x.shape
  truth = np.broadcast_to(truth, (m,))
  d = x[:, 1:] - x[:, :1]
  size = np.abs(x).max(axis=(-1, -2), initial=0)[:, None]
  error = stats.standard_error(d, worth, stats.ROUNDING * size)
  mean, t = d.mean(-1), stats.quantile(n)
  p = stats.p_values(mean, error, n)
  off = np.abs(mean - (truth[1:] - truth[0]))
  alone = np.abs(mean) > t * error
  apart = alone & (stats.holm(p) < stats.LEVEL)
  kept = selection.confidence_set(x, worth)
  best = x.mean(-1).argmax(-1)
  row, own = np.arange(b), np.maximum(best - 1, 0)
  wide = selection.chosen(n, m - 1) * error[row, own]
  better = apart[row, own] & (mean[row, own] > wide)
  return Claims(
    alone=alone,
    apart=apart,
    covered=off <= t * error,
    kept=kept,
    shown=best > 0,
    chosen=off[row, own] <= wide,
    naive=off[row, own] <= t * error[row, own],
    named=(kept.sum(-1) == 1) & ((best == 0) | better),
  )


def simulate(kind: Kind, m: int, n: int, studies: int, truth=0.0) -> Claims:
  """Judges `studies` studies of a kind, of m arms over n units."""
  rng = np.random.default_rng([m, n])
  made = []
  for part in parts(studies, m * m * n):
    x = kind.make(rng, (part, m, n)) + np.broadcast_to(truth, (m,))[:, None]
    made.append(claims(x, kind.worth, truth))
  return Claims(*map(np.concatenate, zip(*made, strict=True)))


def parts(studies: int, size: int) -> Iterator[int]:
  """Cuts studies of `size` numbers each into parts that fit into memory."""
  part = max(1, _PART // size)
  for start in range(0, studies, part):
    yield min(part, studies - start)


def covers(d: np.ndarray) -> np.ndarray:
  """Tells which intervals of differences [B, n] hold 0."""
  half = stats.quantile(d.shape[-1]) * stats.standard_error(d)
  return np.abs(d.mean(-1)) <= half


def replicated(rng, r: int, s: int, ratio: float, studies: int) -> np.ndarray:
  """Draws differences [B, r, s] of r replicates of s seeds, of mean 0."""
  outer, inner = (1.0, 0.0) if np.isinf(ratio) else (np.sqrt(ratio), 1.0)
  x = outer * rng.standard_normal((studies, r, 1))
  return x + inner * rng.standard_normal((studies, r, s))
