"""Biases that make all classes equally likely on average."""

import numpy as np
from absl.testing import absltest
from scipy import special

from kd.errors import UserError
from kd.signals import calibrate
from tests.kd import oracles


class BiasesTest(absltest.TestCase):
  def test_all_classes_are_equally_likely_on_average(self):
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(200, 5)) + [4, 0, -9, 1, 1]
    mean = special.softmax(z + calibrate.biases(z), axis=-1).mean(0)
    oracles.assert_close(mean, np.full(5, 0.2), atol=1e-6)

  def test_the_teacher_s_own_biases_do_not_matter(self):
    z, shift = np.random.default_rng(0).normal(size=(50, 3)), [2.0, -5.0, 3.0]
    own = calibrate.biases(z)
    oracles.assert_close(calibrate.biases(z + shift), own - shift, atol=1e-4)
    self.assertAlmostEqual(own.sum(), 0)

  def test_a_teacher_that_is_too_sure(self):
    z = np.array([[0.0, -1e5], [0.0, -1e5], [-1e5, 0.0]])
    with self.assertRaisesRegex(UserError, "signal.calibrate = 'uniform'"):
      calibrate.biases(z)


if __name__ == "__main__":
  absltest.main()
