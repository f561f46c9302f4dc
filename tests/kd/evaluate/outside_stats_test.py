"""What results.json says of scores outside, from scores made up."""

import numpy as np
from absl.testing import absltest

from kd.evaluate import outside_stats, verdict
from kd.evaluate.design import Design, Level
from kd.evaluate.outside import Found, Scores

RUNS, REPLICATES = 2, 4
DESIGN = Design(
  (Level("split", tuple(np.repeat(range(REPLICATES), RUNS).tolist())),)
)


def scores(rng, runs, inside, outside, sure):
  """Makes a model's scores on `test`, two severities and a set of no label."""
  draw = lambda mean: (mean + 0.002 * rng.normal(size=runs)).tolist()
  bins = dict(confidence=[0.5], accuracy=[0.5], count=[10])
  values = {
    "test": dict(accuracy=draw(inside), wrong_confident=draw(0.0)),
    "noise_1": dict(accuracy=draw(outside), wrong_confident=draw(sure)),
    "noise_5": dict(accuracy=draw(outside), wrong_confident=draw(sure)),
    "photos": dict(wrong_confident=draw(3 * sure)),
  }
  names = dict.fromkeys(values)
  return Scores(values, {n: [0.5] for n in names}, {n: bins for n in names}, {})


def found(rng, teacher=True):
  facts = dict(words="", severity=0, examples=1000, labelled=True)
  sets = {n: dict(facts, of=n.split("_")[0]) for n in
          ("test", "noise_1", "noise_5", "photos")}  # fmt: skip
  sets["photos"]["labelled"] = False
  arms = {
    "hard": scores(rng, RUNS, 0.9, 0.6, 0.2),
    "soft": scores(rng, RUNS, 0.9, 0.7, 0.1),
  }
  own = scores(rng, 1, 0.95, 0.75, 0.1) if teacher else None
  return Found(sets, own, arms)


def summary(teacher=True):
  rng = np.random.default_rng(0)
  every = [found(rng, teacher) for _ in range(REPLICATES)]
  return outside_stats.summary(
    every, {"hard": None, "soft": "hard"}, [RUNS] * REPLICATES, DESIGN, [1.0]
  )


class SummaryTest(absltest.TestCase):
  def test_units_are_replicates_and_the_teacher_is_each_ones_own(self):
    of = summary()["arms"]["soft"]["noise_5"]["accuracy"]
    self.assertLen(of["values"], RUNS * REPLICATES)
    for versus in (of["versus_teacher"], of["versus_baseline"]):
      self.assertEqual(versus["n"], REPLICATES)
    self.assertAlmostEqual(of["versus_teacher"]["difference"], -0.05, 2)
    self.assertAlmostEqual(of["versus_baseline"]["difference"], 0.1, 2)

  def test_a_verdict_that_weighs_names_alike(self):
    own = summary()["verdict"]
    self.assertEqual(own["over"]["wrong_confident"], ["noise", "photos"])
    sure = own["arms"]["hard"]["wrong_confident"]
    self.assertAlmostEqual(sure["mean"], (0.2 + 0.6) / 2, 2)
    lost = own["arms"]["hard"]["accuracy_lost"]
    self.assertAlmostEqual(lost["mean"], 0.3, 2)
    self.assertAlmostEqual(lost["versus_teacher"]["difference"], 0.1, 2)
    self.assertEqual(verdict.told_apart(lost["versus_teacher"]), 1)
    equal = own["arms"]["soft"]["accuracy_lost"]["versus_teacher"]
    self.assertEqual(verdict.told_apart(equal), 0)
    self.assertEqual(list(own["each"]), ["noise", "photos"])
    self.assertEqual(list(own["each"]["photos"]["over"]), ["wrong_confident"])

  def test_holm_corrects_teacher_and_baseline_together(self):
    entries = summary()["verdict"]["arms"]
    family = [
      e["accuracy_lost"][k]
      for e in entries.values()
      for k in ("versus_teacher", "versus_baseline")
      if e["accuracy_lost"][k]
    ]
    self.assertLen(family, 3)
    least = min(family, key=lambda v: v["p_raw"])
    self.assertAlmostEqual(least["p"], 3 * least["p_raw"])

  def test_a_black_box_leaves_the_baseline_alone(self):
    made = summary(teacher=False)
    self.assertEqual(made["teacher"], {})
    self.assertNotIn("teacher", made["curves"])
    of = made["verdict"]["arms"]["soft"]["accuracy_lost"]
    self.assertIsNone(of["versus_teacher"])
    self.assertEqual(of["versus_baseline"]["baseline"], "hard")


if __name__ == "__main__":
  absltest.main()
