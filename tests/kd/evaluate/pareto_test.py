"""Fronts of quality and cost, and which arm to take for what is scarce."""

import numpy as np
from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.evaluate import pareto, stats


def study(seeds=5, noise=0.001, metric="accuracy", strata=None, **arms):
  """Makes results of arms, each (quality, bytes)."""
  rng, values = np.random.default_rng(0), {}
  for arm, (quality, size) in arms.items():
    x = quality + noise * rng.normal(size=seeds)
    values[arm] = {metric: x.tolist(), "bytes": [float(size)] * seeds}
  first = next(iter(arms))
  bases = {a: None if a == first else first for a in arms}
  made, _ = stats.summarise(values, bases, metric=metric)
  entries = {
    a: {
      "metrics": made[a],
      "baseline": bases[a],
      "stratum": (strata or {}).get(a, ""),
    }
    for a in arms
  }
  return {"metric": metric, "seeds": list(range(seeds)), "arms": entries}


def brute(points):
  """Returns who is dominated, by the definition, one pair at a time."""
  return {
    j
    for j, (q, c) in enumerate(points)
    for other_q, other_c in points
    if other_q >= q and other_c <= c and (other_q, other_c) != (q, c)
  }


class FrontTest(parameterized.TestCase):
  def test_dominates_by_definition(self):
    rng = np.random.default_rng(0)
    for _ in range(200):
      points = rng.integers(0, 4, (rng.integers(1, 9), 2)).astype(float)
      over = pareto.dominates(*points.T)
      found = set(np.flatnonzero(over.any(0)).tolist())
      self.assertEqual(found, brute([tuple(p) for p in points]))

  def test_front_and_who_is_dominated_by_whom(self):
    results = study(
      big=(0.97, 100), small=(0.95, 10), worse=(0.93, 100), large=(0.949, 300)
    )
    found = pareto.front(results, "accuracy", "bytes")
    self.assertEqual(found.arms, ("small", "big"))
    named = {d.arm: d for d in found.dominated}
    self.assertEqual(set(named), {"worse", "large"})
    self.assertEqual(named["worse"].by, "big")
    self.assertEqual(named["worse"].times, 1.0)
    self.assertEqual(named["large"].times, 3.0)
    self.assertAlmostEqual(named["worse"].quality["difference"], -0.04, 2)
    raw = pareto.compare(results, "accuracy", "worse", "big")
    self.assertGreater(named["worse"].quality["p"], raw["p"])

  def test_lower_is_better(self):
    results = study(metric="nll", a=(0.2, 10), b=(0.3, 10), noise=0.0)
    self.assertEqual(pareto.front(results, "nll", "bytes").arms, ("a",))

  def test_equal_arms_dominate_nobody(self):
    results = study(a=(0.9, 10), b=(0.9, 10), noise=0.0)
    found = pareto.front(results, "accuracy", "bytes")
    self.assertLen(found.arms, 2)
    self.assertEmpty(found.dominated)

  def test_budgets_and_lost_runs_stand_apart(self):
    arms = {"a": (0.95, 10), "b": (0.9, 20), "c": (0.8, 30)}
    results = study(**arms, strata={"b": "90 examples"})
    found = pareto.front(results, "accuracy", "bytes")
    self.assertEqual([d.arm for d in found.dominated], ["c"])
    results["arms"]["a"]["metrics"]["accuracy"]["values"][1] = None
    found = pareto.front(results, "accuracy", "bytes")
    self.assertEqual(set(found.arms), {"b", "c"})
    self.assertIsNone(pareto.front(results, "accuracy", "peak_bytes"))

  def test_no_known_direction(self):
    with self.assertRaisesRegex(UserError, "no known good direction"):
      pareto.front(study(a=(1, 1), b=(2, 2), metric="charm"), "charm", "bytes")


ARMS = {"best": (0.97, 100), "near": (0.967, 30), "far": (0.94, 5)}


class ChoicesTest(parameterized.TestCase):
  def chosen(self, margin, **options):
    made = pareto.choices(study(**ARMS, **options), margin)
    self.assertEqual(made[0], pareto.Choice("accuracy", "best", "best"))
    (choice,) = made[1:]
    self.assertEqual((choice.scarce, choice.least), ("bytes", "far"))
    return choice

  @parameterized.parameters((0.001, "best"), (0.01, "near"), (0.1, "far"))
  def test_the_least_within_the_margin(self, margin, arm):
    self.assertEqual(self.chosen(margin).arm, arm)

  def test_what_an_interval_does_not_show_is_only_named(self):
    choice = self.chosen(0.004)
    self.assertEqual((choice.arm, choice.open), ("best", "near"))

  def test_one_seed_shows_nothing(self):
    choice = self.chosen(0.1, seeds=1)
    self.assertEqual((choice.arm, choice.open), ("best", "far"))

  def test_nothing_finished(self):
    results = study(a=(0.9, 1), b=(0.8, 2))
    for entry in results["arms"].values():
      entry["metrics"]["accuracy"]["values"][0] = None
    self.assertEmpty(pareto.choices(results))


if __name__ == "__main__":
  absltest.main()
