"""Sizes and latencies: counted exactly, timed sensibly."""

import json
import tempfile
import time

import jax
from absl.testing import absltest

from kd import config, study
from kd.data.registry import load
from kd.evaluate import cost
from kd.models import functional
from kd.report import tables
from kd.train import arms
from kd.train.step import TrainState
from tests.kd import small


class LatencyTest(absltest.TestCase):
  def test_the_median_of_calls_after_the_first(self):
    calls = []

    def call():
      calls.append(time.perf_counter())
      time.sleep(0.5 if len(calls) == 1 else 0.01)

    seconds = cost.median_seconds(call)
    self.assertGreaterEqual(seconds, 0.01)
    self.assertLess(seconds, 0.4)
    self.assertGreater(len(calls), cost.FEWEST)

  def test_a_model(self):
    task = load(config.defaults().to_dict()["task"])
    params, rest = functional.define(small.TEACHER, task.signature)[1](
      jax.random.key(0)
    )
    weights = {"params": params, "rest": rest}
    self.assertEqual(cost.parameters(weights), 64 * 16 + 16 + 160 + 10)
    found = cost.measure(small.TEACHER, weights, task, 1024)
    self.assertEqual(found["batch"], len(task.test))
    self.assertGreater(found["call"], 0)
    self.assertGreater(found["example"], 0)

  def test_students_that_differ(self):
    wide = {"name": "mlp", "hidden": (32,), "dropout": 0.0}
    resolved = small.settings(
      {
        "hard": small.HARD,
        "soft": small.SOFT,
        "wide": {**small.HARD, "student": wide},
      }
    )
    groups = arms.group(resolved["arms"], 10)
    task = load(resolved["task"])
    states = {}
    for arm, keys in resolved["arms"].items():
      params, rest = functional.define(keys["student"], task.signature)[1](
        jax.random.key(0)
      )
      weights = jax.tree.map(lambda x: x[None], (params, rest))
      states[arm] = TrainState(*weights, *[None] * 5)
    found = cost.distinct(
      groups, states, resolved["student"], list(resolved["arms"])
    )
    self.assertEqual(list(found), ["student", "student of wide"])
    sizes = [cost.parameters(weights) for _, weights in found.values()]
    self.assertEqual(sizes, [64 * 16 + 16 + 170, 64 * 32 + 32 + 330])

  def test_in_a_study_and_its_report(self):
    made = config.defaults()
    made.update(study="small", seeds=2)
    made.student = {"name": "mlp", "hidden": (16,), "dropout": 0.0}
    made.teacher.update({"name": "mlp", "hidden": (32,)})
    made.teacher.train.update({"steps": 20, "log_every": 20})
    made.train.update({"steps": 20, "log_every": 20})
    made.arms = {"hard": small.HARD, "soft": small.SOFT}
    folder = self.enterContext(tempfile.TemporaryDirectory())
    results = study.run(made, folder)
    with open(f"{folder}/results.json") as f:
      self.assertEqual(json.load(f)["models"], results["models"])
    self.assertEqual(
      results["models"],
      {
        "teacher": {"name": "mlp", "parameters": 64 * 32 + 32 + 330},
        "student": {"name": "mlp", "parameters": 64 * 16 + 16 + 170},
      },
    )
    self.assertEqual(
      set(results["provenance"]["latency_seconds"]), {"teacher", "student"}
    )
    _, table = tables.cost_tables(results)
    self.assertEqual(table.rows[1][:3], ["student (`mlp`)", "1,210", "2.0"])


if __name__ == "__main__":
  absltest.main()
