"""Biases shifted and temperatures fitted, by a split kept for choices."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import metrics
from kd.evaluate import adjusted
from tests.kd import oracles

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 400)
LOGITS = (2 * np.eye(5)[LABELS] + RNG.normal(size=(400, 5))).astype(np.float32)


class ShiftTest(parameterized.TestCase):
  @parameterized.parameters((3.0, (3,)), (-4.0, (1, 2)))
  def test_undoes_a_shift_of_the_biases(self, wrong, classes):
    damaged = np.array(LOGITS)
    damaged[:, list(classes)] -= wrong
    shift = adjusted.best_shift(damaged, LABELS, classes)
    self.assertAlmostEqual(shift, wrong, delta=0.7)
    before = metrics.accuracy(damaged, LABELS)
    mended = adjusted.shifted(jnp.asarray(damaged), shift, classes)
    after = metrics.accuracy(mended, LABELS)
    self.assertGreater(after, before + 0.05)
    # It is the best of the grid, as trying each shift would find.
    tried = [
      metrics.accuracy(
        adjusted.shifted(jnp.asarray(damaged), s, classes), LABELS
      )
      for s in adjusted.SHIFTS[::10]
    ]
    self.assertGreaterEqual(after + 1e-6, max(tried))

  def test_no_shift_where_none_helps(self):
    self.assertEqual(
      adjusted.best_shift(9 * np.eye(5)[LABELS], LABELS, (3,)), 0
    )

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_no_shift_where_logits_do_not_tell(self, value):
    broken = np.array(LOGITS)
    broken[0] = value
    shift = adjusted.best_shift(broken, LABELS, (3,))
    self.assertTrue(np.isnan(shift))
    logits = adjusted.shifted(jnp.asarray(LOGITS), shift, (3,))
    self.assertTrue(np.isnan(metrics.accuracy(logits, LABELS)))


class TemperedTest(oracles.TestCase):
  def test_is_fitted_on_the_one_split_and_scored_on_the_other(self):
    sharp = 6 * LOGITS  # overconfident
    found = adjusted.tempered(
      sharp[:200], LABELS[:200], sharp[200:], LABELS[200:], 15
    )
    grid = np.exp(np.linspace(-3, 3, 20_001))
    rows = np.arange(200)
    z, y = np.float64(sharp[:200]), LABELS[:200]
    nll = [-oracles.log_softmax(z / t)[rows, y].mean() for t in grid[::20]]
    near = grid[::20][np.argmin(nll)]
    self.assertLess(abs(np.log(found["temperature"] / near)), 0.05)
    cooled = sharp[200:] / found["temperature"]
    own = -oracles.log_softmax(cooled)[rows, LABELS[200:]].mean()
    oracles.assert_close(found["nll_tempered"], own)
    before = metrics.nll_from_logits(sharp[200:], LABELS[200:])
    self.assertLess(found["nll_tempered"], before - 0.1)


if __name__ == "__main__":
  absltest.main()
