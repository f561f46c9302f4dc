"""Cycles and spills of the TPU kernel on v6e, as libtpu estimates them.

Evidence of kind *compiled*. Skipped without libtpu (requirements-tpu.txt).
Where what is wanted is not reached, the test holds what was measured, with
that beside it, so that it neither passes unseen nor gets worse.
"""

from absl.testing import absltest, parameterized

from kernels import topologies
from kernels.report import tpu
from tests.compiled.batches import NAMED, batch, tpu_job

# Bundles per 1,024 pairs at V = 128256 without and with labels (temperature
# traced), 3 % above what was measured, and spills. Wanted: 6.56, 7.0 and 8.5
# without labels, and no spills.
CEILINGS = (
  ("forward_kl", 6.31, 7.87, 0),  # reached
  ("reverse_kl", 6.61, 7.65, 0),  # reached
  ("jsd", 8.50, 10.30, 23),  # bundles reached: 8.28; spills not: 22
)


def job(name, hard):
  return tpu_job("v6e", NAMED[name], hard=hard)


static = batch(
  tpu.static,
  [job(name, hard) for name, *_ in CEILINGS for hard in (False, True)],
)


class CyclesTest(parameterized.TestCase):
  @parameterized.parameters(*CEILINGS)
  def test_static_cycles(self, name, plain, labelled, spills):
    if reason := topologies.available():
      self.skipTest(reason)
    for hard, ceiling in ((False, plain), (True, labelled)):
      out = static(job(name, hard))
      self.assertIsNotNone(out["bundles"])
      self.assertLessEqual(out["bundles"], ceiling)
      self.assertLessEqual(out["spills"], spills)


if __name__ == "__main__":
  absltest.main()
