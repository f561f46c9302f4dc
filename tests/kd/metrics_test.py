"""Tests of kd.metrics against scikit-learn, and numpy where it has none."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sklearn_metrics

from kd import metrics
from tests.kd import oracles


def predictions(seed, classes, rows=400):
  rng = np.random.default_rng(seed)
  z = np.float32(2 * rng.normal(size=(rows, classes)))
  probs = np.exp(oracles.log_softmax(z)).astype(np.float32)
  labels = np.array([rng.choice(classes, p=p / p.sum()) for p in probs])
  return z, probs, labels


def scored(seed, rows, levels):
  """Scores, with ties if there are levels, and their labels."""
  rng = np.random.default_rng(seed)
  positives = rng.random(rows) < 0.4
  scores = rng.normal(size=rows) + positives
  if levels:
    scores = np.round(scores * levels) / levels
  return np.float32(scores), positives


def exact_ece(probs, labels, bins):
  confidence = np.float64(probs).max(-1)
  correct = probs.argmax(-1) == labels
  total = 0.0
  for b in range(bins):
    inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
    if inside.any():
      gap = correct[inside].mean() - confidence[inside].mean()
      total += inside.mean() * abs(gap)
  return total


class ClassificationTest(oracles.TestCase):
  @parameterized.parameters(2, 10, 257)
  def test_against_scikit_learn(self, classes):
    z, probs, labels = predictions(0, classes)
    answers, every = probs.argmax(-1), np.arange(classes)
    oracles.assert_close(
      metrics.accuracy(z, labels),
      sklearn_metrics.accuracy_score(labels, answers),
    )
    wide = np.float64(probs)
    wide /= wide.sum(-1, keepdims=True)
    expected = sklearn_metrics.log_loss(labels, wide, labels=every)
    oracles.assert_close(metrics.nll(probs, labels), expected)
    oracles.assert_close(metrics.nll_from_logits(z, labels), expected)
    expected = sklearn_metrics.brier_score_loss(
      labels, wide, labels=every, scale_by_half=False
    )
    oracles.assert_close(metrics.brier(probs, labels), expected)
    present = np.isin(every, labels)
    recall = sklearn_metrics.recall_score(
      labels, answers, labels=every[present], average=None, zero_division=0
    )
    actual = np.asarray(metrics.recall_per_class(probs, labels, classes))
    oracles.assert_close(actual[present], recall)
    self.assertTrue(np.isnan(actual[~present]).all())

  def test_kl_to_teacher(self):
    z, _, _ = predictions(1, 10)
    t, _, _ = predictions(2, 10)
    expected = oracles.kl(*np.exp(oracles.log_softmax([t, z]))).mean()
    oracles.assert_close(metrics.kl_to_teacher(z, t), expected)
    self.assertEqual(metrics.kl_to_teacher(z, z), 0)

  @parameterized.parameters(np.int32, np.int64, np.uint8)
  def test_agreement(self, dtype):
    z, probs, _ = predictions(3, 10)
    t, _, _ = predictions(4, 10)
    expected = (z.argmax(-1) == t.argmax(-1)).mean()
    oracles.assert_close(metrics.agreement(z, t), expected)
    answers = t.argmax(-1).astype(dtype)
    oracles.assert_close(metrics.agreement(probs, answers), expected)

  def test_zero_probability(self):
    loss = metrics.nll(np.array([[1.0, 0.0]]), np.array([1]))
    oracles.assert_close(loss, -np.log(np.finfo(np.float32).tiny))

  def test_leading_axes_jit_and_dtype(self):
    _, probs, labels = predictions(5, 10)
    shaped = probs.reshape(4, 100, 10), labels.reshape(4, 100)
    for name in ("accuracy", "nll", "brier", "ece", "agreement"):
      function = getattr(metrics, name)
      actual = jax.jit(function)(*map(jnp.array, shaped))
      self.assertEqual(actual.dtype, jnp.float32)
      self.assertEqual(actual.shape, ())
      oracles.assert_close(actual, function(probs, labels), atol=1e-7)

  def test_vmap(self):
    _, probs, labels = predictions(6, 10)
    stacked = probs.reshape(4, 100, 10), labels.reshape(4, 100)
    for function in (
      metrics.ece,
      lambda *a: metrics.ece(*a, 5, True),
      lambda *a: metrics.recall_per_class(*a, 10),
      lambda p, y: metrics.auroc(p[:, 0], y == 0),
      lambda p, y: metrics.fpr_at_tpr(p[:, 0], y == 0),
    ):
      expected = [function(*x) for x in zip(*stacked, strict=True)]
      actual = jax.jit(jax.vmap(function))(*map(jnp.array, stacked))
      oracles.assert_close(actual, np.stack(expected), atol=1e-7)

  @parameterized.parameters("accuracy", "nll", "brier", "ece")
  def test_labels_that_do_not_fit(self, name):
    for labels in (np.zeros((3, 1), int), np.zeros(3)):
      with self.assertRaisesRegex(ValueError, r"accepted: integers \(3,\)"):
        getattr(metrics, name)(np.ones((3, 2)) / 2, labels)


class CalibrationTest(oracles.TestCase):
  @parameterized.product(classes=(2, 10), bins=(1, 7, 15, 50))
  def test_equal_width(self, classes, bins):
    _, probs, labels = predictions(7, classes)
    actual = metrics.ece(probs, labels, bins)
    oracles.assert_close(actual, exact_ece(probs, labels, bins), atol=1e-7)

  def test_bins_are_closed_on_the_right(self):
    # 0.6 belongs to (0.4, 0.6]: all wrong there, all right in (0.6, 0.8].
    probs = np.array([[0.6, 0.4], [0.7, 0.3]])
    actual = metrics.ece(probs, np.array([1, 0]), bins=5)
    oracles.assert_close(actual, 0.5 * 0.6 + 0.5 * 0.3)
    oracles.assert_close(metrics.ece(np.eye(2), np.array([0, 1])), 0.0)

  @parameterized.parameters(1, 4, 15)
  def test_equal_mass(self, bins):
    _, probs, labels = predictions(8, 10)
    confidence = np.float64(probs.max(-1))
    correct = (probs.argmax(-1) == labels).astype(float)
    order = np.argsort(confidence)
    which = np.arange(len(order)) * bins // len(order)
    gap = (correct - confidence)[order]
    expected = sum(abs(gap[which == b].sum()) for b in range(bins))
    actual = metrics.ece(probs, labels, bins, equal_mass=True)
    oracles.assert_close(actual, expected / len(order), atol=1e-7)

  def test_equal_mass_does_not_depend_on_the_order(self):
    rng = np.random.default_rng(9)
    top = rng.choice([0.6, 0.8, 0.9], size=101)
    probs, labels = np.stack([top, 1 - top], -1), rng.integers(0, 2, size=101)
    expected = metrics.ece(probs, labels, 4, equal_mass=True)
    for _ in range(3):
      order = rng.permutation(101)
      actual = metrics.ece(probs[order], labels[order], 4, equal_mass=True)
      oracles.assert_close(actual, expected, atol=1e-7)

  def test_no_bins(self):
    with self.assertRaisesRegex(ValueError, "bins is 0; accepted: 1 or more"):
      metrics.ece(np.ones((1, 2)) / 2, np.zeros(1, int), bins=0)


class DetectionTest(oracles.TestCase):
  @parameterized.product(rows=(20, 1000), levels=(0, 1, 4), seed=(0, 1, 2))
  def test_against_scikit_learn(self, rows, levels, seed):
    scores, positives = scored(seed, rows, levels)
    expected = sklearn_metrics.roc_auc_score(positives, scores)
    oracles.assert_close(metrics.auroc(scores, positives), expected)
    fpr, tpr, _ = sklearn_metrics.roc_curve(
      positives, scores, drop_intermediate=False
    )
    for wanted in (0.0, 0.5, 0.8, 0.95, 1.0):
      actual = metrics.fpr_at_tpr(scores, positives.astype(int), wanted)
      oracles.assert_close(actual, fpr[tpr >= wanted].min())

  def test_bounds(self):
    scores, positives = np.arange(10.0), np.arange(10) >= 5
    self.assertEqual(metrics.auroc(scores, positives), 1)
    self.assertEqual(metrics.auroc(-scores, positives), 0)
    self.assertEqual(metrics.auroc(np.zeros(10), positives), 0.5)
    self.assertEqual(metrics.fpr_at_tpr(scores, positives), 0)
    self.assertEqual(metrics.fpr_at_tpr(np.zeros(10), positives), 1)

  def test_many_examples_keep_their_accuracy(self):
    scores, positives = scored(3, 200_000, 0)
    expected = sklearn_metrics.roc_auc_score(positives, scores)
    oracles.assert_close(metrics.auroc(scores, positives), expected)

  @parameterized.parameters(True, False)
  def test_absent_class(self, which):
    scores, positives = np.arange(4.0), np.full(4, which)
    self.assertTrue(np.isnan(metrics.auroc(scores, positives)))
    self.assertTrue(np.isnan(metrics.fpr_at_tpr(scores, positives)))


if __name__ == "__main__":
  absltest.main()
