"""From a black-box teacher's samples to targets.

Answers that differ in case, spaces or final punctuation alone are one answer
(`normal`). Everything here is about one example; the classes of a closed set
come in `kd.teachers.black_box`.
"""

import collections
import math
import statistics
import unicodedata
from collections.abc import Mapping
from typing import Any

from kd.teachers.answers import Answers, Sample


def normal(text: str) -> str:
  """Returns a text's form for comparison.

  >>> normal("  The  Answer. ") == normal("the answer")
  True
  """
  text = unicodedata.normalize("NFKC", text).casefold()
  return " ".join(text.split()).rstrip(".!?;,: ")


def frequencies(answers: Answers) -> list[tuple[str, float]]:
  """Returns the distinct answers and their share of the samples, the largest
  first and the earlier of equals first: an empirical soft target."""
  counts = collections.Counter(normal(s.text) for s in answers.samples)
  total = sum(counts.values())
  return [(text, n / total) for text, n in counts.most_common()]


def values(
  answers: Answers,
  by: str,
  weights: Mapping[str, float] | None = None,
) -> list[float | None]:
  """Returns what each sample is ranked by; None where it has no such value.

  Args:
    answers: of one prompt.
    by: "score", "logprob" or "rubric" (with `weights`).
    weights: of the rubric's criteria.
  """
  if by == "rubric":
    return [rubric_score(s, weights or {}) for s in answers.samples]
  return [getattr(s, by) for s in answers.samples]


def numbers(*args: Any) -> list[float]:
  """Returns `values`, NaN where a sample has none."""
  return [math.nan if v is None else v for v in values(*args)]


def rubric_score(sample: Sample, weights: Mapping[str, float]) -> float | None:
  """Returns the weighted mean over the criteria that were judged.

      sum_c w_c mean_j r_cj / sum_c w_c,  c over criteria with a judgement

  so a missing criterion neither helps nor hurts. None where none was judged.
  """
  judged = {c: w for c, w in weights.items() if _judges(sample, c)}
  if not judged:
    return None
  total = sum(
    w * statistics.fmean(_judges(sample, c)) for c, w in judged.items()
  )
  return total / sum(judged.values())


def rubric_conflict(sample: Sample, weights: Mapping[str, float]) -> float:
  """Returns how far two judges of one criterion differ at most."""
  spreads = [
    max(judges) - min(judges) for c in weights if (judges := _judges(sample, c))
  ]
  return max(spreads, default=0.0)


def _judges(sample: Sample, criterion: str) -> list[float]:
  found = sample.rubric.get(criterion, [])
  return found if isinstance(found, list) else [found]
