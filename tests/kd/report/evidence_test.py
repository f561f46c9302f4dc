"""Tables of evidence: what a search chose."""

import tempfile
from pathlib import Path

from absl.testing import absltest

from kd.report import evidence, markdown, page, record
from tests.kd.report.studies import (
  REPLICATES,
  leave,
  searched,
  synthetic,
  tables,
)

ARMS = {"hard": 0.0, "soft": 0.01}
TRAIN = {"optimizer": "adam", "learning_rate": 1e-3}


def study(replicates=1):
  nested = REPLICATES if replicates > 1 else None
  results, config, lines = synthetic(ARMS, replicates=nested)
  results["tune"] = searched(ARMS, replicates)
  for arm in results["arms"].values():
    arm["config"]["train"] = TRAIN
  return results, config, lines


def rows(results):
  (found,) = tables(markdown.write(evidence.search_table(results)))
  return [[cell.replace("`", "") for cell in row] for row in found[2:]]


class ContrastTest(absltest.TestCase):
  def test_a_row_says_its_margin_and_the_runs_that_are_lost(self):
    results, _, _ = synthetic(
      {"hard": 0.0, "soft": 0.01, "rank": 0.0},
      contrasts=("soft - rank", "soft - rank within 0.03", "rank - hard"),
      diverged={"soft": {"2": 140}},
    )
    (found,) = tables(markdown.write(evidence.contrast_table(results)))
    first, second, third = found[2:]
    self.assertEqual(first[0], "`soft` \N{MINUS SIGN} `rank`")
    self.assertStartsWith(second[0], f"{first[0]}<br>within 3.0")
    self.assertEqual(first[3], "open<br>✕ 1 run lost")
    self.assertEqual(third[3], "open")


class SearchTest(absltest.TestCase):
  def test_an_arm_says_of_a_point_the_keys_that_it_has(self):
    results, _, _ = study()
    self.assertEqual(
      rows(results),
      [
        ["hard", "learning rate = 0.001", "91.00"],
        ["soft", "temperature = 1, learning rate = 0.001", "91.00"],
      ],
    )

  def test_replicates_that_chose_alike_are_counted(self):
    results, _, _ = study(5)  # points 0, 1, 2, 0, 1
    (_, hard, _), (_, soft, _) = rows(results)
    self.assertEqual(
      hard, "learning rate = 0.001 (3); learning rate = 0.003 (2)"
    )
    self.assertStartsWith(soft, "temperature = 1, learning rate = 0.001 (2); ")
    self.assertEndsWith(soft, "temperature = 4, learning rate = 0.001 (1)")

  def test_the_caption_says_what_was_searched_and_on_what(self):
    results, _, _ = study(5)
    _, table = evidence.search_table(results)
    for said in (
      "in each of 5 replicates anew, by validation accuracy",
      "4 trials of each arm, of 2 seeds that no run has",
      "temperature of 1, 4 and learning rate from 0.001 to 0.01 (log)",
    ):
      self.assertIn(said, table.caption)

  def test_an_arm_that_has_none_of_the_keys(self):
    results, _, _ = study()
    results["tune"]["points"] = [{"temperature": 1.0}]
    self.assertEqual(rows(results)[0][1], "has none of these")

  def test_an_arm_all_of_whose_trials_diverged(self):
    results, _, _ = study()
    results["tune"]["scores"]["soft"] = [[-1.0] * 4]
    scores = [row[2] for row in rows(results)]
    self.assertEqual(scores, ["91.00", "\N{EN DASH}"])

  def test_page_and_record_show_it_and_the_arms_say_tuned(self):
    results, config, lines = study(5)
    folder = self.enterContext(tempfile.TemporaryDirectory())
    page.write(leave(folder, results, config, lines))
    small = record.small(results)
    for text in (Path(folder, "report.md").read_text(), self.recorded(small)):
      self.assertIn("## Search", text)
      self.assertIn("hard; tuned: learning rate |", text)
      self.assertIn("; tuned: temperature, learning rate |", text)

  def recorded(self, results):
    made = {"seconds": {"train": 1.0}, "host": "h", "versions": {"jax": "1"}}
    results["provenance"] |= made
    return record.table(results, {})

  def test_a_study_without_a_search_has_no_table(self):
    results, _, _ = synthetic(ARMS)
    self.assertEqual(evidence.search_table(results), [])


if __name__ == "__main__":
  absltest.main()
