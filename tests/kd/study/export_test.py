"""Runs taken out of a study: folders that need jax alone, and their cards."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from kd import config, files, study
from kd.compress import predict
from kd.data import tokenizers
from kd.data.registry import load
from kd.errors import UserError
from kd.models import functional
from kd.study import export, finished
from tests.kd import small
from tests.kd.study.phases_test import call, options

WITH_JAX = ("jax", "jaxlib", "numpy", "ml_dtypes", "scipy", "opt_einsum")
ALONE = """
import runpy, sys
site, *sys.argv = sys.argv[1:]
sys.path.append(site)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def study_says(workdir, made, arm, seed):
  """Returns (inputs of the test split, the study's own probabilities)."""
  run = finished.read(workdir, config.resolve(made), arm, seed)
  forward = functional.forward(run.student, run.task.signature, 1024)
  x = run.task.test.read(np.arange(20))
  return x, np.asarray(jax.nn.softmax(forward(run.weights, x)))


def about(folder):
  return json.loads(pathlib.Path(folder, "model.json").read_text())


class ImageTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.parent = cls.enterClassContext(tempfile.TemporaryDirectory())
    wild = {**small.HARD, "train": {"learning_rate": 1e30, "optimizer": "sgd"}}
    step = {"step": "quantize", "weights": "int4", "block": 8}
    cls.made = options(
      soft=small.SOFT,
      hard=small.HARD,
      wild=wild,
      itself={"objective": "teacher"},
      less={**small.SOFT, "compress": (step,)},
    )
    cls.made.signal.omit_classes = (3,)
    cls.made.arms.soft.baseline = cls.made.baseline = "hard"
    cls.workdir = os.path.join(cls.parent, "study")
    cls.results = study.run(cls.made, cls.workdir, "evaluate")
    cls.folder = study.write_export(
      cls.made, cls.workdir, arm="soft", seed=1, out=f"{cls.parent}/soft"
    )

  def alone(self, inputs):
    """Runs the folder's command where there is what comes with jax alone."""
    site = self.enterContext(tempfile.TemporaryDirectory())
    places = [files.package_folder(name) for name in WITH_JAX]
    places += places[0].parent.glob("*.libs")
    for place in places:
      os.symlink(place, os.path.join(site, place.name))
    paths = [os.path.join(self.parent, x) for x in ("x.npy", "p.npy")]
    np.save(paths[0], inputs)
    script = os.path.join(self.folder, "predict.py")
    done = subprocess.run(
      # Neither the environment's packages nor this folder.
      [sys.executable, "-I", "-S", "-c", ALONE, site, script, *paths],
      capture_output=True,
      text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    return done, paths[1]

  def test_answers_as_the_study_where_jax_alone_is(self):
    inputs, probs = study_says(self.workdir, self.made, "soft", 1)
    done, path = self.alone(inputs)
    self.assertEqual(done.returncode, 0, done.stderr)
    np.testing.assert_allclose(np.load(path), probs, atol=1e-5)

  def test_refuses_other_inputs_in_a_line(self):
    done, _ = self.alone(np.zeros((2, 9, 8, 1), np.uint8))
    self.assertEqual(done.returncode, 2)
    self.assertEqual(
      done.stderr,
      "error: inputs have shape [2, 9, 8, 1], expected [N, 8, 8, 1] with N >= "
      "1\n",
    )

  def test_the_file_beside_it_is_ours(self):
    text = pathlib.Path(self.folder, "predict.py").read_text()
    self.assertEqual(text, pathlib.Path(predict.__file__).read_text())

  def test_says_what_was_checked(self):
    said = about(self.folder)
    self.assertEqual(said["study"]["arm"], "soft")
    self.assertEqual(said["study"]["seed"], 1)
    self.assertEqual(said["classes"], [str(c) for c in range(10)])
    self.assertEqual(said["input"]["raw"]["mode"], "L")
    self.assertLessEqual(
      said["checked"]["largest_difference"]["probabilities"], 1e-5
    )
    self.assertEqual(said["checked"]["compiled_and_run_on"], ["cpu"])
    self.assertLessEqual(said["onnx"]["largest_difference"], 1e-4)
    self.assertTrue(os.path.exists(os.path.join(self.folder, "model.onnx")))

  def test_the_card(self):
    card = pathlib.Path(self.folder, "README.md").read_text()
    entry = self.results["arms"]["soft"]["metrics"]["accuracy"]
    for text in (
      "# small: soft, seed 1",
      "1,797 handwritten digits",
      "without the classes 3",
      "- model: not stated",
      f"| Accuracy (%) | {100 * entry['values'][1]:.1f} |",
      "Not measured: how it answers what is unlike its test split",
      "Classes that its transfer set left out: 3.",
    ):
      self.assertIn(text, card)

  def test_the_teacher_itself(self):
    folder = study.write_export(self.made, self.workdir, arm="itself", seed=1)
    inputs, probs = study_says(self.workdir, self.made, "itself", 1)
    found = predict.Model(folder).probabilities(inputs)
    np.testing.assert_allclose(found, probs, atol=1e-5)
    self.assertEqual(about(folder)["model"]["hidden"], [32])
    card = pathlib.Path(folder, "README.md").read_text()
    self.assertNotIn("Transfer set:", card)

  def test_weights_of_four_bits(self):
    folder = study.write_export(self.made, self.workdir, arm="less", seed=1)
    inputs, probs = study_says(self.workdir, self.made, "less", 1)
    model = predict.Model(folder)
    np.testing.assert_allclose(model.probabilities(inputs), probs, atol=1e-5)
    dtypes = {x.dtype.name for x in model.weights.values()}
    self.assertEqual(dtypes, {"int4", "float32"})
    self.assertTrue(about(folder)["onnx"]["file"], about(folder)["onnx"])
    sizes = [
      os.path.getsize(os.path.join(f, "model.safetensors"))
      for f in (folder, self.folder)
    ]
    self.assertLess(sizes[0], 0.5 * sizes[1])

  def test_the_verdicts_arm_with_licences(self):
    made = config.defaults()
    made.update(self.made.to_dict())
    made.licence.model = "Apache-2.0"
    folder = study.write_export(made, self.workdir)
    again = study.write_export(made, self.workdir)  # in its place
    self.assertEqual(folder, again)
    path = pathlib.Path(folder)
    best = max(
      ("hard", "soft", "itself", "less"),
      key=lambda a: self.results["arms"][a]["metrics"]["accuracy"]["mean"],
    )
    self.assertEqual(path.name, f"{best}-seed_0")
    self.assertIn("- model: Apache-2.0", (path / "README.md").read_text())
    self.assertNotIn(f"{path.name}.tmp", os.listdir(path.parent))

  @parameterized.parameters(
    (dict(arm="nobody"), "--arm=nobody: expected one of hard, itself, less"),
    (dict(arm="soft", seed=7), "--seed=7: expected 0 to 1"),
    (dict(arm="wild"), "--seed=0: diverged at step .*expected another arm"),
    (dict(arm="soft", out="study"), "--out=.*: holds something else"),
  )
  def test_of_no_such_run(self, which, message):
    if "out" in which:
      which = {**which, "out": os.path.join(self.parent, which["out"])}
    with self.assertRaisesRegex(UserError, message):
      study.write_export(self.made, self.workdir, **which)

  def test_of_two_models(self):
    settings = config.resolve(self.made)
    settings["arms"]["both"] = {"objective": "cascade", "of": "soft"}
    with self.assertRaisesRegex(UserError, "--arm=both: two models.* as soft"):
      finished.read(self.workdir, settings, "both")

  def test_of_a_study_that_is_not_whole(self):
    with self.assertRaisesRegex(UserError, "needs .*results.json, which phase"):
      study.write_export(self.made, os.path.join(self.parent, "none"))
    part = os.path.join(self.parent, "part")
    shutil.copytree(
      self.workdir, part, ignore=shutil.ignore_patterns("checkpoints", "export")
    )
    with self.assertRaisesRegex(
      UserError, "of step 40, there is none; --phase"
    ):
      study.write_export(self.made, part, arm="soft")
    other = config.defaults()
    other.update(self.made.to_dict())
    other.train.learning_rate = 0.5
    with self.assertRaisesRegex(UserError, "another study: .*learning_rate"):
      study.write_export(other, self.workdir)

  def test_from_the_command_line(self):
    for flags, message in (
      (["--arm=hard"], "--arm=hard: of --phase=export alone"),
      (
        ["--phase=export", "--workdir=/nowhere"],
        "--phase=export: needs /nowhere/results.json",
      ),
    ):
      code, err = call("--config=configs/digits.py:smoke", *flags)
      self.assertEqual(code, 2, err)
      self.assertIn(f"error: {message}", err)
      self.assertNotIn("Traceback", err)


class TextTest(absltest.TestCase):
  def test_of_hashed_words(self):
    parent = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(parent, "texts.jsonl")
    with open(path, "w") as f:
      for i in range(120):
        word = ("red", "green", "blue")[i % 3]
        line = {"prompt": f"number {i} is {word}", "reference": word}
        f.write(json.dumps(line) + "\n")
    made = options(hard=small.HARD)
    made.seeds = 1
    made.task.update(name="prompts", path=path, text_features=64)
    made.evaluate.metric = "accuracy_best"
    workdir = os.path.join(parent, "study")
    study.run(made, workdir, "evaluate")
    folder = study.write_export(made, workdir)
    said = about(folder)
    self.assertEqual(said["study"]["weights"], "best")
    self.assertEqual(said["classes"], ["blue", "green", "red"])
    raw = said["input"]["raw"]
    self.assertEqual(raw["arguments"]["n_features"], 64)
    pack = load(made.task).test.form.pack
    counts = pack([raw["example"]["text"]])[0]
    expected = np.zeros(64, np.float32)
    for i, count in raw["example"]["counts"].items():
      expected[int(i)] = count
    np.testing.assert_array_equal(counts, expected)
    probs = predict.Model(folder).probabilities(pack(["this one is red"]))
    self.assertEqual(probs.shape, (1, 3))
    self.assertTrue(said["onnx"]["file"], said["onnx"])


class TokensTest(absltest.TestCase):
  def test_of_some_of_a_tokenizers_ids(self):
    parent = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(parent, "texts.jsonl")
    with open(path, "w") as f:
      for i in range(20):
        f.write(json.dumps({"text": f"text number {i} of some"}) + "\n")
    made = options(soft=small.SOFT)
    made.seeds = 1
    made.student = {"name": "decoder", "layers": 1, "width": 8, "heads": 2}
    made.teacher = {**config.defaults().teacher, **made.student}
    made.teacher.train.steps = made.train.steps = 2
    made.train.batch_size = 4
    made.task.update(name="texts", path=path)
    made.task.tokens.update(length=16, coverage=0.9)
    made.evaluate.metric = "nll"
    workdir = os.path.join(parent, "study")
    study.run(made, workdir, "evaluate")
    folder = study.write_export(made, workdir)
    said = about(folder)
    self.assertEqual(said["input"]["shape"], ["b", 16])
    self.assertEqual(said["input"]["range"], [0, 256])
    self.assertTrue(said["onnx"]["file"], said["onnx"])
    run = finished.read(workdir, config.resolve(made), "soft")
    tokenizer = tokenizers.load(folder)
    own = run.task.tokens.tokenizer
    self.assertEqual(tokenizer.fingerprint, own.fingerprint)
    ids = tokenizer.encode(["text number QZ of so"])[0][None, :16]
    self.assertEqual(said["classes"]["last"], "any other id")
    kept = said["classes"]["ids"]
    self.assertEqual(said["output"]["shape"], ["b", 16, len(kept) + 1])
    own = [kept.index(i) if i in kept else len(kept) for i in ids[0]]
    self.assertIn(len(kept), own)
    x = np.stack([[own], np.ones_like(ids), ids], 1).astype(np.int32)
    forward = functional.forward(run.student, run.task.signature, 1)
    z = forward(run.weights, x)
    found = predict.Model(folder).logits(ids)[0]
    np.testing.assert_allclose(found, np.asarray(z), atol=1e-5)
    rounded = {**run.student, "quantized": {"weights": "int8"}}
    with self.assertRaisesRegex(UserError, "rounded to int8, which no such"):
      export.hugging_face(dataclasses.replace(run, student=rounded), parent)


if __name__ == "__main__":
  absltest.main()
