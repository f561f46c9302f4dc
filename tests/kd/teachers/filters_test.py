"""Filters and targets of a black-box teacher's answers."""

import math

import numpy as np
from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.teachers import filters, targets
from kd.teachers.answers import Answers, Sample


def example(i, *texts, prompt=None, **fields):
  samples = [Sample(text=t) if isinstance(t, str) else t for t in texts]
  return Answers(
    id=f"q{i}", prompt=prompt or f"p{i}", samples=samples, **fields
  )


def run(section, examples, evaluation=()):
  """Returns (ids kept with their samples' texts, the funnel's entry)."""
  section = {"name": section} if isinstance(section, str) else section
  filters.check("filters", [section])
  kept, (entry,) = filters.run(examples, [section], evaluation)
  return {a.id: [s.text for s in a.samples] for a in kept}, entry


LONG = "the quick brown fox jumps over the lazy dog in the early morning light"


class FilterTest(parameterized.TestCase):
  def test_exact_duplicates(self):
    kept, entry = run(
      "exact_duplicates", [example(0, "a"), example(1, "b", prompt="p0")]
    )
    self.assertEqual(kept, {"q0": ["a"]})
    self.assertEqual((entry["in"], entry["out"]), (2, 1))
    self.assertEqual([r["id"] for r in entry["removed"]], ["q1"])

  def test_near_duplicates(self):
    kept, _ = run(
      {"name": "near_duplicates", "similarity": 0.7},
      [
        example(0, "a", prompt=LONG),
        example(1, "a", prompt=LONG.upper() + "!"),
        example(2, "a", prompt=LONG[::-1]),
      ],
    )
    self.assertEqual(list(kept), ["q0", "q2"])

  def test_leakage(self):
    kept, _ = run(
      "leakage",
      [example(0, "a", prompt=LONG + " "), example(1, "a")],
      evaluation=["something else entirely, as long", LONG],
    )
    self.assertEqual(list(kept), ["q1"])

  def test_agreement_margin_and_entropy(self):
    mixed = example(0, "yes", "Yes.", "no", "maybe")
    split = example(1, "yes", "no")
    sure = example(2, "no", "no")
    every = [mixed, split, sure]
    self.assertEqual(
      list(run({"name": "agreement", "low": 0.51}, every)[0]), ["q2"]
    )
    self.assertEqual(
      list(run({"name": "margin", "low": 0.25}, every)[0]), ["q0", "q2"]
    )
    wanted = {"name": "entropy", "low": 0.1, "high": math.log(2) + 1e-9}
    self.assertEqual(list(run(wanted, every)[0]), ["q1"])

  @parameterized.parameters(
    ({"name": "confidence", "low": 0.5}, ["sure", "unknown"]),
    ({"name": "length", "low": 5, "high": 7}, ["unsure", "unknown"]),
    ({"name": "pattern", "regex": "u.*"}, ["unsure", "unknown"]),
    ("verified", ["sure"]),
    (
      {"name": "rubric", "low": 2.0, "weights": {"tone": 1.0, "truth": 3.0}},
      ["sure"],
    ),
    (
      {"name": "rubric", "low": 0.0, "weights": {"tone": 1.0}, "conflict": 1.0},
      ["sure"],
    ),
  )
  def test_samples_are_dropped_and_an_example_without_any(self, section, texts):
    one = example(
      0,
      Sample(text="sure", logprob=-0.1, rubric={"tone": 1.0, "truth": [3, 2]}),
      Sample(text="unsure", logprob=-9.0, rubric={"tone": [0.0, 3.0]}),
      Sample(text="unknown"),
      reference="Sure.",
    )
    kept, entry = run(section, [one])
    self.assertEqual(kept, {"q0": texts})
    self.assertEqual(
      (entry["samples_in"], entry["samples_out"]), (3, len(texts))
    )

  def test_refusals(self):
    kept, _ = run(
      "refusals",
      [
        example(0, "I'm sorry, but that is private.", "Paris"),
        example(1, "As an AI language model, I cannot help with that."),
        example(2, "He was sorry that he could not help."),
      ],
    )
    self.assertEqual(list(kept), ["q0", "q2"])
    self.assertEqual(kept["q0"], ["Paris"])

  def test_a_funnel_of_several(self):
    sections = [{"name": "refusals"}, {"name": "agreement", "low": 0.6}]
    examples = [
      example(0, "Sorry, no.", "a", "a"),
      example(1, "a", "b"),
      example(2, "Sorry, no."),
    ]
    kept, funnel = filters.run(examples, sections)
    self.assertEqual([a.id for a in kept], ["q0"])
    self.assertEqual(
      [
        (e["step"], e["in"], e["out"], [r["id"] for r in e["removed"]])
        for e in funnel
      ],
      [("refusals", 3, 2, ["q2"]), ("agreement", 2, 1, ["q1"])],
    )
    # A second run remembers nothing of the first.
    again, _ = filters.run(examples, sections)
    self.assertEqual([a.id for a in again], ["q0"])

  @parameterized.parameters(
    ({"name": "magic"}, r"filters\[0\].name = 'magic': expected one of exact"),
    ("refusals", r"filters\[0\] = 'refusals': expected a section"),
    ({"name": "agreement"}, r"filters\[0\].low is missing: expected a number"),
    ({"name": "agreement", "low": 2.0}, r"low = 2.0: expected a number >= 0"),
    ({"name": "agreement", "low": 0.5, "x": 1}, r"\.x = 1: unknown key"),
    ({"name": "pattern", "regex": "("}, "expected a regular expression"),
    ({"name": "rubric", "low": 0.0, "weights": {}}, "a section of weights > 0"),
  )
  def test_what_a_config_may_not_say(self, section, words):
    with self.assertRaisesRegex(UserError, words):
      filters.check("filters", [section])


class TargetTest(absltest.TestCase):
  def test_frequencies_over_distinct_answers(self):
    found = targets.frequencies(example(0, "Yes", "no", " yes. ", "No!", "yes"))
    self.assertEqual(found, [("yes", 0.6), ("no", 0.4)])

  def test_acceptable_outputs_share_the_target(self):
    one = example(0, "a", "b", "A.", rejected=["B"], reference="c")
    self.assertEqual(targets.acceptable(one), [("c", 0.5), ("a", 0.5)])

  def test_rankings_with_ties(self):
    scored = [
      Sample(text="a", score=1.0, logprob=-2.0, rubric={"x": 1.0, "y": 3.0}),
      Sample(text="b", score=2.0, logprob=-1.0, rubric={"x": 2.0}),
      Sample(text="c", score=2.0, rubric={"z": 9.0}),
      Sample(text="A", score=3.0, logprob=-2.0, rubric={"x": [1.0, 2.0]}),
    ]
    one = example(0, *scored)
    self.assertEqual(targets.ranking(one, "score"), [["a", "b", "c"]])
    self.assertEqual(targets.ranking(one, "logprob"), [["b"], ["a"]])
    self.assertEqual(targets.ranking(one, "votes"), [["a"], ["b", "c"]])
    weights = {"x": 1.0, "y": 1.0}
    self.assertEqual(
      targets.ranking(one, "rubric", weights), [["b"], ["a"]]
    )  # 2 against the mean of (1 + 3) / 2 and 1.5
    self.assertEqual(targets.best(one, "score").text, "A")
    self.assertEqual(targets.best(one, "votes").text, "a")
    self.assertIsNone(targets.best(example(0, "a"), "score"))

  def test_pairs_from_rejected_alternatives(self):
    one = example(0, "a", "A", "b", rejected=["b", "c"])
    self.assertEqual(targets.pairs(one), [("a", "b"), ("a", "c"), ("b", "c")])

  def test_a_rubrics_missing_criteria_and_judges_in_conflict(self):
    sample = Sample(text="", rubric={"x": [1.0, 4.0], "y": 2.0})
    weights = {"x": 2.0, "y": 1.0, "z": 5.0}
    self.assertAlmostEqual(
      targets.rubric_score(sample, weights), (2 * 2.5 + 2.0) / 3
    )
    self.assertEqual(targets.rubric_conflict(sample, weights), 3.0)
    self.assertIsNone(targets.rubric_score(sample, {"z": 1.0}))


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
    filters.check("f", (section,), black_box=False)
    kept, (entry,) = filters.keep(self.PROBS, truth, "abc", (section,))
    self.assertEqual(kept.tolist(), expected)
    self.assertEqual((entry["in"], entry["out"]), (3, sum(expected)))
    self.assertLen(entry["removed"], 3 - sum(expected))

  def test_a_chain(self):
    chain = (dict(name="confidence", low=0.5), dict(name="verified"))
    kept, funnel = filters.keep(self.PROBS, np.array([1, 0, 0]), "abc", chain)
    self.assertFalse(kept.any())
    self.assertEqual([(e["in"], e["out"]) for e in funnel], [(3, 2), (2, 0)])
    said = [e["samples"] for e in funnel[1]["removed"]]
    self.assertEqual(said, [["a (0.70)"], ["b (1.00)"]])

  def test_texts_are_another_matter(self):
    with self.assertRaisesRegex(UserError, "f.0..name = 'length': looks"):
      filters.check("f", (dict(name="length", high=9),), black_box=False)


if __name__ == "__main__":
  absltest.main()
