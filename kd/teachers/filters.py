"""Clean what a teacher leaves before it becomes a signal.

A filter looks at one example of a black box (kd.teachers.answers) and keeps it,
drops some of its samples, or drops it; an example without samples is dropped.
Some filters also know what to keep of a teacher's distributions (`rows`). A
config names chains of filters, each with its own keys, and an arm names its
chain:

    config.filters.clean = (dict(name="refusals"), dict(name="margin", low=0.2))
    config.arms.soft.signal.filter = "clean"

A filter is a function here, from its keys to a Step, and its entry in FILTERS;
no other file names it. Filters are pure: what a step needs to remember (what
was seen already) is made anew by each run (kd.teachers.funnel).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from kd.config import rules
from kd.config.rules import Check
from kd.teachers import targets
from kd.teachers.answers import Answers, Sample

Step = Callable[[Answers], Answers | None]
APOSTROPHES = "['\u2018\u2019\u02bc\uff07`\u00b4]"
REFUSALS = tuple(
  pattern.replace("'", APOSTROPHES).replace(" ", r"\s+")
  for pattern in (
    r"^\s*((i'm|i am) )?sorry\b",
    r"\b((i|we) (can't|cannot|can not|cant|won't|will not)"
    r"|(i|we)( am|'m| are|'re) (not able|unable) to)"
    r" (answer|assist|complete|comply|create|discuss|do (so|that|this)|engage"
    r"|fulfill?|generate|give|help|produce|provide|respond|share|support|tell"
    r"|write)\b",
    r"\bas an? (ai|artificial intelligence|(large )?language model)\b",
  )
)


@dataclasses.dataclass(frozen=True)
class Filter:
  """All that is known of a filter.

  Attributes:
    words: what it keeps, for the funnel.
    make: (**keys) -> a fresh step.
    keys: its config keys.
    usual: their values where a config says nothing.
    rows: (probs [N, V], truth [N], **keys) -> which of a teacher's
      distributions to keep; None for a filter that looks at texts.
    evaluated: whether `make` also takes `evaluation`, the evaluation's texts.
  """

  words: str
  make: Callable[..., Step]
  keys: Mapping[str, Check] = dataclasses.field(default_factory=dict)
  usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rows: Callable[..., np.ndarray] | None = None
  evaluated: bool = False


def _keep_if(holds: Callable[[Answers], bool]) -> Step:
  return lambda answers: answers if holds(answers) else None


def _samples_if(holds: Callable[[Answers, Sample], bool]) -> Step:
  """Drops samples; the example too where none is left."""

  def step(answers: Answers) -> Answers | None:
    kept = [s for s in answers.samples if holds(answers, s)]
    if len(kept) == len(answers.samples):
      return answers
    return msgspec.structs.replace(answers, samples=kept) if kept else None

  return step


def exact_duplicates() -> Step:
  """Keeps the first example of each prompt."""
  seen: set[str] = set()

  def holds(answers: Answers) -> bool:
    if answers.key in seen:
      return False
    seen.add(answers.key)
    return True

  return _keep_if(holds)


def near_duplicates(similarity: float, ngram: int) -> Step:
  """Keeps the first of prompts whose sets of character n-grams are alike.

  By MinHash (Broder 1997) of 128 permutations and locality-sensitive hashing:
  an estimate of the Jaccard similarity, whose threshold is soft.
  """
  index = _Near(similarity, ngram)

  def holds(answers: Answers) -> bool:
    made = index.of(answers.prompt)
    if index.has(made):
      return False
    index.add(answers.key, made)
    return True

  return _keep_if(holds)


def leakage(similarity: float, ngram: int, evaluation: Sequence[str]) -> Step:
  """Drops prompts that are, or nearly are, examples of the evaluation."""
  index = _Near(similarity, ngram)
  for i, text in enumerate(evaluation):
    index.add(str(i), index.of(text))
  return _keep_if(lambda answers: not index.has(index.of(answers.prompt)))


class _Near:
  """Texts by MinHash."""

  def __init__(self, similarity: float, ngram: int):
    import datasketch

    self._hash = datasketch.MinHash
    self._index = datasketch.MinHashLSH(threshold=similarity, num_perm=128)
    self._ngram = ngram

  def of(self, text: str):
    text = " ".join(text.casefold().split())
    last = max(1, len(text) - self._ngram + 1)
    grams = {text[i : i + self._ngram].encode() for i in range(last)}
    made = self._hash(num_perm=128)
    made.update_batch(sorted(grams))
    return made

  def has(self, made) -> bool:
    return bool(self._index.query(made))

  def add(self, key: str, made) -> None:
    self._index.insert(key, made)


def agreement(low: float) -> Step:
  """Keeps examples whose commonest answer has at least this share of samples
  (self-consistency, Wang et al. 2022, 2203.11171)."""
  return _keep_if(lambda a: targets.frequencies(a)[0][1] >= low)


def margin(low: float) -> Step:
  """Keeps examples whose best answer leads the second by this share."""

  def holds(answers: Answers) -> bool:
    shares = [share for _, share in targets.frequencies(answers)] + [0.0]
    return shares[0] - shares[1] >= low

  return _keep_if(holds)


def entropy(low: float, high: float) -> Step:
  """Keeps examples whose answers' empirical entropy, in nats, is in range."""

  def holds(answers: Answers) -> bool:
    shares = [share for _, share in targets.frequencies(answers)]
    return low <= -sum(p * math.log(p) for p in shares) <= high

  return _keep_if(holds)


def confidence(low: float) -> Step:
  """Drops samples less likely than this; those without logprob stay."""
  least = math.log(low)
  return _samples_if(lambda _, s: s.logprob is None or s.logprob >= least)


def length(low: int, high: int) -> Step:
  """Drops samples whose text has fewer or more characters."""
  return _samples_if(lambda _, s: low <= len(s.text) <= high)


def pattern(regex: str) -> Step:
  """Drops samples whose text is not all of the regular expression."""
  compiled = re.compile(regex, re.DOTALL)
  return _samples_if(lambda _, s: compiled.fullmatch(s.text) is not None)


def refusals(patterns: Sequence[str]) -> Step:
  """Drops samples in which any of the patterns is found, whatever the case."""
  compiled = [re.compile(p, re.IGNORECASE) for p in patterns]
  return _samples_if(lambda _, s: not any(p.search(s.text) for p in compiled))


def verified() -> Step:
  """Drops samples that are not the reference, up to normalisation; examples
  without a reference stay."""

  def holds(answers: Answers, sample: Sample) -> bool:
    if answers.reference is None:
      return True
    return targets.normal(sample.text) == targets.normal(answers.reference)

  return _samples_if(holds)


def rubric(low: float, weights: Mapping[str, float], conflict: float) -> Step:
  """Drops samples by their weighted rubric (targets.rubric_score).

  A sample goes if it scores below `low`, if none of the criteria was judged,
  or if two judges of one criterion differ by more than `conflict`.
  """

  def holds(_, sample: Sample) -> bool:
    score = targets.rubric_score(sample, weights)
    return (
      score is not None
      and score >= low
      and targets.rubric_conflict(sample, weights) <= conflict
    )

  return _samples_if(holds)


def _sure(probs, truth, *, low: float) -> np.ndarray:
  del truth
  return probs.max(-1) >= low


def _leads(probs, truth, *, low: float) -> np.ndarray:
  del truth
  second, first = np.partition(probs, (-2, -1))[:, -2:].T
  return first - second >= low


def _uncertain(probs, truth, *, low: float, high: float) -> np.ndarray:
  del truth
  logs = np.log(np.where(probs > 0, probs, 1.0))
  nats = -np.sum(probs * logs, -1)
  return (low <= nats) & (nats <= high)


def _right(probs, truth) -> np.ndarray:
  return (truth < 0) | (probs.argmax(-1) == truth)


SHARE = rules.number(low=0, high=1)
PART = rules.number(above=0, high=1)
# Closer to 1, 128 permutations do not make the two bands that LSH needs.
SIMILARITY = rules.number(above=0, high=0.98)
NEAR: dict[str, Check] = {"similarity": SIMILARITY, "ngram": rules.integer(1)}
WEIGHTS = Check(
  "a section of weights > 0 by criterion",
  lambda v: bool(v) and rules.WEIGHTS.accepts(v),
)
REGEXES = Check(
  "a tuple of regular expressions",
  lambda v: isinstance(v, tuple | list) and all(map(rules.REGEX.accepts, v)),
)
AT_LEAST = rules.number(low=0)
FILTERS: dict[str, Filter] = {
  "exact_duplicates": Filter("the first of equal prompts", exact_duplicates),
  "near_duplicates": Filter(
    "the first of prompts that are nearly alike",
    near_duplicates,
    NEAR,
    {"similarity": 0.8, "ngram": 5},
  ),
  "leakage": Filter(
    "prompts that are not nearly those of the evaluation",
    leakage,
    NEAR,
    {"similarity": 0.8, "ngram": 5},
    evaluated=True,
  ),
  "agreement": Filter(
    "answers that many samples share", agreement, {"low": SHARE}, rows=_sure
  ),
  "margin": Filter(
    "a clear lead of the first answer", margin, {"low": SHARE}, rows=_leads
  ),
  "entropy": Filter(
    "an entropy of the answers in range",
    entropy,
    {"low": AT_LEAST, "high": AT_LEAST},
    {"low": 0.0},
    rows=_uncertain,
  ),
  "confidence": Filter(
    "samples that are likely", confidence, {"low": PART}, rows=_sure
  ),
  "length": Filter(
    "samples of a length in range",
    length,
    {"low": rules.integer(0), "high": rules.integer(0)},
    {"low": 1},
  ),
  "pattern": Filter(
    "samples that match a pattern", pattern, {"regex": rules.REGEX}
  ),
  "refusals": Filter(
    "samples that are no refusals",
    refusals,
    {"patterns": REGEXES},
    {"patterns": REFUSALS},
  ),
  "verified": Filter("samples that are right", verified, rows=_right),
  "rubric": Filter(
    "samples that judges score highly, and alike",
    rubric,
    {"low": rules.number(), "weights": WEIGHTS, "conflict": AT_LEAST},
    {"conflict": 1e9},
  ),
}
