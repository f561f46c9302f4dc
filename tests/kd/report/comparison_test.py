"""Several studies in one table: python -m kd.report A B."""

import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

from kd.errors import UserError
from kd.report import comparison, html, style
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
    page = Page(html.write("Studies", [made], style.THEME))
    self.assertEqual(page.open, [])
    self.assertIn(("data-label", "Study"), page.attributes)

  def test_equal_names_are_told_apart_by_their_folders(self):
    leave(self.root / "c", *self.first)
    folders = [str(self.root / x) for x in "ac"]
    made = comparison.compare(folders)
    self.assertEqual({row[1].text for row in made.rows}, set(folders))
    with self.assertRaisesRegex(UserError, "the same folder twice"):
      comparison.compare([folders[0], folders[0] + "/"])

  def test_metric(self):
    folders = [str(self.root / x) for x in "ab"]
    made = comparison.compare(folders, "nll")
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
