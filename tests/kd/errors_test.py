"""Errors that are the user's to mend."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd.errors import UserError, out_of_memory

LOWER = {"train.batch_size": 4096, "seeds": 5}


class OutOfMemoryTest(parameterized.TestCase):
  @parameterized.parameters(np.zeros, jnp.zeros)  # the host's, a device's
  def test_it_is_one_line_that_says_what_to_lower(self, allocate):
    words = (
      r"^out of memory while training \(.*Error: .*llocat.*\): lower "
      r"train.batch_size = 4096 or seeds = 5$"
    )
    with (
      self.assertRaisesRegex(UserError, words),
      out_of_memory("training", LOWER),
    ):
      allocate((2**24, 2**24))

  def test_other_errors_pass(self):
    with self.assertRaises(KeyError), out_of_memory("training", LOWER):
      raise KeyError("x")


if __name__ == "__main__":
  absltest.main()
