"""A study from its command to its report: smoke, phases, resume, bad input."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from kd import config, study
from kd.bench import ways
from kd.data.registry import load
from kd.errors import UserError
from kd.study import phases
from kd.teachers import model as teacher
from tests.kd import small
from tests.kd.teachers.ingest_test import cpu_seconds

ROOT = pathlib.Path(__file__).resolve().parents[3]


def command(*flags):
  return [sys.executable, str(ROOT / "main.py"), *map(str, flags)]


def call(*flags):
  """Runs main.py; returns (exit code, its error output)."""
  done = subprocess.run(
    command(*flags), capture_output=True, text=True, check=False, cwd=ROOT
  )
  return done.returncode, done.stderr


def results_of(workdir):
  return json.loads(pathlib.Path(workdir, "results.json").read_text())


def comparable(workdir):
  """Returns the bytes of results.json less where and how long it ran."""
  results = results_of(workdir)
  del results["provenance"]
  for arm in results["arms"].values():
    arm["metrics"] = {
      k: v for k, v in arm["metrics"].items() if not k.endswith("_seconds")
    }
  return json.dumps(results)


def options(**arms):
  """Returns a config of the given arms on the digits, small and quick."""
  made = config.defaults()
  made.study = "small"
  made.baseline = next(iter(arms))
  made.seeds = 2
  made.student = {"name": "mlp", "hidden": (16,), "dropout": 0.0}
  made.teacher.update({"name": "mlp", "hidden": (32,), "dropout": 0.1})
  made.teacher.train.update({"steps": 40, "log_every": 20})
  made.train.update({"steps": 40, "log_every": 10, "checkpoint_every": 20})
  made.arms = arms
  return made


class Workdir(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.parent = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = os.path.join(self.parent, "study")


class PhaseTest(Workdir):
  def test_one_phase_after_another_equals_all_at_once(self):
    made = options(hard=small.HARD, soft=small.SOFT)
    whole = study.run(made, os.path.join(self.parent, "whole"))
    for phase in study.PHASES:
      results = study.run(made, self.workdir, f"{phase}:{phase}")
    del whole["provenance"], results["provenance"]
    self.assertEqual(results, whole)

  def test_up_to_a_phase(self):
    made = options(hard=small.HARD)
    self.assertIsNone(study.run(made, self.workdir, "label"))
    self.assertTrue(os.listdir(os.path.join(self.workdir, "signals")))
    self.assertFalse(os.path.exists(os.path.join(self.workdir, "checkpoints")))

  def test_from_a_phase_needs_those_before(self):
    made = options(hard=small.HARD)
    with self.assertRaisesRegex(UserError, "--phase=train: needs .*teacher"):
      study.run(made, self.workdir, "train:")

  def test_a_filter_of_the_teachers_distributions(self):
    sure = dict(small.HARD, signal=dict(filter="sure"))
    made = options(hard=small.HARD, sure=sure)
    made.filters.sure = (dict(name="confidence", low=0.2),)
    results = study.run(made, self.workdir)
    (entry,) = results["signal"]["funnels"]["sure"]
    self.assertEqual(entry["in"], results["signal"]["examples"][1])
    self.assertEqual(entry["out"], results["signal"]["examples"][0])
    self.assertBetween(entry["out"], 1, entry["in"] - 1)
    scores = [a["metrics"]["nll"]["mean"] for a in results["arms"].values()]
    self.assertNotEqual(*scores)
    made.filters.sure = (dict(name="refusals"),)
    with self.assertRaisesRegex(UserError, "filters.sure.*looks at texts"):
      study.run(made, self.workdir)

  def test_a_teacher_of_an_earlier_study(self):
    first = study.run(options(hard=small.HARD), self.workdir)
    made = options(hard=small.HARD)
    made.teacher.path = os.path.join(self.workdir, "teacher")
    described = teacher._description
    with mock.patch.object(teacher, "_description", wraps=described) as read:
      second = study.run(made, os.path.join(self.parent, "second"))
    self.assertEqual(read.call_count, 2)  # checked, and loaded
    self.assertEqual(first["teacher"], second["teacher"])
    self.assertNotIn("warnings", second)
    self.assertEqual(
      first["arms"]["hard"]["metrics"], second["arms"]["hard"]["metrics"]
    )

  def test_a_teacher_that_may_have_seen_the_test_examples(self):
    study.run(options(hard=small.HARD), self.workdir, "teacher")
    made = options(hard=small.HARD)
    made.teacher.path = os.path.join(self.workdir, "teacher")
    made.task.seed = 1
    results = study.run(made, os.path.join(self.parent, "second"))
    self.assertRegex(results["warnings"][0], "may have seen examples that this")
    page = pathlib.Path(self.parent, "second", "report.md").read_text()
    self.assertIn("may have seen examples that this study tests on", page)
    made.signal.pool = "rest"
    with self.assertRaisesRegex(UserError, "signal.pool = 'rest': the teacher"):
      study.run(made, os.path.join(self.parent, "third"))

  def test_only_the_report(self):
    made = options(hard=small.HARD)
    whole = study.run(made, self.workdir)
    for name in ("signals", "checkpoints", "tensorboard", "teacher"):
      shutil.rmtree(os.path.join(self.workdir, name))
    os.remove(os.path.join(self.workdir, "report.html"))
    with mock.patch.object(phases, "load") as load:
      results = study.run(made, self.workdir, "report:")
    load.assert_not_called()
    self.assertEqual(results, whole)
    self.assertTrue(os.path.exists(os.path.join(self.workdir, "report.html")))

  def test_evaluated_again_in_another_way(self):
    made = options(hard=small.HARD, soft=small.SOFT)
    first = study.run(made, self.workdir)
    steps = pathlib.Path(self.workdir, "metrics.jsonl").read_bytes()
    made.evaluate.update(bins=5, metric="nll", batch_size=100)
    with self.assertRaisesRegex(UserError, "another study: evaluate.metric"):
      study.run(made, self.workdir)
    second = study.run(made, self.workdir, "evaluate:")
    self.assertEqual(second["metric"], "nll")
    self.assertLen(second["arms"]["soft"]["reliability"]["count"], 5)
    scored = [r["arms"]["soft"]["metrics"]["accuracy"] for r in (first, second)]
    scored[0]["versus_baseline"].pop("components")  # the primary metric's
    self.assertEqual(*scored)
    self.assertEqual(
      pathlib.Path(self.workdir, "metrics.jsonl").read_bytes(), steps
    )
    self.assertEqual(study.run(made, self.workdir)["metric"], "nll")
    with self.assertRaisesRegex(UserError, "or --phase=evaluate: to evaluate"):
      study.run(options(hard=small.HARD, soft=small.SOFT), self.workdir)
    made.train.steps = 41
    with self.assertRaisesRegex(UserError, "is at step 40 of 41; expected -"):
      study.run(made, self.workdir, "evaluate:")
    made.train.update(steps=40, learning_rate=0.1)
    with self.assertRaisesRegex(UserError, "another study: .*learning_rate"):
      study.run(made, self.workdir, "evaluate:")

  def test_what_cannot_begin_leaves_the_workdir_alone(self):
    made = options(hard=small.HARD)
    for phase in ("label:", "train:", "evaluate:", "report:"):
      with self.assertRaisesRegex(UserError, f"--phase={phase[:-1]}: needs"):
        study.run(made, self.workdir, phase)
      self.assertFalse(os.path.exists(self.workdir))
    study.run(made, self.workdir, "label")
    before = pathlib.Path(self.workdir, "config.json").read_bytes()
    made.evaluate.bins = 7
    with self.assertRaisesRegex(UserError, "needs .*checkpoints"):
      study.run(made, self.workdir, "evaluate:")
    after = pathlib.Path(self.workdir, "config.json").read_bytes()
    self.assertEqual(before, after)

  def test_the_command_is_that_of_the_whole_study(self):
    flags = ["main.py", "--config=a.py", "--workdir", "x", "--phase=label"]
    flags += ["--compilation_cache=/c", "--config.question=a b"]
    with mock.patch.object(sys, "argv", flags):
      study.run(options(hard=small.HARD), self.workdir, "teacher")
    made = json.loads(pathlib.Path(self.workdir, "config.json").read_text())
    self.assertEqual(
      made["command"], "python main.py --config=a.py '--config.question=a b'"
    )


class DamagedInputTest(Workdir):
  @parameterized.parameters("train", "validation", "test")
  def test_an_input_that_is_not_finite(self, part):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 5)).astype(np.float32)
    path = os.path.join(self.parent, "mine.npz")
    np.savez(path, inputs=inputs, classes=np.arange(300) % 3)
    made = options(hard=small.HARD)
    made.task.update(name="arrays", path=path)
    task = load(made.task)
    split = getattr(task, part)
    row = int(np.flatnonzero((inputs == split.read(np.array(7))).all(1))[0])
    inputs[row, 2] = np.nan
    np.savez(path, inputs=inputs, classes=np.arange(300) % 3)
    with self.assertRaisesRegex(
      UserError, rf"task.{part} = .*: the input of example 7 is not finite"
    ):
      study.run(made, self.workdir)
    self.assertFalse(os.path.exists(self.workdir))

  @parameterized.parameters("", "{}", "[]", "null", '{"model": {}}')
  def test_a_teachers_description(self, text):
    folder = pathlib.Path(self.parent, "teacher")
    folder.mkdir()
    (folder / "teacher.json").write_text(text)
    made = options(hard=small.HARD)
    made.teacher.path = str(folder)
    with self.assertRaisesRegex(UserError, "teacher.json: (no readable|lacks)"):
      study.run(made, self.workdir)

  @parameterized.parameters("", "{}", "[]", '{"config": 3}')
  def test_a_workdirs_config(self, text):
    os.makedirs(self.workdir)
    pathlib.Path(self.workdir, "config.json").write_text(text)
    with self.assertRaisesRegex(UserError, "config.json: (no readable|not a)"):
      study.run(options(hard=small.HARD), self.workdir)

  @parameterized.parameters("teacher", "signals", "checkpoints")
  def test_a_file_where_a_folder_goes(self, name):
    os.makedirs(self.workdir)
    pathlib.Path(self.workdir, name).write_text("")
    with self.assertRaisesRegex(UserError, f"{name}.*: "):
      study.run(options(hard=small.HARD), self.workdir)

  @parameterized.parameters("[]", '{"teacher": "x"}', "3")
  def test_seconds_that_are_none(self, text):
    os.makedirs(self.workdir)
    pathlib.Path(self.workdir, "seconds.json").write_text(text)
    study.run(options(hard=small.HARD), self.workdir, "teacher")

  def test_results_that_cannot_be_written(self):
    os.makedirs(os.path.join(self.workdir, "results.json"))
    with self.assertRaisesRegex(UserError, "results.json: cannot be written"):
      study.run(options(hard=small.HARD), self.workdir)

  def test_more_than_the_memory(self):
    made = options(hard=small.HARD)
    made.seeds = 100_000
    made.student.hidden = (30_000, 30_000)
    with self.assertRaisesRegex(UserError, "takes .* GiB, .*: lower seeds"):
      study.run(made, self.workdir)
    self.assertFalse(os.path.exists(self.workdir))


class SignalTest(Workdir):
  @parameterized.product(
    sent=[(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    phase=["import", "teacher", "train"],
  )
  def test_one_line_says_what_goes_on(self, sent, phase):
    number, expected = sent
    made = [
      "--config=configs/digits.py:smoke",
      "--config.train.steps=1000000",
      "--config.train.checkpoint_every=10",
      "--config.teacher.train.steps=1000000",
    ]
    made = made[:3] if phase == "train" else made
    process = subprocess.Popen(
      command(*made, f"--workdir={self.workdir}"),
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )
    self.addCleanup(process.kill)
    kept = {"teacher": "teacher/checkpoints", "train": "checkpoints"}.get(phase)
    while kept and process.poll() is None:
      folder = pathlib.Path(self.workdir, "replicates", "000", kept)
      if folder.exists() and any(p.name.isdigit() for p in folder.iterdir()):
        break
      time.sleep(0.05)
    else:
      time.sleep(1.0)
    process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    self.assertLess(time.monotonic() - began, 10)
    self.assertEqual(process.returncode, expected, err)
    lines = [x for x in err.splitlines() if x.startswith("stopped by")]
    self.assertLen(lines, 1, err)
    self.assertNotIn("Traceback", err)
    if kept:
      self.assertRegex(
        lines[0],
        rf"{number.name}: phase {phase} of .*; .* goes on from step [1-9]",
      )

  def test_a_reader_of_the_errors_that_is_gone(self):
    process = subprocess.Popen(
      command("--config=configs/digits.py:smoke", f"--workdir={self.workdir}"),
      stderr=subprocess.PIPE,
      cwd=ROOT,
    )
    assert process.stderr is not None
    process.stderr.close()
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    self.assertEqual(process.wait(10), 143)


class DivergenceTest(Workdir):
  def test_a_run_that_diverges_is_marked_and_the_others_go_on(self):
    # In its last update, of which no loss tells.
    wild = {**small.SOFT, "train": {"learning_rate": 1e30, "optimizer": "sgd"}}
    made = options(hard=small.HARD, wild=wild)
    made.train.steps = 1
    study.run(made, self.workdir)
    arms = results_of(self.workdir)["arms"]
    self.assertEqual(set(arms["wild"]["diverged"]), {"0", "1"})
    self.assertEqual(arms["hard"]["diverged"], {})
    accuracy = arms["wild"]["metrics"]["accuracy"]
    self.assertEqual(accuracy["values"], [None, None])
    self.assertIsNone(accuracy["versus_baseline"]["p"])
    page = pathlib.Path(self.workdir, "report.md").read_text()
    self.assertIn("diverged", page)


class BadInputTest(Workdir):
  def refused(self, flag, message):
    """Sees one line, exit code 2 and nothing written; returns CPU seconds."""
    began = cpu_seconds()
    code, err = call(flag, f"--workdir={self.workdir}")
    self.assertEqual(code, 2, err)
    lines = [x for x in err.splitlines() if x.startswith("error: ")]
    self.assertLen(lines, 1, err)
    self.assertNotIn("Traceback", err)
    self.assertIn(message, lines[0])
    self.assertFalse(os.path.exists(self.workdir))
    return cpu_seconds() - began

  @parameterized.parameters(
    ("--config.train.stepz=3", "stepz"),
    ("--config.arms.soft.temperature=-1", "temperature = -1.0"),
    ("--config.arms.soft.temperature=0", "temperature = 0.0"),
    ("--config.arms.soft.divergence=klx", "divergence = 'klx'"),
    ("--config.arms.nobody.objective=hard", "nobody"),
    ("--config.arms.soft.objective=magic", "objective = 'magic'"),
    ("--config.baseline=nobody", "baseline = 'nobody'"),
    ("--config.arms.rank.samples=1000", "samples = 1000"),
    ("--config=configs/nothing.py", "nothing.py"),
    ("--config=configs/digits.py:nonsense", "nonsense"),
    ("--phase=trian", "unknown phase 'trian'"),
    ("--nonsense=3", "nonsense"),
    ("--config.teacher.path=/nowhere", "teacher.path = '/nowhere'"),
    ("--config.signal.jitter=-1", "jitter = -1"),
  )
  def test_what_the_config_alone_tells_is_said_at_once(self, flag, message):
    self.assertLess(self.refused(flag, message), 2.5)

  @parameterized.parameters(
    ("--config.task.name=digitz", "did you mean digits"),
    ("--config.signal.omit_classes=(11,)", "omit_classes = [11]"),
    ("--config.teacher.fraction=1.0", "signal.pool = 'rest'"),
    ("--config.evaluate.metric=f1", "evaluate.metric = 'f1'"),
  )
  def test_what_the_task_tells(self, flag, message):
    self.refused(flag, message)

  def test_jitter_of_what_is_no_image(self):
    words: Any = ways.RandomImages(3, (4096,), 1)
    with self.assertRaisesRegex(UserError, r"signal.jitter = 2: expected 0"):
      teacher.check_jitter("signal.jitter", 2, words)

  def test_a_workdir_that_holds_another_study(self):
    study.run(options(hard=small.HARD), self.workdir, "teacher")
    before = sorted(pathlib.Path(self.workdir).rglob("*"))
    other = options(hard=small.HARD)
    other.train.learning_rate = 0.5
    with self.assertRaisesRegex(
      UserError, r"another study: .*learning_rate = 0.003 there, 0.5 here"
    ):
      study.run(other, self.workdir)
    self.assertEqual(sorted(pathlib.Path(self.workdir).rglob("*")), before)

  def test_a_workdir_of_a_time_before_some_keys(self):
    study.run(options(hard=small.HARD), self.workdir, "teacher")
    path = pathlib.Path(self.workdir, "config.json")
    made = json.loads(path.read_text())
    del made["config"]["cost"], made["config"]["task"]["held_out"]
    del made["config"]["arms"]["hard"]["signal"]["calibrate"]
    path.write_text(json.dumps(made))
    study.run(options(hard=small.HARD), self.workdir, "teacher")
    self.assertIn("cost", json.loads(path.read_text())["config"])
    made["config"]["task"]["held_out"] = [3]
    path.write_text(json.dumps(made))
    with self.assertRaisesRegex(
      UserError, r"another study: task.held_out = \[3\] there"
    ):
      study.run(options(hard=small.HARD), self.workdir, "teacher")

  def test_a_workdir_that_cannot_be_written(self):
    path = pathlib.Path(self.parent, "file")
    path.write_text("")
    with mock.patch.dict(os.environ, HOME=self.parent):
      code, err = call("--workdir=~/file/study")
    self.assertEqual(code, 2, err)
    words = f"workdir = '{path}/study': cannot be written"
    self.assertIn(words, err.splitlines()[-1])

  def test_a_full_disk(self):
    disk = "/dev/full"
    if not os.path.exists(disk):
      self.skipTest("no /dev/full on this machine")
    made = options(hard=small.HARD)
    os.makedirs(self.workdir)
    os.symlink(disk, os.path.join(self.workdir, "config.json.tmp"))
    with self.assertRaisesRegex(UserError, "No space left"):
      study.run(made, self.workdir)

  def test_a_teacher_of_another_task(self):
    study.run(options(hard=small.HARD), self.workdir, "teacher")
    path = pathlib.Path(self.workdir, "teacher", "teacher.json")
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "num_classes": 7}))
    made = options(hard=small.HARD)
    made.teacher.path = str(path.parent)
    with self.assertRaisesRegex(
      UserError, "the teacher has num_classes = 7, .* 'digits' has 10"
    ):
      study.run(made, os.path.join(self.parent, "second"))


if __name__ == "__main__":
  absltest.main()
