"""What the report says of the examples where teacher and students disagree."""

import pathlib
import xml.etree.ElementTree as ET

from absl.testing import absltest

from kd.report import blocks, disagreements, html, markdown, style
from kd.report.source import Source
from tests.kd.report.studies import PNG, disagreeing, synthetic, tables


class DisagreementsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    gains = {"hard": 0.0, "soft": 0.02, "rank": 0.01}
    results, config, _ = synthetic(gains, seeds=3, steps=20)
    self.source = Source(results, config, pathlib.Path())
    self.assertEmpty(disagreements.section(self.source))
    disagreeing(results, 5)
    first = results["disagreements"]["examples"][0]
    first["teacher"] = {"answer": "1", "confidence": 0.75}
    for arm, answer, sure in (
      ("hard", "1", 0.5), ("soft", "7", 0.8), ("rank", "7", 0.9),
    ):  # fmt: skip
      first["arms"][arm] = {
        "answer": answer, "confidence": sure, "distance": 0.9,
      }  # fmt: skip
    self.first = first

  def test_each_example_with_truth_and_answers(self):
    text = markdown.write(disagreements.section(self.source))
    examples, arms = tables(text)
    row = examples[2]
    self.assertEqual(row[1], "`1`")
    self.assertEqual(row[2], "`1` ✓<br>0.75")
    self.assertEqual(row[3], "`7` 2 arms, 0.80 to 0.90<br>`1` ✓ 1 arm, 0.50")
    self.assertEqual(row[4], "0.90")
    self.assertIn("`PK\xb7`<br>50 4b 03", examples[4][0])
    self.assertEqual([a[1] for a in arms[2:]], [
      "`1` 0.50", "**`7`** 0.80", "**`7`** 0.90",
    ])  # fmt: skip

  def test_images_are_part_of_the_page(self):
    page = html.write("t", disagreements.section(self.source), style.THEME)
    root = ET.fromstring(page.split("\n", 1)[1])
    (image,) = root.iter("img")
    self.assertEqual(image.get("src"), f"data:image/png;base64,{PNG}")
    self.assertEqual(image.get("alt"), "Example 1")

  def test_a_black_box_has_no_confidence(self):
    for x in self.source.results["disagreements"]["examples"]:
      del x["teacher"]["confidence"]
    made = disagreements.section(self.source)
    table = next(b for b in made if isinstance(b, blocks.Table))
    self.assertIn("all on the answer that it gave", table.caption)
    self.assertEqual(table.rows[0][2].note, "")


if __name__ == "__main__":
  absltest.main()
