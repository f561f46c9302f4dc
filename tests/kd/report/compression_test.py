"""Compressed arms beside what they were made of."""

import pathlib

from absl.testing import absltest

from kd.report import compression
from kd.report.blocks import plain
from kd.report.source import Source

UNITS = dict(step="prune", what="units")


def arm(seconds, size, objective="soft", **more):
  metrics = {
    "bytes": [size] * 3,
    "latency_seconds": seconds,
    "throughput_seconds": seconds,
  }
  return {
    "config": {"objective": objective, **more.pop("config", {})},
    "metrics": {
      k: {"values": v, "mean": sum(v) / 3} for k, v in metrics.items()
    },
    **more,
  }


def results():
  of = lambda *chain: dict(config=dict(compress=chain))
  return {
    "seeds": [0, 1, 2],
    "arms": {
      "soft": arm([1.0, 1.1, 1.2], 1000),
      "half": arm([0.5, 0.62, 0.68], 250, trained="soft", **of(UNITS)),
      "same": arm([1.1, 1.0, 1.2], 500, trained="soft", **of(UNITS)),
      "aware": arm([1.0, 1.0, 1.0], 200, **of(dict(step="quantize"))),
      "teacher": arm([4.0, 4.0, 4.0], 4000, "teacher", trained=None),
      "small": arm([2.0, 2.1, 2.2], 400, "teacher", trained=None, **of(UNITS)),
    },
  }


class SectionTest(absltest.TestCase):
  def test_what_an_arm_was_made_of(self):
    found = {a: compression.original(results(), a) for a in results()["arms"]}
    made = {"half": "soft", "same": "soft", "small": "teacher"}
    self.assertEqual(found, dict.fromkeys(found) | made)

  def test_shares_and_which_are_faster(self):
    source = Source(results(), {}, pathlib.Path())
    _, table, note = compression.section(source)
    rows = {row[0].text: row for row in table.rows}
    self.assertEqual(rows["`half`"][2].text, "25.0")
    self.assertEqual(rows["`half`"][3].text, "\N{MINUS SIGN}45")
    said = plain(note.text)
    self.assertRegex(
      said, "^Structured .* sooner, by measurement, in half, small"
    )
    self.assertRegex(said, "no sooner in same: the interval")

  def test_nothing_where_nothing_was_measured(self):
    every = results()
    for entry in every["arms"].values():
      del entry["metrics"]["bytes"]
    self.assertEmpty(compression.section(Source(every, {}, pathlib.Path())))


if __name__ == "__main__":
  absltest.main()
