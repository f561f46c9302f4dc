"""Studies whose teacher writes what the arms train on and are judged by."""

import json
import os
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from kd import study
from kd.config import defaults, resolve
from kd.data.registry import load
from kd.errors import UserError
from kd.study import check

WORDS = ("ab", "ba", "cat", "dog", "tree", "up")


def write(folder):
  """Writes prompts, each with the first of its words."""
  rng = np.random.default_rng(0)
  path = os.path.join(folder, "task.jsonl")
  with open(path, "w", encoding="utf-8") as f:
    for i in range(30):
      said = rng.choice(WORDS, 2)
      row = {"prompt": f"{i} {' '.join(said)}:", "completion": str(said[0])}
      f.write(json.dumps(row) + "\n")
  return path


def config(path):
  c = defaults()
  c.study = "written"
  c.seeds = 2
  c.task.name, c.task.path = "texts", path
  c.task.train, c.task.test = "train[:20]", "train[25:]"
  c.task.validation = "train[20:25]"
  c.task.tokens.length, c.task.tokens.pack = 24, False
  small = dict(name="decoder", layers=1, width=8, heads=2)
  for section in (c.teacher, c.student):
    section.update(small)
  c.teacher.train.steps, c.teacher.train.batch_size = 4, 4
  c.teacher.black_box = True
  c.teacher.generate.max_new_tokens = 3
  c.signal.samples, c.signal.labelled = 2, True
  c.train.steps, c.train.log_every, c.train.batch_size = 2, 2, 4
  c.evaluate.batch_size = 8
  c.evaluate.metric = "token_f1"
  c.evaluate.generate.prompts, c.evaluate.generate.shown = 3, 2
  c.evaluate.generate.max_new_tokens = 3
  c.baseline = "truth"
  c.arms.truth = dict(objective="hard", target="truth", signal=dict(samples=0))
  c.arms.words = dict(objective="hard", target="answer")
  c.arms.kd = dict(objective="sequence_kd", several="mean", length="sum")
  c.arms.preferred = dict(
    objective="sequence_preference",
    against="worst",
    reference="initial",
    beta=0.1,
    form="sigmoid",
    length="sum",
  )
  return c


class WrittenTest(absltest.TestCase):
  def test_from_a_teacher_that_writes_to_the_report(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    c = config(write(folder))
    workdir = pathlib.Path(folder, "run")
    results = study.run(c, str(workdir))
    arms = results["arms"]
    for arm in arms.values():
      for metric in (*c.evaluate.generate.metrics, "nll"):
        values = arm["metrics"][metric]["values"]
        self.assertLen([v for v in values if v is not None], 2, metric)
    tokens = {name: arm["teacher_tokens"] for name, arm in arms.items()}
    self.assertEqual(tokens.pop("truth"), 0)
    self.assertLen(set(tokens.values()), 1)
    self.assertLen(results["written"], 2)
    for entry in results["written"]:
      self.assertCountEqual(entry["arms"], arms)
      self.assertIsInstance(entry["teacher"], str)
    self.assertIn("token_f1", results["teacher"])
    page = (workdir / "report.md").read_text()
    for words in ("Words side by side", "Teacher tokens", "Prefill (ms)"):
      self.assertIn(words, page)
    with self.subTest("killed while it wrote"):
      answers = workdir / "teacher" / "answers.jsonl"
      before = answers.read_bytes()
      answers.unlink()
      (part,) = pathlib.Path(f"{answers}.parts").iterdir()
      part.unlink()
      again = study.run(c, str(workdir))
      self.assertEqual(answers.read_bytes(), before)
      same = ("arms", "teacher", "written", "signal")
      self.assertEqual(*({k: r[k] for k in same} for r in (again, results)))

  def refused(self, message, change):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    c = config(write(folder))
    change(c)
    with self.assertRaisesRegex(UserError, message):
      check.config_alone(resolve(c))

  def test_refuses_an_arm_that_has_no_such_signal(self):
    def soft(c):
      c.arms.soft = dict(
        objective="soft", temperature=1.0, divergence="forward_kl"
      )

    def steps(c):
      c.arms.steps = dict(
        objective="step_by_step", rationale_weight=1.0, length="sum"
      )

    def not_boxed(c):
      c.teacher.black_box = False

    def calibrated(c):
      c.signal.calibrate = "uniform"

    def mean_of_any(c):
      c.arms.kd = dict(objective="sequence_kd", several="any", length="mean")

    self.refused("arms.soft.objective = 'soft': a teacher that writes", soft)
    self.refused("arms.steps.objective.*signal.rationale = ''", steps)
    self.refused("arms.kd.objective.*needs a teacher that writes", not_boxed)
    self.refused("arms.kd.length = 'mean': 'any' adds", mean_of_any)
    self.refused("signal.calibrate = 'uniform': a black box", calibrated)

  def test_fields_need_json(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    c = config(write(folder))
    options = {**c.evaluate.generate, "metrics": ("field_accuracy",)}
    task = load(resolve(c)["task"])
    with self.assertRaisesRegex(UserError, "'field_accuracy' compares JSON"):
      check._generation(options, task)


if __name__ == "__main__":
  absltest.main()
