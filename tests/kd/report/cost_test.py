from absl.testing import absltest

from kd.report import cost
from kd.report.blocks import Table
from tests.kd.report import studies


def priced(**keys):
  """Makes a study with prices: of a call 0.001 to the teacher."""
  results, *_ = studies.synthetic({"hard": 0.0, "soft": 0.01})
  studies.priced(results, **keys)
  return results


class CostTest(absltest.TestCase):
  def test_says_when_it_pays_and_what_is_lost(self):
    said = cost.sentence(priced())
    # 100 and 500 calls, at 100 a month.
    self.assertRegex(said, "`soft` pays for itself after 1(.01)? months")
    self.assertIn("less the teacher's is \N{MINUS SIGN}1.0 points", said)
    self.assertNotIn("Never", said)

  def test_says_never(self):
    results = priced(student=dict(call=0.002))
    said = cost.sentence(results)
    self.assertIn("`soft` never pays for itself", said)
    self.assertIn("Never, at any traffic: `hard`, `soft`", said)
    table = next(b for b in cost.tables(results) if isinstance(b, Table))
    self.assertEqual(table.rows[1][3].text, "never")

  def test_a_study_without_prices_has_no_section(self):
    results = priced()
    del results["provenance"]["cost"]
    self.assertEqual(cost.tables(results), [])


if __name__ == "__main__":
  absltest.main()
