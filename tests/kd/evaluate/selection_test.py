"""Choosing among arms: closed forms, and what is never put out."""

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats as sps

from kd.evaluate import selection, stats


class CriticalTest(parameterized.TestCase):
  @parameterized.parameters(3, 10)
  def test_two_arms_are_a_paired_t_test(self, n):
    limits = selection.critical(n, 2)
    self.assertAlmostEqual(limits[2], sps.t.ppf(0.975, n - 1), 9)
    self.assertEqual(selection.chosen(n, 1), stats.quantile(n))

  def test_many_units_are_the_studentised_range(self):
    # sqrt(2) max |t| is then Tukey's statistic with known variance.
    limits = selection.critical(200, 6)
    for k in (3, 6):
      tukey = sps.studentized_range.ppf(0.95, k, 1e6) / np.sqrt(2)
      self.assertAlmostEqual(limits[k], tukey, delta=0.04)

  def test_entries_do_not_depend_on_how_many_arms_there_are(self):
    np.testing.assert_array_equal(
      selection.critical(4, 5)[:4], selection.critical(4, 3)
    )

  def test_a_choice_costs_more_the_more_there_are(self):
    t = [selection.chosen(10, k) for k in (1, 3, 11)]
    self.assertEqual(t, sorted(set(t)))
    # Less than what covers all arms at once.
    self.assertLess(t[-1], sps.t.ppf(1 - 0.025 / 11, 9))


class SetTest(parameterized.TestCase):
  def test_pairs_are_paired_t_tests(self):
    x = np.random.default_rng(0).normal(size=(3, 7))
    t = selection.pairwise_t(x)
    self.assertAlmostEqual(t[0, 2], sps.ttest_rel(x[0], x[2]).statistic, 9)
    np.testing.assert_allclose(t, -t.T)

  def test_holds_the_best_and_not_the_far_ones(self):
    rng = np.random.default_rng(1)
    x = 0.1 * rng.normal(size=(200, 4, 8)) + np.array([[3], [3], [0], [1]])
    kept = selection.confidence_set(x)
    self.assertGreater(kept[:, :2].all(-1).mean(), 0.92)
    self.assertFalse(kept[:, 2:].any())
    best = x.mean(-1).argmax(-1)
    self.assertTrue(kept[np.arange(200), best].all())

  def test_steps_down(self):
    # Beyond the limit of two arms, not of five, once the far ones are out.
    d = np.random.default_rng(2).normal(size=(2, 10))
    gap = d[0] - d[1]
    size = gap.std(ddof=1) / np.sqrt(10)
    d[0] += -gap.mean() + 2.6 * size
    far = -50.0 + np.random.default_rng(3).normal(size=(3, 10))
    self.assertLess(2.6, selection.critical(10, 5)[5])
    kept = selection.confidence_set(np.concatenate([d, far]))
    np.testing.assert_array_equal(kept, [1, 0, 0, 0, 0])

  def test_equal_arms_and_coarse_test_sets(self):
    same = np.tile(np.arange(4.0), (3, 1))
    self.assertTrue(selection.confidence_set(same).all())
    # A difference of one example in each of three runs tells nothing apart.
    x = np.stack([np.full(3, 0.81), np.full(3, 0.8)])
    self.assertTrue(selection.confidence_set(x, worth=0.01).all())
    x[0] += 0.1
    self.assertFalse(selection.confidence_set(x, worth=0.01).all())


if __name__ == "__main__":
  absltest.main()
