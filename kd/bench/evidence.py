"""How often the statistics of a study err, by simulation.

    python -m kd.bench.evidence [--studies=40000] [--write]

Simulates studies of which the truth is known, hands them to the functions that
judge real ones (kd.evaluate, kd.study.tune), and counts how often what they say
is false. Writes its tables into docs/evidence.md with --write. Minutes.
"""

import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from absl import app, flags
from jaxtyping import Bool, Float

from kd.evaluate import components, selection, stats
from kd.evaluate.design import Design, Level
from kd.report import markdown
from kd.study import tune

_STUDIES = flags.DEFINE_integer("studies", 40_000, "Simulated for a number.")
_WRITE = flags.DEFINE_bool("write", False, "Write docs/evidence.md.")

PAGE = str(pathlib.Path(__file__).parents[2] / "docs" / "evidence.md")
UNITS = (3, 5, 10, 20)
ARMS = (2, 3, 11)  # the first is the baseline of the others
REPLICATES = (4, 8, 12)
SEEDS = (2, 5)
RATIOS = (0.0, 0.1, 1.0, 10.0, np.inf)  # variance of replicates to seeds
LEADS = (0.5, 1.0, 2.0, 4.0)  # standard errors of a difference
MARGINS = (1.0, 3.0, 10.0)  # likewise
GAPS = (0.5, 1.0, 1.5, 2.0)  # standard deviations of a unit's difference
TRIALS = 8
SKEWED = "the interval misses, differences log-normal (skewness 1.75)"
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
  for part in _parts(studies, m * m * n):
    x = kind.make(rng, (part, m, n)) + np.broadcast_to(truth, (m,))[:, None]
    made.append(claims(x, kind.worth, truth))
  return Claims(*map(np.concatenate, zip(*made, strict=True)))


def _parts(studies: int, size: int) -> Iterator[int]:
  part = max(1, _PART // size)
  for start in range(0, studies, part):
    yield min(part, studies - start)


def coverage(studies: int) -> list[list[str]]:
  """Returns rows: units, coverage of each interval."""
  rows = []
  for n in UNITS:
    made = {m: simulate(KINDS[0], m, n, studies) for m in ARMS}
    cells = [made[2].covered, _covers_others(n, studies)]
    for m in ARMS[1:]:
      cells += [made[m].chosen[made[m].shown], made[m].naive[made[m].shown]]
    rows.append([str(n), *(_percent(c.mean()) for c in cells)])
  return rows


def _covers_others(n: int, studies: int) -> np.ndarray:
  """Tells which intervals hold the mean of as many other units."""
  d, others = np.random.default_rng(n).standard_normal((2, studies, n))
  return _covers(d - others.mean(-1, keepdims=True))


def errors(studies: int) -> list[list[str]]:
  """Returns rows: kind, arms, and for each number of units the rates of an
  equal arm told from the baseline / put out of the set / called the best."""
  rows = []
  for kind in KINDS:
    one = kind.make is normal or kind.worth  # else two are as two normal ones
    for m in ARMS if one else ARMS[1:]:
      made = [simulate(kind, m, n, studies) for n in UNITS]
      cells = [
        (c.apart.any(-1).mean(), (~c.kept).any(-1).mean(), c.named.mean())
        for c in made
      ]
      rows.append(
        [kind.words, str(m), *(" / ".join(map(_percent, c)) for c in cells)]
      )
  return rows


def unequal(studies: int) -> list[list[str]]:
  """Returns rows: what is false where arms differ, and how often it is said."""

  def rate(wrong: Callable[[int], float]) -> list[str]:
    return [_percent(wrong(n)) for n in UNITS]

  def lost(m: int, n: int) -> float:
    truths = [np.eye(m)[-1] * lead * np.sqrt(2 / n) for lead in LEADS]
    made = [simulate(KINDS[0], m, n, studies, truth) for truth in truths]
    return max(float((~c.kept[:, -1]).mean()) for c in made)

  def told(n: int) -> float:
    truth = 10 * (np.arange(ARMS[-1]) > ARMS[-1] // 2) * np.sqrt(2 / n)
    made = simulate(KINDS[0], ARMS[-1], n, studies, truth)
    return float(made.apart[:, : ARMS[-1] // 2].any(-1).mean())

  def missed(n: int) -> float:
    truth = np.linspace(0, 4, ARMS[-1]) * np.sqrt(2 / n)
    made = simulate(KINDS[0], ARMS[-1], n, studies, truth)
    return 1 - float(made.chosen[made.shown].mean())

  def equal(n: int) -> float:
    d = np.random.default_rng(n).standard_normal((studies, n))
    found = []
    for margin in np.array(MARGINS) / np.sqrt(n):
      p = stats.p_values(
        d.mean(-1) + margin, stats.standard_error(d), n, float(margin)
      )
      found.append(float((p < stats.LEVEL).mean()))
    return max(found)

  def skewed(n: int) -> float:
    d = np.random.default_rng(n).lognormal(0, 0.5, (studies, n))
    return 1 - float(_covers(d - np.exp(0.125)).mean())

  return [
    *(
      [f"the best of {m} arms is put out", *rate(functools.partial(lost, m))]
      for m in ARMS[1:]
    ),
    ["one of 5 equal arms, beside 5 far ones, is told apart", *rate(told)],
    ["the corrected interval misses, of 11 arms that differ", *rate(missed)],
    ["arms apart by the margin are called equal", *rate(equal)],
    [SKEWED, *rate(skewed)],
  ]


def power(studies: int) -> list[list[str]]:
  """Returns rows: arms, units, gap, and what is found of the one better arm."""
  rows = []
  for m in ARMS[1:]:
    for n in UNITS[1:]:
      for gap in GAPS:
        truth = np.zeros(m)
        truth[-1] = gap * np.sqrt(2)
        c = simulate(KINDS[0], m, n, studies, truth)
        found = (c.alone[:, -1], c.apart[:, -1], c.named)
        cells = [
          *(_percent(x.mean()) for x in found),
          f"{c.kept.sum(1).mean():.1f}",
        ]
        rows.append([str(m), str(n), f"{gap:g}", *cells])
  return rows


def replicated(rng, r: int, s: int, ratio: float, studies: int) -> np.ndarray:
  """Draws differences [B, r, s] of r replicates of s seeds, of mean 0."""
  outer, inner = (1.0, 0.0) if np.isinf(ratio) else (np.sqrt(ratio), 1.0)
  x = outer * rng.standard_normal((studies, r, 1))
  return x + inner * rng.standard_normal((studies, r, s))


def two_level(studies: int) -> list[list[str]]:
  """Returns rows: replicates, seeds, and for each ratio of variances the
  coverage of the interval over replicates (over runs as if independent)."""
  rows = []
  for r in REPLICATES:
    for s in SEEDS:
      of = np.repeat(np.arange(r), s).tolist()
      nested, flat = Design((Level("split", tuple(of)),)), Design()
      row = [str(r), str(s)]
      for ratio in RATIOS:
        rng = np.random.default_rng([r, s])
        x = replicated(rng, r, s, ratio, studies).reshape(studies, r * s)
        both = (_covers(design.means(x)).mean() for design in (nested, flat))
        row.append("{} ({})".format(*map(_percent, both)))
      rows.append(row)
  return rows


def _covers(d: np.ndarray) -> np.ndarray:
  """Tells which intervals of differences [B, n] hold 0."""
  half = stats.quantile(d.shape[-1]) * stats.standard_error(d)
  return np.abs(d.mean(-1)) <= half


def spreads(studies: int) -> list[list[str]]:
  """Returns rows: replicates, seeds, and for each ratio the coverage of the
  intervals of the two components, replicates / seeds."""
  rows = []
  for r in REPLICATES[1:]:
    for s in SEEDS:
      row = [str(r), str(s)]
      for ratio in RATIOS[:-1]:
        rng, hits = np.random.default_rng([r, s]), []
        for part in _parts(studies, 2 * components.DRAWS):
          x = replicated(rng, r, s, ratio, part)
          _, low, high = components.nested(x, 2)
          truth = np.array([ratio, 1.0])
          hits.append((low <= truth) & (truth <= high))
        row.append(" / ".join(map(_percent, np.concatenate(hits).mean(0))))
      rows.append(row)
  return rows


def searched(studies: int, n: int = 8) -> tuple[float, float, float]:
  """Tunes two equal arms that share no noise, and confirms their choices.

  Points differ by as much as the noise of their scores does.

  Returns:
    How often the two are told apart, and the mean score of the chosen points
    above their truth, in the search and in the confirming runs, in standard
    deviations of a score.
  """
  rng = np.random.default_rng(0)
  arms = [f"{k}" for k in range(2 * studies * n)]  # each in each replicate
  truth = rng.standard_normal((TRIALS, studies * n))  # of a replicate's points
  truth = np.concatenate([truth, truth], axis=1)
  scores = truth + rng.standard_normal(truth.shape)

  def trial(which):
    return dict(zip(arms, scores[which[arms[0]]], strict=True))

  with tempfile.TemporaryDirectory() as folder:
    found = tune.search(
      os.path.join(folder, "trials.json"),
      {"arms": arms, "tune": {"budget": TRIALS}},
      trial,
    )
  choice = np.array([found["choice"][arm] for arm in arms])
  at = choice, np.arange(len(arms))
  confirmed = truth[at] + rng.standard_normal(len(arms))
  c = claims(confirmed.reshape(2, studies, n).transpose(1, 0, 2))
  return (
    float(c.apart.any(-1).mean()),
    float((scores - truth)[at].mean()),
    float((confirmed - truth[at]).mean()),
  )


def _error(studies: int) -> str:
  return f"{100 * np.sqrt(0.05 * 0.95 / studies):.2f}"


def _percent(rate: float) -> str:
  return f"{100 * rate:.1f}"


def section(studies: int) -> str:
  """Returns the page's tables as Markdown."""
  few = max(100, studies // 4)
  told, optimism, left = searched(few)
  units = [f"{n} units" for n in UNITS]
  ratios = ["inf" if np.isinf(r) else f"{r:g}" for r in RATIOS]
  sizes = [f"of {m}" for m in ARMS[1:]]
  chosen = [f"best {s}{w}" for s in sizes for w in ("", ", uncorrected")]
  return "\n\n".join(
    [
      f"Percent of {studies:,} studies ({few:,} from the third table on), by "
      f"`python -m kd.bench.evidence --studies={studies}`, numpy "
      f"{np.__version__}; a rate of 5 % has a standard error of "
      f"{_error(studies)} ({_error(few)}) points.",
      "**Coverage** of 95 % intervals, normal differences: of an arm's "
      "difference to the baseline (also, of the mean that as many other units "
      "have), and of that of the arm of best mean among so many equal ones with "
      "their baseline.",
      markdown.table(
        ["units", "an arm", "mean of others", *chosen], coverage(studies)
      ),
      "**False claims** where all arms are equal: any told apart from the "
      "baseline / any put out of the set that may be best / one called the "
      "best. The arms include the baseline.",
      markdown.table(["studies", "arms", *units], errors(studies)),
      "**False claims** where arms differ: by the worst of 0.5 to 4 standard "
      "errors for the best arm, and at the worst of margins of 1 to 10.",
      markdown.table(["what", *units], unequal(few)),
      "**Replicates of several seeds**: coverage of the mean over the "
      "population of replicates, by the ratio of their variance to that of "
      "seeds (in brackets: were all runs taken for independent).",
      markdown.table(["replicates", "seeds", *ratios], two_level(few)),
      "**Variance components**: coverage of their 95 % intervals, replicates "
      "/ seeds, by the same ratio.",
      markdown.table(["replicates", "seeds", *ratios[:-1]], spreads(few)),
      "**Power**: one arm is better than all others, which are equal, by so "
      "many standard deviations of a unit's difference. How often an "
      "uncorrected t test finds it against the baseline, it is told apart, it "
      "is called the best; and how many arms may be best, on average.",
      markdown.table(
        ["arms", "units", "gap", "uncorrected", "told apart", "best", "in set"],
        power(few),
      ),
      f"**Search**: two equal arms, each tuned over {TRIALS} points with noise "
      "of its own, whose choices are then run anew in 8 replicates, are told "
      f"apart in {_percent(told)} % of studies. The scores that the choices "
      f"were made by are {optimism:.2f} standard deviations too good, those of "
      f"the confirming runs {left:.2f}.",
    ]
  )


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError("expected flags alone")
  body = section(_STUDIES.value)
  print(body)
  if _WRITE.value:
    markdown.replace_section(PAGE, "simulated", body)


if __name__ == "__main__":
  app.run(main)
