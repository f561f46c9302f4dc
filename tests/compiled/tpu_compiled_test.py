"""What libtpu says of the TPU kernel, with no TPU.

Evidence of kind *compiled*. Skipped without libtpu (requirements-tpu.txt).
Where what is wanted is not reached, the test holds what was measured, with
that beside it, so that it neither passes unseen nor gets worse.
"""

from absl.testing import absltest, parameterized

from kernels import topologies
from kernels.report import tpu

MAIN = ("v5e", "v6e", "tpu7x")
VOCABS = (32000, 128256, 151936, 262144)
V = 128256
NAMED = {  # kd.divergences' own forms
  "forward_kl": "kd.divergences:forward_kl",
  "reverse_kl": "kd.divergences:reverse_kl",
  "tvd": "kd.divergences:tvd",
  "jsd": "kd.divergences:jsd(0.5)",
  "skew_kl": "kd.divergences:skew_kl(0.1)",
  "skew_reverse_kl": "kd.divergences:skew_reverse_kl(0.1)",
  "alpha_divergence": "kd.divergences:alpha_divergence(0.5)",
}


def job(target, divergence, v=V, hard=False, **kw):
  return dict(
    job="kernel", kernel="tpu", target=target, divergence=divergence, n=256,
    v=v, hard=hard, dtype="bfloat16",
  ) | kw  # fmt: skip


class CompiledTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    reason = topologies.available()
    if reason is not None:
      self.skipTest(reason)

  @parameterized.product(target=tuple(topologies.TARGETS), v=VOCABS)
  def test_the_kernel_compiles(self, target, v):
    out = tpu.run(job(target, NAMED["forward_kl"], v))
    self.assertNotIn("error", out)
    self.assertEqual(out["copies"], [])
    self.assertLess(out["temp_bytes"], 16 << 20)
    self.assertLessEqual(out["compile_s"], 15)
    if target in MAIN:
      self.assertFalse(out["phases"])
      self.assertLessEqual(out["hbm_nvb"], 1.05 * 3)

  @parameterized.product(name=tuple(NAMED), hard=(False, True))
  def test_named_divergences_compile(self, name, hard):
    for target in ("v5e", "v6e"):
      out = tpu.run(job(target, NAMED[name], hard=hard))
      self.assertNotIn("error", out)
      self.assertEqual(out["copies"], [])
      self.assertLessEqual(out["compile_s"], 15)

  def test_float32_and_ragged(self):
    for v, dtype in (
      (50257, "bfloat16"),
      (128256, "float32"),
      (257, "float32"),
    ):
      out = tpu.run(job("v5e", NAMED["jsd"], v, True, dtype=dtype))
      self.assertNotIn("error", out)
      if v % 128 == 0:
        self.assertEqual(out["copies"], [])
      # Else not met: XLA takes and gives such arrays by columns where 128
      # divides N but not V, and copies all three. Pad V (`vocab_size`).

  @parameterized.parameters(*MAIN)
  def test_memory_from_hidden_states(self, target):
    """At most 1 GiB of temporaries; naive: 8 GiB."""
    phi = "forward_kl"
    out = tpu.run(
      dict(
        job="heads",
        kernel="tpu",
        target=target,
        divergence=phi,
        shape=tpu.HEADS,
      )
    )
    self.assertNotIn("error", out)
    self.assertEqual(out["copies"], [])
    self.assertLessEqual(out["temp_bytes"], tpu.GIB)

  @parameterized.parameters(
    # Bundles without and with labels (temperature traced), spills, 3 % above
    # what was measured. Wanted: 11.25 on v5e, with and without; no spills.
    ("v5e", "forward_kl", 5.99, 7.55, 0),  # reached, as are all on v5e
    ("v5e", "reverse_kl", 6.29, 8.17, 0),
    ("v5e", "tvd", 8.74, 10.36, 0),
    ("v5e", "alpha_divergence", 8.70, 10.31, 0),
    ("v5e", "jsd", 8.91, 10.51, 0),
    ("v5e", "skew_kl", 9.10, 10.68, 0),
    ("v5e", "skew_reverse_kl", 9.23, 10.84, 0),
    # Wanted: 6.56, 7.0 and 8.5 on v6e, without labels.
    ("v6e", "forward_kl", 6.31, 7.87, 0),  # reached
    ("v6e", "reverse_kl", 6.61, 7.65, 0),  # reached
    ("v6e", "jsd", 8.50, 10.30, 23),  # bundles reached: 8.28; spills not: 22
  )
  def test_static_cycles(self, target, name, plain, labelled, spills):
    """Bundles per 1,024 pairs at V = 128256, and spills; see kernels.report."""
    for hard, ceiling in ((False, plain), (True, labelled)):
      out = tpu.static(job(target, NAMED[name], hard=hard))
      self.assertIsNotNone(out["bundles"])
      self.assertLessEqual(out["bundles"], ceiling)
      self.assertLessEqual(out["spills"], spills)

  @parameterized.parameters(
    ("forward_kl", 131072), ("forward_kl", 151936), ("tvd", 131072),
    ("tvd", 151936), ("tvd", 50257),
  )  # fmt: skip
  def test_other_vocabularies_do_not_spill(self, name, v):
    out = tpu.static(job("v5e", NAMED[name], v, True))
    self.assertEqual(out["spills"], 0)
    self.assertLessEqual(out["bundles"], 11.25)


if __name__ == "__main__":
  absltest.main()
