"""Equal search on validation."""

import json
import os
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from kd import config, study
from kd.errors import UserError
from kd.study import check, tune, workdir
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
    ({"train": (1.0, 2.0)}, "tune.space.train: no arm has this key"),
    ({"train": {}}, "tune.budget = 2: expected trials for tune.space"),
    ({"baseline": (1.0, 2.0)}, "tune.space.baseline: no arm has this key"),
    ({"overrides": {"train": (1, 2)}}, "overrides.train: no arm has this key"),
    ({"train": {"momentum": (0.0, 0.9)}}, "momentum: no arm has this key"),
    ({"train": {"weight_decay": (0.0, 0.9)}}, "decay: no arm has this key"),
  )
  def test_what_is_refused(self, space, message):
    rank = dict(small.RANK)
    made = tuned(space, 2, hard=small.HARD, soft=small.SOFT, rank=rank)
    with self.assertRaisesRegex(UserError, message):
      check.config_alone(config.resolve(made))

  def test_an_arm_of_another_optimizer_takes_its_numbers(self):
    made = tuned({"train": {"momentum": (0.0, 0.9)}}, 2)
    made.arms.soft.train = dict(optimizer="sgd")
    settings = config.resolve(made)
    check.config_alone(settings)
    arms = tune._set(settings["arms"], {"train.momentum": 0.5})
    self.assertEqual(arms["soft"]["train"]["momentum"], 0.5)
    self.assertEqual(arms["hard"], settings["arms"]["hard"])

  def test_a_sweep_of_what_is_tuned_is_refused(self):
    made = tuned({"temperature": (1.0, 4.0)}, 2)
    made.arms.soft.temperature = config.sweep(1.0, 2.0)
    with self.assertRaisesRegex(
      UserError, "arms.soft.temperature=1. and arms.soft.*=2. differ in noth"
    ):
      check.config_alone(config.resolve(made))
    made.arms.soft.train = dict(learning_rate=config.sweep(1e-3, 1e-2))
    made.arms.soft.temperature = 1.0
    check.config_alone(config.resolve(made))

  @parameterized.parameters(
    "[]",
    '{"scores": {"hard": [0.1]}}',
    '{"scores": {"hard": [0.1], "soft": []}}',
    '{"scores": {"hard": [null], "soft": [0.1]}}',
    '{"scores": {"hard": [1, 1, 1, 1], "soft": [1, 1, 1, 1]}}',
    '{"scores": {"hard": [], "soft": []}, "choice": {"hard": 3, "soft": 0}}',
    '{"scores": {"hard": [], "soft": []}, "choice": 0}',
  )
  def test_a_damaged_file_of_scores_is_refused(self, text):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(folder, workdir.TRIALS)
    pathlib.Path(path).write_text(text)
    with self.assertRaisesRegex(UserError, "not the scores of this study's 3"):
      tune.search(path, config.resolve(tuned()), mock.Mock())

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
    places = [os.path.join(self.workdir, "none"), self.workdir]
    self.assertRegex(
      workdir._stopped(self.workdir, places, "train"),
      "goes on with the trials of replicate 1",
    )
    study.run(tuned(), self.workdir)
    self.assertEqual(comparable(self.workdir), comparable(whole))

  def test_what_chose_by_another_rule_is_not_evaluated_by_this(self):
    made = tuned({"train": {"learning_rate": RATE}}, 1, hard=small.HARD)
    study.run(made, self.workdir)
    before = pathlib.Path(self.workdir, "config.json").read_bytes()
    made.evaluate.metric = "accuracy_best"
    with self.assertRaisesRegex(UserError, "trials.json: the search chose by"):
      study.run(made, self.workdir, "evaluate:")
    after = pathlib.Path(self.workdir, "config.json").read_bytes()
    self.assertEqual(before, after)
    made.evaluate.metric = "nll"
    self.assertEqual(
      study.run(made, self.workdir, "evaluate:")["metric"], "nll"
    )

  def test_an_arm_that_diverges_loses_that_trial(self):
    space = {"train": {"learning_rate": (1e30, 1e-2)}}
    made = tuned(space, 2, hard=small.HARD)
    made.train.optimizer = "sgd"
    results = study.run(made, self.workdir)
    self.assertEqual(results["tune"]["scores"]["hard"][0][0], -1.0)
    self.assertEqual(results["tune"]["choices"]["hard"], [1])


if __name__ == "__main__":
  absltest.main()
