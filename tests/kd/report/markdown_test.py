"""Tables and sections in Markdown."""

import pathlib
import tempfile

from absl.testing import absltest

from kd.errors import UserError
from kd.report import markdown
from kd.report.blocks import Cell, Table


class MarkdownTest(absltest.TestCase):
  def path(self, text):
    path = (
      pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "a.md"
    )
    path.write_text(text)
    return path

  def test_notes_stand_below_names_and_behind_numbers(self):
    row = [Cell("a|b", "its words"), Cell("1", "± 2", strong=True)]
    text = markdown.write([Table("", ["Arm", Cell("X", "[y]")], [row])])
    self.assertEqual(
      text,
      "| Arm | X [y] |\n| :-- | --: |\n| a\\|b<br>its words | **1** ± 2 |\n",
    )

  def test_section(self):
    path = self.path("before <!-- x -->old<!-- /x --> after")
    for body in ("first", "second\n"):
      markdown.replace_section(str(path), "x", body)
    expected = "before <!-- x -->\n\nsecond\n\n<!-- /x --> after"
    self.assertEqual(path.read_text(), expected)

  def test_no_marks(self):
    path = self.path("text")
    with self.assertRaisesRegex(UserError, "expected the marks <!-- x -->"):
      markdown.replace_section(str(path), "x", "body")
    self.assertEqual(path.read_text(), "text")

  def test_no_file(self):
    with self.assertRaisesRegex(UserError, "none.md"):
      markdown.replace_section("none.md", "x", "body")


if __name__ == "__main__":
  absltest.main()
