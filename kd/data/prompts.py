"""Texts with classes that are a user's own: a task from JSONL, no TFDS.

    task.name = "prompts"
    task.path = "labelled.jsonl"     # {"id", "prompt", "reference"} a line,
                                       # and "group" where some belong together
    task.test = "train[50%:]"          # slices of its one split, `train`

The class names are the distinct references, sorted. The file may end in
.gz or .zst, or be Parquet.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from kd.data.inputs import text_form
from kd.data.memory import path_of, task_of
from kd.data.task import Task
from kd.errors import UserError
from kd.lines import decode, lines


class Labelled(msgspec.Struct):
  """One line; other fields, as of kd.teachers.answers, are left alone."""

  prompt: str
  reference: str
  id: str = ""
  group: str | None = None


def load(task: Mapping[str, Any]) -> Task:
  """Reads a task of a user's own texts.

  Args:
    task: the config's section; `path` names the file.

  Raises:
    UserError: the file is missing, a line is not as it should be (named), or a
      slice is not of `train`.
  """
  examples = _read(path_of(task))
  names = sorted({e.reference for e in examples})
  if len(names) < 2:
    raise UserError(
      f"task.path = {task['path']!r}: {len(names)} distinct references, "
      "expected 2 or more"
    )
  index = {name: i for i, name in enumerate(names)}
  form = text_form("prompt", "reference", task["text_features"])
  texts = [e.prompt for e in examples]
  classes = [index[e.reference] for e in examples]
  groups = None
  if any(e.group is not None for e in examples):  # one without is by itself
    groups = [
      f"{i}" if e.group is None else f"in {e.group}"
      for i, e in enumerate(examples)
    ]
  return task_of(task, texts, classes, names, form, groups)


def _read(path: str) -> list[Labelled]:
  examples = []
  for line in lines(path):
    try:
      examples.append(decode(line, Labelled))
    except ValueError as error:
      raise UserError(f"{path}:{line.number}: {error}") from error
  if not examples:
    raise UserError(f"{path}: no line, expected labelled prompts")
  return examples
