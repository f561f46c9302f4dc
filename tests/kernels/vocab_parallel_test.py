"""Vocabulary-parallel losses, in a process with 4 virtual CPU devices."""

import os
import pathlib
import subprocess
import sys

from absl.testing import absltest

ROOT = pathlib.Path(__file__).parents[2]


class VocabParallelTest(absltest.TestCase):
  def test_four_devices_equal_one(self):
    env = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
      "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
      [sys.executable, "-m", "tests.kernels.vocab_parallel"],
      cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    self.assertIn("all agree", done.stdout)


if __name__ == "__main__":
  absltest.main()
