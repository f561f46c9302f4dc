"""Equal search on validation."""

import json
import os
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from kd import config, study
from kd.errors import UserError
from kd.study import check, tune
from kd.train import loop
from tests.kd import small
from tests.kd.study.phases_test import Workdir, comparable, options

RATE = ("log", 1e-4, 1e-1)
SPACE = {"train": {"learning_rate": RATE}, "temperature": (1.0, 4.0)}
SUM = dict(
  objective="hard + soft",
  hard=dict(weight=0.5, target="answer"),
  soft=dict(weight=0.5, temperature=2.0, divergence="forward_kl"),
)


def tuned(space=None, budget=3, **arms):
  made = options(**(arms or dict(hard=small.HARD, soft=small.SOFT)))
  made.tune = dict(budget=budget, space=space or SPACE)
  return made


class PointsTest(parameterized.TestCase):
  def test_a_grid_of_as_many_points_as_the_budget(self):
    space = {"a": (1, 2), "b": (3, 4, 5)}
    made = tune.points(dict(budget=6, space=space))
    self.assertLen({tuple(p.values()) for p in made}, 6)

  def test_a_sequence_fills_the_space(self):
    made = tune.points(dict(budget=32, space=SPACE))
    rates = np.log10([p["train.learning_rate"] for p in made])
    counts, _ = np.histogram(rates, bins=4, range=(-4, -1))
    self.assertEqual(counts.sum(), 32)
    self.assertGreaterEqual(counts.min(), 6)
    half = [p["temperature"] for p in made].count(1.0)
    self.assertBetween(half, 14, 18)
    self.assertEqual(made[:8], tune.points(dict(budget=8, space=SPACE)))

  def test_an_arm_takes_the_keys_that_it_has(self):
    arms = config.resolve(tuned(hard=small.HARD, both=SUM))["arms"]
    made = tune._set(arms, {"temperature": 8.0, "hard.weight": 0.1})
    self.assertEqual(made["both"]["soft"]["temperature"], 8.0)
    self.assertEqual(made["both"]["hard"]["weight"], 0.1)
    self.assertNotIn("temperature", made["hard"])
    self.assertEqual(arms["both"]["soft"]["temperature"], 2.0)  # as it was

  @parameterized.parameters(
    ({"depth": (1, 2)}, "tune.space.depth: no arm has this key"),
    (
      {"train": {"steps": (10, 20)}},
      "tune.space.train.steps: expected one of learn",
    ),
    ({"temperature": ("log", 0.0, 1.0)}, "temperature"),
    ({"temperature": ("log", 4.0, 1.0)}, "temperature"),
    ({"temperature": ()}, "temperature"),
    ({"temperature": "log"}, "temperature"),
    ({"temperature": (-1.0, 2.0)}, "temperature = -1.0: expected a number > 0"),
    ({"train": {"learning_rate": (0.0, 1.0)}}, "learning_rate = 0.0"),
    ({"samples": (4, 8)}, "tune.space has samples: expected keys of num"),
  )
  def test_what_is_refused(self, space, message):
    rank = dict(small.RANK)
    made = tuned(space, 2, hard=small.HARD, soft=small.SOFT, rank=rank)
    with self.assertRaisesRegex(UserError, message):
      check.config_alone(config.resolve(made))

  def test_there_is_no_other_split_to_choose_on(self):
    made = tuned()
    made.tune.split = "test"
    with self.assertRaisesRegex(UserError, "tune.split = 'test': unknown key"):
      config.resolve(made)


class StudyTest(Workdir):
  def test_two_arms_that_are_one_choose_alike(self):
    made = tuned(hard=small.HARD, soft=small.SOFT, twin=dict(small.SOFT))
    results = study.run(made, self.workdir)
    found = results["tune"]
    self.assertEqual(found["choices"]["soft"], found["choices"]["twin"])
    one, other = (results["arms"][k]["metrics"] for k in ("soft", "twin"))
    self.assertEqual(one["accuracy"]["values"], other["accuracy"]["values"])
    for name in made.arms:
      (scores,), (choice,) = found["scores"][name], found["choices"][name]
      self.assertLen(scores, 3)
      self.assertEqual(scores[choice], max(scores))
    self.assertNotEqual(*found["scores"]["hard"][0][:2])

  def test_the_chosen_point_is_what_is_trained(self):
    results = study.run(tuned(), self.workdir)
    found = results["tune"]
    point = found["points"][found["choices"]["soft"][0]]
    alone = options(hard=small.HARD, soft=dict(small.SOFT))
    alone.arms.soft.temperature = point["temperature"]
    alone.arms.soft.train = dict(learning_rate=point["train.learning_rate"])
    alone.teacher.path = os.path.join(self.workdir, "teacher")
    again = study.run(alone, os.path.join(self.parent, "alone"))
    one, other = (r["arms"]["soft"]["metrics"]["nll"] for r in (results, again))
    self.assertEqual(one["values"], other["values"])

  def test_trials_that_were_made_are_kept(self):
    whole = os.path.join(self.parent, "whole")
    study.run(tuned(), whole)
    fit, calls = loop.fit, []

    def stop(*args, **keys):
      calls.append(1)
      if len(calls) == 3:  # the teacher, two trials
        raise KeyboardInterrupt
      return fit(*args, **keys)

    with (
      mock.patch.object(loop, "fit", stop),
      self.assertRaises(KeyboardInterrupt),
    ):
      study.run(tuned(), self.workdir)
    kept = json.loads(pathlib.Path(self.workdir, "trials.json").read_text())
    self.assertLen(kept["scores"]["hard"], 1)
    study.run(tuned(), self.workdir)
    self.assertEqual(comparable(self.workdir), comparable(whole))

  def test_an_arm_that_diverges_loses_that_trial(self):
    space = {"train": {"learning_rate": (1e30, 1e-2)}}
    made = tuned(space, 2, hard=small.HARD)
    made.train.optimizer = "sgd"
    results = study.run(made, self.workdir)
    self.assertEqual(results["tune"]["scores"]["hard"][0][0], -1.0)
    self.assertEqual(results["tune"]["choices"]["hard"], [1])


if __name__ == "__main__":
  absltest.main()
