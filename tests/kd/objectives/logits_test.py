"""Tests of kd.objectives against float64 oracles from the logits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import divergences, objectives
from tests.kd import oracles

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


def logits(seed, classes, rows=16):
  z = np.random.default_rng(seed).normal(size=(2, rows, classes))
  return np.float32(z)


def labels(seed, classes, rows=16):
  return np.random.default_rng(seed).integers(0, classes, size=rows)


def softmax(z):
  return np.exp(oracles.log_softmax(z))


def exact_dkd(student, teacher, y, alpha, beta, t):
  q, p = softmax(student / t), softmax(teacher / t)
  losses = []
  for n in range(len(y)):
    rest = np.arange(q.shape[-1]) != y[n]
    qt, pt = q[n, y[n]], p[n, y[n]]
    two = oracles.kl(np.array([pt, 1 - pt]), np.array([qt, 1 - qt]))
    qr = softmax(np.float64(student[n, rest]) / t)
    pr = softmax(np.float64(teacher[n, rest]) / t)
    losses.append(t**2 * (alpha * two + beta * oracles.kl(pr, qr)))
  return np.array(losses)


def exact_dist(student, teacher, beta, gamma, t):
  q, p = softmax(student / t), softmax(teacher / t)
  inter = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
  intra = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)]
  return t**2 * (beta * np.array(inter) + gamma * np.mean(intra))


class HardTest(oracles.TestCase):
  @parameterized.product(
    classes=(2, 10, 257), dtype=(np.int32, np.int64, np.uint8, np.int8)
  )
  def test_value(self, classes, dtype):
    z, _ = logits(0, classes)
    y = labels(1, min(classes, 100)).astype(dtype)
    expected = -oracles.log_softmax(z)[np.arange(16), y.astype(int)]
    oracles.assert_close(objectives.hard(jnp.array(z), jnp.array(y)), expected)

  def test_gradient(self):
    z, _ = logits(2, 10)
    y = labels(3, 10)
    actual = jax.grad(lambda z: objectives.hard(z, y).sum())(z)
    expected = softmax(z) - np.eye(10)[y]
    oracles.assert_close(actual, expected, atol=1e-7)

  def test_label_outside_matches_nothing(self):
    z, y = jnp.ones((3, 4)), jnp.array([-1, -100, 4])
    loss, gradient = jax.value_and_grad(lambda z: objectives.hard(z, y).sum())(
      z
    )
    self.assertEqual(loss, 0)
    self.assertEqual(jnp.abs(gradient).max(), 0)

  def test_bfloat16_is_computed_in_float32(self):
    z = jnp.asarray(logits(4, 257)[0], jnp.bfloat16)
    loss = objectives.hard(z, jnp.zeros(16, int))
    self.assertEqual(loss.dtype, jnp.float32)
    expected = -oracles.log_softmax(np.asarray(z, np.float64))[:, 0]
    oracles.assert_close(loss, expected)

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, r"labels have shape \(3,\)"):
      objectives.hard(jnp.zeros((2, 4)), jnp.zeros(3, int))
    with self.assertRaisesRegex(ValueError, "labels are float32"):
      objectives.hard(jnp.zeros((2, 4)), jnp.zeros(2))


class SoftTest(oracles.TestCase):
  @parameterized.product(
    case=(
      ("forward_kl", {}),
      ("reverse_kl", {}),
      ("tvd", {}),
      ("jsd", {"beta": 0.5}),
      ("jsd", {"beta": 0.1}),
      ("skew_kl", {"alpha": 0.1}),
      ("skew_reverse_kl", {"alpha": 0.1}),
      ("alpha_divergence", {"alpha": 0.3}),
    ),
    temperature=TEMPERATURES,
    classes=(2, 10, 257),
  )
  def test_value(self, case, temperature, classes):
    name, parameters = case
    z, t = logits(5, classes)
    phi = divergences.get(name, **parameters)
    q, p = (softmax(np.float64(x) / temperature) for x in (z, t))
    expected = temperature**2 * oracles.divergence(
      name, p, q, *parameters.values()
    )
    actual = objectives.soft(jnp.array(z), jnp.array(t), temperature, phi)
    # Two classes: some of the 16 rows are equal but for 1e-2 of a logit, of
    # which float32 log-probabilities keep 5 digits at T = 20.
    atol = 2e-5 if name == "tvd" else 1e-6
    oracles.assert_close(actual, expected, atol=atol if classes == 2 else 0)

  @parameterized.product(temperature=TEMPERATURES, classes=(2, 10, 257))
  def test_gradient(self, temperature, classes):
    z, t = logits(6, classes)
    actual = jax.grad(lambda z: objectives.soft(z, t, temperature).sum())(z)
    q, p = (softmax(np.float64(x) / temperature) for x in (z, t))
    oracles.assert_close(actual, temperature * (q - p), atol=1e-6)

  @parameterized.parameters(*TEMPERATURES)
  def test_equal_and_shifted_logits(self, temperature):
    z, t = (jnp.array(x) for x in logits(7, 33))
    loss, gradient = jax.value_and_grad(
      lambda a: objectives.soft(a, z, temperature).sum()
    )(z)
    self.assertEqual(loss, 0)
    self.assertEqual(jnp.abs(gradient).max(), 0)
    z, t = jnp.round(z * 64) / 64, jnp.round(t * 64) / 64
    oracles.assert_close(
      objectives.soft(z + 1024.0, t - 512.0, temperature),
      objectives.soft(z, t, temperature),
    )

  def test_vmapped_temperature_equals_each(self):
    z, t = (jnp.array(x) for x in logits(8, 10))
    soft = jax.jit(jax.vmap(objectives.soft, (None, None, 0)))
    actual = soft(z, t, jnp.array(TEMPERATURES))
    expected = [objectives.soft(z, t, x) for x in TEMPERATURES]
    oracles.assert_close(actual, np.stack(expected))

  def test_leading_axes_and_any_dtype(self):
    z, t = (x.reshape(2, 2, 4, 10) for x in logits(9, 10))
    actual = objectives.soft(jnp.array(z), jnp.array(t), jnp.float32(4.0))
    oracles.assert_close(actual.ravel(), objectives.soft(*logits(9, 10), 4.0))
    z = jnp.asarray(z, jnp.bfloat16)
    self.assertEqual(objectives.soft(z, z, 4.0).dtype, jnp.float32)

  def test_no_gradient_to_the_teacher(self):
    z, t = logits(10, 10)
    g = jax.grad(lambda t: objectives.soft(z, t, 4.0).sum())(t)
    self.assertEqual(jnp.abs(g).max(), 0)

  def test_different_vocabularies(self):
    with self.assertRaisesRegex(ValueError, "accepted: the same"):
      objectives.soft(jnp.zeros((2, 152064)), jnp.zeros((2, 151936)), 1.0)


class DkdTest(oracles.TestCase):
  @parameterized.product(temperature=TEMPERATURES, classes=(3, 10, 257))
  def test_value(self, temperature, classes):
    z, t = logits(11, classes)
    y = labels(12, classes)
    actual = objectives.dkd(z, t, y, 1.0, 8.0, temperature)
    expected = exact_dkd(z, t, y, 1.0, 8.0, temperature)
    oracles.assert_close(actual, expected, atol=1e-6)

  def test_gradient(self):
    z, t = logits(13, 5, rows=3)
    y = np.array([0, 4, 2])
    actual = jax.grad(lambda z: objectives.dkd(z, t, y, 0.5, 2.0, 4.0).sum())(z)
    expected = oracles.numerical_gradient(
      lambda z: exact_dkd(z, t, y, 0.5, 2.0, 4.0).sum(), z
    )
    oracles.assert_close(actual, expected, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(*TEMPERATURES)
  def test_splits_the_kl(self, temperature):
    z, t = logits(14, 10)
    y = labels(15, 10)
    rest = 1 - softmax(np.float64(t) / temperature)[np.arange(16), y]
    parts = objectives.dkd(z, t, y, 1.0, 0.0, temperature) + (
      rest * objectives.dkd(z, t, y, 0.0, 1.0, temperature)
    )
    oracles.assert_close(parts, objectives.soft(z, t, temperature), rtol=1e-4)

  def test_padding_label(self):
    z, t = logits(16, 10, rows=2)
    loss = objectives.dkd(z, t, jnp.array([-1, 3]), 1.0, 8.0, 4.0)
    self.assertEqual(loss[0], 0)
    self.assertGreater(loss[1], 0)

  @parameterized.parameters(1, 2)
  def test_too_few_classes(self, classes):
    z = jnp.zeros((3, classes))
    with self.assertRaisesRegex(ValueError, f"dkd: .* {classes} classes; acc"):
      objectives.dkd(z, z, jnp.zeros(3, int), 1.0, 8.0, 4.0)


class DistTest(oracles.TestCase):
  @parameterized.product(temperature=TEMPERATURES, classes=(3, 10, 257))
  def test_value(self, temperature, classes):
    z, t = logits(17, classes)
    actual = objectives.dist(z, t, 1.0, 2.0, temperature)
    expected = exact_dist(np.float64(z), t, 1.0, 2.0, temperature)
    oracles.assert_close(actual, expected)

  def test_gradient(self):
    z, t = logits(18, 4, rows=5)
    actual = jax.grad(lambda z: objectives.dist(z, t, 1.0, 2.0, 4.0).mean())(z)
    expected = oracles.numerical_gradient(
      lambda z: exact_dist(z, t, 1.0, 2.0, 4.0).mean(), z
    )
    oracles.assert_close(actual, expected, rtol=1e-4, atol=1e-5)

  def test_intra_of_two_classes(self):
    z, t = logits(19, 2)
    actual = objectives.dist(z, t, 0.0, 1.0, 4.0)
    expected = exact_dist(np.float64(z), t, 0.0, 1.0, 4.0)
    oracles.assert_close(actual, expected)

  def test_equal_logits(self):
    z, _ = logits(20, 10)
    loss, gradient = jax.value_and_grad(
      lambda a: objectives.dist(a, z, 1.0, 1.0, 4.0).sum()
    )(z)
    oracles.assert_close(loss, 0, atol=1e-5)
    oracles.assert_close(gradient, np.zeros_like(z), atol=1e-5)

  def test_invalid_rows_do_not_matter(self):
    z, t = logits(21, 10)
    where = np.arange(16) < 11
    expected = objectives.dist(z[:11], t[:11], 1.0, 1.0, 4.0)
    for junk in (np.nan, np.inf, 1e4):
      z[11:], t[11:] = junk, junk
      loss, gradient = jax.value_and_grad(
        lambda a, t=t: objectives.dist(a, t, 1.0, 1.0, 4.0, where).sum()
      )(z)
      oracles.assert_close(loss, expected.sum())
      chex.assert_tree_all_finite(gradient)
      oracles.assert_close(gradient[11:], np.zeros((5, 10)))

  def test_batches_are_separate(self):
    z, t = (x.reshape(2, 8, 10) for x in logits(22, 10))
    actual = objectives.dist(jnp.array(z), jnp.array(t), 1.0, 1.0, 1.0)
    for i in range(2):
      oracles.assert_close(
        actual[i], objectives.dist(z[i], t[i], 1.0, 1.0, 1.0)
      )

  def test_needs_a_batch(self):
    with self.assertRaisesRegex(ValueError, r"dist: .*\(4,\); accepted"):
      objectives.dist(jnp.zeros(4), jnp.zeros(4), 1.0, 1.0, 1.0)


class ExtremesTest(oracles.TestCase):
  @parameterized.product(
    name=("hard", "soft", "reverse", "jsd", "dkd", "dist"),
    temperature=(0.5, 20.0),
  )
  def test_finite(self, name, temperature):
    big = 1e4 * np.float32(
      [[1, -1, -1, 1], [-1, 1, 0, 0], [0, 0, 0, 0], [1, -1, 0, -1]]
    )
    y = jnp.array([1, 1, 0, 0])
    losses = {
      "hard": lambda z, t, _: objectives.hard(z, y),
      "soft": objectives.soft,
      "reverse": lambda *a: objectives.soft(*a, divergences.reverse_kl),
      "jsd": lambda *a: objectives.soft(*a, divergences.jsd(0.5)),
      "dkd": lambda z, t, T: objectives.dkd(z, t, y, 1.0, 8.0, T),
      "dist": lambda z, t, T: objectives.dist(z, t, 1.0, 1.0, T),
    }
    both = jax.jit(
      jax.value_and_grad(lambda *a: losses[name](*a).sum(), argnums=(0, 2))
    )
    for student in (big, -big, np.zeros_like(big), big[::-1].copy()):
      found = both(student, big, temperature)
      chex.assert_tree_all_finite(found)

  @parameterized.parameters("soft", "reverse", "jsd", "dkd")
  def test_padded_classes_change_nothing(self, name):
    z, t = logits(23, 10)
    y = labels(24, 10)
    losses = {
      "soft": objectives.soft,
      "reverse": lambda *a: objectives.soft(*a, divergences.reverse_kl),
      "jsd": lambda *a: objectives.soft(*a, divergences.jsd(0.3)),
      "dkd": lambda z, t, T: objectives.dkd(z, t, y, 1.0, 8.0, T),
    }
    expected = losses[name](z, t, 4.0)
    for padding in (-1e30, -np.inf):
      pad = np.full((16, 6), padding, np.float32)
      z2, t2 = (np.concatenate([x, pad], -1) for x in (z, t))
      loss, gradient = jax.value_and_grad(
        lambda a, t2=t2: losses[name](a, t2, 4.0).sum()
      )(z2)
      oracles.assert_close(loss, expected.sum())
      chex.assert_tree_all_finite(gradient)


if __name__ == "__main__":
  absltest.main()
