"""Magika in Flax: the published network, number by number."""

import importlib.util
import pathlib

import jax
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd import models
from kd.datasets import file_types
from kd.errors import UserError
from kd.models import magika
from kd.models.magika import Magika
from kd.models.outputs import Outputs

INSTALLED = all(map(importlib.util.find_spec, ("magika", "onnx")))
HERE = pathlib.Path(__file__).resolve().parents[3]


def make(**options):
  options = {"input_shape": (2048,), "num_classes": 214} | options
  return models.create("magika", rngs=nnx.Rngs(0), **options)


def real_files():
  """Returns what is seen of texts and libraries, uint16 [N, 2048]."""
  texts = sorted(HERE.glob("kd/*.py"))[:12] + sorted(HERE.glob("*.*"))[:12]
  binary = sorted(pathlib.Path(np.__file__).parent.rglob("*.so"))[:4]
  files = [p for p in [*texts, *binary] if p.is_file()]
  noise = np.random.default_rng(0).integers(0, 256, (3, 2048), np.uint16)
  return np.stack([*map(file_types.read, files), *noise])


def published(seen):
  """Returns our probabilities with the published weights."""
  model = make()
  model.load_published()
  graphdef, weights = nnx.split(model)
  logits = jax.jit(lambda w, x: nnx.merge(graphdef, w)(x).logits)(
    weights, seen.astype(np.float32)
  )
  return np.asarray(jax.nn.softmax(logits))


def oracle(seen):
  """Returns the network's probabilities in float64, from the ONNX arrays."""
  arrays = magika._initializers(magika.folder() / magika.MODEL / "model.onnx")
  a = {
    path: arrays[name].reshape(shape).astype(np.float64)
    for path, (name, shape) in magika.ARRAYS.items()
  }

  def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  def norm(x, axis, name, shape):
    x = x - x.mean(axis, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis, keepdims=True) + 1e-6)
    return x * a[name, "scale"].reshape(shape) + a[name, "bias"].reshape(shape)

  e = gelu(a["embed", "embedding"] + a["embed_bias",])[seen.astype(int)]
  u = norm(e.reshape(-1, 512, 256), 1, "norm", (512, 1))
  v = sum(u[:, i : i + 508] @ a["conv", "kernel"][:, :, i].T for i in range(5))
  h = norm(gelu(v + a["conv", "bias"]).max(1), 1, "norm_1", (512,))
  z = h @ a["head", "kernel"] + a["head", "bias"]
  z = np.exp(z - z.max(-1, keepdims=True))
  return z / z.sum(-1, keepdims=True)


class MagikaTest(parameterized.TestCase):
  def test_outputs_and_size(self):
    model = make(num_classes=7)
    outputs = model(np.full((2, 2048), 256.0, np.float32))
    self.assertIsInstance(outputs, Outputs)
    self.assertEqual(outputs.hidden.shape, (2, 512))
    self.assertEqual(outputs.logits.shape, (2, 7))
    self.assertEqual(models.num_params(make()), 784_214)

  def test_other_inputs(self):
    with self.assertRaisesRegex(UserError, r"2048 bytes .* \(28, 28, 1\)"):
      make(input_shape=(28, 28, 1))

  def test_a_package_that_is_missing(self):
    with (
      absltest.mock.patch.object(
        importlib.util, "find_spec", return_value=None
      ),
      self.assertRaisesRegex(UserError, "pip install .*requirements-data.txt"),
    ):
      magika.content_types()

  def test_other_weights(self):
    if not INSTALLED:
      self.skipTest(magika.INSTALL)
    with (
      absltest.mock.patch.object(magika, "_initializers", return_value={}),
      self.assertRaisesRegex(UserError, "no weights .* expected magika 1.0.3"),
    ):
      make().load_published()

  def test_agrees_with_onnxruntime(self):
    if not INSTALLED or not importlib.util.find_spec("onnxruntime"):
      self.skipTest(magika.INSTALL)
    import onnxruntime

    session = onnxruntime.InferenceSession(
      str(magika.folder() / magika.MODEL / "model.onnx")
    )
    seen = real_files()
    (expected,) = session.run(None, {"bytes": seen.astype(np.int32)})
    ours = published(seen)
    self.assertGreater(len(set(expected.argmax(-1))), 4)
    np.testing.assert_array_equal(ours.argmax(-1), expected.argmax(-1))
    full = (seen < file_types.PADDING).all(-1)
    self.assertGreater(full.sum(), 10)
    np.testing.assert_allclose(ours[full], expected[full], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-2)

  def test_agrees_with_float64_where_onnxruntime_cancels(self):
    if not INSTALLED:
      self.skipTest(magika.INSTALL)
    short = b"import os\nimport sys\n", b"%PDF-1.5 " + bytes(range(200))
    seen = np.stack([file_types.window(x, x) for x in (*short, b"x" * 900)])
    np.testing.assert_allclose(published(seen), oracle(seen), rtol=0, atol=1e-5)

  def test_content_types(self):
    if not INSTALLED:
      self.skipTest(magika.INSTALL)
    types = Magika.published_classes()
    self.assertLen(types, 214)
    self.assertEqual((types[0], types[-1]), ("3gp", "zlibstream"))


if __name__ == "__main__":
  absltest.main()
