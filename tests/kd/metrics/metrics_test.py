"""Tests of kd.metrics against scikit-learn, and numpy where it has none."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sklearn_metrics

from kd import metrics, signals
from kd.signals import Dense
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

  def test_total_variation(self):
    z, q, _ = predictions(1, 10)
    t, p, _ = predictions(2, 10)
    expected = np.abs(p - q).sum(-1).mean() / 2
    oracles.assert_close(metrics.total_variation(z, t), expected)
    self.assertEqual(metrics.total_variation(z, z), 0)
    top = signals.top_k(Dense(t), 4)
    ids = np.argsort(-p, -1)[:, :4]
    p, own = (np.take_along_axis(x, ids, -1) for x in (p, q))
    rest = np.abs(p.sum(-1) - own.sum(-1))
    expected = (np.abs(p - own).sum(-1) + rest).mean() / 2
    oracles.assert_close(metrics.total_variation(z, top), expected)
    answer = np.arange(len(z)) % 10
    expected = 1 - np.take_along_axis(q, answer[:, None], -1).mean()
    oracles.assert_close(metrics.total_variation(z, answer), expected)
    none = metrics.total_variation(z, -np.ones_like(answer))
    self.assertTrue(np.isnan(none))

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

  @parameterized.parameters(1, 3, 5, 7, 10, 15, 49, 100)
  def test_an_edge_is_in_the_bin_below_it(self, bins):
    edges = np.float32(np.arange(1, bins + 1) / bins)
    for dtype in (np.float32, np.float64):
      found = metrics.bin_of(edges.astype(dtype), bins)
      np.testing.assert_array_equal(found, np.arange(bins))
    above = metrics.bin_of(np.nextafter(edges[:-1], np.float32(1)), bins)
    np.testing.assert_array_equal(above, np.arange(1, bins))
    self.assertEqual(metrics.bin_of(0.0, bins), 0)

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


class NotFiniteTest(parameterized.TestCase):
  """What is not finite must be seen; NaN scores counted as class 0."""

  LABELS = np.array([0] * 6 + [1, 2, 1, 2])

  def example(self, value, classes):
    scores = np.tile(np.float32([0.2, 0.5, 0.3]), (10, 1))
    scores[3, list(classes)] = value
    return scores

  @parameterized.product(
    value=(np.nan, np.inf), classes=((0,), (1,), (1, 2), (0, 1, 2))
  )
  def test_of_answers_and_probabilities(self, value, classes):
    odd, other = self.example(value, classes), self.example(0.1, (0,))
    found = {
      "accuracy": metrics.accuracy(odd, self.LABELS),
      "agreement": metrics.agreement(odd, other),
      "agreement of a teacher": metrics.agreement(other, odd),
      "agreement with answers": metrics.agreement(odd, self.LABELS),
      "nll": metrics.nll(odd, self.LABELS),
      "nll_from_logits": metrics.nll_from_logits(odd, self.LABELS),
      "brier": metrics.brier(odd, self.LABELS),
      "ece": metrics.ece(odd, self.LABELS),
      "ece of equal mass": metrics.ece(odd, self.LABELS, 5, True),
      "kl": metrics.kl_to_teacher(odd, other),
      "kl of a teacher": metrics.kl_to_teacher(other, odd),
    }
    self.assertEqual([k for k, v in found.items() if np.isfinite(v)], [])
    recall = np.asarray(metrics.recall_per_class(odd, self.LABELS, 3))
    np.testing.assert_array_equal(recall, [np.nan, 1.0, 0.0])

  def test_nothing_is_likeliest(self):
    odd = self.example(-np.inf, (0, 1, 2))
    for value in (
      metrics.accuracy(odd, self.LABELS),
      metrics.agreement(odd, odd),
      metrics.recall_per_class(odd, self.LABELS, 3)[0],
    ):
      self.assertTrue(np.isnan(value))

  def test_a_class_that_is_ruled_out(self):
    odd, other = self.example(-np.inf, (2,)), self.example(0.3, (2,))
    self.assertEqual(metrics.accuracy(odd, self.LABELS), np.float32(0.2))
    self.assertEqual(metrics.agreement(odd, other), 1)
    self.assertEqual(metrics.kl_to_teacher(odd, other), np.inf)
    self.assertTrue(np.isfinite(metrics.kl_to_teacher(other, odd)))
    self.assertEqual(metrics.kl_to_teacher(odd, odd), 0)
    for value in (
      metrics.nll(odd, self.LABELS),
      metrics.brier(odd, self.LABELS),
      metrics.ece(odd, self.LABELS),
    ):  # no probability is -inf
      self.assertFalse(np.isfinite(value))

  @parameterized.parameters(-1, -100, 3)
  def test_a_label_that_is_no_class(self, label):
    scores, labels = self.example(0.1, (0,)), np.array(self.LABELS)
    labels[0] = label
    for function in (
      metrics.accuracy,
      metrics.nll,
      metrics.nll_from_logits,
      metrics.brier,
      metrics.ece,
    ):
      self.assertTrue(np.isnan(function(scores, labels)), function.__name__)
    recall = metrics.recall_per_class(scores, labels, 3)
    np.testing.assert_array_equal(recall, [0, 1, 0])

  def test_answers_that_a_teacher_did_not_give(self):
    student = np.eye(3)[[0, 1, 2, 0]]
    self.assertEqual(metrics.agreement(student, np.array([0, -1, 1, -1])), 0.5)
    none = metrics.agreement(student, np.full(4, -1))
    self.assertTrue(np.isnan(none))

  def test_of_detection(self):
    scores, positives = np.arange(10.0), np.arange(10) >= 5
    for i in (0, 9):
      odd = np.where(np.arange(10) == i, np.nan, scores)
      self.assertTrue(np.isnan(metrics.auroc(odd, positives)))
      self.assertTrue(np.isnan(metrics.fpr_at_tpr(odd, positives)))
    ends = np.where(scores == 0, -np.inf, np.where(scores == 9, np.inf, scores))
    self.assertEqual(metrics.auroc(ends, positives), 1)  # they have an order
    self.assertEqual(metrics.fpr_at_tpr(ends, positives), 0)
    for tpr in (np.nan, -0.1, 1.1):
      self.assertTrue(np.isnan(metrics.fpr_at_tpr(scores, positives, tpr)))


if __name__ == "__main__":
  absltest.main()
