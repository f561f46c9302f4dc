"""What the compilers say of a V that is sharded: bar 6 of issue 3.

Evidence of kind "compiled", for devices that are not here. Skipped without the
compilers (requirements-tpu.txt, requirements-gpu.txt). About 20 s.
"""

from absl.testing import absltest, parameterized

from kernels import report_gpu, report_parallel, tpu_targets

GIB = 1 << 30
REASONS = {"v5e": tpu_targets.available(), "h100": report_gpu.available()}


class ParallelCompiledTest(parameterized.TestCase):
  @parameterized.parameters(*report_parallel.SETUPS)
  def test_one_reduction_of_dh(self, target):
    if REASONS[target] is not None:
      self.skipTest(REASONS[target])
    row = report_parallel.row(target)
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
