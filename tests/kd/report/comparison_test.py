"""Several studies in one table: python -m kd.report A B."""

import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

from kd.errors import UserError
from kd.report import comparison, html, markdown, style
from kd.report.blocks import Table
from tests.kd.report.studies import Page, leave, synthetic, tables


def states(folder):
  return {
    p: (p.read_bytes() if p.is_file() else None, p.stat().st_mtime_ns)
    for p in sorted(folder.rglob("*"))
  }


class ComparisonTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.first = synthetic({"hard": 0.0, "soft": 0.02}, seeds=5)
    self.second = synthetic({"hard": -0.02, "rank": 0.03}, seeds=3)
    self.second[0]["study"] = "other"
    self.second[1]["words"] = {"rank": "the order"}
    leave(self.root / "a", *self.first)
    leave(self.root / "b", *self.second)

  def run_main(self, *arguments):
    return subprocess.run(
      [sys.executable, "-m", "kd.report", *arguments],
      capture_output=True,
      text=True,
      check=False,
    )

  def table(self, *of):
    made = comparison.compare(*of)
    return next(b for b in made if isinstance(b, Table))

  def test_verdicts_of_each(self):
    text = markdown.write(
      comparison.compare([str(self.root / x) for x in "ab"])
    )
    self.assertRegex(text, r"(?m)^- `digits`: \*\*`soft` is the best arm")
    self.assertRegex(text, r"(?m)^- `other`: \*\*`rank` is the best arm")
    self.assertNotIn("several studies", text)

  def test_arms_that_several_have(self):
    gains = {"hard": 0.0, "soft": -0.02, "rank": 0.0}
    third = synthetic(gains, seeds=4)
    third[0]["study"] = "third"
    leave(self.root / "c", *third)
    made = comparison.compare([str(self.root / x) for x in "abc"])
    *_, heading, table = made
    self.assertEqual(heading.text, "Arms that several studies have")
    self.assertEqual(
      [*table.columns], ["Arm", "digits", "other", "third", "Above in"]
    )
    rows = {row[0].text: row[1:] for row in table.rows}
    self.assertEqual(set(rows), {"`soft`", "`rank`"})
    digits, other, third_of, many = rows["`soft`"]
    versus = self.first[0]["arms"]["soft"]["metrics"]["accuracy"]
    gap = versus["versus_baseline"]["difference"]
    self.assertEqual(digits.value, gap)
    self.assertTrue(digits.strong)
    self.assertIsNone(other.value)
    self.assertLess(third_of.value, 0)
    self.assertEqual(many.text, "1 of 2")

  def test_main_prints_and_only_reads(self):
    before = states(self.root)
    done = self.run_main(str(self.root / "a"), str(self.root / "b"))
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(states(self.root), before)
    (rows,) = tables(done.stdout)
    order = [(row[0], row[1]) for row in rows[2:]]
    self.assertEqual(order[0], ("`rank`<br>the order", "other"))
    self.assertLen(order, 4)
    means = [float(row[2].split()[0]) for row in rows[2:]]
    self.assertEqual(means, sorted(means, reverse=True))
    self.assertIn("digits: 5 seeds, other: 3 seeds", done.stdout)

  def test_one_line_errors(self):
    done = self.run_main(str(self.root / "a"), str(self.root / "none"))
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r"\Aerror: .*none.*json is missing.*\n\Z")

  def test_page(self):
    made = comparison.compare([str(self.root / "a"), str(self.root / "b")])
    page = Page(html.write("Studies", made, style.THEME))
    self.assertEqual(page.open, [])
    self.assertIn(("data-label", "Study"), page.attributes)

  def test_equal_names_are_told_apart_by_their_folders(self):
    leave(self.root / "c", *self.first)
    folders = [str(self.root / x) for x in "ac"]
    made = self.table(folders)
    self.assertEqual({row[1].text for row in made.rows}, set(folders))
    with self.assertRaisesRegex(UserError, "the same folder twice"):
      comparison.compare([folders[0], folders[0] + "/"])

  def test_metric(self):
    folders = [str(self.root / x) for x in "ab"]
    made = self.table(folders, "nll")
    self.assertEqual(made.columns[2], "NLL (nats)")
    values = [row[2].value for row in made.rows]
    self.assertEqual(values, sorted(values))
    for arm in self.second[0]["arms"].values():
      del arm["metrics"]["nll"]
    leave(self.root / "b", *self.second)
    with self.assertRaisesRegex(UserError, "--metric=nll: study other has"):
      comparison.compare(folders, "nll")
    with self.assertRaisesRegex(UserError, "'charm': no known good direction"):
      comparison.compare(folders, "charm")


if __name__ == "__main__":
  absltest.main()
