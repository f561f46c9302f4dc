"""What the compilers say of the GPU kernel.

Evidence of kind "compiled": for an H100 and a B200 that are not here. Skipped
without the CUDA plugin (requirements-gpu.txt). About 1 min 15 s on two cores.
"""

from absl.testing import absltest, parameterized

from kernels.report import gpu
from tests.compiled.batches import NAMED, batch

GIB = 1 << 30
VOCABULARIES = (32000, 128256, 151936, 262144)
BOTH = {name: NAMED[name] for name in ("forward_kl", "jsd")}
JSD = {"jsd": NAMED["jsd"]}
UNSEEN = {
  name: f"tests.kernels.oracle:{name}" for name in ("chi_square", "log_ratio")
}


def logits(targets, vocabularies, divergences, hard, n=1024, **kw):
  shapes = [(n, v) for v in vocabularies]
  args = (targets, shapes, divergences, hard)
  return gpu.logits_jobs(*args, slots=False, **kw)


def heads(*vocabularies, n=4096, h=2048, **kw):
  shapes = [(n, h, h, v) for v in vocabularies]
  return gpu.head_jobs(shapes, implementations=["auto"], **kw)


LOGITS = {
  "named": logits(("h100",), (128256,), NAMED, (False, True)),
  "unseen": logits(("h100",), (128256,), UNSEEN, (False,)),
  "vocabularies": logits(("h100",), VOCABULARIES, BOTH, (True,)),
  "b200": logits(("b200",), (128256,), NAMED, (True,)),
  "float32": logits(("h100",), (128256,), JSD, (False,), dtype="float32"),
}
# Copies cannot cut it.
ODD = logits(("h100",), (50257,), {"forward_kl": "forward_kl"}, (False,), n=64)
ARMS = logits(("h100",), (128256,), JSD, (True,), arms=3)
HEADS = {dtype: heads(131072, dtype=dtype) for dtype in ("bfloat16", "float32")}
CAPPED = heads(131072, soft_cap=30.0)
OTHERS = heads(*VOCABULARIES)
PARALLEL = {
  way: heads(131072, devices=8, parallel=way) for way in ("vocab", "data")
}
row_of = batch(
  gpu.rows,
  [
    *(job for jobs in LOGITS.values() for job in jobs),
    *(job for jobs in HEADS.values() for job in jobs),
    *(job for jobs in PARALLEL.values() for job in jobs),
    *(*ODD, *ARMS, *OTHERS, *CAPPED),
  ],
)


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

  @parameterized.parameters(*LOGITS)
  def test_logits(self, name):
    for row in map(row_of, LOGITS[name]):
      self.check_kernel(row)

  def test_a_vocabulary_that_no_gpu_kernel_can_take(self):
    (row,) = map(row_of, ODD)
    self.assertTrue(row["compiles"], row.get("error"))
    self.assertEqual(row["kernel"], "xla")

  def test_vmapped_arms(self):
    (row,) = map(row_of, ARMS)
    self.assertTrue(row["compiles"], row.get("error"))
    self.assertEqual(row["kernel"], "gpu")
    self.assertLessEqual(row["temp_bytes"], 1 << 20)  # no copy of [3, N, V]

  @parameterized.parameters(*HEADS)
  def test_temporaries_from_hidden_states(self, dtype):
    """At most 1 GiB at V = 131072; MiB measured: 802, 258."""
    (row,) = map(row_of, HEADS[dtype])
    self.check_heads(row)
    self.assertLessEqual(row["temp_bytes"], GIB, row)

  def test_temporaries_of_capped_heads(self):
    """1,058 MiB: the GEMM writes a chunk in float32, as it does with a bias."""
    (row,) = map(row_of, CAPPED)
    self.check_heads(row)
    self.assertLessEqual(row["registers"], 104)
    self.assertLessEqual(row["temp_bytes"], GIB + (48 << 20), row)

  def test_temporaries_at_other_vocabularies(self):
    """At 32000, 128256, 151936, 262144: 415, 786, 851 and 1,313 MiB."""
    for row in map(row_of, OTHERS):
      self.check_heads(row)
      # The lower halves of dW, 2 H V bytes (its upper ones are the result's);
      # z_s, dz and z_t of a chunk are 256 MiB; a block of dW is 32.
      limit = 2 * row["h_s"] * row["v"] + 300 * (1 << 20)
      self.assertLessEqual(row["temp_bytes"], limit, row)

  def check_heads(self, row):
    """Asserts that the kernel is taken, with no copy of a chunk around it."""
    self.assertTrue(row["compiles"], row.get("error"))
    self.assertEqual(row["kernel"], "gpu")
    self.assertEqual(row["spill_bytes"], 0)
    self.assertEqual(row["copies"], [], row)

  @parameterized.parameters(*PARALLEL)
  def test_eight_devices(self, parallel):
    (row,) = map(row_of, PARALLEL[parallel])
    self.assertTrue(row["compiles"], row.get("error"))
    # With a sharded V, statistics cross devices between sweeps: XLA's job.
    self.assertEqual(row["kernel"], "gpu" if parallel == "data" else "xla")
    self.assertLessEqual(row["temp_bytes"], GIB)


if __name__ == "__main__":
  absltest.main()
