"""Statistics against closed forms, other packages and simulation."""

import json

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats as sps

from kd.errors import UserError
from kd.evaluate import stats
from kd.evaluate.design import Design, Level


def replicates(count, seeds):
  of = np.repeat(np.arange(count), seeds)
  return Design((Level("split", tuple(of.tolist())),), vary=("split",))


class CompareTest(parameterized.TestCase):
  @parameterized.parameters(3, 7, 20)
  def test_is_the_paired_t_test(self, n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    c = stats.compare(a, b)
    t = sps.ttest_rel(a, b)
    low, high = t.confidence_interval(0.95)
    self.assertAlmostEqual(c.p, t.pvalue, places=12)
    np.testing.assert_allclose([c.low, c.high], [low, high])
    self.assertAlmostEqual(c.difference, a.mean() - b.mean(), places=12)
    self.assertEqual((c.n, c.lost), (n, 0))

  def test_a_replicate_is_one_unit(self):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 3))
    c = stats.compare(a.ravel(), b.ravel(), design=replicates(4, 3))
    means = stats.compare(a.mean(1), b.mean(1))
    self.assertEqual(c.n, 4)
    for key in ("difference", "low", "high", "p"):
      self.assertAlmostEqual(getattr(c, key), getattr(means, key), 12)

  def test_is_paired(self):
    seeds = np.array([0.1, 0.9, 0.4, 0.7, 0.2, 0.5, 0.3, 0.8])
    c = stats.compare(seeds + 0.01 + 1e-3 * seeds, seeds)
    self.assertGreater(c.low, 0)

  def test_drops_what_diverged(self):
    c = stats.compare([1.0, None, 3.0, 4.0], [0.5, 1.0, float("nan"), 3.0])
    self.assertEqual((c.n, c.difference, c.lost), (2, 0.75, 2))
    d = [1.0, None, 3.0, 5.0]
    c = stats.compare(d, [0.0] * 4, design=replicates(2, 2))
    self.assertEqual((c.n, c.difference, c.lost), (2, 2.5, 1))

  @parameterized.parameters(
    ([None], [1.0], stats.Comparison(None, None, None, None, 0, 1)),
    ([2.0], [1.0], stats.Comparison(1.0, None, None, None, 1, 0)),
    ([], [], stats.Comparison(None, None, None, None, 0, 0)),
    ([2.0, 3.0], [2.0, 3.0], stats.Comparison(0.0, 0.0, 0.0, 1.0, 2, 0)),
    ([2.0, 3.0], [1.0, 2.0], stats.Comparison(1.0, None, None, None, 2, 0)),
  )
  def test_degenerate(self, values, baseline, expected):
    self.assertEqual(stats.compare(values, baseline), expected)

  def test_no_spread_is_less_than_a_test_example(self):
    # Three runs, each two of 100 examples better: t = sqrt(3) * 2.
    c = stats.compare([0.82, 0.92, 0.72], [0.8, 0.9, 0.7], worth=0.01)
    self.assertAlmostEqual(c.p, 2 * sps.t.sf(2 * np.sqrt(3), 2), places=6)
    self.assertLess(c.low, 0)
    # A spread that is larger stays.
    a, b = [0.82, 0.95, 0.71], [0.8, 0.9, 0.7]
    self.assertEqual(stats.compare(a, b, worth=0.01), stats.compare(a, b))

  @parameterized.parameters(np.float32, np.float64)
  def test_rounding_is_no_spread(self, dtype):
    a = np.array([0.9, 0.8, 0.7], dtype).astype(float)
    b = np.array([0.8, 0.7, 0.6], dtype).astype(float)
    self.assertIsNone(stats.compare(a, b).p)
    c = stats.compare(a, a * (1 + 1e-7))
    self.assertEqual((c.difference, c.p), (0.0, 1.0))
    # It is relative: the same spread is one where values are small.
    self.assertIsNotNone(stats.compare(1e-6 * a, 1e-6 * b * b).p)

  def test_pairs_must_match(self):
    with self.assertRaises(ValueError):
      stats.compare([1.0], [1.0, 2.0])

  def test_equivalence_is_two_one_sided_tests(self):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 9)) * 0.01
    c = stats.compare(a, b, within=0.02)
    below = sps.ttest_1samp(a - b, -0.02, alternative="greater").pvalue
    above = sps.ttest_1samp(a - b, 0.02, alternative="less").pvalue
    self.assertAlmostEqual(c.p, max(below, above), places=12)
    self.assertGreater(stats.compare(a + 0.03, b, within=0.02).p, 0.5)
    self.assertIsNone(stats.compare(a, a, within=0.02).p)


class HolmTest(absltest.TestCase):
  def test_textbook(self):
    adjusted = stats.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])

  def test_properties(self):
    p = np.random.default_rng(0).uniform(size=(5, 20)) ** 3
    adjusted = stats.holm(p)
    self.assertTrue((adjusted >= p).all() and (adjusted <= 1).all())
    order = np.random.default_rng(1).permutation(20)
    np.testing.assert_array_equal(stats.holm(p[:, order]), adjusted[:, order])
    for row, own in zip(p, adjusted, strict=True):
      np.testing.assert_array_equal(stats.holm(row), own)
      self.assertTrue((np.diff(own[np.argsort(row)]) >= 0).all())

  def test_nan_passes_through(self):
    nan = np.nan
    np.testing.assert_array_equal(
      stats.holm(np.array([nan, 0.02, nan])), [nan, 0.02, nan]
    )
    self.assertEqual(stats.holm(np.array([])).tolist(), [])


class SummariseTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.values = {
      arm: {
        "accuracy": [*rng.normal(mean, 0.01, 5), None],
        "train_seconds": rng.uniform(size=6).tolist(),
      }
      for arm, mean in {"hard": 0.8, "soft": 0.85, "rank": 0.9}.items()
    }
    self.values["rank"]["nll"] = [float("nan")] * 6
    self.baselines = {"hard": None, "soft": "hard", "rank": "soft"}

  def test_layout(self):
    summary, contrasts = stats.summarise(
      self.values, self.baselines, metric="accuracy", worth={"accuracy": 0.01}
    )
    json.dumps(summary, allow_nan=False)
    self.assertEqual(contrasts, {})
    self.assertIsNone(summary["hard"]["accuracy"]["versus_baseline"])
    versus = summary["rank"]["accuracy"]["versus_baseline"]
    self.assertEqual(
      set(versus),
      {"difference", "low", "high", "p", "p_raw", "n", "lost", "baseline"}
      | {"components"},
    )
    self.assertEqual(
      (versus["baseline"], versus["n"], versus["lost"]), ("soft", 5, 1)
    )
    both = [summary[a]["accuracy"]["versus_baseline"] for a in ("soft", "rank")]
    raw = np.array([v["p_raw"] for v in both])
    self.assertEqual([v["p"] for v in both], stats.holm(raw).tolist())
    entry = summary["soft"]["accuracy"]
    self.assertEqual(entry["worth"], 0.01)
    std = np.std(self.values["soft"]["accuracy"][:5], ddof=1)
    self.assertAlmostEqual(entry["std"], std)
    timed = summary["soft"]["train_seconds"]["versus_baseline"]
    self.assertEqual((timed["p"], timed["p_raw"]), (None, None))
    self.assertNotIn("components", timed)
    self.assertIsNone(summary["rank"]["nll"]["mean"])

  def test_contrasts_are_corrected_with_the_arms(self):
    asked = ["rank - hard", "soft - hard", "rank - soft within 0.1"]
    summary, found = stats.summarise(
      self.values, self.baselines, metric="accuracy", contrasts=asked
    )
    json.dumps(found, allow_nan=False)
    self.assertEqual(list(found), asked)
    versus = {a: m["accuracy"]["versus_baseline"] for a, m in summary.items()}
    own = [found[text]["metrics"]["accuracy"] for text in asked]
    # soft - hard is asked twice, and counts once.
    self.assertEqual(own[1], versus["soft"])
    tests = [versus["soft"], versus["rank"], own[0], own[2]]
    corrected = stats.holm(np.array([t["p_raw"] for t in tests]))
    self.assertEqual([t["p"] for t in tests], corrected.tolist())
    # The margin is of the primary metric; elsewhere the difference is tested.
    self.assertEqual(found[asked[2]]["within"], 0.1)
    expected = stats.compare(
      self.values["rank"]["accuracy"], self.values["soft"]["accuracy"],
      within=0.1,
    )  # fmt: skip
    self.assertEqual(own[2]["p_raw"], expected.p)
    _, other = stats.summarise(
      self.values, self.baselines, metric="nll", contrasts=asked
    )
    self.assertEqual(
      other[asked[2]]["metrics"]["accuracy"]["p_raw"], versus["rank"]["p_raw"]
    )

  def test_replicates(self):
    rng = np.random.default_rng(2)
    values = {a: {"nll": rng.normal(size=6).tolist()} for a in ("hard", "soft")}
    design = replicates(3, 2)
    summary, _ = stats.summarise(
      values, {"hard": None, "soft": "hard"}, metric="nll", design=design
    )
    units = np.reshape(values["soft"]["nll"], (3, 2)).mean(1)
    entry = summary["soft"]["nll"]
    np.testing.assert_allclose(
      [entry["mean"], entry["std"]], [units.mean(), units.std(ddof=1)]
    )
    self.assertEqual(entry["versus_baseline"]["n"], 3)
    self.assertEqual(
      set(entry["versus_baseline"]["components"]), {"split", "seed"}
    )

  def test_one_seed(self):
    values = {"hard": {"nll": [1.0]}, "soft": {"nll": [0.5]}}
    summary, _ = stats.summarise(values, {"hard": None, "soft": "hard"})
    self.assertIsNone(summary["soft"]["nll"]["std"])
    versus = summary["soft"]["nll"]["versus_baseline"]
    self.assertEqual((versus["difference"], versus["low"]), (-0.5, None))

  def test_unknown_arms(self):
    values = {"soft": {"nll": [1.0]}}
    with self.assertRaisesRegex(UserError, "arms.soft.baseline='hrad'"):
      stats.summarise(values, {"soft": "hrad"})
    with self.assertRaisesRegex(UserError, "contrasts: 'soft - hrad'"):
      stats.summarise(values, {"soft": None}, contrasts=["soft - hrad"])


if __name__ == "__main__":
  absltest.main()
