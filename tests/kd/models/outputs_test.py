"""Outputs: bounded logits, padded and smaller vocabularies, a few at a time."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from absl.testing import absltest, parameterized

from kd.models import outputs

B, H, V, PADDED, T = 7, 5, 12, 16, 1.5
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, H)).astype(np.float32)
KERNEL = 2 * RNG.normal(size=(H, PADDED)).astype(np.float32)
BIAS = RNG.normal(size=PADDED).astype(np.float32)
IDS = RNG.integers(0, V, (B, 3))
BOUNDS = ({}, {"soft_cap": 3.0}, {"scale": 0.25}, {"soft_cap": 3.0, "scale": 2})


def made(large=False, **options):
  return outputs.Outputs(
    jnp.asarray(HIDDEN),
    jnp.asarray(KERNEL),
    jnp.asarray(BIAS),
    vocab_size=V,
    large_from=2 if large else 10_000,
    **options,
  )


def exact(soft_cap=None, scale=1.0, kept=None):
  """The logits in float64, of the columns that are no padding."""
  z = scale * (np.float64(HIDDEN) @ KERNEL + BIAS)
  z = z[:, :V] if soft_cap is None else soft_cap * np.tanh(z / soft_cap)[:, :V]
  if kept is None:
    return z
  other = np.setdiff1d(np.arange(V), kept)
  rest = scipy.special.logsumexp(z[:, other], axis=-1, keepdims=True)
  return np.concatenate([z[:, kept], rest], -1)


class OutputsTest(parameterized.TestCase):
  def check(self, found, z):
    """Compares all that is asked of outputs with logits in float64."""
    self.assertEqual(found.num_classes, z.shape[-1])
    near = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(found.logits, z, **near)
    ids = np.minimum(IDS, z.shape[-1] - 1)
    log_p = scipy.special.log_softmax(z / T, axis=-1)
    for value, of in (
      (found.logits_at(jnp.asarray(ids)), z),
      (found.log_probs_at(jnp.asarray(ids), T), log_p),
    ):
      expected = np.take_along_axis(of, ids, -1)
      np.testing.assert_allclose(value, expected, **near)
    np.testing.assert_array_equal(found.answer, z.argmax(-1))

  @parameterized.product(bounds=BOUNDS, large=(False, True))
  def test_bounds_and_padding(self, bounds, large):
    self.check(made(large, **bounds), exact(**bounds))

  @parameterized.product(
    bounds=BOUNDS[::3], large=(False, True), kept=([0, 3, 4, 11], [5])
  )
  def test_a_part_of_the_vocabulary_and_the_rest_as_one(
    self, bounds, large, kept
  ):
    found = made(large, kept=jnp.asarray(kept), **bounds)
    z = exact(kept=kept, **bounds)
    self.check(found, z)
    # The class of all others has their probabilities together.
    p = scipy.special.softmax(exact(**bounds), axis=-1)
    others = np.delete(p, kept, axis=-1).sum(-1)
    own = jax.nn.softmax(found.logits)[:, -1]
    np.testing.assert_allclose(own, others, rtol=1e-5)
    with self.assertRaises(ValueError):
      _ = found.head

  @parameterized.parameters(1, 3, B)
  def test_a_few_rows_at_a_time(self, rows):
    number = jnp.arange(B)
    fn = lambda z, n: {"lse": jax.nn.logsumexp(z), "n": n}
    whole = made().each(fn, number)
    with mock.patch.object(outputs, "AT_A_TIME", rows * PADDED):
      found = made(large=True).each(fn, number)
    np.testing.assert_allclose(found["lse"], whole["lse"], rtol=1e-6)
    np.testing.assert_array_equal(found["n"], number)

  def test_what_the_kernels_make_of_the_head(self):
    found = made(large=True, soft_cap=3.0, scale=2.0)
    self.assertEqual(found.head.vocab_size, V)
    bare = dataclasses.replace(found, bias=None)
    z = 3 * np.tanh(2 * (np.float64(HIDDEN) @ KERNEL) / 3)[:, :V]
    self.check(bare, z)


if __name__ == "__main__":
  absltest.main()
