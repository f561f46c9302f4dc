"""What the compilers say of the GPU kernel.

Evidence of kind "compiled": for an H100 and a B200 that are not here. Skipped
without the CUDA plugin (requirements-gpu.txt). About 1 min 15 s on two cores.
"""

from absl.testing import absltest, parameterized

from kernels.report import gpu

GIB = 1 << 30
VOCABULARIES = (32000, 128256, 151936, 262144)
NAMED = {
  name: f"kd.divergences:{name}"
  for name in (
    "forward_kl",
    "reverse_kl",
    "tvd",
    "jsd(0.5)",
    "skew_kl(0.1)",
    "skew_reverse_kl(0.1)",
    "alpha_divergence(0.5)",
  )
}
UNSEEN = {
  name: f"tests.kernels.oracle:{name}" for name in ("chi_square", "log_ratio")
}


@absltest.skipIf(gpu.available() is not None, gpu.available())
class GpuCompiledTest(parameterized.TestCase):
  def check_kernel(self, row):
    """Asserts three rows of traffic, no spills, no copies, in 15 s."""
    with self.subTest(f"{row['divergence']} {row['v']} {row['hard']}"):
      self.assertTrue(row["compiles"], row.get("error"))
      self.assertEqual(row["kernel"], "gpu")
      self.assertEqual(row["spill_bytes"], 0)
      self.assertLessEqual(row["smem_bytes"], 227 << 10)
      ctas = (227 << 10) // (row["smem_bytes"] + 1024)  # on an SM, at once
      self.assertLessEqual(row["registers"] * 128 * ctas, 1 << 16)
      self.assertEqual(row["wide_ops"], [])
      self.assertLessEqual(row["hbm_bytes"], 1.05 * row["floor_bytes"])
      self.assertLessEqual(row["temp_bytes"], 1 << 20)
      self.assertLessEqual(row["seconds"], 15)

  @parameterized.named_parameters(
    ("named", ("h100",), (128256,), NAMED, (False, True)),
    ("unseen", ("h100",), (128256,), UNSEEN, (False,)),
    ("vocabularies", ("h100",), VOCABULARIES, {
      k: v for k, v in NAMED.items() if k in ("forward_kl", "jsd(0.5)")
    }, (True,)),
    ("b200", ("b200",), (128256,), NAMED, (True,)),
  )  # fmt: skip
  def test_logits(self, targets, vocabularies, divergences, hard):
    shapes = [(1024, v) for v in vocabularies]
    for row in gpu.rows(targets, shapes, divergences, hard):
      self.check_kernel(row)

  def test_float32_and_a_divergence_that_no_gpu_kernel_can_take(self):
    (row,) = gpu.rows(
      ("h100",),
      [(1024, 128256)],
      {"jsd": NAMED["jsd(0.5)"]},
      dtype="float32",
    )
    self.check_kernel(row)
    (row,) = gpu.rows(("h100",), [(64, 50257)])[:1]  # copies cannot cut
    self.assertTrue(row["compiles"], row.get("error"))
    self.assertEqual(row["kernel"], "xla")

  def test_vmapped_arms(self):
    (row,) = gpu.rows(
      *(("h100",), [(1024, 128256)], {"jsd": NAMED["jsd(0.5)"]}, (True,)),
      arms=3,
    )
    self.assertTrue(row["compiles"], row.get("error"))
    self.assertEqual(row["kernel"], "gpu")
    self.assertLessEqual(row["temp_bytes"], 1 << 20)  # no copy of [3, N, V]

  def test_temporaries_from_hidden_states(self):
    """At most 1 GiB at V = 131072; MiB measured: 802, 258."""
    n, h, v = 4096, 2048, 131072
    for dtype in ("bfloat16", "float32"):
      (row,) = gpu.head_rows(
        [(n, h, h, v)], implementations=["auto"], dtype=dtype
      )
      self.check_heads(row)
      self.assertLessEqual(row["temp_bytes"], GIB, row)

  def test_temporaries_at_other_vocabularies(self):
    """At 32000, 128256, 151936, 262144: 415, 786, 851 and 1,313 MiB."""
    n, h = 4096, 2048
    shapes = [(n, h, h, v) for v in VOCABULARIES]
    for row in gpu.head_rows(shapes, implementations=["auto"]):
      self.check_heads(row)
      # The lower halves of dW, 2 H V bytes (its upper ones are the result's);
      # z_s, dz and z_t of a chunk are 256 MiB; a block of dW is 32.
      limit = 2 * h * row["v"] + 300 * (1 << 20)
      self.assertLessEqual(row["temp_bytes"], limit, row)

  def check_heads(self, row):
    """Asserts that the kernel is taken, with no copy of a chunk around it."""
    self.assertTrue(row["compiles"], row.get("error"))
    self.assertEqual(row["kernel"], "gpu")
    self.assertEqual(row["spill_bytes"], 0)
    self.assertEqual(row["copies"], [], row)

  @parameterized.parameters("vocab", "data")
  def test_eight_devices(self, parallel):
    (row,) = gpu.head_rows(
      [(4096, 2048, 2048, 131072)],
      implementations=["auto"],
      devices=8,
      parallel=parallel,
    )
    self.assertTrue(row["compiles"], row.get("error"))
    # With a sharded V, statistics cross devices between sweeps: XLA's job.
    self.assertEqual(row["kernel"], "gpu" if parallel == "data" else "xla")
    self.assertLessEqual(row["temp_bytes"], GIB)


if __name__ == "__main__":
  absltest.main()
