"""Cycles and spills of the TPU kernel on v5e, as libtpu estimates them.

Evidence of kind *compiled*. Skipped without libtpu (requirements-tpu.txt).
"""

from absl.testing import absltest, parameterized

from kernels import topologies
from kernels.report import tpu
from tests.compiled.batches import NAMED, batch, tpu_job

# Bundles per 1,024 pairs at V = 128256 without and with labels (temperature
# traced), 3 % above what was measured. Wanted: 11.25, and no spills.
CEILINGS = (
  ("forward_kl", 5.99, 7.55),
  ("reverse_kl", 6.29, 8.17),
  ("tvd", 8.74, 10.36),
  ("alpha_divergence", 8.70, 10.31),
  ("jsd", 8.91, 10.51),
  ("skew_kl", 9.10, 10.68),
  ("skew_reverse_kl", 9.23, 10.84),
)
# Of a capped head: 1.5 to 1.8 more, for the cap's slope in the last sweep.
CAPPED = (("forward_kl", 7.53, 9.23), ("jsd", 10.45, 12.26))
OTHERS = (
  ("forward_kl", 131072), ("forward_kl", 151936), ("tvd", 131072),
  ("tvd", 151936), ("tvd", 50257),
)  # fmt: skip


def job(name, v=128256, hard=True, **kw):
  return tpu_job("v5e", NAMED[name], v, hard, **kw)


def capped(name, hard):
  return job(name, hard=hard, soft_cap=30.0)


static = batch(
  tpu.static,
  [job(name, hard=hard) for name, *_ in CEILINGS for hard in (False, True)]
  + [capped(name, hard) for name, *_ in CAPPED for hard in (False, True)]
  + [job(*other) for other in OTHERS],
)


class CyclesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    reason = topologies.available()
    if reason is not None:
      self.skipTest(reason)

  @parameterized.parameters(*CEILINGS)
  def test_static_cycles(self, name, plain, labelled):
    self.check(static(job(name, hard=False)), plain)
    self.check(static(job(name, hard=True)), labelled)

  @parameterized.parameters(*CAPPED)
  def test_of_a_capped_head(self, name, plain, labelled):
    self.check(static(capped(name, False)), plain)
    self.check(static(capped(name, True)), labelled)

  def check(self, out, ceiling):
    self.assertIsNotNone(out["bundles"])
    self.assertLessEqual(out["bundles"], ceiling)
    self.assertEqual(out["spills"], 0)

  @parameterized.parameters(*OTHERS)
  def test_other_vocabularies_do_not_spill(self, name, v):
    out = static(job(name, v))
    self.assertEqual(out["spills"], 0)
    self.assertLessEqual(out["bundles"], 11.25)


if __name__ == "__main__":
  absltest.main()
