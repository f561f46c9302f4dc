"""ONNX of our models, by onnxruntime; and what is said where there is none."""

import os
import tempfile
from unittest import mock

import jax.numpy as jnp
import numpy as np
import onnxruntime
from absl.testing import absltest, parameterized

from kd.compress import onnx_graph
from tests.kd.compress.export_test import CASES, made


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

  def test_of_what_does_not_convert(self):
    uneven = ({"name": "cnn", "channels": (2, 2, 2, 2)}, *CASES["cnn"][1:])
    with mock.patch.dict(CASES, cnn=uneven):
      about, *_ = self.written("cnn")
    self.assertIsNone(about["file"])
    self.assertRegex(about["why"], "could not take it: .*maxima over windows")

  def test_of_what_is_not_installed(self):
    with mock.patch.object(onnx_graph, "NEEDED", ("jax2onnx", "no_such_one")):
      about, *_ = self.written("mlp")
    self.assertIsNone(about["file"])
    self.assertIn("no_such_one not installed; pip install", about["why"])


if __name__ == "__main__":
  absltest.main()
