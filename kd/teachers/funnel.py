"""Chains of filters at work, and what each step of them kept.

A funnel has an entry for each step: {"step", "in", "out", "samples_in",
"samples_out", "removed"}, counts of examples and of their samples, and a few of
the examples that it removed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kd.config import rules
from kd.errors import UserError
from kd.teachers.answers import Answers
from kd.teachers.filters import FILTERS, Step

SHOWN = 3  # examples that the funnel keeps of what a filter removed
TEXT = 80  # characters of each


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
    if not isinstance(name, str) or name not in FILTERS:
      raise UserError(
        f"{at}.name = {name!r}: expected one of {', '.join(FILTERS)}"
      )
    keys = _keys(section)
    rules.check_keys(at, keys, FILTERS[name].keys)
    if {"low", "high"} <= keys.keys() and keys["low"] > keys["high"]:
      raise UserError(
        f"{at}.low = {keys['low']!r}: expected at most {at}.high = "
        f"{keys['high']!r}"
      )
    if not black_box:
      _rows(at, name)


def run(
  examples: Iterable[Answers],
  filters: Sequence[Mapping[str, Any]],
  evaluation: Sequence[str] = (),
) -> tuple[Iterator[Answers], list[dict[str, Any]]]:
  """Applies filters to a stream.

  Args:
    examples: read once, lazily.
    filters: checked sections of a config.
    evaluation: prompts of the evaluation, for filters that look at them.

  Returns:
    (what is kept, funnel, which fills as the stream is read).
  """
  steps, funnel = [], []
  for section in filters:
    found, keys = FILTERS[section["name"]], _keys(section)
    if found.evaluated:
      keys["evaluation"] = evaluation
    steps.append(found.make(**keys))
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


def words(steps: Iterable[str]) -> str:
  """Says what filters keep, each once; of steps that are none, nothing."""
  known = [name for name in dict.fromkeys(steps) if name in FILTERS]
  return "; ".join(f"{name} keeps {FILTERS[name].words}" for name in known)


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
    name = section["name"]
    after = kept & _rows("filters", name)(probs, truth, **_keys(section))
    counts = entry(name)
    for side, mask in (("in", kept), ("out", after)):
      counts[side] = counts[f"samples_{side}"] = int(mask.sum())
    for row in np.flatnonzero(kept & ~after)[:SHOWN].tolist():
      top = int(probs[row].argmax())
      said = f"{names[top]} ({probs[row, top]:.2f})"
      counts["removed"].append({"id": f"row {row}", "samples": [said]})
    funnel.append(counts)
    kept = after
  return kept, funnel


def _rows(at: str, name: str) -> Callable[..., np.ndarray]:
  """Returns what a filter keeps of distributions; raises UserError if it looks
  at texts."""
  rows = FILTERS[name].rows
  if rows is None:
    known = [name for name, f in FILTERS.items() if f.rows is not None]
    raise UserError(
      f"{at}.name = {name!r}: looks at texts, and this study's teacher leaves "
      f"distributions; expected one of {', '.join(known)}, or a black box"
    )
  return rows


def _keys(section: Mapping[str, Any]) -> dict[str, Any]:
  keys = {k: v for k, v in section.items() if k != "name"}
  return {**FILTERS[section["name"]].usual, **keys}
