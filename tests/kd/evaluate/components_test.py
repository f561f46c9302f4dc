"""Variance components against closed forms, a bootstrap and simulation."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats as sps

from kd.evaluate import components
from kd.evaluate.design import Design, Level


def design(*shape, vary=("split",)):
  """Names levels "l0", "l1", ... for runs of this shape, seeds last."""
  grid = np.indices(shape).reshape(len(shape), -1)
  levels = (
    Level(f"l{k}", tuple(grid[k].tolist())) for k in range(len(shape) - 1)
  )
  return Design(tuple(levels), vary=vary)


class NestedTest(parameterized.TestCase):
  def test_one_level_is_the_variance_with_its_chi_square_interval(self):
    d = np.random.default_rng(0).normal(size=9)
    found = components.of(d, Design())["seed"]
    self.assertAlmostEqual(found["sd"], d.std(ddof=1), 12)
    low, high = np.sqrt(8 * d.var(ddof=1) / sps.chi2.ppf([0.975, 0.025], 8))
    np.testing.assert_allclose([found["low"], found["high"]], [low, high], 0.02)

  def test_two_levels_are_the_anova(self):
    d = np.random.default_rng(1).normal(size=(4, 3))
    d += np.array([[0], [2], [5], [1]])
    found = components.of(d.ravel(), design(4, 3))
    f = sps.f_oneway(*d).statistic
    within = d.var(axis=1, ddof=1).mean()
    between = within * (f - 1) / 3
    self.assertAlmostEqual(found["seed"]["sd"] ** 2, within, 10)
    self.assertAlmostEqual(found["l0"]["sd"] ** 2, between, 10)

  def test_rounding_is_no_spread_of_seeds(self):
    d = np.repeat(np.random.default_rng(1).normal(size=4), 3)
    found = components.of(d, design(4, 3))
    self.assertEqual(list(found["seed"].values()), [0, 0, 0])
    self.assertGreater(found["l0"]["low"], 0)

  def test_order_of_the_runs_does_not_matter(self):
    d = np.random.default_rng(2).normal(size=12)
    own = design(2, 3, 2)
    order = np.random.default_rng(3).permutation(12)
    moved = Design(
      tuple(
        Level(x.name, tuple(np.array(x.of)[order].tolist())) for x in own.levels
      )
    )
    a, b = components.of(d, own), components.of(d[order], moved)
    for name, part in a.items():
      np.testing.assert_allclose(list(part.values()), list(b[name].values()))

  def test_what_cannot_be_told_apart_shares_a_name(self):
    d = np.random.default_rng(4).normal(size=6)
    self.assertEqual(list(components.of(d, design(6, 1))), ["l0 + seed"])
    self.assertEqual(
      list(components.of(d, design(3, 1, 2))), ["l0 + l1", "seed"]
    )
    self.assertEqual(components.of(d[:1], Design()), {})

  def test_a_unit_that_lost_a_run_is_left_out(self):
    d = np.random.default_rng(5).normal(size=(4, 2))
    lost = np.array(d)
    lost[1, 0] = np.nan
    whole = components.of(np.delete(d, 1, 0).ravel(), design(3, 2))
    self.assertEqual(components.of(lost.ravel(), design(4, 2)), whole)

  @parameterized.parameters(0.0, 1.0, 9.0)
  def test_intervals_cover(self, ratio):
    rng = np.random.default_rng(6)
    x = np.sqrt(ratio) * rng.normal(size=(400, 6, 1)) + rng.normal(
      size=(400, 6, 3)
    )
    truth = np.array([ratio, 1.0])
    variance, low, high = components.nested(x, 2)
    covered = ((low <= truth) & (truth <= high)).mean(0)
    self.assertTrue((covered > 0.92).all(), covered)
    self.assertTrue((low <= variance).all() and (variance <= high).all())
    np.testing.assert_allclose(variance[:, 1].mean(), 1, atol=0.1)


class TestExamplesTest(parameterized.TestCase):
  def draw(self, runs, n, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.random(n) < 0.8).astype(np.float32) for _ in range(runs)]

  def test_is_the_paired_bootstrap_over_examples(self):
    ours, theirs = self.draw(3, 200), self.draw(3, 200, 1)
    found = components.of(np.full(3, np.nan), Design(), (ours, theirs))["test"]
    variances = [
      sps.bootstrap(
        (np.subtract(a, b, dtype=float),), np.mean, n_resamples=20_000,
        method="percentile", rng=np.random.default_rng(2),
      ).standard_error ** 2
      for a, b in zip(ours, theirs, strict=True)
    ]  # fmt: skip
    self.assertAlmostEqual(found["sd"], np.sqrt(np.mean(variances)), delta=3e-4)

  def test_clusters_are_drawn_whole(self):
    # Each example three times: the sampling is that of the first ones alone.
    ours, theirs = self.draw(1, 100), self.draw(1, 100, 1)
    alone = components.of(np.zeros(1), Design(), (ours, theirs))["test"]
    tripled = tuple([np.tile(v, 3) for v in side] for side in (ours, theirs))
    ids = np.tile(np.arange(100), 3)
    for clusters in (ids, [ids]):
      both = components.of(np.zeros(1), Design(), tripled, clusters)["test"]
      np.testing.assert_allclose(list(both.values()), list(alone.values()))
    apart = components.of(np.zeros(1), Design(), tripled)["test"]
    self.assertAlmostEqual(apart["sd"], alone["sd"] / np.sqrt(3), 9)

  def test_left_out_examples_and_lost_runs(self):
    ours, theirs = self.draw(2, 100), self.draw(2, 100, 1)
    alone = components.of(np.zeros(1), Design(), (ours[:1], theirs[:1]))["test"]
    padded = [np.append(ours[0], np.nan), None]
    other = [np.append(theirs[0], np.nan), np.append(theirs[1], np.nan)]
    found = components.of(np.zeros(2), Design(), (padded, other))["test"]
    np.testing.assert_allclose(list(found.values()), list(alone.values()))

  def test_units_of_one_test_set_tell_no_more_than_one(self):
    ours, theirs = self.draw(1, 100), self.draw(1, 100, 1)
    alone = components.of(np.zeros(1), Design(), (ours, theirs))["test"]
    order = [np.random.default_rng(k).permutation(100) for k in range(4)]
    sides = tuple([x[o] for o in order] for (x,) in (ours, theirs))
    for fixed, times in ((("test set",), 1), ((), 2)):
      own = dataclasses.replace(design(4, 1), fixed=fixed)
      found = components.of(np.full(4, np.nan), own, sides)["test"]
      self.assertAlmostEqual(found["sd"], alone["sd"], 12)
      for end in ("low", "high"):
        wide, one = (np.log(x[end] / x["sd"]) for x in (found, alone))
        self.assertAlmostEqual(times * wide, one, 9)

  def test_nothing_differs(self):
    ours = self.draw(2, 50)
    self.assertNotIn("test", components.of(np.zeros(2), Design(), (ours, ours)))
    self.assertNotIn(
      "test", components.of(np.zeros(2), Design(), ([None] * 2, ours))
    )

  @parameterized.parameters((1, ()), (6, ("split",)))
  def test_the_interval_covers(self, units, vary):
    rng = np.random.default_rng(7)
    p, n = (0.06, 0.1), 400  # of +1 and of -1: wins and losses of examples
    truth = (sum(p) - (p[0] - p[1]) ** 2) / n
    own = design(units, 1, vary=vary)
    hits = 0
    for _ in range(200):
      d = rng.choice([1.0, -1.0, 0.0], (units, n), p=[*p, 1 - sum(p)])
      found = components.of(
        np.full(units, np.nan), own, (list(d), [np.zeros(n)] * units)
      )["test"]
      hits += found["low"] ** 2 <= truth <= found["high"] ** 2
    self.assertGreater(hits / 200, 0.91)


if __name__ == "__main__":
  absltest.main()
