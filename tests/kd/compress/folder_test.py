"""A model in a folder: the same answers, and in how many bytes."""

import os
import tempfile

import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd import compress, models
from kd.compress import packing
from kd.errors import UserError
from kd.models import functional
from tests.kd.compress import models_here


class PackingTest(parameterized.TestCase):
  @parameterized.product(
    dtype=("int4", "float8_e4m3fn", "bfloat16", "int8", "float32"),
    zeros=(0.0, 0.5, 0.97),
    shape=((31, 13), (7,), (2, 3, 5)),
  )
  def test_round_trip(self, dtype, zeros, shape):
    rng = np.random.default_rng(4)
    values = rng.integers(1, 8, shape) * rng.choice([-1, 1], shape)
    values = np.where(rng.random(shape) < zeros, 0, values)
    array = values.astype(np.dtype(packing.KINDS.get(dtype, dtype)))
    packed = packing.pack(array)
    back = packing.unpack(packed)
    self.assertEqual((back.dtype, back.shape), (array.dtype, shape))
    np.testing.assert_array_equal(back.astype(float), values)

  def test_the_smaller_form(self):
    rng = np.random.default_rng(5)
    for zeros, form in ((0.0, "dense"), (0.5, "mask"), (0.99, "csr")):
      array = np.where(rng.random((200, 200)) < zeros, 0, 1.5)
      packed = packing.pack(array.astype(np.float32))
      self.assertEqual(packed.form["form"], form)

  def test_four_bits_are_two_to_a_byte(self):
    array = np.arange(-7, 8).astype(ml_dtypes.int4)
    (stored,) = packing.pack(array[array.astype(int) != 0]).parts.values()
    self.assertLen(stored, 7)


class FolderTest(parameterized.TestCase):
  def saved(self, model):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    compress.save(model, folder)
    return folder, compress.load(folder)

  @parameterized.product(
    kind=tuple(models_here.KINDS),
    step=("plain", "int8", "int4", "fp8", "2:4", "units", "units, int4"),
  )
  def test_answers_are_the_same(self, kind, step):
    model, x = models_here.make(kind)
    for part in step.split(", "):
      if part == "int8":
        keys = dict(activations="int8", examples=x)
        model = compress.quantize(model, part, **keys)
      elif part in ("int4", "fp8"):
        model = compress.quantize(model, part, block=8)
      elif part != "plain":
        model = compress.prune(model, part)
    _, back = self.saved(model)
    np.testing.assert_array_equal(back(x).logits, model(x).logits)
    self.assertEqual(functional.split(back)[0], functional.split(model)[0])

  def test_bytes_of_a_megabyte_of_weights(self):
    model = models.create(
      "mlp",
      input_shape=(512,),
      num_classes=10,
      hidden=(512,),
      rngs=nnx.Rngs(0),
    )
    size = lambda model: compress.size_bytes(self.saved(model)[0])
    whole = size(model)
    self.assertGreater(whole, 2**20)
    self.assertLess(size(compress.quantize(model, "int8")), 0.27 * whole)
    self.assertLess(size(compress.quantize(model, "int4")), 0.16 * whole)
    half = compress.prune(model, "2:4")
    self.assertLess(size(half), 0.55 * whole)
    self.assertLess(size(compress.quantize(half, "int4")), 0.105 * whole)

  def test_what_is_no_model(self):
    model, _ = models_here.make("mlp")
    folder, _ = self.saved(model)
    os.remove(os.path.join(folder, "weights.safetensors"))
    with self.assertRaisesRegex(UserError, "no model that kd.compress.save"):
      compress.load(folder)
    with self.assertRaisesRegex(UserError, "no readable description"):
      compress.load(tempfile.gettempdir())


if __name__ == "__main__":
  absltest.main()
