"""Tables of any cells, and sections between marks."""

import pathlib
import tempfile

from absl.testing import absltest

from kernels.bench import markdown


class MarkdownTest(absltest.TestCase):
  def test_a_cell_cannot_break_the_table(self):
    got = markdown.table(("a|b", "c"), [(None, "x\ny"), (1, "p || q")])
    lines = ["| a\\|b | c |", "| --- | --- |", "| None | x y |",
             "| 1 | p \\|\\| q |"]  # fmt: skip
    self.assertEqual(got, "\n".join(lines))

  def test_columns_flush_left(self):
    rule = markdown.table("abc", [], left={0, 2}).splitlines()[1]
    self.assertEqual(rule, "| :-- | --: | :-- |")

  def test_a_section_is_replaced_and_marks_are_needed(self):
    path = pathlib.Path(tempfile.mkdtemp()) / "page.md"
    path.write_text("a <!-- t -->b")
    with self.assertRaisesRegex(ValueError, "<!-- /t -->"):
      markdown.replace_section(str(path), "t", "new")
    path.write_text("a\n<!-- t -->\nold\n<!-- /t -->\nz")
    markdown.replace_section(str(path), "t", "new\n")
    want = "a\n<!-- t -->\n\nnew\n\n<!-- /t -->\nz"
    self.assertEqual(path.read_text(), want)


if __name__ == "__main__":
  absltest.main()
