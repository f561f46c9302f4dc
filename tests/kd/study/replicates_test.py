"""Studies over several splits, teachers and draws."""

import json
import os
import pathlib
from unittest import mock

import chex
import numpy as np
from absl.testing import absltest, parameterized

from kd import config, study
from kd.data.registry import load
from kd.errors import UserError
from kd.study import check, phases, replicates
from kd.teachers import model
from kd.train import loop
from tests.kd import small
from tests.kd.study.phases_test import Workdir, comparable, options

VARY = ("split", "teacher", "signal")


def planned(count, vary, **keys):
  made = options(hard=small.HARD)
  made.replicates = dict(count=count, vary=vary)
  made.update(keys)
  return config.resolve(made)


class PlanTest(parameterized.TestCase):
  def test_no_two_replicates_share_a_seed(self):
    settings = planned(3, VARY)
    every = replicates.of(settings, "work")
    for seeds in (
      [seed for one in every for seed in (*one.seeds, *one.trials)],
      [one.settings["task"]["seed"] for one in every],
      [one.settings["teacher"]["seed"] for one in every],
      [one.shift for one in every],
      [one.folder for one in every],
    ):
      self.assertLen(set(seeds), len(seeds))

  def test_the_runs_of_a_replicate_share_a_draw_that_is_varied(self):
    varied, own = (
      replicates.of(planned(2, v), "")[1] for v in (VARY, VARY[:2])
    )
    self.assertLen(set(varied.draws), 1)
    self.assertEqual(own.draws, own.seeds)

  def test_one_is_the_study_itself(self):
    settings = planned(1, ())
    (one,) = replicates.of(settings, "work")
    self.assertEqual(one.folder, "work")
    self.assertEqual(one.settings, settings)
    self.assertEqual(one.draws, [0, 1])

  def test_nested(self):
    settings = planned((2, 3), ("split", "teacher"), seeds=1)
    every = replicates.of(settings, "")
    splits = [one.settings["task"]["seed"] for one in every]
    self.assertEqual(splits, [0, 0, 0, 1, 1, 1])
    teachers = [one.settings["teacher"]["seed"] for one in every]
    self.assertEqual(teachers, [0, 1, 2, 3, 4, 5])
    levels = replicates._levels(settings)
    self.assertEqual([names for names, _ in levels], [("split",), ("teacher",)])
    np.testing.assert_array_equal(levels[0][1], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(levels[1][1], range(6))

  @parameterized.parameters(
    (3, (), "replicates.vary = "),
    (1, ("split",), "replicates.vary = "),
    (2, ("split", "split"), "each name once"),
    ((2, 2), ("split",), "replicates.count = .2, 2."),
    ((10_000, 2), ("split", "teacher"), "20000 replicates, expected a whole n"),
    ((10_000, 10_000, 10_000), VARY, "1000000000000 replicates, expected"),
  )
  def test_what_is_refused(self, count, vary, message):
    with self.assertRaisesRegex(UserError, message):
      replicates.check(planned(count, vary))

  def test_what_cannot_vary_is_refused(self):
    made = options(hard=small.HARD)
    made.replicates = dict(count=2, vary=VARY)
    made.teacher.path = "somewhere/teacher"
    with self.assertRaisesRegex(UserError, "teacher.path is the same always"):
      replicates.check(config.resolve(made))
    made.teacher.path = "answers.jsonl"
    made.replicates.vary = ("split",)
    with self.assertRaisesRegex(UserError, "one draw of one teacher"):
      replicates.check(config.resolve(made))
    made.replicates.vary = VARY
    made.teacher.path = "runs/other/replicates/{replicate}/teacher"
    settings = config.resolve(made)
    replicates.check(settings)
    paths = [r.settings["teacher"]["path"] for r in replicates.of(settings, "")]
    self.assertEqual(paths[1], "runs/other/replicates/001/teacher")
    with self.assertRaisesRegex(UserError, "other/replicates/000/teacher'"):
      check.config_alone(settings)
    made.teacher.path = ""
    made.signal.path = "somewhere"
    with self.assertRaisesRegex(
      UserError, "arms.hard.signal.path .* of one replicate"
    ):
      replicates.check(config.resolve(made))

  def test_memory_is_counted_for_each_split_of_the_data(self):
    vary = ("teacher", "split")
    counts = {2: 2, (2, 3): 6, (3, 2): 6}
    for count, splits in counts.items():
      self.assertEqual(replicates.splits(planned(count, vary)), splits)
    self.assertEqual(replicates.splits(planned((2, 3), vary[::-1])), 2)
    self.assertEqual(replicates.splits(planned(3, ("teacher",))), 1)
    made = planned((10_000, 1), vary[::-1])
    task = load(made["task"])
    with (
      mock.patch.object(os, "sysconf", return_value=2**14),  # 2**28 B
      self.assertRaisesRegex(UserError, "3 splits, 10000 times.*ates.count"),
    ):
      check.with_the_task(replicates.of(made, "")[0], (), task)

  def test_seeds_have_an_end(self):
    with self.assertRaisesRegex(UserError, "seed: with .*is 4294967296, exp"):
      replicates.check(planned(1, (), seed=2**32 - 1))
    with self.assertRaisesRegex(UserError, "signal.seed: with"):
      made = options(hard=small.HARD)
      made.replicates = dict(count=3, vary=VARY)
      made.signal.seed = 2**32 - 3
      replicates.check(config.resolve(made))

  def test_another_name_or_number_is_refused(self):
    with self.assertRaisesRegex(UserError, "replicates.vary.*'split', 'teach"):
      planned(2, ("seed",))
    with self.assertRaisesRegex(UserError, "replicates.count = 0"):
      planned(0, VARY)


class StudyTest(Workdir):
  def options(self):
    made = options(
      hard=small.HARD, soft=dict(small.SOFT, signal=dict(size=200))
    )
    made.replicates = dict(count=2, vary=VARY)
    return made

  def test_a_replicate_is_the_study_with_its_seeds(self):
    seen = []
    programs = loop.programs
    with mock.patch.object(
      loop, "programs", lambda *a: seen.append(programs(*a)) or seen[-1]
    ):
      both = study.run(self.options(), self.workdir)
    self.assertLen(seen, 2)  # one for the teachers, one for the arms
    for made in seen:
      self.assertEqual(made.interval._cache_size(), 1)
    self.assertEqual(both["seeds"], [0, 1, 2, 3])
    (level,) = both["replicates"]["levels"]
    self.assertEqual(level["of"], [0, 0, 1, 1])
    self.assertEqual(both["replicates"]["fixed"], [])
    alone = self.options()
    alone.replicates = dict(count=1, vary=())
    alone.seed, alone.task.seed, alone.signal.seed = 2, 1, 3
    alone.teacher.path = os.path.join(self.workdir, "replicates/001/teacher")
    alone.arms.soft.signal.size = None  # whose draw goes by another seed
    found = study.run(alone, os.path.join(self.parent, "alone"))
    self.assertNotIn("warnings", found)
    for metric, entry in found["arms"]["hard"]["metrics"].items():
      pair = both["arms"]["hard"]["metrics"][metric]["values"][2:]
      np.testing.assert_allclose(
        np.array(pair, float),
        np.array(entry["values"], float),
        rtol=1e-4,  # another program, since the arms share a transfer set here
        err_msg=metric,
      )
    accuracy = both["arms"]["hard"]["metrics"]["accuracy"]["values"]
    self.assertNotEqual(accuracy[:2], accuracy[2:])

  def test_teachers_in_waves_are_those_side_by_side(self):
    made = self.options()
    made.replicates.count = 3
    study.run(made, self.workdir, "teacher")
    made.task.resident_mib = 0.2  # two at a time, and the last one alone
    waves = os.path.join(self.parent, "waves")
    study.run(made, waves, "teacher")
    for r, of in enumerate(replicates.of(config.resolve(made), "")):
      task, place = load(of.settings["task"]), f"replicates/{r:03d}/teacher"
      one, other = (
        model.load(os.path.join(folder, place), task).weights
        for folder in (self.workdir, waves)
      )
      chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-6)

  def teacher(self, folder, number):
    path = f"replicates/{number:03d}/teacher/teacher.json"
    return json.loads(pathlib.Path(folder, path).read_text())

  def test_a_teacher_that_is_there_is_not_written_again(self):
    study.run(self.options(), self.workdir, "teacher")
    places = [
      pathlib.Path(self.workdir, f"replicates/{r:03d}/teacher") for r in (0, 1)
    ]
    before = [self.teacher(self.workdir, r) for r in (0, 1)]
    made = [(p / "teacher.json").stat().st_mtime_ns for p in places]
    os.remove(places[1] / "teacher.json")  # as if killed before it was written
    study.run(self.options(), self.workdir, "teacher")
    self.assertEqual(before, [self.teacher(self.workdir, r) for r in (0, 1)])
    again = [(p / "teacher.json").stat().st_mtime_ns for p in places]
    self.assertEqual(made[0], again[0])
    self.assertLess(made[1], again[1])

  def test_a_teacher_that_diverges_is_named(self):
    made = self.options()
    made.task.resident = False  # one after another
    made.teacher.train.update(optimizer="sgd", learning_rate=1e30)
    with self.assertRaisesRegex(
      UserError, "weights of .*/000/teacher were not"
    ):
      study.run(made, self.workdir)

  def test_replicates_of_one_split_share_it(self):
    made = self.options()
    made.replicates.vary = ("teacher",)
    with mock.patch.object(phases, "load", wraps=load) as loaded:
      study.run(made, self.workdir, "teacher")
    loaded.assert_called_once()

  def test_only_the_report_of_a_config_that_makes_no_sense(self):
    made = self.options()
    made.replicates.count = (2, 2)
    with self.assertRaisesRegex(UserError, "needs .*results.json"):
      study.run(made, self.workdir, "report:")

  def test_stopped_in_a_replicate_it_goes_on_there(self):
    whole = os.path.join(self.parent, "whole")
    study.run(self.options(), whole)
    fit, calls = loop.fit, []

    def stop(*args, **keys):
      calls.append(1)
      if len(calls) == 3:  # the teachers, the first replicate, the second
        raise KeyboardInterrupt
      return fit(*args, **keys)

    with (
      mock.patch.object(loop, "fit", stop),
      self.assertRaises(KeyboardInterrupt),
    ):
      study.run(self.options(), self.workdir)
    folder = pathlib.Path(self.workdir, "replicates")
    self.assertTrue((folder / "000" / "checkpoints" / "40").exists())
    self.assertFalse((folder / "001" / "checkpoints" / "20").exists())
    study.run(self.options(), self.workdir)
    self.assertEqual(comparable(self.workdir), comparable(whole))
    logs = (pathlib.Path(f, "metrics.jsonl") for f in (self.workdir, whole))
    self.assertEqual(*(log.read_bytes() for log in logs))


if __name__ == "__main__":
  absltest.main()
