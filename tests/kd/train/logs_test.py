"""metrics.jsonl over interruptions, and the terminal."""

import io
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
from absl.testing import absltest

from kd.errors import UserError
from kd.train import logs as module
from kd.train.logs import Metrics
from kd.train.loop import Log


def log(step, loss=1.0):
  values = {
    "loss": np.full((2, 10), loss),
    "grad_norm": np.ones((2, 10)),
    "validation_accuracy": np.array([0.5, 0.6]),
    "validation_nll": np.array([1.0, np.inf]),
    "diverged": np.zeros(2, np.int32),
  }
  return Log(step, {"hard": values})


class MetricsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(self.workdir, "metrics.jsonl")

  def write(self, resume, *steps):
    metrics = Metrics(self.workdir, [7, 8], 40, "train")
    metrics.resume(resume)
    for step in steps:
      metrics(log(step))
    metrics.close()

  def test_a_line_for_each_arm_seed_and_step(self):
    self.write(0, 10, 20)
    lines = [json.loads(x) for x in self.path.read_text().splitlines()]
    self.assertEqual(
      [(x["step"], x["seed"]) for x in lines],
      [(10, 7), (10, 8), (20, 7), (20, 8)],
    )
    self.assertEqual(lines[0]["loss"], 1.0)
    self.assertIsNone(lines[1]["validation_nll"])
    self.assertTrue(os.listdir(os.path.join(self.workdir, "tensorboard")))

  def test_resuming_drops_what_came_after_and_a_cut_line(self):
    self.write(0, 10, 20, 30, 40)
    whole = self.path.read_bytes()
    self.path.write_bytes(whole[:-20])
    self.write(20, 30, 40)
    self.assertEqual(self.path.read_bytes(), whole)

  def lines(self):
    return self.path.read_bytes().splitlines(keepends=True)

  def test_lines_that_are_no_metrics(self):
    self.write(0, 10, 20)
    whole = self.lines()
    for bad in (b"{\n", b"[1]\n", b"\xff\xfe\n", b'{"step": "a"}\n', b"\n"):
      with self.subTest(bad):
        self.path.write_bytes(b"".join([whole[0], bad, *whole[2:]]))
        with self.assertLogs(level="WARNING") as logs:
          self.write(20, 30)
        self.assertLen(logs.output, 1)
        self.assertIn("gaps", logs.output[0])
        self.assertIn("no metrics in line 2", logs.output[0])
        self.assertEqual(self.lines()[:3], [whole[0], *whole[2:]])
        self.assertLen(self.lines(), 5)

  def test_a_file_that_is_cut_or_gone(self):
    self.write(0, 10, 20, 30, 40)
    whole = self.path.read_bytes()
    for left in (whole[:200], whole[:-1], whole[:-20], None):
      with self.subTest(left):
        self.path.write_bytes(left or b"")
        if left is None:
          self.path.unlink()
        with self.assertLogs(level="WARNING") as logs:
          self.write(40)
        self.assertLen(logs.output, 1)
        self.assertIn("lacks some of what was logged", logs.output[0])

  def test_what_is_whole_is_not_warned_of(self):
    self.write(0, 10, 20)
    self.path.write_bytes(self.path.read_bytes() + b'{"arm": "har')
    with self.assertNoLogs(level="WARNING"):
      self.write(20, 30)
      self.write(0, 10)

  def test_a_file_that_cannot_be_written(self):
    self.path.mkdir()
    with self.assertRaisesRegex(UserError, "metrics.jsonl: IsADirectoryError"):
      self.write(0, 10)

  def test_names_are_no_paths(self):
    parent = pathlib.Path(self.workdir, "tensorboard")
    metrics = Metrics(self.workdir, [7, 8], 40, "train")
    metrics.resume(0)
    (values,) = log(10).arms.values()
    metrics(Log(10, {"/tmp/arm": values, "a/../../b": values, "a.T=2": values}))
    metrics.close()
    names = ["%2Ftmp%2Farm", "a%2F..%2F..%2Fb", "a.T=2"]
    self.assertCountEqual(os.listdir(parent), names)

  def test_compilation_is_not_in_the_rate(self):
    clock = absltest.mock.Mock(monotonic=iter([0.0, 90.0, 91.0]).__next__)
    with (
      absltest.mock.patch.object(module, "time", clock),
      self.assertLogs(level="INFO") as logs,
    ):
      progress = module.Progress("train", 40)
      progress.start(0)
      progress.update(log(20))
      progress.update(log(40))
    self.assertIn("step 20 of 40, after 90 s with compil", logs.output[0])
    self.assertIn("step 40 of 40, 20.0 steps/s, 0 s left", logs.output[1])

  def test_a_bar_with_rate_and_time_left_on_a_terminal(self):
    class Terminal(io.StringIO):
      def isatty(self):
        return True

    screen = Terminal()
    self.enterContext(absltest.mock.patch.object(sys, "stderr", screen))
    self.write(0, 10, 20, 30, 40)
    self.assertIn("train: 100%", screen.getvalue())
    self.assertIn("step/s", screen.getvalue())

  def test_plain_lines_elsewhere(self):
    with self.assertLogs(level="INFO") as logs:
      self.write(0, 20, 40)
    self.assertIn("step 40 of 40", logs.output[-1])
    self.assertIn("steps/s", logs.output[-1])


if __name__ == "__main__":
  absltest.main()
