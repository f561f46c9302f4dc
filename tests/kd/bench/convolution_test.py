"""The table of convolutions, at its smallest."""

import chex
from absl.testing import absltest

from kd.bench import convolution


class ConvolutionTest(absltest.TestCase):
  def test_the_kinds_take_the_same_steps(self):
    runs = [
      convolution.steps(f, (2,), 4, 2) for f in convolution.KINDS.values()
    ]
    first, second = (run() for run in runs)
    chex.assert_trees_all_close(first, second, rtol=1e-4, atol=1e-6)

  def test_table(self):
    row = dict(zip(convolution.KINDS, (0.02, 0.004), strict=True))
    made = convolution.table({(4, 8): row}, 64)
    self.assertIn("| 4, 8 | 20.0 | 4.0 | **5.0** |", made)


if __name__ == "__main__":
  absltest.main()
