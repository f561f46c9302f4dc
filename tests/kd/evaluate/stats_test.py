"""Statistics against closed forms, other packages and simulation."""

import json

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats as sps

from kd.errors import UserError
from kd.evaluate import stats


def coverage(interval, n, trials=400):
  """Counts how often an interval holds the mean 0 of normal differences."""
  rng = np.random.default_rng(n)
  hits = 0
  for _ in range(trials):
    low, high = interval(rng.normal(size=n))
    hits += low <= 0 <= high
  return hits / trials


def compared(d):
  c = stats.compare(d, np.zeros(len(d)), resamples=1000)
  return c.low, c.high


def expanded(d):
  return stats.bootstrap_interval(d, resamples=1000)


def plain(d):
  return stats.bootstrap_interval(d, resamples=1000, expanded=False)


class CompareTest(parameterized.TestCase):
  @parameterized.parameters(3, 5, 6, 10)
  def test_covers_its_confidence(self, n):
    self.assertGreaterEqual(coverage(compared, n), 0.92)
    self.assertLessEqual(coverage(compared, n), 0.985)

  def test_plain_percentile_would_not(self):
    self.assertLess(coverage(plain, 5), 0.88)
    self.assertLess(coverage(plain, 10), 0.92)
    self.assertGreaterEqual(coverage(expanded, 10), 0.92)

  def test_no_resampling_covers_with_three_seeds(self):
    # At most 1 - 2^(1-n) = 0.75; hence Student's t below six seeds.
    self.assertLess(coverage(expanded, 3), 0.82)

  def test_p_is_the_paired_t_test(self):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7))
    d = a - b
    t = d.mean() / (d.std(ddof=1) / np.sqrt(7))
    c = stats.compare(a, b)
    self.assertAlmostEqual(c.p, 2 * sps.t.sf(abs(t), 6), places=12)
    self.assertAlmostEqual(c.difference, a.mean() - b.mean(), places=12)
    self.assertEqual(c.n, 7)

  def test_few_seeds_agree_with_the_t_test(self):
    rng = np.random.default_rng(1)
    for _ in range(50):
      c = stats.compare(rng.normal(0.8, 1, 5), np.zeros(5))
      self.assertEqual(c.p < 0.05, not c.low <= 0 <= c.high)

  def test_expanded_level_is_hesterbergs(self):
    d = np.random.default_rng(2).normal(size=10)
    tail = sps.norm.cdf(-np.sqrt(10 / 9) * sps.t.ppf(0.975, 9))
    rng = np.random.default_rng(3)
    means = d[rng.integers(0, 10, (200_000, 10))].mean(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail])
    found = stats.bootstrap_interval(d, resamples=50_000)
    np.testing.assert_allclose(found, (low, high), atol=0.02)

  def test_is_paired(self):
    seeds = np.array([0.1, 0.9, 0.4, 0.7, 0.2, 0.5, 0.3, 0.8])
    c = stats.compare(seeds + 0.01 + 1e-3 * seeds, seeds)
    self.assertGreater(c.low, 0)

  def test_drops_what_diverged(self):
    c = stats.compare([1.0, None, 3.0, 4.0], [0.5, 1.0, float("nan"), 3.0])
    self.assertEqual((c.n, c.difference), (2, 0.75))

  @parameterized.parameters(
    ([None], [1.0], stats.Comparison(None, None, None, None, 0)),
    ([2.0], [1.0], stats.Comparison(1.0, None, None, None, 1)),
    ([], [], stats.Comparison(None, None, None, None, 0)),
    ([2.0, 3.0], [2.0, 3.0], stats.Comparison(0.0, 0.0, 0.0, 1.0, 2)),
    ([2.0, 3.0], [1.0, 2.0], stats.Comparison(1.0, 1.0, 1.0, 0.0, 2)),
  )
  def test_degenerate(self, values, baseline, expected):
    self.assertEqual(stats.compare(values, baseline), expected)

  def test_rounding_is_no_spread(self):
    c = stats.compare([0.1 + 0.2, 0.3], [0.3, 0.1 + 0.2])
    self.assertEqual((c.difference, c.p), (0.0, 1.0))
    c = stats.compare([0.9, 0.8, 0.7], [0.8, 0.7, 0.6])
    self.assertEqual((c.low, c.high, c.p), (c.difference, c.difference, 0.0))

  def test_is_deterministic(self):
    values = np.random.default_rng(4).normal(size=(2, 8))
    self.assertEqual(stats.compare(*values), stats.compare(*values))
    other = stats.compare(*values, seed=1)
    self.assertNotEqual(stats.compare(*values), other)

  def test_pairs_must_match(self):
    with self.assertRaises(ValueError):
      stats.compare([1.0], [1.0, 2.0])


class HolmTest(parameterized.TestCase):
  def test_textbook(self):
    adjusted = stats.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])

  def test_properties(self):
    p = np.random.default_rng(0).uniform(size=20) ** 3
    adjusted = np.array(stats.holm(p.tolist()))
    self.assertTrue((adjusted >= p).all() and (adjusted <= 1).all())
    self.assertTrue((np.diff(adjusted[np.argsort(p)]) >= 0).all())
    order = np.random.default_rng(1).permutation(20)
    np.testing.assert_array_equal(
      stats.holm(p[order].tolist()), adjusted[order]
    )

  def test_none_passes_through(self):
    self.assertEqual(stats.holm([None, 0.02, None]), [None, 0.02, None])
    self.assertEqual(stats.holm([]), [])

  def test_controls_the_familywise_error(self):
    rng = np.random.default_rng(2)
    p = rng.uniform(size=(2000, 10))
    wrong = np.mean([min(stats.holm(row.tolist())) < 0.05 for row in p])
    self.assertLess(wrong, 0.065)


class SummariseTest(absltest.TestCase):
  def test_layout(self):
    rng = np.random.default_rng(0)
    values = {
      arm: {
        "accuracy": [*rng.normal(mean, 0.01, 5), None],
        "train_seconds": rng.uniform(size=6).tolist(),
      }
      for arm, mean in {"hard": 0.8, "soft": 0.85, "rank": 0.9}.items()
    }
    values["rank"]["nll"] = [float("nan")] * 6
    baselines = {"hard": None, "soft": "hard", "rank": "soft"}
    summary = stats.summarise(values, baselines)
    json.dumps(summary, allow_nan=False)
    self.assertIsNone(summary["hard"]["accuracy"]["versus_baseline"])
    versus = summary["rank"]["accuracy"]["versus_baseline"]
    self.assertEqual(
      set(versus),
      {"difference", "low", "high", "p", "p_raw", "n", "baseline"},
    )
    self.assertEqual((versus["baseline"], versus["n"]), ("soft", 5))
    raw = [
      summary[a]["accuracy"]["versus_baseline"]["p_raw"]
      for a in ("soft", "rank")
    ]
    corrected = [
      summary[a]["accuracy"]["versus_baseline"]["p"] for a in ("soft", "rank")
    ]
    self.assertEqual(corrected, stats.holm(raw))
    entry = summary["soft"]["accuracy"]
    self.assertAlmostEqual(
      entry["std"], np.std(values["soft"]["accuracy"][:5], ddof=1)
    )
    timed = summary["soft"]["train_seconds"]["versus_baseline"]
    self.assertIsNone(timed["p"])
    self.assertIsNone(timed["p_raw"])
    self.assertIsNone(summary["rank"]["nll"]["mean"])

  def test_one_seed(self):
    values = {"hard": {"nll": [1.0]}, "soft": {"nll": [0.5]}}
    summary = stats.summarise(values, {"hard": None, "soft": "hard"})
    self.assertIsNone(summary["soft"]["nll"]["std"])
    versus = summary["soft"]["nll"]["versus_baseline"]
    self.assertEqual((versus["difference"], versus["low"]), (-0.5, None))

  def test_unknown_baseline(self):
    with self.assertRaisesRegex(UserError, "arms.soft.baseline='hrad'"):
      stats.summarise({"soft": {"nll": [1.0]}}, {"soft": "hrad"})


if __name__ == "__main__":
  absltest.main()
