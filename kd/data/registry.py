"""The table of tasks that are no TFDS data sets, and how any is loaded.

To add one, write a function from the config's `task` section to a Task (of
one's own arrays: kd.data.memory), and give it an entry in TASKS.
"""

from collections.abc import Callable, Mapping
from typing import Any

from kd.config import sections
from kd.data import held_out, memory, prompts, slices, tfds_task, token_task
from kd.data.task import PARTS, Task
from kd.errors import UserError

TASKS: dict[str, Callable[[Mapping[str, Any]], Task]] = {
  "arrays": memory.load_arrays,
  "prompts": prompts.load,
}


def one_split(task: Mapping[str, Any], part: str) -> Task:
  """Prepares one slice of a data set, which is not to be learned from: all
  three splits of the task are that slice.

  Args:
    task: as `load` takes it, without slices.
    part: the slice.

  Raises:
    UserError: of `load`.
  """
  slices.parse("slice", part)
  filled = sections.fill("task", {**task, **dict.fromkeys(PARTS, part)})
  return _load({**filled, "apart": False})


def load(task: Mapping[str, Any]) -> Task:
  """Prepares a data set and cuts it into train, validation and test.

  Args:
    task: keys of the config's section `task` (kd.config.sections); those that
      it lacks have their usual values. `name` is of TASKS, or any TFDS data
      set with an (input, class) pair.

  Raises:
    UserError: naming the key to change.
  """
  for key in ("name", *PARTS):
    if not task.get(key):
      raise UserError(f"task.{key} = {task.get(key)!r}: expected some text")
  task = sections.fill("task", dict(task.items()))
  for part in PARTS:
    slices.parse(f"task.{part}", task[part])
  if (classes := task["held_out"]) and task["tokens"]["length"]:
    raise UserError(
      f"task.held_out = {tuple(classes)}: expected (), since the labels of a "
      "task of tokens are tokens"
    )
  made = _load(task)
  return held_out.without(made, classes) if classes else made


def _load(task: Mapping[str, Any]) -> Task:
  name, path = task["name"], task["path"]
  if task["tokens"]["length"]:
    if task["group"]:
      raise UserError(
        f"task.group = {task['group']!r}: expected '', since the labels of a "
        "text belong together"
      )
    if path and name != token_task.NAME:
      raise UserError(
        f"task.path = {path!r}: expected '', or task.name = {token_task.NAME!r}"
      )
    return token_task.load(task)
  if name in TASKS:
    if task["group"]:
      raise UserError(
        f"task.group = {task['group']!r}: expected '', since the file of "
        f"{name!r} says itself what belongs together"
      )
    return TASKS[name](task)
  if path:
    raise UserError(
      f"task.path = {path!r}: expected '', since the task is {name!r} and not "
      f"one of {', '.join(TASKS)}"
    )
  return tfds_task.load(task)
