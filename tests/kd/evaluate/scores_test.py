"""Numbers of a run: the shift of biases, reliability, names of metrics."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import metrics
from kd.evaluate import scores

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 400)
LOGITS = (2 * np.eye(5)[LABELS] + RNG.normal(size=(400, 5))).astype(np.float32)


class ShiftTest(parameterized.TestCase):
  @parameterized.parameters((3.0, (3,)), (-4.0, (1, 2)))
  def test_undoes_a_shift_of_the_biases(self, wrong, classes):
    damaged = np.array(LOGITS)
    damaged[:, list(classes)] -= wrong
    shift = scores.best_shift(damaged, LABELS, classes)
    self.assertAlmostEqual(shift, wrong, delta=0.7)
    before = metrics.accuracy(damaged, LABELS)
    mended = scores.shifted(jnp.asarray(damaged), shift, classes)
    after = metrics.accuracy(mended, LABELS)
    self.assertGreater(after, before + 0.05)
    # It is the best of the grid, as trying each shift would find.
    tried = [
      metrics.accuracy(scores.shifted(jnp.asarray(damaged), s, classes), LABELS)
      for s in scores.SHIFTS[::10]
    ]
    self.assertGreaterEqual(after + 1e-6, max(tried))

  def test_no_shift_where_none_helps(self):
    self.assertEqual(scores.best_shift(9 * np.eye(5)[LABELS], LABELS, (3,)), 0)


class ReliabilityTest(absltest.TestCase):
  def test_counts_add_up_and_give_the_ece(self):
    bins = scores.reliability(LOGITS, LABELS, 15)
    self.assertEqual(sum(bins["count"]), 400)
    gap = sum(
      n / 400 * abs(a - c)
      for a, c, n in zip(
        bins["accuracy"], bins["confidence"], bins["count"], strict=True
      )
      if n
    )
    probs = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    self.assertAlmostEqual(gap, float(metrics.ece(probs, LABELS, 15)), 5)
    empty = [n == 0 for n in bins["count"]]
    self.assertEqual([x is None for x in bins["accuracy"]], empty)

  def test_runs_are_pooled(self):
    twice = scores.reliability(np.stack([LOGITS, LOGITS]), LABELS, 10)
    self.assertEqual(sum(twice["count"]), 800)


class NamesTest(absltest.TestCase):
  def test_every_metric_of_a_run_has_a_name(self):
    found = scores.scores(LOGITS, LABELS, LOGITS, bins=15, num_classes=5)
    self.assertLessEqual(set(found), set(scores.metric_names(5, False)))
    self.assertIn("recall_4_shifted", scores.metric_names(5, True))
    self.assertNotIn("recall_5", scores.metric_names(5, True))
    self.assertFalse(
      any("recall" in n for n in scores.metric_names(1000, False))
    )


if __name__ == "__main__":
  absltest.main()
