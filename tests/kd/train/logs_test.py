"""metrics.jsonl over interruptions, and the terminal."""

import io
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
from absl.testing import absltest

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
