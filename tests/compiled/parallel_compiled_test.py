"""What the compilers say of a V that is sharded.

Evidence of kind "compiled", for devices that are not here. Skipped without the
compilers (requirements-tpu.txt, requirements-gpu.txt). About 20 s.
"""

from absl.testing import absltest, parameterized

from kernels import topologies
from kernels.report import gpu, parallel

GIB = 1 << 30
REASONS = {"v5e": topologies.available(), "h100": gpu.available()}


class ParallelCompiledTest(parameterized.TestCase):
  @parameterized.parameters(*parallel.SETUPS)
  def test_one_reduction_of_dh(self, target):
    if REASONS[target] is not None:
      self.skipTest(REASONS[target])
    row = parallel.row(target)
    self.assertNotIn("error", row)
    ((operation, shapes, once),) = row["dh_reductions"]
    self.assertEqual(operation, "all-reduce")
    self.assertTrue(once, f"in a loop: {shapes}")
    # All else is a few numbers per row, and nothing is gathered.
    for operation, shapes, _ in row["collectives"]:
      self.assertEqual(operation, "all-reduce", shapes)
    self.assertLessEqual(row["temp_bytes"], GIB)


if __name__ == "__main__":
  absltest.main()
