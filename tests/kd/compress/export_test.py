"""Models as folders of their own: programs, weights, what is refused."""

import json
import os
import pathlib
import tempfile

import jax
import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized

from kd.compress import export, predict
from kd.models import functional
from kd.models.functional import Signature

IMAGES = Signature((8, 8, 1), 10, 1 / 255)
BYTES = Signature((16,), 5, 1.0)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
CASES = {
  "mlp": ({"name": "mlp", "hidden": (4,)}, IMAGES, PIXELS),
  "int4": (
    {"name": "mlp", "hidden": (4,), "quantized": {"weights": "int4"}},
    IMAGES,
    PIXELS,
  ),
  "cnn": ({"name": "cnn", "channels": (2,), "hidden": 0}, IMAGES, PIXELS),
  "byte_cnn": (
    {"name": "byte_cnn", "hidden": 4},
    BYTES,
    RNG.integers(0, 257, (3, 16)).astype(np.float32),
  ),
  "decoder": (
    {"name": "decoder", "layers": 1, "width": 8, "heads": 2},
    Signature((2, 8), 20, None),
    RNG.integers(0, 20, (3, 8)).astype(np.int32),
  ),
}


def made(name):
  """Returns a program of a model at its start, inputs, and their logits."""
  student, signature, inputs = CASES[name]
  _, init = functional.define(student, signature)
  params, rest = init(jax.random.key(0))
  weights = {"params": params, "rest": rest}
  program = export.program(student, signature, weights, inputs.dtype)
  x = inputs
  if name == "decoder":  # which a study gives documents' numbers too
    x = np.stack([inputs, np.ones_like(inputs)], 1)
  forward = functional.forward(student, signature, len(inputs))
  logits = np.asarray(forward(weights, x))
  if name == "decoder":
    logits = logits.reshape(*inputs.shape, -1)
  return program, inputs, logits


class ProgramTest(parameterized.TestCase):
  def written(self, program, bounds=None):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    export.write(program, {"input": {"range": bounds}}, folder)
    return folder

  @parameterized.parameters(*CASES)
  def test_of_any_number_of_inputs(self, name):
    program, inputs, logits = made(name)
    model = predict.Model(self.written(program))
    for count in (1, len(inputs)):
      found = model.logits(inputs[:count])
      np.testing.assert_allclose(found, logits[:count], atol=1e-5)
    probs = model.probabilities(inputs)
    np.testing.assert_allclose(probs, jax.nn.softmax(logits), atol=1e-5)

  def test_inputs_that_are_others(self):
    program, inputs, _ = made("byte_cnn")
    model = predict.Model(self.written(program, [0, 256]))
    for bad, message in (
      (inputs[0], "shape [16], expected [N, 16] with N >= 1"),
      (inputs[:, :8], "shape [3, 8], expected [N, 16]"),
      (inputs[:0], "shape [0, 16], expected [N, 16]"),
      (inputs.astype(np.int32), "are int32, expected float32"),
      (inputs - 257, "expected 0 to 256"),
      (inputs * np.nan, "expected 0 to 256"),
    ):
      with self.assertRaises(ValueError) as caught:
        model.logits(bad)
      self.assertIn(message, str(caught.exception))
      self.assertNotIn("\n", str(caught.exception))

  def test_says_what_it_takes_and_names_no_file_of_ours(self):
    program, *_ = made("mlp")
    folder = self.written(program)
    with open(os.path.join(folder, export.ABOUT)) as f:
      about = json.load(f)
    self.assertEqual(about["input"]["shape"], ["b", 8, 8, 1])
    self.assertEqual(about["input"]["dtype"], "uint8")
    self.assertEqual(about["output"]["shape"], ["b", 10])
    self.assertEqual(about["program"]["platforms"], ["cpu", "tpu", "cuda"])
    with open(os.path.join(folder, export.PROGRAM), "rb") as f:
      self.assertNotIn(b".py", f.read())


class WeightsTest(parameterized.TestCase):
  def path(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    return pathlib.Path(folder, export.WEIGHTS)

  @parameterized.product(
    dtype=["float32", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8",
           "int4", "bool"],
    shape=[(3, 5), (2, 4), (), (0, 3)],
  )  # fmt: skip
  def test_come_back(self, dtype, shape):
    low = 0 if dtype == "bool" else -8
    numbers = RNG.integers(low, 8, shape)
    x = numbers.astype(getattr(ml_dtypes, dtype, dtype))
    path = self.path()
    export.save_weights({"a.b": x, "c": np.ones(2)}, path)
    found = predict.read_weights(path)
    self.assertCountEqual(found, ["a.b", "c"])
    self.assertEqual(found["a.b"].dtype, x.dtype)
    self.assertEqual(found["a.b"].shape, x.shape)
    np.testing.assert_array_equal(found["a.b"], x)

  def test_of_4_bits_take_half_a_byte(self):
    x = np.ones((64, 64), ml_dtypes.int4)
    path = self.path()
    export.save_weights({"x": x}, path)
    self.assertLess(os.path.getsize(path), 64 * 64 / 2 + 256)


if __name__ == "__main__":
  absltest.main()
