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
from collections.abc import Callable

import numpy as np
from absl import app, flags

from kd.bench.known import (
  KINDS,
  claims,
  covers,
  normal,
  parts,
  replicated,
  simulate,
)
from kd.evaluate import components, stats
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
  return covers(d - others.mean(-1, keepdims=True))


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
    return 1 - float(covers(d - np.exp(0.125)).mean())

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
        both = (covers(design.means(x)).mean() for design in (nested, flat))
        row.append("{} ({})".format(*map(_percent, both)))
      rows.append(row)
  return rows


def spreads(studies: int) -> list[list[str]]:
  """Returns rows: replicates, seeds, and for each ratio the coverage of the
  intervals of the two components, replicates / seeds."""
  rows = []
  for r in REPLICATES[1:]:
    for s in SEEDS:
      row = [str(r), str(s)]
      for ratio in RATIOS[:-1]:
        rng, hits = np.random.default_rng([r, s]), []
        for part in parts(studies, 2 * components.DRAWS):
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

  settings = {
    "arms": arms,
    "tune": {"budget": TRIALS},
    "evaluate": {"metric": "accuracy"},
  }
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "trials.json")
    found = tune.search(path, settings, trial)
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
      "difference to the baseline (also, of the mean that as many other "
      "units have), and of that of the arm of best mean among so many equal "
      "ones with their baseline.",
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
