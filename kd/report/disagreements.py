"""Shows the test examples where teacher and students disagree most."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from kd.report import wording
from kd.report.blocks import Block, Cell, Details, Heading, Table, Text, code
from kd.report.source import Source


def section(source: Source) -> list[Block]:
  """Shows each example, what it is, and what everybody says of it."""
  found = source.results.get("disagreements")
  if not found or not found["examples"]:
    return []
  examples = found["examples"]
  rows = [
    [
      _input(i, x["input"]),
      _named(x["truth"]),
      _answer(x["teacher"], x["truth"]),
      _students(x),
      Cell(f"{x['distance']:.2f}", value=x["distance"]),
    ]
    for i, x in enumerate(examples, 1)
  ]
  box = "confidence" not in examples[0]["teacher"]
  of_box = " (all on the answer that it gave)" if box else ""
  caption = (
    "By total variation: half the summed differences of the probabilities that "
    f"teacher{of_box} and student give, mean over arms. 1 is no class in "
    "common. An arm's answer is that of its first run that finished, with the "
    "range of their confidence. A tick is the truth."
  )
  columns = ["Example", "Truth", "Teacher", "Students", "Distance"]
  table = Table(caption, columns, rows, left=(0, 1, 2, 3), cards=True)
  each = [
    [
      Cell(code(arm), chip=source.look[arm].colour),
      *(_each(x, arm) for x in examples),
    ]
    for arm in source.results["arms"]
    if any(arm in x["arms"] for x in examples)
  ]
  columns = ["Arm", *(f"Example {i}" for i in range(1, len(examples) + 1))]
  caption = "Answers and their confidence; bold: not the teacher's."
  every = Table(caption, columns, each)
  return [
    Heading("Disagreements"),
    Text(_summary(examples)),
    table,
    Details("What each arm answers", [every]),
  ]


def _summary(examples) -> str:
  """Says who is right where they disagree."""
  right = sum(x["teacher"]["answer"] == x["truth"] for x in examples)
  shares = [
    sum(own["answer"] == x["truth"] for own in x["arms"].values())
    / max(len(x["arms"]), 1)
    for x in examples
  ]
  students = sum(share > 0.5 for share in shares)
  return (
    f"Where teacher and students disagree most: of the {len(examples)} test "
    "examples of largest distance the teacher is "
    f"right on {right}, most arms on {students}. They were chosen for their "
    "distance, and stand for no others."
  )


def _input(i: int, shown: Mapping[str, Any]) -> Cell:
  match shown["kind"]:
    case "image":
      return Cell(str(i), image=shown["png"], alt=f"Example {i}", value=i)
    case "bytes":
      return Cell(f"{i} {code(shown['text'])}", shown["hex"], value=i)
    case "tokens":
      return Cell(f"{i} {code(shown['text'])}", "the next token", value=i)
  return Cell(f"{i} {code(shown['text'])}", value=i)


def _named(answer: str) -> str:
  return code(answer) if answer else wording.DASH


def _answer(said: Mapping[str, Any], truth: str) -> Cell:
  tick = " ✓" if said["answer"] == truth else ""
  sure = said.get("confidence")
  note = "" if sure is None else f"{sure:.2f}"
  return Cell(_named(said["answer"]) + tick, note, value=sure)


def _students(x: Mapping[str, Any]) -> Cell:
  """Counts the arms that answer alike: '`8`: 21 arms, 0.61 to 0.99'."""
  said = collections.defaultdict(list)
  for own in x["arms"].values():
    said[own["answer"]].append(own["confidence"])
  order = sorted(said.items(), key=lambda item: -len(item[1]))
  lines = []
  for answer, sure in order:
    many = f"{len(sure)} arm" + "s" * (len(sure) > 1)
    low, high = f"{min(sure):.2f}", f"{max(sure):.2f}"
    within = low if low == high else f"{low} to {high}"
    tick = " ✓" if answer == x["truth"] else ""
    lines.append(f"{_named(answer)}{tick} {many}, {within}")
  return Cell(lines[0], "; ".join(lines[1:4]), value=len(order[0][1]))


def _each(x: Mapping[str, Any], arm: str) -> Cell:
  own = x["arms"].get(arm)
  if own is None:
    return Cell(wording.DASH)
  other = own["answer"] != x["teacher"]["answer"]
  return Cell(_named(own["answer"]), f"{own['confidence']:.2f}", strong=other)
