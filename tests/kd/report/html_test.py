"""The page: what stands where, and whether it fits a laptop and a phone."""

import pathlib
import re
import tempfile
import xml.etree.ElementTree as ET

from absl.testing import absltest

from kd.report import html, page, results_table, style
from kd.report.blocks import Cell, Table, cell, plain
from tests.kd.report.studies import leave, long_names, synthetic

CSS = (pathlib.Path(html.__file__).parent / "page.css").read_text()
REM, LAPTOP, PHONE = 16, 1280, 390  # px
PADDING = 16  # of a cell, both sides


def rule(selector, css=CSS):
  """Returns a rule's declarations."""
  found = re.search(rf"(?:^|[{{}}])\s*{re.escape(selector)} {{([^}}]*)}}", css)
  assert found, selector
  return " ".join(found[1].split())


def px(text, rem):
  """Returns a line's width: DejaVu Sans is the widest that pages fall to."""
  width, _ = style.room([plain(text)], 0.75 * rem * REM)
  return 96 * width


def narrowest(table):
  """Computes the least width of a table's columns behind the first, in px."""
  total = 0
  for i in range(1, len(table.columns)):
    head = cell(table.columns[i])
    lines = [px(word, 0.9) for word in head.text.split()]  # bold
    lines.append(px(head.note, 0.8))
    for row in table.rows:
      lines += [px(row[i].text, 0.95), px(row[i].note, 0.8)]
    total += max(lines) + PADDING
  return total


class WidthTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    results, config, lines = cls.study(4)
    temporary = tempfile.TemporaryDirectory()
    cls.addClassCleanup(temporary.cleanup)
    folder = leave(pathlib.Path(temporary.name), results, config, lines)
    cls.text = page.write(folder).read_text()
    cls.root = ET.fromstring(cls.text.split("\n", 1)[1])

  @staticmethod
  def study(arms):
    made = synthetic(long_names(arms), seeds=5, omit=(3,), steps=40)
    for arm in made[0]["arms"].values():
      arm["config"]["signal"] = {"omit_classes": [3]}
    return made

  def test_what_is_wide_scrolls_in_a_box_and_captions_do_not(self):
    boxes = [e for e in self.root.iter("div") if e.get("class") == "scroll"]
    inside = [x for box in boxes for x in box.iter()]
    self.assertIn("overflow-x: auto", rule(".scroll"))
    self.assertIn("overflow-x: auto", rule("pre"))
    for tag in ("svg", "table"):
      found = list(self.root.iter(tag))
      self.assertNotEmpty(found)
      for x in found:
        self.assertIn(x, inside)
    captions = list(self.root.iter("figcaption"))
    self.assertGreater(len(captions), 8)
    for x in [*captions, *self.root.iter("caption")]:
      self.assertNotIn(x, inside)

  def test_all_else_may_break_anywhere(self):
    self.assertIn("overflow-wrap: anywhere", rule("body"))
    for selector in re.findall(r"^([^@\n{]+) {[^}]*nowrap", CSS, re.MULTILINE):
      self.assertIn(selector.strip(), ("th, td", ".cards td .note"))
    for width in re.findall(r"min-width: ([\d.]+)rem", CSS):
      self.assertLess(float(width) * REM, PHONE - 2 * REM)

  def test_all_numbers_fit_a_laptop(self):
    results, _, _ = self.study(36)
    table = results_table.table(results, style.styles(results), {})
    self.assertLen(table.rows, 36)
    self.assertLen(table.columns, 10)
    name = float(
      re.search("min-width: ([0-9.]+)rem", rule(".cards tbody th"))[1]
    )
    self.assertLess(narrowest(table) + name * REM, LAPTOP - 2 * 1.25 * REM)

  def test_rows_are_cards_on_a_phone(self):
    phone = CSS[CSS.index("@media (max-width: 640px)") :]
    self.assertIn("display: block", rule(
      "table.cards, .cards tbody, .cards th, .cards td", phone
    ))  # fmt: skip
    grid = rule(".cards tr", phone)
    column = float(re.search(r"minmax\(([\d.]+)rem, 1fr\)", grid)[1]) * REM
    self.assertGreaterEqual((PHONE - 4 * REM - 2 - 24) / column, 3)
    self.assertIn("attr(data-label)", rule(".cards td::before", phone))
    table = next(self.root.iter("table"))
    self.assertEqual(table.get("class"), "cards")
    for row in table.find("tbody"):
      self.assertLen(row, 10)
      self.assertTrue(all(x.get("data-label") for x in row))

  def test_rows_can_be_sorted(self):
    rows = [Cell("a", value=0), Cell("1", value=0.5)], [Cell("b"), Cell("-")]
    text = html.write("t", [Table("", ["A", "B"], rows, cards=True)], {})
    root = ET.fromstring(text.split("\n", 1)[1])
    values = [
      x.get("data-value")
      for x in root.find(".//tbody").iter()
      if x.get("data-value") is not None
    ]
    self.assertEqual(values, ["0", "0.5"])
    script = root.find(".//script").text
    self.assertNotRegex(script, "[<&]")


if __name__ == "__main__":
  absltest.main()
