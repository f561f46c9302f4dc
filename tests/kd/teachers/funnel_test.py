"""Chains of filters, and the funnel that they leave."""

import numpy as np
from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.teachers import filters, funnel
from tests.kd.teachers.filters_test import example


class RunTest(parameterized.TestCase):
  def test_a_funnel_of_several(self):
    sections = [{"name": "refusals"}, {"name": "agreement", "low": 0.6}]
    examples = [
      example(0, "Sorry, no.", "a", "a"),
      example(1, "a", "b"),
      example(2, "Sorry, no."),
    ]
    kept, counts = funnel.run(examples, sections)
    self.assertEqual([a.id for a in kept], ["q0"])
    self.assertEqual(
      [
        (e["step"], e["in"], e["out"], [r["id"] for r in e["removed"]])
        for e in counts
      ],
      [("refusals", 3, 2, ["q2"]), ("agreement", 2, 1, ["q1"])],
    )
    # A second run remembers nothing of the first.
    again, _ = funnel.run(examples, sections)
    self.assertEqual([a.id for a in again], ["q0"])

  @parameterized.parameters(
    ({"name": "magic"}, r"filters\[0\].name = 'magic': expected one of exact"),
    ("refusals", r"filters\[0\] = 'refusals': expected a section"),
    ({"name": "agreement"}, r"filters\[0\].low is missing: expected a number"),
    ({"name": "agreement", "low": 2.0}, r"low = 2.0: expected a number >= 0"),
    ({"name": "agreement", "low": 0.5, "x": 1}, r"\.x = 1: unknown key"),
    ({"name": "pattern", "regex": "("}, "expected a regular expression"),
    ({"name": "rubric", "low": 0.0, "weights": {}}, "a section of weights > 0"),
    ({"name": "leakage", "similarity": 1.0}, "similarity = 1.0: .* <= 0.98"),
    (
      {"name": "entropy", "low": 1.0, "high": 0.5},
      "low = 1.0: expected at mos",
    ),
  )
  def test_what_a_config_may_not_say(self, section, words):
    with self.assertRaisesRegex(UserError, words):
      funnel.check("filters", [section])

  def test_a_filter_may_know_the_evaluation(self):
    section = {"name": "leakage", "similarity": 0.8, "ngram": 5}
    kept, _ = funnel.run([example(0, "a"), example(1, "b")], [section], ["p1"])
    self.assertEqual([a.id for a in kept], ["q0"])

  def test_to_add_a_filter_is_one_entry(self):
    def shouts():
      def step(answers):
        return answers if answers.prompt.isupper() else None

      return step

    mine = filters.Filter("prompts in capitals", shouts)
    examples = [example(0, "a", prompt="YES"), example(1, "a", prompt="no")]
    with absltest.mock.patch.dict(filters.FILTERS, mine=mine):
      funnel.check("filters", [{"name": "mine"}])
      kept, _ = funnel.run(examples, [{"name": "mine"}])
      self.assertEqual([a.id for a in kept], ["q0"])
      said = funnel.words(["mine", "closed set", "verified", "mine"])
      with self.assertRaisesRegex(UserError, "'mine': looks at texts"):
        funnel.check("filters", [{"name": "mine"}], black_box=False)
    self.assertEqual(
      said,
      "mine keeps prompts in capitals; verified keeps samples that are right",
    )


class DistributionTest(parameterized.TestCase):
  """Filters of what a teacher says of its classes."""

  PROBS = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.0, 1.0, 0.0]])

  @parameterized.parameters(
    (dict(name="confidence", low=0.5), [True, False, True]),
    (dict(name="agreement", low=0.71), [False, False, True]),
    (dict(name="margin", low=0.05), [True, True, True]),
    (dict(name="margin", low=0.06), [True, False, True]),
    (dict(name="entropy", low=0.1, high=1.0), [True, False, False]),
    (dict(name="entropy", high=0.0), [False, False, True]),
    (dict(name="verified"), [True, False, True]),
  )
  def test_what_is_kept(self, section, expected):
    truth = np.array([0, 2, -1])  # -1 is not known
    funnel.check("f", (section,), black_box=False)
    kept, (entry,) = funnel.keep(self.PROBS, truth, "abc", (section,))
    self.assertEqual(kept.tolist(), expected)
    self.assertEqual((entry["in"], entry["out"]), (3, sum(expected)))
    self.assertLen(entry["removed"], 3 - sum(expected))

  def test_a_chain(self):
    chain = (dict(name="confidence", low=0.5), dict(name="verified"))
    kept, counts = funnel.keep(self.PROBS, np.array([1, 0, 0]), "abc", chain)
    self.assertFalse(kept.any())
    self.assertEqual([(e["in"], e["out"]) for e in counts], [(3, 2), (2, 0)])
    said = [e["samples"] for e in counts[1]["removed"]]
    self.assertEqual(said, [["a (0.70)"], ["b (1.00)"]])

  def test_texts_are_another_matter(self):
    with self.assertRaisesRegex(UserError, "f.0..name = 'length': looks"):
      funnel.check("f", (dict(name="length", high=9),), black_box=False)


if __name__ == "__main__":
  absltest.main()
