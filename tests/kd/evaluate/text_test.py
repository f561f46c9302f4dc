"""Tests of kd.evaluate.text."""

import subprocess
import sys

import numpy as np
from absl.testing import absltest, parameterized

from kd.evaluate import text

METRICS = (
  text.exact_match,
  text.token_f1,
  text.rouge_l,
  text.agreement,
  text.field_accuracy,
)


def lcs(a, b):
  """Returns the length of a longest common subsequence, by its definition."""
  if not a or not b:
    return 0
  if a[0] == b[0]:
    return 1 + lcs(a[1:], b[1:])
  return max(lcs(a[1:], b), lcs(a, b[1:]))


class WordsTest(parameterized.TestCase):
  @parameterized.parameters(*METRICS)
  def test_a_text_agrees_with_itself_and_the_best_reference_counts(
    self, metric
  ):
    texts = ['{"a": 1}', '{"b": [true, {}]}', '"word other"']
    np.testing.assert_array_equal(metric(texts, texts), np.ones(3))
    others = [["0", one] for one in texts]
    np.testing.assert_array_equal(metric(texts, others), np.ones(3))
    np.testing.assert_array_equal(metric(texts, ["0"] * 3), np.zeros(3))

  @parameterized.parameters(*METRICS)
  def test_refuses_lists_that_do_not_fit(self, metric):
    with self.assertRaises(ValueError):
      metric(["1"], ["1", "2"])
    with self.assertRaisesRegex(ValueError, "example 1: no reference"):
      metric(["1", "2"], ["1", []])

  @parameterized.parameters(
    ("The Cat!", "cat", 1.0),
    ("an-other", "another", 1.0),  # punctuation goes, it does not part words
    ("theatre", "atre", 0.0),  # articles are words
    ("Ångström", "angstrom", 0.0),
    ("", "the", 1.0),
  )
  def test_exact_match(self, prediction, reference, expected):
    self.assertEqual(text.exact_match([prediction], [reference]), expected)

  @parameterized.parameters(
    ("x y y", "y y y z", 2 * 2 / 7),
    ("a an", "the", 1.0),
    ("", "word", 0.0),
    ("one", "other", 0.0),
  )
  def test_token_f1(self, prediction, reference, expected):
    actual = text.token_f1([prediction], [reference])
    np.testing.assert_allclose(actual, [expected])

  def test_rouge_l(self):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 20, 7))
    words = lambda rows: [" ".join(f"W{x}," for x in row) for row in rows]
    expected = [lcs(list(x), list(y)) / 7 for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(text.rouge_l(words(a), words(b)), expected)
    stemmed = text.rouge_l(["running ads"], ["runs ad"], stem=True)
    self.assertEqual(stemmed, 1 / 2)  # "ads" is too short to lose an ending

  def test_agreement_is_that_of_the_teacher_s_answers(self):
    actual = text.agreement(
      ["The  cat.", "the cat", "cat", ""], ["the cat", None, "the cat", ""]
    )
    np.testing.assert_array_equal(actual, [1, np.nan, 0, 1])


class JsonTest(parameterized.TestCase):
  @parameterized.parameters(
    (' {"a": [1, null]}\n', 1),
    ("0", 1),
    ("", 0),
    ("NaN", 0),
    ("[1,]", 0),
    ('```json\n{"a": 1}\n```', 0),
    ('{"a": 1} and more', 0),
    ("[" * 5000 + "]" * 5000, 0),
    ("\ud800", 0),
  )
  def test_valid(self, written, expected):
    self.assertEqual(text.json_valid([written]), expected)

  def test_schema(self):
    schema = {
      "$defs": {"name": {"type": "string", "minLength": 1}},
      "type": "object",
      "properties": {
        "who": {"$ref": "#/$defs/name"},
        "n": {"type": "integer"},
      },
      "required": ["who"],
      "additionalProperties": False,
    }
    written = ('{"who": "I", "n": 1}', '{"who": ""}', '{"n": 1}', '{"who"}')
    np.testing.assert_array_equal(
      text.json_valid(written, schema), [1, 0, 0, 0]
    )

  @parameterized.parameters(
    ({"type": "strin"}, "schema: 'strin'"),
    ({"$ref": "http://localhost:9/schema"}, "Unresolvable: http://localhost"),
  )
  def test_refuses_a_schema(self, schema, message):
    with self.assertRaisesRegex(ValueError, message):
      text.json_valid(["1"], schema)

  @parameterized.parameters(
    ('{"a": {"b": 1, "c": [2, 3]}}', '{"a": {"b": 1, "c": [2]}}', 2 / 3),
    ('{"a": 1}', '{"a": 1.0, "extra": 0}', 1.0),
    ('{"a": 1, "b": 0}', '{"a": true, "b": false}', 0.0),
    ('{"a": [true, false]}', '{"a": [1, false]}', 0.5),
    ('{"a": [], "b": {}}', '{"a": {}, "b": {}}', 0.5),
    ('{"a": {"0": 1}}', '{"a": [1]}', 0.0),
    ('{"a": null}', "{}", 0.0),
    ('{"a": "x"}', "{", 0.0),
  )
  def test_field_accuracy(self, reference, prediction, expected):
    actual = text.field_accuracy([prediction], [reference])
    np.testing.assert_allclose(actual, [expected])

  def test_refuses_a_reference_that_is_no_json(self):
    with self.assertRaisesRegex(ValueError, "example 1: not JSON: 'no'"):
      text.field_accuracy(["1", "1"], ["1", "no"])


class ImportTest(absltest.TestCase):
  def test_costs_no_package_of_a_metric(self):
    late = "nltk", "rouge_score", "jsonschema", "jax"
    code = (
      "import sys, kd.evaluate.text; "
      f"print([x for x in {late} if x in sys.modules])"
    )
    out = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    self.assertEqual(out.stdout.strip(), "[]")


if __name__ == "__main__":
  absltest.main()
