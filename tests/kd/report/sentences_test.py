"""The words must say what the numbers do."""

from absl.testing import absltest

from kd.evaluate import verdict
from kd.report import sentences
from tests.kd.report.studies import synthetic


class VerdictTest(absltest.TestCase):
  def said(self, **options):
    results, _, _ = synthetic(**options)
    return results, "\n".join(sentences.verdict(results))

  def test_winner(self):
    results, said = self.said(gains={"hard": 0.0, "soft": 0.03})
    versus = results["arms"]["soft"]["metrics"]["accuracy"]["versus_baseline"]
    self.assertStartsWith(said, "**`soft` is the best arm on accuracy**")
    self.assertIn("over 10 seeds", said)
    self.assertIn(f"{100 * versus['difference']:.2f} points above", said)
    for end in ("low", "high"):
      self.assertIn(f"{100 * versus[end]:+.2f}", said)
    self.assertIn("Every other arm is told apart from `soft`.", said)

  def test_no_difference(self):
    _, said = self.said(gains={"hard": 0.0, "soft": 0.0}, seeds=5)
    self.assertStartsWith(said, "**No arm")
    self.assertNotIn("is the best arm", said)
    self.assertIn("No other arm is told apart", said)

  def test_worse(self):
    _, said = self.said(gains={"hard": 0.0, "soft": -0.05})
    self.assertStartsWith(said, "**No arm beats the baseline `hard`")
    self.assertIn("as worse: `soft`", said)

  def test_one_seed(self):
    _, said = self.said(gains={"hard": 0.0, "soft": 0.05}, seeds=1)
    self.assertStartsWith(said, "**One seed tells no arm apart")
    self.assertNotIn("interval [", said)

  def test_diverged_cannot_win(self):
    results, said = self.said(
      gains={"hard": 0.0, "soft": 0.05}, diverged={"soft": {"4": 60}}
    )
    self.assertFalse(verdict.winner(results).named)
    self.assertNotIn("is the best arm", said)
    self.assertIn("`soft` diverged (seed 4 at step 60)", said)
    self.assertIn("though its mean over the runs that it finished", said)

  def test_all_diverged(self):
    lost = {"0": 20}
    _, said = self.said(
      gains={"hard": 0.0, "soft": 0.05}, seeds=1,
      diverged={"hard": lost, "soft": lost},
    )  # fmt: skip
    self.assertStartsWith(said, "**No arm is named best on accuracy**")


if __name__ == "__main__":
  absltest.main()
