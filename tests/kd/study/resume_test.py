"""Studies that were killed, or damaged, and go on."""

import os
import pathlib
import random
import shutil
import subprocess
import time

from absl.testing import absltest

from kd import study
from tests.kd import small
from tests.kd.study.phases_test import (
  ROOT,
  Workdir,
  call,
  command,
  comparable,
  options,
)

KILLS = int(os.environ.get("KD_TEST_KILLS", "3"))


class ResumeTest(Workdir):
  def test_killed_at_random_moments_it_ends_with_the_same_bits(self):
    whole = os.path.join(self.parent, "whole")
    flags = ("--config=configs/digits.py:smoke",)
    began = time.monotonic()
    self.assertEqual(call(*flags, f"--workdir={whole}")[0], 0)
    length = time.monotonic() - began
    rng = random.Random(0)
    killed = 0
    while killed < KILLS:
      process = subprocess.Popen(
        command(*flags, f"--workdir={self.workdir}"),
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
      )
      try:
        process.wait(timeout=rng.uniform(0.2, 1.0) * length)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        killed += 1
      else:  # it finished first: see that it did so well, and start anew
        self.assertEqual(comparable(self.workdir), comparable(whole))
        shutil.rmtree(self.workdir)
    code, err = call(*flags, f"--workdir={self.workdir}")
    self.assertEqual(code, 0, err)
    self.assertEqual(comparable(self.workdir), comparable(whole))
    self.assertEqual(
      pathlib.Path(self.workdir, "metrics.jsonl").read_bytes(),
      pathlib.Path(whole, "metrics.jsonl").read_bytes(),
    )

  def test_a_damaged_checkpoint_is_set_aside(self):
    made = options(hard=small.HARD, soft=small.SOFT)
    whole = study.run(made, self.workdir)
    newest = pathlib.Path(self.workdir, "checkpoints", "40")
    for path in newest.rglob("*"):
      if path.is_file() and path.stat().st_size > 10_000:
        path.write_bytes(path.read_bytes()[:-5000])
    os.remove(os.path.join(self.workdir, "results.json"))
    with self.assertLogs(level="WARNING") as logs:
      again = study.run(made, self.workdir)
    self.assertIn("checkpoint 40", " ".join(logs.output))
    self.assertIn("falling back", " ".join(logs.output))
    del whole["provenance"], again["provenance"]
    self.assertEqual(again, whole)


if __name__ == "__main__":
  absltest.main()
