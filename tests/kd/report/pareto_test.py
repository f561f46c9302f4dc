"""What the report says of size and speed."""

import pathlib
import tempfile

from absl.testing import absltest

from kd.report import blocks, markdown, pareto, record
from kd.report.source import Source
from tests.kd.report.studies import measured, synthetic, tables


class ParetoTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    temporary = tempfile.TemporaryDirectory()
    cls.addClassCleanup(temporary.cleanup)
    cls.folder = pathlib.Path(temporary.name)
    gains = {"hard": 0.0, "soft": 0.02, "soft int8": 0.018, "soft int4": -0.02}
    results, config, _ = synthetic(gains, seeds=6, noise=0.001)
    cls.one_model = Source(results, config, cls.folder)
    results = synthetic(gains, seeds=6, noise=0.001)[0]
    sizes = {"hard": 1e6, "soft": 1e6, "soft int8": 2.6e5, "soft int4": 1.4e5}
    measured(results, sizes)
    cls.source = Source(results, config, cls.folder)
    cls.blocks = pareto.section(cls.source)

  def test_absent_where_all_arms_are_one_model(self):
    self.assertEmpty(pareto.section(self.one_model))
    self.assertEqual(pareto.sentence(self.one_model.results), "")
    measured(self.one_model.results, dict.fromkeys(self.source.look, 1e6))
    _, sizes = pareto.section(self.one_model)
    self.assertEqual(sizes.summary, "What each arm asks for")

  def test_if_this_is_scarce_take_that(self):
    table = next(b for b in self.blocks if isinstance(b, blocks.Table))
    rows = {blocks.cell(row[0]).text: row[1:] for row in table.rows}
    self.assertEqual(
      list(rows), ["Accuracy", "Disk", "Latency", "Throughput", "Memory"]
    )
    take, asks, loses, least = rows["Disk"]
    self.assertEqual(rows["Accuracy"][0].text, "`soft`")
    self.assertEqual(take.text, "`soft int8`")
    self.assertEqual(asks.text, "260 kB")
    self.assertEqual(asks.note, "3.85 times smaller")
    versus = self.source.results["arms"]["soft int8"]["metrics"]["accuracy"]
    best = self.source.results["arms"]["soft"]["metrics"]["accuracy"]
    gap = 100 * (versus["mean"] - best["mean"])
    self.assertAlmostEqual(
      float(loses.text.replace("\N{MINUS SIGN}", "-")), gap, places=1
    )
    self.assertStartsWith(loses.note, "[")
    self.assertStartsWith(least.text, "`soft int4`: 140 kB")

  def test_dominated_arms_are_named(self):
    said = [b.text for b in self.blocks if isinstance(b, blocks.Text)]
    self.assertIn("**Dominated on every front:** `hard`.", said)
    details = next(b for b in self.blocks if isinstance(b, blocks.Details))
    (row,) = details.blocks[0].rows
    self.assertEqual(row[1].text, "by `soft`")
    self.assertRegex(row[1].note, r", told apart; asks the same$")

  def test_what_each_arm_asks_for(self):
    self.source.results["arms"]["soft int8"]["arithmetic"] = "int8, on cpu"
    (details,) = pareto.size_table(self.source.results, self.source.look)
    rows = {row[0].text: row for row in details.blocks[0].rows}
    self.assertLen(rows, 4)
    self.assertEqual(rows["`soft int8`"][0].note, "int8, on cpu")
    self.assertEqual(rows["`soft int8`"][1].text, "260 kB")
    self.assertEqual(rows["`soft int8`"][-1].text, "65,000")
    spread = self.source.results["arms"]["hard"]["metrics"]["latency_seconds"]
    self.assertEqual(rows["`hard`"][2].value, spread["mean"])
    self.assertStartsWith(rows["`hard`"][2].note, "± ")

  def test_what_a_record_keeps(self):
    results, look = self.source.results, self.source.look
    text = markdown.write(pareto.recorded(results, look))
    choices, sizes = tables(text)
    self.assertLen(choices, 2 + 5)
    self.assertLen(sizes, 2 + 4)
    self.assertIn("**Dominated on every front:** `hard`.", text)
    self.assertIn("pareto", record.figures_of(results))
    none = {**results, "margin": 1e-9}
    text = markdown.write(pareto.recorded(none, look))
    self.assertIn("lose at most 1e-07 points", text)
    self.assertNotIn("**`soft int8`**", text)

  def test_verdict_says_what_to_take(self):
    said = pareto.sentence(self.source.results)
    self.assertIn("to lose at most 1 point to `soft`: `soft int8` is", said)
    self.assertIn("smallest on disk (3.85 times smaller)", said)

  def test_figures(self):
    for name in ("pareto", "pareto_kl_to_teacher"):
      text = (self.folder / f"{name}.svg").read_text()
      self.assertIn("soft int8", text)
      self.assertIn("300 kB", text)


if __name__ == "__main__":
  absltest.main()
