"""The words must say what the numbers do."""

from absl.testing import absltest

from kd.evaluate import verdict
from kd.report import evidence, results_table, sentences, style
from tests.kd.report.studies import REPLICATES, synthetic


class VerdictTest(absltest.TestCase):
  def said(self, **options):
    results, _, _ = synthetic(**options)
    return results, "\n".join(sentences.verdict(results))

  def test_winner(self):
    results, said = self.said(gains={"hard": 0.0, "soft": 0.03})
    versus = results["arms"]["soft"]["metrics"]["accuracy"]["versus_baseline"]
    self.assertStartsWith(
      said,
      "**`soft` is the best arm on accuracy, for other seeds, for this split "
      "and test set, and for this teacher**",
    )
    self.assertIn("over 10 seeds (weights of the last step)", said)
    self.assertIn(f"{100 * versus['difference']:.2f} points above", said)
    for end in ("low", "high"):
      self.assertIn(f"{100 * versus[end]:+.2f}", said)
    self.assertIn("Every other arm is told apart from `soft`.", said)

  def test_a_choice_is_said(self):
    results, said = self.said(
      gains={"hard": 0.0, "soft": 0.03, "rank": 0.0301, "dist": 0.01}
    )
    best = verdict.judge(results)[0].best
    self.assertStartsWith(
      said, f"**`{best}` has the best mean on accuracy, and"
    )
    self.assertIn("is better than its baseline `hard`, for other seeds", said)
    self.assertIn("points above it (95 % interval [", said)
    self.assertIn("corrected for the choice of 3; Holm-corrected p", said)
    self.assertIn("Which arm is best stays open: ", said)
    self.assertIn("Also told apart from the baseline as better: ", said)

  def test_replicates(self):
    results, said = self.said(
      gains={"hard": 0.0, "soft": 0.03}, replicates=REPLICATES
    )
    self.assertIn("for other splits and draws, and for this teacher**", said)
    self.assertIn("on average over 5 replicates of 2 seeds (weights", said)
    how = sentences.how_tested(results)
    self.assertIn("evidence is the **replicate**", how)
    self.assertIn("A replicate is a draw of the split and signal", how)
    self.assertIn("Each replicate has a test set of its own", how)

  def test_nested_levels(self):
    nested = REPLICATES | {
      "count": [5, 2],
      "levels": [
        {"name": "split", "of": [i // 2 for i in range(10)]},
        {"name": "signal", "of": list(range(10))},
      ],
    }
    results, said = self.said(
      gains={"hard": 0.0, "soft": 0.03}, replicates=nested
    )
    self.assertIn("on average over 5 splits of 2 runs (weights", said)
    how = sentences.how_tested(results)
    self.assertIn("evidence is the **split**", how)
    self.assertIn("Within each split are several of signal, and runs", how)

  def test_splits_of_one_test_set(self):
    results, said = self.said(
      gains={"hard": 0.0, "soft": 0.03},
      replicates=REPLICATES | {"fixed": ["test set", "teacher"]},
    )
    self.assertIn(
      "draws, for this test set, and for this teacher**", said.split(":")[0]
    )
    how = sentences.how_tested(results)
    self.assertIn("The test set is taken as given", how)
    (_, table) = evidence.component_table(results)
    self.assertNotIn("holds that of its test examples", table.caption)

  def test_strata(self):
    _, said = self.said(
      gains={"hard": 0.0, "soft": 0.03, "hard_90": -0.1, "soft_90": -0.05},
      strata={"hard": "", "soft": "", "hard_90": "90 examples"}
      | {"soft_90": "90 examples"},
    )
    self.assertStartsWith(said, "**`soft` is the best arm on accuracy, for")
    self.assertIn("**`soft_90` is the best arm on accuracy with 90 exa", said)

  def test_no_difference(self):
    _, said = self.said(gains={"hard": 0.0, "soft": 0.0}, seeds=5)
    self.assertStartsWith(said, "**No arm")
    self.assertNotIn("is the best arm", said)
    self.assertIn("Which arm is best stays open", said)

  def test_worse(self):
    _, said = self.said(gains={"hard": 0.0, "soft": -0.05, "rank": 0.0})
    self.assertIn("apart from the baseline as worse: `soft`", said)
    _, said = self.said(gains={"hard": 0.0, "soft": -0.05})
    self.assertStartsWith(said, "**`hard` is the best arm on accuracy")

  def test_one_seed(self):
    _, said = self.said(gains={"hard": 0.0, "soft": 0.05}, seeds=1)
    self.assertStartsWith(said, "**One seed tells no arm apart")
    self.assertNotIn("interval [", said)

  def test_a_single_example(self):
    results, _, _ = synthetic({"hard": 0.0, "soft": 0.01}, seeds=5)
    for arm in results["arms"].values():
      arm["metrics"]["accuracy"]["worth"] = 0.008
    said = "\n".join(sentences.verdict(results))
    self.assertIn("single test example would turn what is said of `soft`", said)

  def test_diverged_cannot_win(self):
    results, said = self.said(
      gains={"hard": 0.0, "soft": 0.05}, diverged={"soft": {"4": 60}}
    )
    self.assertFalse(verdict.judge(results)[0].named)
    self.assertNotIn("is the best arm", said)
    self.assertNotIn("as better", said)
    self.assertIn("`soft` diverged (seed 4 at step 60), so nothing is", said)
    self.assertIn("though its mean over the runs that it finished", said)

  def test_all_diverged(self):
    lost = {"0": 20}
    _, said = self.said(
      gains={"hard": 0.0, "soft": 0.05}, seeds=1,
      diverged={"hard": lost, "soft": lost},
    )  # fmt: skip
    self.assertStartsWith(said, "**No arm is named best on accuracy**")


class EvidenceTest(absltest.TestCase):
  """The tables of contrasts and of variance components."""

  def test_contrasts(self):
    results, _, _ = synthetic(
      {"hard": 0.0, "soft": 0.03, "rank": 0.0302},
      contrasts=("rank - hard", "rank - soft within 0.01", "rank - soft"),
    )
    table = evidence.contrast_table(results)[1]
    said = [(row[0].text, row[3]) for row in table.rows]
    gap = "`rank` \N{MINUS SIGN} "
    self.assertEqual(
      said,
      [
        (gap + "`hard`", "higher"),
        (gap + "`soft`", "equal within 1.00 points"),
        (gap + "`soft`", "open"),
      ],
    )
    self.assertEqual([row[1].strong for row in table.rows], [True, True, False])
    self.assertEqual(evidence.contrast_table(synthetic({"a": 0.0})[0]), [])

  def test_components(self):
    gains = {"hard": 0.0, "soft": 0.03}
    results, _, _ = synthetic(gains, replicates=REPLICATES)
    table = evidence.component_table(results)[1]
    self.assertEqual(
      table.columns[1:],
      ["Split + signal", "Initialisation and order", "Test examples"],
    )
    versus = results["arms"]["soft"]["metrics"]["accuracy"]["versus_baseline"]
    for cell, part in zip(
      table.rows[0][1:], versus["components"].values(), strict=True
    ):
      self.assertEqual(cell.text, f"{100 * part['sd']:.2f}")
    del versus["components"]
    self.assertEqual(evidence.component_table(results), [])

  def test_a_table_of_strata(self):
    gains = {"small": 0.1, "hard": 0.0, "soft": 0.03}
    strata = {"small": "all", "hard": "few", "soft": "few"}
    results, _, _ = synthetic(gains, strata=strata)
    table = results_table.table(results, style.styles(results), {})
    self.assertEqual(table.columns[1], "Budget")
    order = [(row[0].text, row[1].text) for row in table.rows]
    self.assertEqual(
      order, [("`small`", "all"), ("`soft`", "few"), ("`hard`", "few")]
    )
    self.assertEqual(
      [row[0].strong for row in table.rows], [False, True, False]
    )


if __name__ == "__main__":
  absltest.main()
