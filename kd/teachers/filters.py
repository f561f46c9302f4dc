"""Clean what a teacher leaves before it becomes a signal.

A filter looks at one example of a black box (kd.teachers.answers) and keeps it,
drops some of its samples, or drops it; an example without samples is dropped.
Some filters also know what to keep of a teacher's distributions (`rows`). A
config names chains of filters, each with its own keys, and an arm names its
chain:

    config.filters.clean = (dict(name="refusals"), dict(name="margin", low=0.2))
    config.arms.soft.signal.filter = "clean"

`run` and `keep` leave a funnel: what came in, what went out and a few examples
of what each filter removed. Filters are pure: what they need to remember (what
was seen already) is made anew by each run.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from kd.config import rules
from kd.config.rules import Check
from kd.errors import UserError
from kd.teachers import targets
from kd.teachers.answers import Answers, Sample

SHOWN = 3  # examples that the funnel keeps of what a filter removed
TEXT = 80  # characters of each
Step = Callable[[Answers], Answers | None]
REFUSALS = (
  r"^\s*(i('m| am) )?sorry\b",
  r"\b(i|we) (can(no|')t|can not|am not able to|'m not able to|am unable to"
  r"|won't|will not) (help|assist|answer|comply|provide|do that)",
  r"\bas an? (ai|artificial intelligence|language model)\b",
)


@dataclasses.dataclass(frozen=True)
class Filter:
  """How a filter is made.

  Attributes:
    make: (**keys) -> a fresh step.
    keys: its config keys.
    usual: their values where a config says nothing.
    rows: (probs [N, V], truth [N], **keys) -> which of a teacher's
      distributions to keep; None for a filter that looks at texts.
  """

  make: Callable[..., Step]
  keys: Mapping[str, Check] = dataclasses.field(default_factory=dict)
  usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rows: Callable[..., np.ndarray] | None = None


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
NEAR: dict[str, Check] = {"similarity": PART, "ngram": rules.integer(1)}
WEIGHTS = Check(
  "a section of weights > 0 by criterion",
  lambda v: bool(v) and rules.WEIGHTS.accepts(v),
)
REGEXES = Check(
  "a tuple of regular expressions",
  lambda v: isinstance(v, tuple | list) and all(map(rules.REGEX.accepts, v)),
)
FILTERS: dict[str, Filter] = {
  "exact_duplicates": Filter(exact_duplicates),
  "near_duplicates": Filter(
    near_duplicates, NEAR, {"similarity": 0.8, "ngram": 5}
  ),
  "leakage": Filter(leakage, NEAR, {"similarity": 0.8, "ngram": 5}),
  "agreement": Filter(agreement, {"low": SHARE}, rows=_sure),
  "margin": Filter(margin, {"low": SHARE}, rows=_leads),
  "entropy": Filter(
    entropy,
    {"low": rules.number(low=0), "high": rules.number(low=0)},
    {"low": 0.0},
    _uncertain,
  ),
  "confidence": Filter(confidence, {"low": PART}, rows=_sure),
  "length": Filter(
    length, {"low": rules.integer(0), "high": rules.integer(0)}, {"low": 1}
  ),
  "pattern": Filter(pattern, {"regex": rules.REGEX}),
  "refusals": Filter(refusals, {"patterns": REGEXES}, {"patterns": REFUSALS}),
  "verified": Filter(verified, rows=_right),
  "rubric": Filter(
    rubric,
    {
      "low": rules.number(),
      "weights": WEIGHTS,
      "conflict": rules.number(low=0),
    },
    {"conflict": 1e9},
  ),
}


def check(
  path: str, filters: Sequence[Mapping[str, Any]], black_box: bool = True
) -> None:
  """Raises UserError unless the sections name filters, with their keys, that
  know what to do with texts (`black_box`) or with distributions."""
  if not isinstance(filters, tuple | list):
    raise UserError(f"{path} = {filters!r}: expected a tuple of sections")
  for i, section in enumerate(filters):
    at = f"{path}[{i}]"
    if not isinstance(section, Mapping):
      raise UserError(f"{at} = {section!r}: expected a section with a name")
    name = section.get("name")
    if name not in FILTERS:
      raise UserError(
        f"{at}.name = {name!r}: expected one of {', '.join(FILTERS)}"
      )
    found = FILTERS[name]
    given = {k: v for k, v in section.items() if k != "name"}
    rules.check_keys(at, {**found.usual, **given}, found.keys)
    if not black_box and found.rows is None:
      known = [name for name, f in FILTERS.items() if f.rows is not None]
      raise UserError(
        f"{at}.name = {name!r}: looks at texts, and this study's teacher "
        f"leaves distributions; expected one of {', '.join(known)}, or a black "
        "box"
      )


def run(
  examples: Iterable[Answers],
  filters: Sequence[Mapping[str, Any]],
  evaluation: Sequence[str] = (),
) -> tuple[Iterator[Answers], list[dict[str, Any]]]:
  """Applies filters to a stream.

  Args:
    examples: read once, lazily.
    filters: checked sections of a config.
    evaluation: prompts of the evaluation, for `leakage`.

  Returns:
    (what is kept, funnel). The funnel, one entry for each filter, fills as the
    stream is read: {"step", "in", "out", "samples_in", "samples_out",
    "removed": a few examples}.
  """
  steps, funnel = [], []
  for section in filters:
    keys = _keys(section)
    if section["name"] == "leakage":
      keys["evaluation"] = evaluation
    steps.append(FILTERS[section["name"]].make(**keys))
    funnel.append(entry(section["name"]))

  def kept() -> Iterator[Answers]:
    for example in examples:
      current: Answers | None = example
      for step, counts in zip(steps, funnel, strict=True):
        current = apply(step, current, counts)
        if current is None:
          break
      if current is not None:
        yield current

  return kept(), funnel


def entry(name: str) -> dict[str, Any]:
  """Returns a funnel's entry before anything has come in."""
  counts = dict.fromkeys(("in", "out", "samples_in", "samples_out"), 0)
  return {"step": name, **counts, "removed": []}


def apply(
  step: Step, example: Answers, counts: dict[str, Any]
) -> Answers | None:
  """Applies one step and counts what it did."""
  after = step(example)
  counts["in"] += 1
  counts["samples_in"] += len(example.samples)
  counts["out"] += after is not None
  counts["samples_out"] += len(after.samples) if after else 0
  if after is None and len(counts["removed"]) < SHOWN:
    texts = [s.text[:TEXT] for s in example.samples[:SHOWN]]
    prompt = " ".join(example.prompt.split())[:TEXT]
    shown = {"id": example.id, "prompt": prompt, "samples": texts}
    counts["removed"].append(shown)
  return after


def keep(
  probs: np.ndarray,
  truth: np.ndarray,
  names: Sequence[str],
  filters: Sequence[Mapping[str, Any]],
) -> tuple[np.ndarray, list[dict[str, Any]]]:
  """Applies filters to a teacher's distributions.

  Args:
    probs: float [N, V].
    truth: int [N], -1 where it is not known.
    names: of the V classes, for the funnel.
    filters: checked sections of a config.

  Returns:
    (which rows are kept, bool [N]; funnel).
  """
  kept, funnel = np.ones(len(probs), bool), []
  for section in filters:
    rows = FILTERS[section["name"]].rows
    assert rows is not None  # `check`
    after = kept & rows(probs, truth, **_keys(section))
    counts = entry(section["name"])
    for side, mask in (("in", kept), ("out", after)):
      counts[side] = counts[f"samples_{side}"] = int(mask.sum())
    for row in np.flatnonzero(kept & ~after)[:SHOWN].tolist():
      top = int(probs[row].argmax())
      said = f"{names[top]} ({probs[row, top]:.2f})"
      counts["removed"].append({"id": f"row {row}", "samples": [said]})
    funnel.append(counts)
    kept = after
  return kept, funnel


def _keys(section: Mapping[str, Any]) -> dict[str, Any]:
  keys = {k: v for k, v in section.items() if k != "name"}
  return {**FILTERS[section["name"]].usual, **keys}
