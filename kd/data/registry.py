"""The table of tasks that are no TFDS data sets, and how any is loaded.

To add one, write a function from the config's `task` section to a Task, and
give it an entry in TASKS.
"""

from collections.abc import Callable, Mapping
from typing import Any

from kd.data import prompts, slices, tfds_task
from kd.data.task import PARTS, Task
from kd.errors import UserError

DEFAULTS: dict[str, Any] = {
  "data_dir": "",
  "path": "",
  "seed": 0,
  "image_size": 0,
  "text_features": 4096,
  "resident": "auto",
  "resident_mib": 1024.0,
}
TASKS: dict[str, Callable[[Mapping[str, Any]], Task]] = {
  "prompts": prompts.load
}


def load(task: Mapping[str, Any]) -> Task:
  """Prepares a data set and cuts it into train, validation and test.

  Args:
    task: `name`, of TASKS or TFDS; `train`, `validation`, `test` (TFDS slice
      notation), and optionally `data_dir`, `seed`, `image_size` (pixels; 0
      keeps the size), `text_features`, `resident` ("auto", True, False),
      `resident_mib`; and `path`, where `name` is of TASKS.

  Raises:
    UserError: naming the key to change.
  """
  task = DEFAULTS | dict(task.items())
  for key in ("name", *PARTS):
    if not (isinstance(task.get(key), str) and task[key]):
      raise UserError(f"task.{key} = {task.get(key)!r}: expected some text")
  for key, low in (("seed", 0), ("image_size", 0), ("text_features", 1)):
    if not (isinstance(task[key], int) and task[key] >= low):
      raise UserError(
        f"task.{key} = {task[key]!r}: expected an integer >= {low}"
      )
  if task["resident"] not in ("auto", True, False):
    raise UserError(
      f"task.resident = {task['resident']!r}: expected auto, True or False"
    )
  for part in PARTS:
    slices.parse(f"task.{part}", task[part])
  if task["name"] in TASKS:
    return TASKS[task["name"]](task)
  if task["path"]:
    raise UserError(
      f"task.path = {task['path']!r}: expected '', since the task is "
      f"{task['name']!r} and not one of {', '.join(TASKS)}"
    )
  return tfds_task.load(task)
