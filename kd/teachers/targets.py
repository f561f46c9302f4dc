"""From a black-box teacher's samples to targets.

Answers that differ in case, spaces or final punctuation alone are one answer
(`normal`); a task may bring its own normaliser. Everything here is about one
example; the classes of a closed set come in `kd.signals`.
"""

import collections
import statistics
import unicodedata
from collections.abc import Callable, Mapping

from kd.teachers.answers import Answers, Sample

Normal = Callable[[str], str]


def normal(text: str) -> str:
  """Returns a text's form for comparison.

  >>> normal("  The  Answer. ") == normal("the answer")
  True
  """
  text = unicodedata.normalize("NFKC", text).casefold()
  return " ".join(text.split()).rstrip(".!?;,: ")


def frequencies(
  answers: Answers, form: Normal = normal
) -> list[tuple[str, float]]:
  """Returns the distinct answers and their share of the samples, the largest
  first and the earlier of equals first: an empirical soft target."""
  counts = collections.Counter(form(s.text) for s in answers.samples)
  total = sum(counts.values())
  return [(text, n / total) for text, n in counts.most_common()]


def acceptable(
  answers: Answers, form: Normal = normal
) -> list[tuple[str, float]]:
  """Returns one target distribution over several acceptable outputs.

  The reference, where there is one, and every distinct sample that is not among
  the rejected; each has an equal share.
  """
  rejected = {form(text) for text in answers.rejected}
  texts = [] if answers.reference is None else [form(answers.reference)]
  texts += [form(s.text) for s in answers.samples]
  distinct = [t for t in dict.fromkeys(texts) if t not in rejected]
  return [(text, 1 / len(distinct)) for text in distinct]


def values(
  answers: Answers,
  by: str,
  weights: Mapping[str, float] | None = None,
  form: Normal = normal,
) -> list[float | None]:
  """Returns what each sample is ranked by; None where it has no such value.

  Args:
    answers: of one prompt.
    by: "score", "logprob", "rubric" (with `weights`) or "votes": how many
      samples say the same.
    weights: of the rubric's criteria.
    form: see `normal`.
  """
  if by == "votes":
    votes = collections.Counter(form(s.text) for s in answers.samples)
    return [float(votes[form(s.text)]) for s in answers.samples]
  if by == "rubric":
    return [rubric_score(s, weights or {}) for s in answers.samples]
  return [getattr(s, by) for s in answers.samples]


def ranking(
  answers: Answers,
  by: str,
  weights: Mapping[str, float] | None = None,
  form: Normal = normal,
) -> list[list[str]]:
  """Returns distinct answers best first; those in one inner list are tied.

  An answer given more than once has the mean of its samples' values. Samples
  without a value are not ranked.
  """
  found: dict[str, list[float]] = {}
  each = values(answers, by, weights, form)
  for sample, value in zip(answers.samples, each, strict=True):
    if value is not None:
      found.setdefault(form(sample.text), []).append(value)
  mean = {text: statistics.fmean(v) for text, v in found.items()}
  levels = sorted(set(mean.values()), reverse=True)
  return [[t for t, v in mean.items() if v == level] for level in levels]


def best(
  answers: Answers, by: str, weights: Mapping[str, float] | None = None
) -> Sample | None:
  """Returns the sample with the largest value (best of K), the first of equals;
  None where no sample has one."""
  each = zip(answers.samples, values(answers, by, weights), strict=True)
  ranked = [(sample, value) for sample, value in each if value is not None]
  return max(ranked, key=lambda pair: pair[1])[0] if ranked else None


def pairs(answers: Answers, form: Normal = normal) -> list[tuple[str, str]]:
  """Returns (better, worse) texts: every distinct sample against every rejected
  alternative that is another text."""
  better = dict.fromkeys(form(s.text) for s in answers.samples)
  worse = dict.fromkeys(form(text) for text in answers.rejected)
  return [(a, b) for a in better for b in worse if a != b]


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
