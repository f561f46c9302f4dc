"""What value_and_grad from logits moves through HBM.

Evidence of kind "compiled". Skipped without the compilers. About 20 s a target.
"""

from absl.testing import absltest, parameterized

from kernels import topologies
from kernels.report import gpu, traffic

JSD, LABELLED = ("jsd", False, 1.0), ("forward_kl", True, 2.0)
PROGRAMS = [(name, JSD) for name in ("kernel", "xla")]
PROGRAMS += [(name, LABELLED) for name in traffic.PROGRAMS]


class TrafficCompiledTest(parameterized.TestCase):
  @parameterized.parameters("v5e", "tpu7x", "h100")
  def test_n_v_b(self, target):
    is_tpu = target in topologies.TARGETS
    reason = (topologies if is_tpu else gpu).available()
    if reason is not None:
      self.skipTest(reason)
    rows = traffic.rows([target], PROGRAMS)
    for r in rows:
      if r["program"] in ("kernel", "xla"):
        floor = {"kernel": 3, "xla": 7}[r["program"]]
        self.assertLessEqual(r["hbm_nvb"], 1.05 * floor)
    moved = {r["program"]: r["hbm_nvb"] for r in rows}
    self.assertGreater(moved["plain"], 7.5)  # 10 on v5e, 8 on h100
    self.assertGreater(moved["optax"], 7.5)  # 14 on v5e, 16 on h100


if __name__ == "__main__":
  absltest.main()
