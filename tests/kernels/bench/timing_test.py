"""The benchmark runs, counts the floor right, and names what is absent."""

import json
import pathlib
import tempfile

from absl.testing import absltest

from kernels.bench import peers, timing


class BenchTest(absltest.TestCase):
  def test_a_small_run_leaves_json_and_plot(self):
    folder = pathlib.Path(tempfile.mkdtemp())
    timing.main(
      ["--shapes=16,4,6,64", "--variants=xla,naive,torch", "--repeats=2",
       "--side=128",
       f"--json={folder}/b.json", f"--plot={folder}/b.png"]
    )  # fmt: skip
    results = json.loads((folder / "b.json").read_text())["results"]
    ours, naive, torch = results
    for r in (ours, naive):
      self.assertGreater(r["p50_s"], 0)
      self.assertLess(r["p20_s"], r["p80_s"] + 1e-12)
      self.assertGreater(r["peak_mib"], 10)
    if peers.absent("torch"):
      self.assertIn("not installed", torch["error"])
    self.assertTrue((folder / "b.png").exists())

  def test_floor(self):
    measured = {"gemm_flop_s": 1e9, "copy_byte_s": 1e9}
    shape = (10, 2, 4, 1000)
    cpu = timing.floor_seconds(shape, "float32", measured, "cpu")
    self.assertAlmostEqual(cpu, 2 * 10 * 1000 * 10 / 1e9)
    gpu = timing.floor_seconds(shape, "bfloat16", measured, "gpu")
    self.assertAlmostEqual(gpu - cpu, 3 * 10 * 1000 * 2 / 1e9)

  def test_peers_name_what_they_lack(self):
    inputs = peers.make_inputs(4, 2, 2, 8, "float32")
    with self.assertRaisesRegex(NotImplementedError, "optax has no jsd"):
      peers.optax(inputs, "jsd", False)


if __name__ == "__main__":
  absltest.main()
