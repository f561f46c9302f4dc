"""What a signal holds, what it lacks, and how answers are drawn."""

import dataclasses
import itertools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from absl.testing import absltest, parameterized

from kd import models, signals
from kd.models.outputs import Outputs

Z = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
MADE = signals.make(Z, None, samples=2, temperature=1.0, seed=0)


class AbsentTest(parameterized.TestCase):
  """What a teacher did not leave is named when it is asked for."""

  @parameterized.parameters(
    (lambda s: s.logits, "logits of all classes"),
    (lambda s: s.head, "logits of all classes"),
    (lambda s: s.top_k(2), "logits"),
    (lambda s: s.top_k_at(2, 1.0), "logits"),
    (lambda s: signals.present(s.rejected, "rejected answers"), "rejected"),
  )
  def test_a_signal_of_labels(self, ask, words):
    with self.assertRaisesRegex(ValueError, f"signal has no {words}"):
      ask(signals.of_labels([1, 2]))

  def test_a_signal_of_the_likeliest_classes(self):
    dense = signals.top_k(MADE.dense, 3)
    top = dataclasses.replace(MADE, dense=dense)
    for ask in (lambda: top.logits, lambda: top.head):
      with self.assertRaisesRegex(ValueError, "no logits of all classes"):
        ask()
    found = dense.ids, dense.log_probs
    chex.assert_trees_all_equal(top.top_k_at(3, 1.0), found)
    ids, log_probs = top.top_k_at(2, 1.0)
    expected, log_p = MADE.top_k_at(2, 1.0)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(log_probs, log_p, rtol=1e-6)

  def test_a_whole_signal(self):
    np.testing.assert_array_equal(MADE.logits, Z)
    np.testing.assert_array_equal(MADE.head.values, Z)
    order = np.argsort(-Z, axis=-1)[:, :4]
    np.testing.assert_array_equal(MADE.top_k(4).ids, order)


class SampleTest(absltest.TestCase):
  def test_frequencies_approach_the_distribution(self):
    logits = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    made = signals.make(logits, None, samples=20_000, temperature=2.0, seed=1)
    expected = np.exp(logits / 2.0)
    expected /= expected.sum(-1, keepdims=True)
    for row in range(3):
      found = np.bincount(made.samples.ids[row], minlength=5) / 20_000
      np.testing.assert_allclose(found, expected[row], atol=0.015)
    picked = np.take_along_axis(
      np.log(expected), np.asarray(made.samples.ids), -1
    )
    np.testing.assert_allclose(made.samples.log_probs, picked, rtol=1e-4)
    self.assertTrue((np.asarray(made.truth.ids) == -1).all())

  def test_a_larger_pool_keeps_the_draws_of_a_smaller_one(self):
    logits = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    options = {"samples": 6, "temperature": 1.0, "seed": 3}
    large = signals.make(logits, None, **options)
    small = signals.make(logits[:4], None, **options)
    np.testing.assert_array_equal(large.samples.ids[:4], small.samples.ids)

  def test_a_part_has_the_draws_of_the_whole(self):
    logits = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    options = {"samples": 6, "temperature": 1.0, "seed": 3}
    whole = signals.make(logits, None, **options)
    part = signals.make(logits[4:], None, numbers=4 + np.arange(5), **options)
    np.testing.assert_array_equal(whole.samples.ids[4:], part.samples.ids)

  def test_a_few_rows_at_a_time(self):
    hidden, kernel = np.float32(Z[:, :3]), np.float32(Z[:3])
    for samples in (0, 2):
      ask = lambda outputs, k=samples: signals.of_teacher(
        outputs, None, samples=k, temperature=1.0, key=jax.random.key(0), k=4
      )
      whole = ask(Outputs(hidden, kernel))
      with mock.patch.object(models.outputs, "AT_A_TIME", 2 * len(kernel.T)):
        found = ask(Outputs(hidden, kernel, large_from=1))
      self.assertEqual(found.samples.ids.shape, (6, samples))
      chex.assert_trees_all_close(found, whole, rtol=1e-5)

  def test_top_k_is_exact(self):
    logits = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    top = signals.top_k(signals.Dense(jnp.asarray(logits)), 3)
    np.testing.assert_array_equal(top.ids, np.argsort(-logits, -1)[:, :3])
    self.assertTrue((np.exp(top.log_probs).sum(-1) < 1).all())

  def test_the_mass_of_the_others_where_logits_are_equal(self):
    inf = np.inf
    rows = [[2, 1, 1, 1, 0], [1, 1, 1, 1, 1], [3, -inf, 0, -inf, -inf]]
    logits = np.array([*rows, [90, 0, -1, -2, 2]], np.float32)
    for t, k in itertools.product((0.5, 1.0), (1, 2, 4, 5)):
      top = signals.top_k(signals.Dense(jnp.asarray(logits)), k, (t,))
      order = np.argsort(-logits, -1, kind="stable")
      np.testing.assert_array_equal(top.ids, order[:, :k])
      p = scipy.special.softmax(np.float64(logits) / t, axis=-1)
      tail = np.take_along_axis(p, order[:, k:], -1).sum(-1)
      np.testing.assert_allclose(top.tail[:, 0], tail, rtol=2e-6, atol=1e-38)


if __name__ == "__main__":
  absltest.main()
