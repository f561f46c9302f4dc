"""A report's tables of written text: everybody's words, and what they cost."""

from collections.abc import Mapping
from typing import Any

from kd.report import wording
from kd.report.blocks import Block, Cell, Details, Heading, Table, Text, code

Results = Mapping[str, Any]

OPEN = 2  # prompts that the page does not fold away
LONGEST = 600  # characters of a text


def word_tables(results: Results, look) -> list[Block]:
  """Sets the teacher's and each arm's words after a prompt side by side."""
  written = results.get("written") or []
  if not written:
    return []
  tables: list[Block] = []
  for i, entry in enumerate(written, 1):
    rows: list[list[Cell | str]] = [["the task", _said(entry["truth"])]]
    if entry["teacher"] is not None:
      rows.append(["teacher", _said(entry["teacher"])])
    rows += [
      [Cell(code(arm), chip=look[arm].colour), _said(entry["arms"][arm])]
      for arm in results["arms"]
      if arm in entry["arms"]
    ]
    caption = f"After prompt {i}: {_said(entry['prompt'])}"
    tables.append(Table(caption, ["Who", "Words"], rows, left=(0, 1)))
  said = (
    "What is written after held-out prompts, greedily; an arm's words are "
    "those of its first run that finished."
  )
  blocks = [Heading("Words side by side"), Text(said, "note"), *tables[:OPEN]]
  more = tables[OPEN:]
  return [*blocks, *([Details("More prompts", more)] if more else [])]


def _said(text: str) -> str:
  if not text.strip():
    return "(nothing)"
  cut = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
  return code(cut.strip())


def budget_table(results: Results, look) -> list[Block]:
  """Lists the teacher's tokens that each arm cost, and says whether arms that
  learn from the teacher are compared at an equal price."""
  costs = {
    arm: entry["teacher_tokens"]
    for arm, entry in results["arms"].items()
    if entry.get("teacher_tokens") is not None
  }
  bought = [cost for cost in costs.values() if cost]
  if not bought:
    return []
  equal = max(bought) <= 1.01 * min(bought)
  said = (
    "All arms that learn from the teacher are compared at equal teacher tokens."
    if equal
    else "The arms are not compared at equal teacher tokens."
  )
  rows = [
    [Cell(code(arm), chip=look[arm].colour), f"{cost:,.0f}"]
    for arm, cost in costs.items()
  ]
  caption = (
    "Tokens of prompts that the teacher read and of completions that it wrote "
    f"for an arm, mean over {wording.units(results)}; of a text, those that it "
    f"read. {said}"
  )
  columns = ["Arm", "Teacher tokens"]
  return [Heading("Teacher tokens"), Table(caption, columns, rows)]
