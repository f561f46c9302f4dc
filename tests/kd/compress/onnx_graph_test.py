"""ONNX of our models, by onnxruntime; and what is said where there is none."""

import os
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from absl.testing import absltest, parameterized
from flax import nnx

from kd.compress import export, onnx_graph
from tests.kd.compress.export_test import CASES, PIXELS, made


class OnnxTest(parameterized.TestCase):
  def written(self, name, **changes):
    program, inputs, logits = made(name)
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(folder, "model.onnx")
    logits = logits + changes.get("error", 0.0) * np.arange(logits.shape[-1])
    about = onnx_graph.write(program, inputs, logits, self.path)
    return about, inputs, logits

  @parameterized.parameters(*CASES)
  def test_answers_as_the_study_does(self, name):
    before = dict(vars(jnp))
    about, inputs, logits = self.written(name)
    self.assertEqual(about["file"], "model.onnx", about)
    session = onnxruntime.InferenceSession(self.path)
    for count in (1, len(inputs)):
      (found,) = session.run(None, {"inputs": inputs[:count]})
      np.testing.assert_allclose(found, logits[:count], atol=1e-4)
    changed = [k for k, v in before.items() if vars(jnp)[k] is not v]
    self.assertEmpty(changed)

  def test_of_other_answers(self):
    about, *_ = self.written("mlp", error=1e-2)
    self.assertIsNone(about["file"])
    self.assertRegex(about["why"], "probabilities differ by .*more than 0.0001")
    self.assertFalse(os.path.exists(self.path))

  def test_of_poolings_that_do_not_fit(self):
    uneven = ({"name": "cnn", "channels": (2, 2, 2, 2)}, *CASES["cnn"][1:])
    with mock.patch.dict(CASES, cnn=uneven):
      about, *_ = self.written("cnn")
    self.assertEqual(about["file"], "model.onnx", about)

  def test_products_of_whole_numbers(self):
    kernel = np.arange(-4, 8, dtype=np.int8).reshape(4, 3)

    def call(weights, x):
      del weights
      whole = jnp.round(x).astype(jnp.int8)
      y = jax.lax.dot(whole, kernel, preferred_element_type=jnp.int32)
      return 0.01 * y.astype(jnp.float32)

    x = np.float32([[127.6, -128.6, 2.4, 0.0], [1.0, 2.0, 3.0, 4.0]])
    program = export.Program(call, {}, (4,), x.dtype)
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), "x")
    logits = 0.01 * np.clip(np.round(x), -128, 127) @ kernel
    about = onnx_graph.write(program, x, logits, path)
    self.assertEqual(about["file"], "x", about)

  def test_of_what_does_not_convert(self):
    def call(weights, x):
      del weights
      return nnx.max_pool(x, (2, 2), (1, 1))

    x = PIXELS.astype(np.float32)
    program = export.Program(call, {}, x.shape[1:], x.dtype)
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), "x")
    about = onnx_graph.write(program, x, x[:, 1:, 1:], path)
    self.assertIsNone(about["file"])
    self.assertRegex(about["why"], "could not take it: .*maxima over windows")

  def test_of_what_is_not_installed(self):
    with mock.patch.object(onnx_graph, "NEEDED", ("jax2onnx", "no_such_one")):
      about, *_ = self.written("mlp")
    self.assertIsNone(about["file"])
    self.assertIn("no_such_one not installed; pip install", about["why"])


if __name__ == "__main__":
  absltest.main()
