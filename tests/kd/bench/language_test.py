"""The bench of decoders: its own side, its table, and what it refuses."""

import pathlib
import sys
import tempfile
from typing import Any
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from kd.bench import decoders, language
from kd.errors import UserError

TINY = dict(name="decoder", layers=1, width=8, heads=2)
CASE: dict[str, Any] = dict(
  teacher=TINY, student=TINY, vocab_size=80, rows=2, length=8, steps=2
)
SIDE = dict(seconds=0.2, cpu=0.3, tokens_per_s=160.0, mib=300.0)
# Stands for torch: much slower, and reads what we wrote.
ECHO = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
case = json.loads((folder / "case.json").read_text())
assert (folder / "student/model.safetensors").exists()
assert (folder / "batch.npz").exists()
for _ in sys.stdin:
  out = {"seconds": 1e9, "cpu": 1e9, "losses": [%s] * case["steps"]}
  print(json.dumps(out | {"kib": 1024}), flush=True)
"""


class LanguageTest(parameterized.TestCase):
  def measure(self, loss):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    root = mock.patch.object(language, "SCRIPT", folder / "echo.py")
    (folder / "echo.py").write_text(ECHO % loss)
    near = mock.patch.multiple(language, REST_S=0.0, TOLERANCE=0.1)
    with root, near:
      case = dict(CASE, signal="top_k")
      return language.measure(case, sys.executable, repeats=1)

  def test_both_sides_in_turn(self):
    # Of a student that begins near the uniform distribution.
    lp = np.asarray(
      np.log(0.9) + self.log_softmax(decoders.top_k(decoders.Size(**CASE)))
    )
    p = np.exp(lp)
    rest = 0.1 * np.log(0.1 / (16 / 80))
    each = (p * (lp - np.log(1 / 80))).sum(-1) + rest
    counts = np.arange(16) % 8 < 7
    found = self.measure(each[counts].mean())
    self.assertEqual(found["torch"]["mib"], 1.0)
    self.assertGreater(found["ratio"]["seconds"], 1e6)
    self.assertGreater(found["ours"]["tokens_per_s"], 0)

  def test_losses_that_differ(self):
    with self.assertRaisesRegex(UserError, "losses differ"):
      self.measure(-1.0)

  @staticmethod
  def log_softmax(top):
    z = np.asarray(top.logits, np.float64)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))

  def test_table(self):
    row = dict(
      ours=SIDE, torch=dict(SIDE, seconds=0.5), load=1.25,
      ratio=dict(seconds=2.5, cpu=1.5),
    )  # fmt: skip
    with mock.patch.dict(language.CASES, {"c": dict(CASE, signal="live")}):
      made = language.table({"c": row})
    self.assertIn("| 2 x 8 | 200 | 500 | 160 | 160 | 300 | 300 |", made)
    self.assertIn("**2.50** | **1.50** |", made)
    self.assertIn("load 1.2 at most", made)


if __name__ == "__main__":
  absltest.main()
