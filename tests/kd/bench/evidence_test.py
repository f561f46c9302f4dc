"""Error rates of the statistics, in short; and that the page holds them."""

import math
import pathlib
import re
import tempfile
from unittest import mock

import numpy as np
from absl import flags
from absl.testing import absltest, parameterized
from scipy import stats as sps

from kd.bench import evidence, known
from kd.evaluate import stats, verdict
from tests.kd.report.studies import tables

STUDIES = 2000
# What 2,000 studies may differ by from a rate of 5 %: three sigma.
SLACK = 3 * math.sqrt(0.05 * 0.95 / STUDIES)


class ClaimsTest(parameterized.TestCase):
  @parameterized.parameters((0, 3, 5, 1.5), (8, 4, 5, 0.03), (0, 2, 10, 1.0))
  def test_are_those_of_a_verdict(self, kind, m, n, gap):
    kind, rng = known.KINDS[kind], np.random.default_rng(0)
    x = kind.make(rng, (60, m, n))
    x[:, -1] += gap * rng.random((60, 1))
    made = known.claims(x, kind.worth)
    arms = [f"arm{i}" for i in range(m)]
    said = []
    for study in x:
      summary, _ = stats.summarise(
        {a: {"accuracy": v} for a, v in zip(arms, study, strict=True)},
        {a: "arm0" if a != "arm0" else None for a in arms},
        worth={"accuracy": kind.worth},
      )
      entries = {a: {"metrics": summary[a]} for a in arms}
      (v,) = verdict.judge({"arms": entries, "metric": "accuracy"})
      versus = [summary[a]["accuracy"]["versus_baseline"] for a in arms[1:]]
      said.append(
        (
          [bool(verdict.told_apart(one)) for one in versus],
          [a in (v.best, *v.tied) for a in arms],
          v.low is not None,
          v.low is None or v.low <= 0 <= v.high,
          v.named,
        )
      )
    apart, kept, shown, chosen, named = map(np.array, zip(*said, strict=True))
    np.testing.assert_array_equal(made.apart, apart)
    np.testing.assert_array_equal(made.kept, kept)
    np.testing.assert_array_equal(made.shown, shown)
    np.testing.assert_array_equal(made.chosen[shown], chosen[shown])
    np.testing.assert_array_equal(made.named, named)
    for each in (apart, kept, named):
      self.assertBetween(each.mean(), 0.01, 0.99)


class RatesTest(parameterized.TestCase):
  @parameterized.product(m=evidence.ARMS, n=evidence.UNITS)
  def test_of_equal_normal_arms(self, m, n):
    made = known.simulate(known.KINDS[0], m, n, STUDIES)
    for rate in (made.apart.any(-1), (~made.kept).any(-1), made.named):
      self.assertLess(rate.mean(), 0.05 + SLACK)
    self.assertAlmostEqual(made.covered[:, 0].mean(), 0.95, delta=SLACK)
    others = evidence._covers_others(n, STUDIES).mean()
    expected = 1 - 2 * sps.t.sf(stats.quantile(n) / math.sqrt(2), n - 1)
    self.assertAlmostEqual(others, expected, delta=2 * SLACK)
    own = made.chosen[made.shown]
    delta = SLACK * math.sqrt(STUDIES / len(own))
    self.assertAlmostEqual(own.mean(), 0.95, delta=delta)

  @parameterized.parameters(*known.KINDS[1:])
  def test_of_other_equal_arms(self, *kind):
    for n in (3, 10):
      made = known.simulate(known.Kind(*kind), 3, n, STUDIES)
      for rate in (made.apart.any(-1), (~made.kept).any(-1), made.named):
        self.assertLess(rate.mean(), 0.05 + SLACK)

  def test_replicates(self):
    for r, s, *cells in evidence.two_level(STUDIES):
      for cell in cells:
        nested, flat = numbers(cell)
        self.assertAlmostEqual(nested, 95, delta=100 * SLACK, msg=(r, s))
      self.assertLess(flat, 83)  # runs of a replicate are no evidence

  @mock.patch.multiple(evidence, UNITS=(5,), ARMS=(2, 3, 11))
  def test_of_unequal_arms(self):
    rows = evidence.unequal(STUDIES)
    for what, rate in rows[:-1]:
      self.assertLess(float(rate), 5 + 100 * SLACK, what)
    (skewed,) = (float(rate) for what, rate in rows if what == evidence.SKEWED)
    self.assertGreater(skewed, 5 + 100 * SLACK)  # as the page warns

  def test_search(self):
    told, optimism, left = evidence.searched(200)
    self.assertLess(told, 0.05 + SLACK * math.sqrt(STUDIES / 200))
    self.assertGreater(optimism, 0.8)
    self.assertAlmostEqual(left, 0, delta=3 / math.sqrt(16 * 200))


class PageTest(absltest.TestCase):
  def test_is_written(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    page = pathlib.Path(folder, "p.md")
    page.write_text("<!-- simulated -->\n<!-- /simulated -->\n")
    small = dict(
      UNITS=(3, 5), ARMS=(2, 3), REPLICATES=(4, 8), KINDS=known.KINDS[:1]
    )
    self.enterContext(mock.patch.multiple(evidence, PAGE=str(page), **small))
    evidence.main(flags.FLAGS(["evidence", "--studies=100", "--write"]))
    self.assertIn("Percent of 100 studies", page.read_text())
    self.assertLen(tables(page.read_text()), 6)

  def test_the_numbers_in_docs_keep_their_bounds(self):
    text = pathlib.Path(evidence.PAGE).read_text()
    first, last = (f"<!-- {x}simulated -->" for x in ("", "/"))
    body = text.split(first)[1].split(last)[0]
    covers, errs, unequal, nested, _, _ = tables(body)
    for _, arm, _, *chosen in covers[2:]:
      for cell in (arm, *chosen[::2]):
        self.assertBetween(float(cell), 93.5, 96.5)
    self.assertLen(errs, 2 + 3 + 2 * 6 + 3 * 5)
    for row in errs[2:]:
      for cell in row[2:]:
        told, out, best = numbers(cell)
        self.assertLessEqual(max(told, out), 5.5, row)
        self.assertLessEqual(best, 5.5 if row[1] == "2" else 5.0, row)
    for what, *cells in unequal[2:]:
      for cell in cells[: 0 if what == evidence.SKEWED else None]:
        self.assertLessEqual(float(cell), 5.5, what)
    for row in nested[2:]:
      for cell in row[2:]:
        self.assertBetween(numbers(cell)[0], 93, 97)
    (search,) = re.findall(r"told\s+apart in ([\d.]+) % of studies", body)
    self.assertLessEqual(float(search), 5.5)


def numbers(cell):
  return [float(x) for x in re.findall(r"[\d.]+", cell)]


if __name__ == "__main__":
  absltest.main()
