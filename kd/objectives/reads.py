"""What a loss may read of a signal, and which teachers leave it.

The parts of a signal that an objective's entry names in `reads`. `refuse` looks
at the config alone; whether the examples that an arm draws have the part is
known once the signal is there (kd.train.coverage).
"""

from collections.abc import Callable, Mapping
from typing import Any

Keys = Mapping[str, Any]  # of an objective, with its name as `objective`
Section = Mapping[str, Any]


def _logits(keys: Keys, signal: Section, black_box: bool) -> str:
  if black_box:
    return _no_logits(keys)
  if signal.get("keep") == "top_k":
    return (
      f"objective = {keys['objective']!r}: needs the logits of all classes, "
      "but signal.keep = 'top_k'; expected an objective of the top k, or "
      "signal.keep = 'dense'"
    )
  return ""


def _top_k(keys: Keys, signal: Section, black_box: bool) -> str:
  if black_box:
    return _no_logits(keys)
  if signal.get("keep") != "top_k":
    return ""
  if keys["k"] > signal["k"]:
    return f"k = {keys['k']}: expected at most signal.k = {signal['k']}"
  kept = [float(t) for t in signal["temperatures"]]
  if "temperature" in keys and float(keys["temperature"]) not in kept:
    return (
      f"temperature = {keys['temperature']}: expected one of "
      f"signal.temperatures = {tuple(kept)}, at which the tail is known"
    )
  return ""


def _no_logits(keys: Keys) -> str:
  return (
    f"objective = {keys['objective']!r}: needs the teacher's logits, and a "
    "black box leaves sampled answers alone; expected an objective of answers "
    "or samples"
  )


def _samples(keys: Keys, signal: Section, black_box: bool) -> str:
  if keys["samples"] > signal["samples"]:
    return (
      f"samples = {keys['samples']}: expected at most signal.samples = "
      f"{signal['samples']}"
    )
  return ""


def _truth(keys: Keys, signal: Section, black_box: bool) -> str:
  if signal["labelled"]:
    return ""
  return (
    "target = 'truth': the transfer set is unlabelled; expected 'answer', or "
    "signal.labelled = True"
  )


def _best(keys: Keys, signal: Section, black_box: bool) -> str:
  if signal["samples"]:
    return ""
  return (
    "target = 'best': the best of signal.samples = 0; expected 'answer', or "
    "signal.samples >= 1"
  )


def _scores(keys: Keys, signal: Section, black_box: bool) -> str:
  if black_box:
    return ""
  return (
    "scores = 'scores': only a black box gives scores; expected 'votes' or "
    "'log_probs'"
  )


def _rejected(keys: Keys, signal: Section, black_box: bool) -> str:
  if black_box:
    return ""
  return (
    f"objective = {keys['objective']!r}: needs rejected alternatives, which "
    "only a black box leaves (teacher.path, teacher.black_box)"
  )


def _rationales(keys: Keys, signal: Section, black_box: bool) -> str:
  if signal["rationale"]:
    return ""
  return (
    f"objective = {keys['objective']!r}: signal.rationale = ''; expected what "
    "comes before a prompt whose rationale is asked for"
  )


def of_completions(keys: Keys, part: str) -> str:
  """Returns why an arm of a teacher that writes completions has no such part,
  of those that it has at each position; "" where it may have."""
  if part in ("answer", "truth", *COMPLETIONS):
    return ""
  return (
    f"objective = {keys['objective']!r}: a teacher that writes completions "
    f"leaves no {part} at each position; expected 'hard' on 'answer' or "
    "'truth', or an objective of completions, as 'sequence_kd'"
  )


def _always(keys: Keys, signal: Section, black_box: bool) -> str:
  return ""


# (keys, the arm's `signal` section, whether the teacher is a black box) -> why
# the arm has no such part, beginning with the key; "" where it may have.
PARTS: dict[str, Callable[[Keys, Section, bool], str]] = {
  "logits": _logits,
  "top_k": _top_k,
  "answer": _always,
  "truth": _truth,
  "best": _best,
  "samples": _samples,
  "votes": _always,
  "log_probs": _always,
  "scores": _scores,
  "rejected": _rejected,
  "completions": _always,
  "rationales": _rationales,
  "worst": _always,
}
# What objectives of completions read.
COMPLETIONS = (
  "completions",
  "rationales",
  "worst",
  "rejected",
  "scores",
  "log_probs",
)
