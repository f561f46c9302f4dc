"""metrics.jsonl as it may be left, and its curves."""

import json
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

from kd.report import curves

RESULTS = {"seeds": [0, 1], "arms": {"a": {}}}
ROWS = [
  {"arm": "a", "seed": s, "step": n, "loss": 1.0, "validation_accuracy": None}
  for n in (5, 10)
  for s in (0, 1)
]


class CurvesTest(parameterized.TestCase):
  def read(self, lines, steps=10):
    path = (
      Path(self.enterContext(tempfile.TemporaryDirectory())) / "metrics.jsonl"
    )
    path.write_text("\n".join(lines))
    return curves.read(path, RESULTS, {"config": {"train": {"steps": steps}}})

  def test_resumed_lines_replace(self):
    lines = [json.dumps(r) for r in [*ROWS, {**ROWS[2], "loss": 2.0}]]
    found, faults = self.read(lines)
    steps, values = found["a"]["loss"]
    np.testing.assert_array_equal(steps, [5, 10])
    np.testing.assert_array_equal(values, [[1.0, 2.0], [1.0, 1.0]])
    self.assertEqual(faults, [])

  @parameterized.parameters(
    '{"arm": "a", "se', "[]", "null", "7", "{}", '{"arm": "a", "seed": []}',
    '{"arm": ["a"], "seed": 0, "step": 5}',
    '{"arm": "a", "seed": 0, "step": "x"}',
    '{"arm": "a", "seed": 0, "step": NaN}',
    '{"arm": "a", "seed": 0, "step": 5, "loss": "much"}',
    '{"arm": "a", "seed": 0, "step": 5, "loss": 1' + "0" * 400 + "}",
    "", "\ufffd",
  )  # fmt: skip
  def test_a_broken_line_is_said_and_left_out(self, line):
    rows = [json.dumps(r) for r in ROWS]
    found, faults = self.read([rows[0], line, *rows[1:]])
    np.testing.assert_array_equal(found["a"]["loss"][1], np.ones((2, 2)))
    self.assertLen(faults, 1)
    self.assertIn("1 line(s) cannot be read (2)", faults[0])

  def test_cut(self):
    rows = [json.dumps(r) for r in ROWS]
    _, faults = self.read(rows, steps=20)
    self.assertIn("does not reach step 20 for 1 of 1 arms", faults[0])
    _, faults = self.read(rows[:3])
    self.assertIn("does not reach step 10", faults[0])

  @parameterized.parameters(
    ([],), (['{"arm": "other", "seed": 0, "step": 1}'],)
  )
  def test_none(self, lines):
    found, faults = self.read(lines)
    self.assertEqual(found, {})
    self.assertIn("holds none", faults[0])


if __name__ == "__main__":
  absltest.main()
