"""Filters and targets of a black-box teacher's answers."""

import math

from absl.testing import absltest, parameterized

from kd.teachers import filters, funnel, targets
from kd.teachers.answers import Answers, Sample


def example(i, *texts, prompt=None, **fields):
  samples = [Sample(text=t) if isinstance(t, str) else t for t in texts]
  return Answers(
    id=f"q{i}", prompt=prompt or f"p{i}", samples=samples, **fields
  )


def run(section, examples, evaluation=()):
  """Returns (ids kept with their samples' texts, the funnel's entry)."""
  section = {"name": section} if isinstance(section, str) else section
  funnel.check("filters", [section])
  kept, (entry,) = funnel.run(examples, [section], evaluation)
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

  @parameterized.parameters(1e-9, 0.98)
  def test_the_ends_of_similarity(self, value):
    section = {"name": "near_duplicates", "similarity": value}
    funnel.check("filters", [section])
    examples = [example(0, "a", prompt="one"), example(1, "a", prompt="one")]
    kept, _ = funnel.run(examples, [section])
    self.assertEqual([a.id for a in kept], ["q0"])

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

  @parameterized.parameters(
    "I'm sorry, but that is private.",
    "I\u2019m sorry, but that is private.",
    "I am sorry.",
    "Sorry.",
    "I can't help with that.",
    "I can\u2019t help with that.",
    "Sadly, I cannot answer this.",
    "We can not provide it.",
    "I'm unable to help.",
    "I\u2019m unable to provide that.",
    "I am unable to do that",
    "I'm not able to assist with this.",
    "I'm not able to give medical advice.",
    "I'm unable to fulfill this request.",
    "I\u2019m not able to do so.",
    "We're not able to discuss it.",
    "we are unable  to\nshare it",
    "I won\u2019t comply.",
    "I will not do that.",
    "As an AI language model, I think",
    "As a large language model I think",
  )
  def test_a_refusal(self, text):
    self.assertEmpty(run("refusals", [example(0, text)])[0])

  @parameterized.parameters(
    "He was sorry that he could not help.",
    "I am able to help.",
    "I'm unable to log in: which form is it?",
    "You can't help it.",
    "It isn\u2019t able to provide heat.",
    "Billing",
    "",
  )
  def test_no_refusal(self, text):
    self.assertEqual(run("refusals", [example(0, text)])[0], {"q0": [text]})

  def test_every_pattern_can_match(self):
    one_each = ("Sorry", "I'm unable to help", "as an AI")
    for pattern, text in zip(filters.REFUSALS, one_each, strict=True):
      section = {"name": "refusals", "patterns": (pattern,)}
      self.assertEmpty(run(section, [example(0, text)])[0])

  def test_patterns_of_ones_own_are_taken_as_they_are(self):
    section = {"name": "refusals", "patterns": ("don\u2019t know",)}
    kept, _ = run(section, [example(0, "I don\u2019t know", "I don't know")])
    self.assertEqual(kept, {"q0": ["I don't know"]})

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


class TargetTest(absltest.TestCase):
  def test_frequencies_over_distinct_answers(self):
    found = targets.frequencies(example(0, "Yes", "no", " yes. ", "No!", "yes"))
    self.assertEqual(found, [("yes", 0.6), ("no", 0.4)])

  def test_values_to_rank_by(self):
    scored = [
      Sample(text="a", score=1.0, logprob=-2.0, rubric={"x": 1.0, "y": 3.0}),
      Sample(text="b", score=2.0, rubric={"z": 9.0}),
    ]
    one = example(0, *scored)
    self.assertEqual(targets.values(one, "score"), [1.0, 2.0])
    self.assertEqual(targets.values(one, "logprob"), [-2.0, None])
    weights = {"x": 1.0, "y": 1.0}
    self.assertEqual(targets.values(one, "rubric", weights), [2.0, None])

  def test_a_rubrics_missing_criteria_and_judges_in_conflict(self):
    sample = Sample(text="", rubric={"x": [1.0, 4.0], "y": 2.0})
    weights = {"x": 2.0, "y": 1.0, "z": 5.0}
    self.assertAlmostEqual(
      targets.rubric_score(sample, weights), (2 * 2.5 + 2.0) / 3
    )
    self.assertEqual(targets.rubric_conflict(sample, weights), 3.0)
    self.assertIsNone(targets.rubric_score(sample, {"z": 1.0}))


if __name__ == "__main__":
  absltest.main()
