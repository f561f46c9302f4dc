"""The student over bytes: what it sees, its size, its options."""

import jax
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd import models
from kd.errors import UserError

BYTES = np.random.default_rng(0).integers(0, 257, (3, 64)).astype(np.float32)


def make(num_classes=5, shape=(64,), **options):
  return models.create(
    "byte_cnn",
    num_classes=num_classes,
    input_shape=shape,
    rngs=nnx.Rngs(0),
    **options,
  )


class ByteCNNTest(parameterized.TestCase):
  @parameterized.product(channels=(0, 16), first=(0, 4))
  def test_features_and_head(self, channels, first):
    outputs = make(channels=channels, first=first, hidden=11)(BYTES)
    self.assertEqual(outputs.hidden.shape, (3, 11))
    np.testing.assert_allclose(
      outputs.logits, outputs.hidden @ outputs.kernel + outputs.bias, rtol=1e-6
    )

  def test_a_tenth_of_the_teacher(self):
    student = make(214, (2048,))
    self.assertLess(models.num_params(student), 784_214 / 10)

  def test_without_patterns_and_signature_only_counts_matter(self):
    shuffled = np.random.default_rng(1).permuted(BYTES, axis=1)
    counts = make(channels=0, first=0)
    np.testing.assert_allclose(
      counts(BYTES).logits, counts(shuffled).logits, rtol=1e-5, atol=1e-5
    )
    for options in ({"first": 0}, {"channels": 0}):
      model = make(**options)
      gap = np.abs(model(BYTES).logits - model(shuffled).logits).max()
      self.assertGreater(gap, 1e-3)

  def test_patterns_are_found_wherever_they_are(self):
    model = make(first=0)
    moved = np.roll(BYTES, 12, axis=1)  # by whole blocks
    np.testing.assert_allclose(
      model(BYTES).logits, model(moved).logits, rtol=1e-5, atol=1e-5
    )

  def test_dropout_is_drawn_in_training_alone(self):
    model = make()
    a, b = (np.asarray(model(BYTES).logits) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    drawn = [model(BYTES, nnx.Rngs(dropout=s)).logits for s in (1, 2)]
    self.assertGreater(np.abs(drawn[0] - drawn[1]).max(), 1e-3)

  def test_gradients_reach_every_weight(self):
    graphdef, params, rest = nnx.split(make(), nnx.Param, ...)
    grads = jax.grad(
      lambda p: (nnx.merge(graphdef, p, rest)(BYTES).logits ** 2).sum()
    )(params)
    for path, grad in jax.tree.leaves_with_path(grads):
      self.assertGreater(np.abs(grad).max(), 0, jax.tree_util.keystr(path))

  @parameterized.parameters(
    ({"shape": (28, 28, 1)},), ({"block": 5},), ({"first": 65},)
  )
  def test_inputs_that_do_not_fit(self, options):
    with self.assertRaisesRegex(UserError, "name = 'byte_cnn'.*expected"):
      make(**options)


if __name__ == "__main__":
  absltest.main()
