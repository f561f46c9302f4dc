"""A study's whole program for a TPU, with no TPU.

Evidence of kind *compiled*. Skipped without libtpu (requirements-tpu.txt).
"""

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from kernels import topologies
from tests.kd import small


class StepTest(parameterized.TestCase):
  @parameterized.parameters("v5e", "v6e")
  def test_the_steps_call_the_kernel_and_hold_no_logits(self, target):
    if reason := topologies.available():
      self.skipTest(reason)
    run, args = small.wide_program()
    place = topologies.sharding(target)

    def put(x):
      dtype = jnp.result_type(x)
      return jax.ShapeDtypeStruct(jnp.shape(x), dtype, sharding=place)

    traced = run.trace(*jax.tree.map(put, args))
    text = topologies.compiled(traced).as_text()
    self.assertIn("distill_rows", text)
    # Two vmapped arms of 512 rows are the largest.
    self.assertLessEqual(small.widest(text), small.BATCH * small.CLASSES)
    self.assertNotIn(f"f32[{small.BATCH},{small.CLASSES}]", text)


if __name__ == "__main__":
  absltest.main()
