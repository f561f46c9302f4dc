"""Metrics of written text: one number for each example, float64 [N].

Each takes N predictions and N references. A reference may be several acceptable
texts in a list: the example then has the best of its values. Means, intervals
and tests are the study's (kd.evaluate.stats), over these values. No model and
no network is needed, and a metric's package is imported when it is first used.
"""

import collections
import functools
import json
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float

from kd.teachers import targets

Texts = Sequence[str]
References = Sequence[str | Sequence[str]]
Values = Float[np.ndarray, "N"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normal(text: str) -> str:
  """Returns a text's form for comparison, as SQuAD's own script has it.

  Lower case; ASCII punctuation removed (not replaced: "e.g." is "eg"); the
  words a, an and the removed; one space between words. It is meant for English
  and does not touch other letters' accents or widths.

  Source: Rajpurkar et al. (2016), 1606.05250, evaluate-v1.1.py.

  >>> normal("  The quick-witted\\tFox, an animal. ")
  'quickwitted fox animal'
  """
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(predictions: Texts, references: References) -> Values:
  """Returns 1 where a prediction is a reference, both `normal`, else 0.

  >>> exact_match(["The answer.", "42"], ["answer", ["41", "43"]])
  array([1., 0.])
  """
  return _best(lambda a, b: normal(a) == normal(b), predictions, references)


def token_f1(predictions: Texts, references: References) -> Values:
  """Returns the F1 of the words that both have: 2 P R / (P + R).

  Words are those of `normal`, each counted as often as it is there; P is the
  share of the prediction's words and R that of the reference's. Where either
  has no words, 1 if both have none, else 0 (SQuAD 2.0).

  >>> print(token_f1(["a red red car"], ["the red car"]).round(3))  # P 2/3, R 1
  [0.8]
  """

  def f1(prediction: str, reference: str) -> float:
    a, b = normal(prediction).split(), normal(reference).split()
    if not a or not b:
      return a == b
    common = collections.Counter(a) & collections.Counter(b)
    return 2 * common.total() / (len(a) + len(b))

  return _best(f1, predictions, references)


def rouge_l(
  predictions: Texts, references: References, *, stem: bool = False
) -> Values:
  """Returns ROUGE-L's F1, of the longest common subsequence of words.

  F = 2 P R / (P + R),  P = LCS / words of the prediction, R of the reference

  over the text as a whole (not ROUGE-Lsum's sentences). Computed by the package
  rouge-score, whose words are runs of a-z and 0-9 in lower case: other letters
  part words, so that text in another script has none and gets 0. The time is
  the product of the two lengths: 0.2 s for two texts of 1,000 words.

  Args:
    predictions: texts.
    references: texts, or several for an example.
    stem: whether words of 4 letters or more lose their endings (Porter).

  Source: Lin (2004), ROUGE: a package for automatic evaluation of summaries.

  >>> rouge_l(["the cat sat"], [["the cat lay down", "a cat sat here"]])
  array([0.57142857])
  """
  from rouge_score import rouge_scorer

  scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stem)
  score = lambda a, b: scorer.score(b, a)["rougeL"].fmeasure
  return _best(score, predictions, references)


def agreement(
  predictions: Texts, teacher: Sequence[str | Sequence[str] | None]
) -> Values:
  """Returns 1 where the teacher wrote the same, else 0.

  Compared as a teacher's own answers are with each other, when they are counted
  or filtered (kd.teachers.targets.normal).

  Args:
    predictions: texts.
    teacher: its answer, or several; None where it gave none, which gives NaN.

  >>> agreement(["Yes.", "no", "no"], ["yes", "yes", None])
  array([ 1.,  0., nan])
  """
  given = ["" if text is None else text for text in teacher]
  same = lambda a, b: targets.normal(a) == targets.normal(b)
  none = [text is None for text in teacher]
  return np.where(none, np.nan, _best(same, predictions, given))


def json_valid(
  predictions: Texts, schema: Mapping[str, Any] | None = None
) -> Values:
  """Returns 1 where a text is JSON (and fits a schema), else 0.

  The whole text, spaces around it aside: no words before it, no code fence.
  NaN and Infinity are no JSON.

  Args:
    predictions: texts.
    schema: a JSON Schema, 2020-12 where it does not say; a reference that
      leaves it is not followed. "format" is not checked.

  Raises:
    ValueError: the schema is none, or refers to what is outside of it.

  >>> schema = {"type": "object", "required": ["city"]}
  >>> json_valid(['{"city": "Rome"}', "{}", "{city}"], schema)
  array([1., 0., 0.])
  """
  fits = _validator(json.dumps(schema)) if schema is not None else None

  def valid(text: str) -> bool:
    try:
      value = _decoded(text)
    except ValueError:
      return False
    return fits is None or fits(value)

  return np.array([valid(text) for text in predictions], float)


def field_accuracy(predictions: Texts, references: References) -> Values:
  """Returns the share of a reference's JSON fields that a prediction has.

  Fields are the leaves, by their path of keys and places in lists (an empty
  list or object is one too), and must be equal: 1 and 1.0 are, 1 and true are
  not, nor are texts that differ in case. Fields that only the prediction has
  cost nothing. A prediction that is no JSON has none.

  Raises:
    ValueError: a reference is no JSON.

  >>> truth = '{"city": "Rome", "days": [1, 2]}'
  >>> field_accuracy(['{"days": [1, 3], "city": "Rome"}'], [truth])
  array([0.66666667])
  """

  def accuracy(prediction: str, reference: str) -> float:
    wanted = dict(_fields(_decoded(reference)))
    try:
      found = dict(_fields(_decoded(prediction)))
    except ValueError:
      return 0.0
    hits = [k in found and found[k] == v for k, v in wanted.items()]
    return sum(hits) / len(hits)

  return _best(accuracy, predictions, references)


def _best(
  score: Callable[[str, str], float], predictions: Texts, references: References
) -> Values:
  """Returns each example's highest score over its references."""
  values = np.empty(len(predictions))
  pairs = zip(predictions, references, strict=True)
  for i, (prediction, given) in enumerate(pairs):
    texts = [given] if isinstance(given, str) else given
    if not texts:
      raise ValueError(f"example {i}: no reference; accepted: at least one")
    try:
      values[i] = max(float(score(prediction, text)) for text in texts)
    except ValueError as error:
      raise ValueError(f"example {i}: {error}") from error
  return values


def _decoded(text: str) -> Any:
  """Reads JSON; ValueError for what is none."""
  try:
    return msgspec.json.decode(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"not JSON: {text[:60]!r}") from error


def _fields(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
  """Yields (path, leaf), the latter with its type where == would ignore it."""
  if not isinstance(value, dict | list) or not value:
    yield path, (isinstance(value, bool), value)
    return
  inner = value.items() if isinstance(value, dict) else enumerate(value)
  for key, below in inner:
    yield from _fields(below, (*path, key))


@functools.lru_cache(maxsize=8)
def _validator(schema: str) -> Callable[[Any], bool]:
  import jsonschema
  from jsonschema.validators import validator_for
  from referencing import Registry
  from referencing.exceptions import Unresolvable

  given = json.loads(schema)
  kind = validator_for(given, default=jsonschema.Draft202012Validator)
  try:
    kind.check_schema(given)
  except jsonschema.SchemaError as error:
    raise ValueError(f"schema: {error.message}") from error
  # An empty registry: the default one would fetch what a schema refers to.
  validator = kind(given, registry=Registry())

  def fits(value: Any) -> bool:
    try:
      return validator.is_valid(value)
    except Unresolvable as error:
      raise ValueError(f"schema: {error}") from error

  return fits
