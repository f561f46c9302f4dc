"""Weights that are rounded: how far from float64, and what runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd import compress, models
from kd.errors import UserError
from kd.models import functional, quantized
from tests.kd.compress import models_here

LARGEST = {"int8": 127, "int4": 7}


def near(kernel):
  """Returns s Q [D, F] in float64, and s for each weight."""
  q, scale = (
    np.asarray(x).astype(np.float64)
    for x in (kernel.weights.qvalue, kernel.weights.scale)
  )
  each = np.repeat(scale, len(q) // len(scale), axis=0)[: kernel.size]
  return each * q[: kernel.size], each


def largest(weights, block):
  """Returns the largest |w| of each weight's column, or block of it."""
  size, d = block or len(weights), len(weights)
  padded = np.pad(np.abs(weights), [(0, -d % size), (0, 0)])
  most = padded.reshape(-1, size, weights.shape[1]).max(1)
  return np.repeat(most, size, axis=0)[:d]


class KernelTest(parameterized.TestCase):
  @parameterized.product(kind=tuple(LARGEST), block=(None, 8, 32))
  def test_against_float64(self, kind, block):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(36, 5)).astype(np.float32)
    x = rng.normal(size=(7, 36)).astype(np.float32)
    kernel = quantized.rounded(
      jnp.asarray(weights), quantized.How(kind, block=block)
    )
    rounded, scale = near(kernel)
    np.testing.assert_allclose(
      scale, largest(weights, block) / (LARGEST[kind] + 0.5), rtol=1e-6
    )
    away = np.abs(rounded - weights) / scale
    self.assertLessEqual(away.max(), 0.5 + 1e-4)  # the nearest
    np.testing.assert_allclose(
      np.asarray(jnp.asarray(x) @ kernel), x @ rounded, atol=1e-4
    )

  def test_whole_numbers_are_multiplied_as_such(self):
    rng = np.random.default_rng(2)
    weights = jnp.asarray(rng.normal(size=(64, 5)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(7, 64)), jnp.float32)
    how = quantized.How("int8", activations="int8_dynamic")
    kernel = quantized.rounded(weights, how)
    rounded, _ = near(kernel)
    half = np.abs(x).max(1, keepdims=True) / 127.5 / 2
    most = half * np.abs(rounded).sum(0) + 1e-4
    away = np.abs(np.asarray(x @ kernel) - np.asarray(x) @ rounded)
    self.assertTrue(np.all(away <= most))
    self.assertGreater(away.max(), 1e-3)
    text = jax.jit(lambda x, k: x @ k).lower(x, kernel).compile().as_text()
    self.assertRegex(text, r"s32\[7,5\]\S* dot\(")
    self.assertNotRegex(text, r"f32\[7,5\]\S* dot\(")

  def test_one_scale_of_inputs_is_that_of_the_examples(self):
    model, x = models_here.make("mlp")
    made = compress.quantize(model, "int8", activations="int8", examples=x)
    scale = made.layers[0].kernel[...].inputs
    self.assertAlmostEqual(float(scale), float(x.max()) / 127, places=6)

  def test_training_sees_the_rounding_and_passes_its_gradient_on(self):
    how = quantized.How("int4")
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(8, 4)))
    rounded, _ = near(quantized.rounded(weights, how))
    np.testing.assert_allclose(
      quantized.pretended(weights, how), rounded, atol=1e-5
    )
    fn = lambda w: (quantized.pretended(w, how) * rounded).sum()
    np.testing.assert_allclose(jax.grad(fn)(weights), rounded, atol=1e-6)


class ModelTest(parameterized.TestCase):
  @parameterized.product(
    kind=tuple(models_here.KINDS),
    how=(
      dict(weights="int8", activations="int8"),
      dict(weights="int8", activations="int8_dynamic"),
      dict(weights="fp8"),
    ),
  )
  def test_answers_stay_near(self, kind, how):
    model, x = models_here.make(kind)
    made = compress.quantize(model, examples=x, **how)
    before, after = model(x).logits, made(x).logits
    away = float(jnp.abs(after - before).max() / jnp.abs(before).max())
    self.assertBetween(away, 1e-6, 0.1)
    options, signature = models_here.KINDS[kind]
    said = quantized.How(how["weights"], how.get("activations", "none"))
    graphdef, _ = functional.define(
      {**options, quantized.OPTION: dataclasses.asdict(said)}, signature
    )
    again = nnx.merge(graphdef, *functional.split(made)[1].values())
    np.testing.assert_array_equal(again(x).logits, after)

  def test_what_was_trained_for_it_answers_alike(self):
    how = dict(weights="int4", aware=True)
    options, signature = models_here.KINDS["mlp"]
    aware = functional.create(
      {**options, quantized.OPTION: how}, signature, jax.random.key(0)
    )
    _, x = models_here.make("mlp")
    made = compress.quantize(aware, "int4")
    np.testing.assert_allclose(aware(x).logits, made(x).logits, atol=1e-5)

  def test_what_is_refused(self):
    model, _ = models_here.make("mlp")
    with self.assertRaisesRegex(UserError, "activations = 'int8': needs exam"):
      compress.quantize(model, "int8", activations="int8")
    bare = models.create(
      "mlp", input_shape=(3,), num_classes=2, hidden=(), rngs=nnx.Rngs(0)
    )
    del bare.head
    with self.assertRaisesRegex(UserError, "has no matrix to round to int4"):
      compress.quantize(bare, "int4")
    with self.assertRaisesRegex(UserError, "expected a model of kd.models"):
      compress.quantize(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "int4")


if __name__ == "__main__":
  absltest.main()
