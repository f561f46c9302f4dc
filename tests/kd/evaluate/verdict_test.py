"""Verdicts: which arm may be named, and what is no number."""

import numpy as np
from absl.testing import absltest, parameterized

from kd.evaluate import stats, verdict
from kd.evaluate.design import Design


def study(
  values, baselines, metric="accuracy", diverged=None, strata=None, worth=0.0,
  replicates=None, contrasts=(),
):  # fmt: skip
  """Makes what `judge` reads of results.json."""
  summary, told = stats.summarise(
    {arm: {metric: v} for arm, v in values.items()},
    baselines,
    metric=metric,
    design=Design.of({"replicates": replicates}),
    worth={metric: worth},
    contrasts=contrasts,
  )
  arms = {
    arm: {
      "metrics": summary[arm],
      "baseline": baselines[arm],
      "diverged": (diverged or {}).get(arm, {}),
      "stratum": (strata or {}).get(arm, ""),
    }
    for arm in values
  }
  return {
    "metric": metric,
    "arms": arms,
    "contrasts": told,
    "replicates": replicates,
  }


def judge(*args, **kwargs):
  (v,) = verdict.judge(study(*args, **kwargs))
  return v


class JudgeTest(parameterized.TestCase):
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

  def test_two_may_be_best(self):
    v = judge(self.values, self.baselines)
    self.assertEqual({v.best, *v.tied}, {"soft", "rank"})
    self.assertEqual((v.named, v.beats_baseline), (False, True))
    self.assertEqual(v.reasons, ("other arms may be best",))
    self.assertEqual(set(v.better), {"soft", "rank"})
    self.assertEqual(v.worse, ("poor",))

  def test_one_is_best(self):
    self.values["soft"] = [v + 0.02 for v in self.values["soft"]]
    results = study(self.values, self.baselines)
    (v,) = verdict.judge(results)
    self.assertEqual((v.best, v.named, v.tied), ("soft", True, ()))
    versus = results["arms"]["soft"]["metrics"]["accuracy"]["versus_baseline"]
    # Its interval is wider, for its being chosen of three.
    self.assertEqual(v.among, 3)
    self.assertLess(v.low, versus["low"])
    self.assertGreater(v.high, versus["high"])
    self.assertAlmostEqual(v.low + v.high, versus["low"] + versus["high"])

  def test_direction_follows_the_metric(self):
    v = judge(self.values, self.baselines, "nll")
    self.assertEqual((v.best, v.named), ("poor", True))
    self.assertEqual(set(v.worse), {"soft", "rank"})

  def test_nothing_is_claimed_of_an_arm_that_lost_a_run(self):
    self.values["soft"] = [v + 0.05 for v in self.values["soft"]]
    self.values["soft"][2] = None
    v = judge(self.values, self.baselines, diverged={"soft": {"2": 9}})
    self.assertEqual((v.best, v.set_aside), ("rank", ("soft",)))
    self.assertEqual(v.ahead, ("soft",))
    self.assertNotIn("soft", (*v.better, *v.worse, *v.tied))
    # Nor against a baseline that lost one.
    self.values["hard"][3] = None
    v = judge(self.values, self.baselines, diverged={"hard": {"3": 9}})
    self.assertEqual((v.better, v.worse, v.named), ((), (), False))
    self.assertIn("its baseline lost a run", v.reasons)

  def test_all_diverged(self):
    values = {a: [None, *v[1:]] for a, v in self.values.items()}
    v = judge(values, self.baselines)
    self.assertEqual((v.best, v.named), (None, False))
    self.assertLen(v.set_aside, 4)

  def test_no_difference_is_not_named(self):
    v = judge({a: self.values["hard"] for a in self.values}, self.baselines)
    self.assertFalse(v.named)
    self.assertLen(v.tied, 3)
    self.assertEqual(v.better + v.worse, ())

  def test_baseline_can_be_best(self):
    values = {a: self.values[a] for a in ("hard", "poor")}
    v = judge(values, {"hard": None, "poor": "hard"})
    self.assertEqual((v.best, v.named, v.tied), ("hard", True, ()))
    self.assertEqual((v.low, v.beats_baseline), (None, False))

  def test_one_arm_alone_is_not_best(self):
    v = judge({"hard": self.values["hard"]}, {"hard": None})
    self.assertEqual((v.best, v.named), ("hard", False))

  def test_strata_are_not_ranked_against_each_other(self):
    values = {**self.values, "soft_small": [0.5 + 0.01 * i for i in range(8)]}
    baselines = {**self.baselines, "soft_small": None}
    results = study(values, baselines, strata={"soft_small": "90 examples"})
    whole, few = verdict.judge(results)
    self.assertEqual((whole.stratum, few.stratum), ("", "90 examples"))
    self.assertEqual(few.best, "soft_small")
    self.assertNotIn("soft_small", (whole.best, *whole.tied, *whole.worse))

  @parameterized.parameters(1, 2)
  def test_too_few_seeds(self, n):
    values = {a: v[:n] for a, v in self.values.items()}
    v = judge(values, self.baselines)
    self.assertFalse(v.named or v.better or v.worse)
    self.assertTrue(v.reasons)
    self.assertLen(v.tied, 3)

  def test_replicates_are_the_units(self):
    levels = [{"name": "split", "of": [0, 0, 0, 0, 1, 1, 1, 1]}]
    said = {"count": 2, "vary": ["split"], "levels": levels, "fixed": []}
    v = judge(self.values, self.baselines, replicates=said)
    self.assertFalse(v.named or v.better or v.worse)

  def test_what_a_single_example_would_turn(self):
    d = np.array([0.01, 0.03, 0.02, 0.04, 0.02])
    values = {"hard": [0.5] * 5, "soft": (0.5 + d).tolist()}
    baselines = {"hard": None, "soft": "hard"}
    for example, fragile in ((0.01, ("soft",)), (0.001, ())):
      v = judge(values, baselines, worth=example)
      self.assertEqual((v.better, v.fragile), (("soft",), fragile))
    # Of five test sets an example is in one alone, unless they are one.
    levels = [{"name": "split", "of": [0, 1, 2, 3, 4]}]
    said = {"count": 5, "vary": ["split"], "levels": levels, "fixed": []}
    for fixed, fragile in (([], ()), (["test set"], ("soft",))):
      said["fixed"] = fixed
      v = judge(values, baselines, worth=0.01, replicates=said)
      self.assertEqual((v.better, v.fragile), (("soft",), fragile))

  def test_a_p_of_0(self):
    d = 0.3 + 1e-5 * np.random.default_rng(0).normal(size=400)
    values = {"hard": [0.5] * 400, "soft": (0.5 + d).tolist()}
    v = judge(values, {"hard": None, "soft": "hard"}, worth=1e-6)
    self.assertEqual((v.best, v.named, v.fragile), ("soft", True, ()))

  def test_equivalence(self):
    results = study(
      self.values, self.baselines,
      contrasts=("rank - soft within 0.01", "rank - hard within 0.01"),
    )  # fmt: skip
    near, far = results["contrasts"].values()
    self.assertTrue(verdict.equivalent(near, "accuracy"))
    self.assertFalse(verdict.equivalent(far, "accuracy"))


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
    summary, _ = stats.summarise(values, {"hard": None, "soft": "hard"})
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
