"""Compressed arms in a study: chains, what is kept, studies that stopped."""

import os
import pathlib
import shutil
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from kd import compress, config, study
from kd.compress import pruning
from kd.data.registry import load
from kd.errors import UserError
from kd.study import check, replicates
from tests.kd import small
from tests.kd.study.phases_test import comparable, options

INT8 = dict(step="quantize", weights="int8", activations="int8")
INT4 = dict(step="quantize", weights="int4")
HALF = dict(step="prune", what="units", recover=10)
TWO = dict(step="prune", what="2:4", recover=10)
TEACHER = dict(objective="teacher")


def of(arm, *chain):
  return dict(arm, compress=chain)


def compressed():
  made = options(
    soft=small.SOFT,
    int8=of(small.SOFT, INT8),
    aware=of(small.SOFT, dict(INT4, aware=True)),
    half=of(small.SOFT, HALF, INT4),
    two=of(small.SOFT, TWO),
    teacher=TEACHER,
    teacher_half=of(TEACHER, dict(step="prune", what="2:4"), HALF, INT8),
    asks=dict(objective="cascade", of="int8", margin=0.1),
  )
  made.baseline = "soft"
  made.train.steps = 20
  made.evaluate.measure = True
  return made


class StudyTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.parent = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.workdir = os.path.join(cls.parent, "study")
    cls.results = study.run(compressed(), cls.workdir)

  def metric(self, arm, name):
    return self.results["arms"][arm]["metrics"][name]["values"]

  def test_bytes_are_those_of_the_folders(self):
    for arm in set(self.results["arms"]) - {"asks"}:
      for seed, size in zip((0, 1), self.metric(arm, "bytes"), strict=True):
        folder = os.path.join(self.workdir, "models", arm, f"seed_{seed}")
        self.assertEqual(compress.size_bytes(folder), size)
    self.assertLess(*(self.metric(a, "bytes")[0] for a in ("int8", "soft")))
    self.assertLess(*(self.metric(a, "bytes")[0] for a in ("half", "aware")))

  def test_smaller_models_have_fewer_numbers(self):
    counts = {a: self.metric(a, "parameters")[0] for a in ("soft", "half")}
    self.assertEqual(counts, {"soft": 65 * 16 + 170, "half": 65 * 8 + 90})
    self.assertEqual(
      self.metric("teacher_half", "parameters")[0], 65 * 16 + 170
    )

  def test_arithmetic_is_that_of_the_program(self):
    said = {a: x.get("arithmetic") for a, x in self.results["arms"].items()}
    self.assertRegex(
      said["int8"], "int8 x int8 -> int32 in 2 of 2 products, run"
    )
    self.assertRegex(said["aware"], "int4 weights made float32 again")
    self.assertRegex(said["soft"], "float32 products, run on")
    self.assertIsNone(said["asks"])
    for name in ("peak_bytes", "latency_seconds", "throughput_seconds"):
      self.assertTrue(all(v > 0 for v in self.metric("int8", name)))
    # One program, so one time.
    times = [self.metric(a, "latency_seconds") for a in ("soft", "two")]
    self.assertEqual(*times)

  def test_zeros_stay_through_recovery(self):
    folder = os.path.join(self.workdir, "models", "two", "seed_1")
    for _, layer in pruning._of(compress.load(folder)):
      kernel = np.asarray(layer.kernel[...])
      fours = kernel[: len(kernel) // 4 * 4].reshape(-1, 4, kernel.shape[1])
      self.assertTrue(np.all((fours != 0).sum(1) == 2))
    self.assertNotEqual(self.metric("two", "nll"), self.metric("soft", "nll"))

  def test_the_report_says_how(self):
    text = pathlib.Path(self.workdir, "report.md").read_text()
    self.assertIn("two of four weights pruned, 10 steps to recover", text)
    self.assertIn("the teacher itself, then two of four weights pruned", text)

  def test_a_study_that_stopped_ends_with_the_same_bits(self):
    other = os.path.join(self.parent, "other")
    shutil.copytree(self.workdir, other)
    models = pathlib.Path(other, "models")
    os.remove(models / "half" / "seed_1" / "model.json")
    shutil.rmtree(models / "teacher_half")
    os.remove(os.path.join(other, "results.json"))
    study.run(compressed(), other)
    # The times are others.
    self.assertEqual(comparable(self.workdir), comparable(other))
    for arm in ("half", "teacher_half"):
      for name in ("model.json", "weights.safetensors"):
        left = pathlib.Path(arm, "seed_1", name)
        self.assertEqual(
          (models / left).read_bytes(),
          pathlib.Path(self.workdir, "models", left).read_bytes(),
        )


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(
    (of(small.SOFT, dict(HALF, what="heads")), "what = 'heads': model 'mlp'"),
    (
      of(small.SOFT, dict(HALF, sparsity=0.99)),
      r"arms.b.compress\[0\].sparsity = 0.99: nothing is left of 16 units",
    ),
    (
      of(TEACHER, dict(HALF, sparsity=0.99)),
      r"arms.b.compress\[0\].sparsity = 0.99: nothing is left of 32 units",
    ),
  )
  def test_what_the_task_decides(self, arm, message):
    settings = config.resolve(options(a=small.SOFT, b=arm))
    groups = check.config_alone(settings)
    (one,) = replicates.of(settings, "")
    with self.assertRaisesRegex(UserError, message):
      check.with_the_task(one, groups, load(settings["task"]))


if __name__ == "__main__":
  absltest.main()
