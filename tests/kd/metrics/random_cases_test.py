"""Metrics on a thousand random cases, ties and single classes among them,
against scikit-learn's definitions written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from kd import metrics
from tests.kd import oracles

CASES, V = 250, 4  # of each size
SIZES = (1, 2, 9, 40)
BINS = 7


def draw(n):
  """Returns probabilities [C, N, V], labels [C, N] and positives [C, N]: of
  every four cases one has ties, and one positives of one class alone."""
  rng = np.random.default_rng(n)
  z = 3 * rng.normal(size=(CASES, n, V))
  z[1::4] = np.round(z[1::4] / 2)
  probs = np.exp(oracles.log_softmax(z)).astype(np.float32)
  labels = np.where(
    rng.random((CASES, n)) < 0.6,
    probs.argmax(-1),
    rng.integers(0, V, (CASES, n)),
  )
  labels[2::4] = probs[2::4].argmax(-1)  # all right
  labels[3::8] = (probs[3::8].argmax(-1) + 1) % V  # all wrong
  positives = rng.random((CASES, n)) < 0.5
  positives[3::4] = (np.arange(len(positives[3::4])) % 2 == 0)[:, None]
  return probs, labels, positives


def auroc(s, y):
  """P(a positive is above a negative) + P(equal) / 2; NaN of one class."""
  if y.all() or not y.any():
    return np.nan
  gap = s[y][:, None] - s[~y][None]
  return np.mean((gap > 0) + 0.5 * (gap == 0))


def fpr(s, y, wanted=0.95):
  """The least FPR of all thresholds with such a TPR; NaN of one class."""
  if y.all() or not y.any():
    return np.nan
  above = s[None] >= s[:, None]  # at each threshold
  reached = above[:, y].mean(1) >= wanted
  return above[:, ~y].mean(1)[reached].min()


def ece(c, right, which):
  return sum(
    np.abs(np.sum((right - c)[which == b])) for b in range(BINS)
  ) / len(c)


def shared(c, right):
  """Each example's expected rightness among those of its confidence."""
  same = c[:, None] == c[None]
  return (same * right[None]).sum(1) / same.sum(1)


def curve(c, right):
  order = np.argsort(-c, kind="stable")
  return np.cumsum(shared(c, right)[order]) / np.arange(1, len(c) + 1)


class RandomCasesTest(oracles.TestCase):
  @parameterized.parameters(*SIZES)
  def test_equal_their_definitions(self, n):
    probs, labels, positives = draw(n)

    @jax.jit
    @jax.vmap
    def found(p, y, positive):
      confidence = jnp.max(p, -1)
      right = (jnp.argmax(p, -1) == y).astype(jnp.float32)
      return {
        "ece": metrics.ece(p, y, BINS),
        "equal mass": metrics.ece(p, y, BINS, equal_mass=True),
        "brier": metrics.brier(p, y),
        "auroc": metrics.auroc(confidence, positive),
        "fpr95": metrics.fpr_at_tpr(confidence, positive),
        "curve": metrics.selective_accuracy(confidence, right),
        "aurc": metrics.aurc(confidence, right),
        "wrong": metrics.wrong_confident(p, y),
      }

    def expected(p, y, positive):
      c, right = p.max(-1), (p.argmax(-1) == y).astype(float)
      # Bins of equal width are told in float32, as the confidences are.
      width = np.searchsorted(np.float32(np.arange(1, BINS) / BINS), c)
      c = np.float64(c)
      order = np.argsort(c, kind="stable")
      return {
        "ece": ece(c, right, width),
        "equal mass": ece(
          c[order], shared(c, right)[order], np.arange(n) * BINS // n
        ),
        "brier": np.mean(np.sum((np.float64(p) - np.eye(V)[y]) ** 2, -1)),
        "auroc": auroc(c, positive),
        "fpr95": fpr(c, positive),
        "curve": curve(c, right),
        "aurc": np.mean(1 - curve(c, right)),
        "wrong": np.mean((c > np.float32(0.9)) & (right == 0)),
      }

    own = found(probs, labels, positives)
    wanted = [
      expected(*case) for case in zip(probs, labels, positives, strict=True)
    ]
    for name, values in own.items():
      exact = np.stack([w[name] for w in wanted])
      with self.subTest(name):
        no_number = np.isnan(exact)
        np.testing.assert_array_equal(np.isnan(values), no_number)
        oracles.assert_close(
          np.asarray(values)[~no_number], exact[~no_number], 0, 1e-6
        )
    with self.subTest("of some of the examples"):
      self.assert_same_where(probs, labels, positives, own)
    single = positives.all(1) | ~positives.any(1)
    self.assertGreater(single.sum(), CASES // 4 - 1)
    np.testing.assert_array_equal(np.isnan(own["auroc"]), single)
    if n == 40:
      ties = [len(np.unique(p.max(-1))) < n for p in probs]
      self.assertGreater(sum(ties), CASES // 5)

  def assert_same_where(self, probs, labels, positives, own):
    """Scattered among others that do not count, they give the same."""
    n, size = labels.shape[1], 64
    rng = np.random.default_rng(n)
    at = np.sort(rng.permutation(size)[:n])
    counts = np.isin(np.arange(size), at)

    def spread(x, other):
      whole = np.full((CASES, size), other, np.float32)
      whole[:, at] = x
      return whole

    confidence = spread(probs.max(-1), np.nan)
    right = spread(probs.argmax(-1) == labels, np.nan)
    positive = spread(positives, 1)

    @jax.jit
    @jax.vmap
    def found(c, r, y):
      return {
        "ece": metrics.calibration_error(c, r, BINS, where=counts),
        "equal mass": metrics.calibration_error(c, r, BINS, True, counts),
        "auroc": metrics.auroc(c, y, counts),
        "fpr95": metrics.fpr_at_tpr(c, y, where=counts),
        "aurc": metrics.aurc(c, r, counts),
        "curve": metrics.selective_accuracy(c, r, counts)[:n],
      }

    for name, values in found(confidence, right, positive).items():
      np.testing.assert_allclose(values, own[name], atol=1e-6, err_msg=name)


class TemperatureTest(oracles.TestCase):
  def test_is_the_least_loss(self):
    rng = np.random.default_rng(0)
    z = np.float32(3 * rng.normal(size=(50, 60, V)))
    labels = np.where(
      rng.random((50, 60)) < 0.7, z.argmax(-1), rng.integers(0, V, (50, 60))
    )
    own = np.float64(jax.vmap(metrics.fit_temperature)(z, labels))

    def loss(t):
      at = oracles.log_softmax(np.float64(z) / t[:, None, None])
      own = np.take_along_axis(at, labels[..., None], -1)[..., 0]
      sure = np.exp(oracles.log_softmax(z))
      return -own.sum(1) - np.sum(sure * at, -1).mean(1)

    for factor in (0.99, 1.01):
      self.assertTrue((loss(own) <= loss(own * factor) + 1e-9).all())

  def test_of_answers_that_tell_no_temperature(self):
    z = np.float32([[2.0, 0.0], [0.0, 3.0]] * 100)
    right, wrong = np.tile([0, 1], 100), np.tile([1, 0], 100)
    sharper = float(metrics.fit_temperature(z, right))
    self.assertBetween(sharper, 0.2, 0.6)
    flat = float(metrics.fit_temperature(z, wrong))
    oracles.assert_close(flat, metrics.HOTTEST, 1e-4)

  @parameterized.parameters(np.nan, np.inf)
  def test_not_finite(self, value):
    z = np.float32([[2.0, 0.0], [value, 3.0]])
    self.assertTrue(np.isnan(metrics.fit_temperature(z, np.array([0, 1]))))
    self.assertTrue(np.isnan(metrics.fit_temperature(z[:1], np.array([2]))))

  def test_a_class_that_is_ruled_out(self):
    z = np.float32([[2.0, 0.0, -np.inf], [1.0, 2.0, -np.inf]] * 4)
    labels = np.array([0, 1, 0, 0, 1, 1, 0, 1])
    whole = metrics.fit_temperature(z[:, :2], labels)
    oracles.assert_close(metrics.fit_temperature(z, labels), whole)


class SelectiveTest(oracles.TestCase):
  def test_what_is_not_told_is_nan(self):
    confidence, right = np.array([0.9, np.nan, 0.5]), np.array([1.0, 0.0, 1.0])
    self.assertTrue(
      np.isnan(metrics.selective_accuracy(confidence, right)).all()
    )
    self.assertTrue(np.isnan(metrics.aurc(right, confidence)))

  def test_energy(self):
    z = np.array([[1e4, 0.0], [0.0, 0.0]])
    oracles.assert_close(metrics.energy(z), [1e4, np.log(2)])
