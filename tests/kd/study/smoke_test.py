"""Every study at its smallest, from its command to its report."""

import json
import os
import pathlib
import subprocess

from absl.testing import absltest, parameterized

from kd import study
from tests.kd.study.phases_test import (
  ROOT,
  Workdir,
  command,
  results_of,
)

CONFIGS = sorted(p.name for p in (ROOT / "configs").glob("*.py"))


class SmokeTest(Workdir):
  @parameterized.parameters(*CONFIGS)
  def test_every_config(self, name):
    flags = f"--config=configs/{name}:smoke", f"--workdir={self.workdir}"
    done = subprocess.run(
      command(*flags), capture_output=True, text=True, cwd=ROOT
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    results = results_of(self.workdir)
    *_, last = done.stdout.splitlines()
    self.assertEqual(last, study.verdict(results))
    self.assertGreaterEqual(len(results["arms"]), 4)
    made = json.loads(pathlib.Path(self.workdir, "config.json").read_text())
    # A teacher that writes completions says nothing of test positions.
    tokens = made["config"]["task"]["tokens"]["length"]
    writes = tokens and made["config"]["teacher"]["black_box"]
    agreement = () if writes else ("agreement",)
    probabilities = ("nll", "ece", "brier")
    for arm in results["arms"].values():
      if arm["config"]["objective"] == "cascade":  # of a black box
        probabilities = ()
      for metric in ("accuracy", *probabilities, *agreement):
        entry = arm["metrics"][metric]
        self.assertLen(entry["values"], len(results["seeds"]))
        self.assertTrue(all(v is not None for v in entry["values"]))
    lines = pathlib.Path(self.workdir, "metrics.jsonl").read_text().splitlines()
    steps = {json.loads(line)["step"] for line in lines}
    trained = [
      a for a, x in results["arms"].items() if x.get("trained", a) == a
    ]
    self.assertLen(lines, len(steps) * len(trained) * len(results["seeds"]))
    is_own = not made["config"]["teacher"]["path"]
    teacher = ["teacher/teacher.json"] if is_own else []
    for left in (
      "config.json",
      "report.md",
      "report.html",
      "figures",
      "tensorboard",
      "checkpoints",
      "signals",
      *teacher,
    ):
      places = (self.workdir, os.path.join(self.workdir, "replicates", "000"))
      found = any(os.path.exists(os.path.join(p, left)) for p in places)
      self.assertTrue(found, left)


if __name__ == "__main__":
  absltest.main()
