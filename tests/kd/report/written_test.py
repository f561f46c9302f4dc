"""Written text in a report: everybody's words, and what they cost."""

import types

from absl.testing import absltest, parameterized

from kd.report import html, markdown, style, written

ARMS = ("hard", "kd")
LOOK = {arm: types.SimpleNamespace(colour="#123456") for arm in ARMS}


def results(prompts=3, costs=(0.0, 100.0)):
  return {
    "seeds": [0, 1],
    "arms": {
      arm: {"teacher_tokens": cost}
      for arm, cost in zip(ARMS, costs, strict=True)
    },
    "written": [
      {
        "prompt": f"prompt {i} | <b>",
        "truth": "true",
        "teacher": None if i else "said",
        "arms": {"hard": "", "kd": "x" * 700 + "`\n\u202e"},
      }
      for i in range(prompts)
    ],
  }


class WrittenTest(parameterized.TestCase):
  def test_words_side_by_side(self):
    blocks = written.word_tables(results(), LOOK)
    text = markdown.write(blocks)
    self.assertEqual(text.count("prompt 0"), 1)
    rows = [line for line in text.split("\n") if line.startswith("| ")]
    self.assertIn("| teacher | `said` |", rows)
    self.assertLen([r for r in rows if r.startswith("| teacher")], 1)
    self.assertLen([r for r in rows if r.endswith("| (nothing) |")], 3)
    self.assertIn("x" * 600 + " ...", text)
    self.assertNotIn("x" * 601, text)
    page = html.write("t", blocks, style.THEME)
    self.assertNotIn("<b>", page)
    self.assertEmpty(written.word_tables(results(0), LOOK))

  @parameterized.parameters(
    ((0.0, 100.0), "at equal teacher tokens."),
    ((300.0, 100.0), "not compared at equal teacher tokens."),
  )
  def test_budget(self, costs, said):
    (_, table) = written.budget_table(results(costs=costs), LOOK)
    self.assertEndsWith(table.caption, said)
    self.assertEqual(table.rows[1][1], "100")

  def test_no_budget_of_other_tasks(self):
    self.assertEmpty(written.budget_table(results(costs=(None, None)), LOOK))


if __name__ == "__main__":
  absltest.main()
