"""Classes that nobody learns: neither teacher nor students see any of them.

The task keeps its V classes; examples of those that are held out leave all
three splits, and those of test are kept beside them, to be outside of the task
(kd.data.outside).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd.data.task import PARTS, Split, Task
from kd.errors import UserError


class Part(Split):
  """Some rows of a split."""

  def __init__(self, of: Split, rows: np.ndarray, label: str):
    super().__init__(len(rows), of.form, label)
    self._of, self._rows = of, rows

  def _example(self, position: int, decode: bool) -> Mapping[str, Any]:
    return self._of._example(int(self._rows[position]), decode)


def without(task: Task, classes: Sequence[int]) -> Task:
  """Returns the task less some classes, whose test examples are `held_out`.

  Raises:
    UserError: the classes are none of the task's, all of a split's, or none of
      test's.
  """
  key = f"task.held_out = {tuple(classes)}"
  if wrong := [c for c in classes if c >= task.num_classes]:
    raise UserError(
      f"{key}: {wrong[0]} is no class, expected some of 0 to "
      f"{task.num_classes - 1}"
    )
  parts: dict[str, Split] = {}
  kept, out = np.empty(0, int), np.empty(0, int)
  for part in PARTS:
    split = getattr(task, part)
    found = np.isin(split.labels(), classes)
    kept, out = np.flatnonzero(~found), np.flatnonzero(found)
    if not len(kept):
      raise UserError(f"{key}: nothing is left of task.{part}; expected fewer")
    parts[part] = Part(split, kept, f"task.{part} less held_out")
  if not len(out):  # of test, the last of PARTS
    raise UserError(f"{key}: task.test holds none of them; expected others")
  groups = task.test_groups
  return dataclasses.replace(
    task,
    **parts,
    test_groups=None if groups is None else groups[kept],
    held_out=Part(task.test, out, "task.held_out"),
  )


def of_one_size(tasks: Mapping[Any, Task]) -> dict[Any, Task]:
  """Cuts the splits of tasks less some classes to the size of the smallest.

  Other splits of the same data hold other numbers of what is held out; with
  equal ones one compiled program serves all replicates.
  """
  if all(t.held_out is None for t in tasks.values()):
    return dict(tasks)
  least = {p: min(len(getattr(t, p)) for t in tasks.values()) for p in PARTS}
  return {key: _first(task, least) for key, task in tasks.items()}


def _first(task: Task, least: Mapping[str, int]) -> Task:
  """Returns the first rows of a task's splits."""
  parts: dict[str, Split] = {
    part: Part(getattr(task, part), np.arange(n), f"task.{part} less held_out")
    for part, n in least.items()
  }
  groups = task.test_groups
  kept = None if groups is None else groups[: least["test"]]
  return dataclasses.replace(task, **parts, test_groups=kept)
