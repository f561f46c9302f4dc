"""Verdicts: which arm may be named, and what is no number."""

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats as sps

from kd.evaluate import stats, verdict


def study(values, baselines, metric="accuracy", diverged=None):
  """Makes what `winner` reads of results.json."""
  summary = stats.summarise(
    {arm: {metric: v} for arm, v in values.items()}, baselines
  )
  arms = {
    arm: {
      "metrics": summary[arm],
      "baseline": baselines[arm],
      "diverged": (diverged or {}).get(arm, {}),
    }
    for arm in values
  }
  return {"metric": metric, "arms": arms, "seeds": list(range(len(values)))}


class WinnerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    seeds = 0.01 * rng.normal(size=8)
    noise = lambda: 0.002 * rng.normal(size=8)
    self.values = {
      "hard": (0.80 + seeds + noise()).tolist(),
      "soft": (0.85 + seeds + noise()).tolist(),
      "rank": (0.85 + 1e-4 + seeds + noise()).tolist(),
      "poor": (0.70 + seeds + noise()).tolist(),
    }
    self.baselines = {a: None if a == "hard" else "hard" for a in self.values}

  def test_names_the_best(self):
    v = verdict.winner(study(self.values, self.baselines))
    self.assertTrue(v.named)
    self.assertIn(v.best, ("soft", "rank"))
    self.assertEqual({v.best, *v.tied}, {"soft", "rank"})
    self.assertEqual(set(v.better), {"soft", "rank"})
    self.assertEqual(v.worse, ("poor",))
    self.assertEqual(v.reasons, ())

  def test_direction_follows_the_metric(self):
    v = verdict.winner(study(self.values, self.baselines, "nll"))
    self.assertEqual((v.best, v.named), ("poor", True))
    self.assertEqual(set(v.worse), {"soft", "rank"})

  def test_diverged_is_set_aside(self):
    self.values["soft"] = [v + 0.05 for v in self.values["soft"]]
    self.values["soft"][2] = None
    results = study(self.values, self.baselines, diverged={"soft": {"2": 9}})
    v = verdict.winner(results)
    self.assertEqual((v.best, v.set_aside), ("rank", ("soft",)))

  def test_all_diverged(self):
    values = {a: [None, *v[1:]] for a, v in self.values.items()}
    v = verdict.winner(study(values, self.baselines))
    self.assertEqual((v.best, v.named), (None, False))

  def test_no_difference_is_not_named(self):
    values = {a: self.values["hard"] for a in self.values}
    v = verdict.winner(study(values, self.baselines))
    self.assertFalse(v.named)
    self.assertLen(v.tied, 3)
    self.assertEqual(v.better + v.worse, ())

  def test_baseline_can_be_best(self):
    values = {a: self.values[a] for a in ("hard", "poor")}
    v = verdict.winner(study(values, {"hard": None, "poor": "hard"}))
    self.assertEqual((v.best, v.named, v.tied), ("hard", False, ()))

  def test_tied_agrees_with_the_corrected_verdict(self):
    # An interval that excludes 0 beside a corrected p that is above 0.05.
    rng = np.random.default_rng(3)
    d = rng.normal(size=8)
    d = 1e-3 * ((d - d.mean()) / sps.sem(d) + 2.6)  # t = 2.6, raw p = 0.035
    values = {
      "hard": np.zeros(8).tolist(),
      "soft": d.tolist(),
      "rank": (-d[::-1]).tolist(),
    }
    v = verdict.winner(
      study(values, {"hard": None, "soft": "hard", "rank": "hard"})
    )
    self.assertEqual((v.best, v.named), ("soft", False))
    self.assertIn("hard", v.tied)

  @parameterized.parameters(1, 2)
  def test_too_few_seeds(self, n):
    values = {a: v[:n] for a, v in self.values.items()}
    v = verdict.winner(study(values, self.baselines))
    self.assertFalse(v.named)
    self.assertTrue(v.reasons)
    self.assertLen(v.tied, 3)

  def test_nothing_is_named_too_often_under_the_null(self):
    rng = np.random.default_rng(5)
    named = 0
    for _ in range(200):
      values = {a: rng.normal(size=5).tolist() for a in "abcd"}
      baselines = {a: None if a == "a" else "a" for a in "abcd"}
      named += verdict.winner(study(values, baselines)).named
    self.assertLess(named / 200, 0.06)


class WarningsTest(absltest.TestCase):
  def test_names_what_is_no_number_and_did_not_diverge(self):
    values = {
      "hard": {
        "accuracy": [0.5, 0.6],
        "nll": [1.0, 1.1],
        "recall_3": [None] * 2,
      },
      "soft": {
        "accuracy": [None, 0.6],
        "nll": [None, None],
        "recall_3": [1, 1],
      },
    }
    summary = stats.summarise(values, {"hard": None, "soft": "hard"})
    arms = {arm: {"metrics": m, "diverged": {}} for arm, m in summary.items()}
    results = {"seeds": [4, 5], "arms": arms, "teacher": {"nll": 1.0}}
    (said,) = verdict.warnings(results)
    self.assertStartsWith(said, "Arm soft, seed 4, 5: accuracy, nll not finite")
    arms["soft"]["diverged"] = {"4": 7}
    (said,) = verdict.warnings(results)
    self.assertStartsWith(said, "Arm soft, seed 5: nll not finite")
    arms["soft"]["diverged"] = {"4": 7, "5": 9}
    self.assertEqual(verdict.warnings(results), [])
    results["teacher"] = {"nll": None, "recall_3": None, "accuracy": 0.5}
    (said,) = verdict.warnings(results)
    self.assertStartsWith(said, "The teacher: nll not finite")


if __name__ == "__main__":
  absltest.main()
