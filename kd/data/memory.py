"""Tasks of examples in memory: one's own arrays, or texts.

To make a task of one's own data, write a function from the config's `task`
section to `task_of(section, inputs, classes, class_names)`, and give it an
entry in kd.data.registry.TASKS.
"""

import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd.data import slices
from kd.data.inputs import Form
from kd.data.task import PARTS, Split, Task, is_resident
from kd.errors import UserError, why

NAME = "train"  # the one split that the config's slices are of
NPZ = "expected a file .npz of the arrays inputs, classes, perhaps class_names"
MOST_CLASSES = 2**20


class InMemory(Split):
  """Inputs with a class each, -1 where there is none, read as any split is."""

  def __init__(
    self, inputs: Sequence[Any], classes: Any, form: Form, label: str
  ):
    super().__init__(len(inputs), form, label)
    self._inputs = inputs
    self._classes = np.asarray(classes, np.int32)

  def _example(self, position: int, decode: bool) -> Mapping[str, Any]:
    del decode  # nothing is encoded
    form, i = self._form, int(position)
    return {form.input_key: self._inputs[i], form.label_key: self._classes[i]}

  def _keep_labels(self, labels: np.ndarray) -> np.ndarray:
    labels.flags.writeable = False
    self._labels = labels
    return labels


def form_of(inputs: np.ndarray, where: str) -> Form:
  """Returns what a model sees of arrays [N, ...]: bytes are scaled to 0..1.

  Args:
    inputs: the arrays.
    where: what to call them in errors.

  Raises:
    UserError: they are of another type than uint8, float32 or float64.
  """
  kinds: dict[str, tuple[Any, float]] = {"uint8": (np.uint8, 1 / 255)}
  kinds |= dict.fromkeys(("float32", "float64"), (np.float32, 1.0))
  if inputs.dtype.name not in kinds or inputs.ndim < 2 or not inputs[:1].size:
    raise UserError(
      f"{where}: inputs are {inputs.dtype} of shape {inputs.shape}; accepted: "
      "uint8, float32 or float64 of shape [N, ...]"
    )
  dtype, scale = kinds[inputs.dtype.name]

  def stack(rows):
    with np.errstate(over="ignore"):  # infinite then, which is refused
      return np.stack(rows).astype(dtype)

  return Form("input", "class", inputs.shape[1:], dtype, scale, stack)


def task_of(
  task: Mapping[str, Any],
  inputs: Sequence[Any] | np.ndarray,
  classes: Sequence[int] | np.ndarray,
  class_names: Sequence[str],
  form: Form | None = None,
  groups: Sequence[Any] | np.ndarray | None = None,
) -> Task:
  """Makes a task of examples that are in memory.

  Args:
    task: the config's section, checked: `name`, `seed`, and `train`,
      `validation`, `test`, slices of a seeded shuffle called `train`.
    inputs: N of them: an array [N, ...], or what `form` packs.
    classes: int [N] in 0..V-1.
    class_names: V, each once.
    form: how a model sees an input; None where they are an array.
    groups: N names, equal ones of examples that belong together.

  Raises:
    UserError: a class is none of V, or a slice is not of `train`.
  """
  where = f"task.name = {task['name']!r}"
  where += f", task.path = {path!r}" if (path := task.get("path")) else ""
  names, found = tuple(class_names), np.asarray(classes)
  form = form or form_of(np.asarray(inputs), where)
  for name in names:
    if not name or name != name.strip() or not name.isprintable():
      raise UserError(
        f"{where}: class name {name!r}, expected a printable text without "
        "spaces around it"
      )
  if len(set(names)) < max(2, len(names)):
    raise UserError(f"{where}: expected two or more class names, each once")
  if found.shape != (len(inputs),) or found.dtype.kind not in "iu":
    raise UserError(
      f"{where}: classes are {found.dtype} of shape {found.shape}, expected "
      f"whole numbers of shape ({len(inputs)},)"
    )
  if wrong := np.flatnonzero((found < 0) | (found >= len(names))).tolist():
    raise UserError(
      f"{where}: example {wrong[0]} has class {found[wrong[0]]}, expected 0 to "
      f"{len(names) - 1}"
    )
  splits, test = {}, np.empty(0, int)
  cut = slices.rows(task, [NAME], lambda name: len(inputs))
  for part, pieces in cut.items():
    rows = np.concatenate([of for _, of in pieces])
    own = [inputs[i] for i in rows]
    label = f"task.{part} = {task[part]!r}"
    splits[part] = InMemory(own, found[rows], form, label)
    test = rows  # the last of PARTS
  return Task(
    name=task["name"],
    version="",
    num_classes=len(names),
    class_names=names,
    input_shape=form.shape,
    scale=form.scale,
    resident=is_resident(task, form, splits),
    slices=(*(task[part] for part in PARTS), f"seed {task['seed']}"),
    test_groups=_numbered(groups, test, where),
    train=splits["train"],
    validation=splits["validation"],
    test=splits["test"],
  )


def _numbered(groups, rows: np.ndarray, where: str) -> np.ndarray | None:
  """Numbers the groups of some rows."""
  if groups is None:
    return None
  found = np.asarray(groups)
  if found.ndim != 1 or len(found) <= rows.max():
    raise UserError(
      f"{where}: groups are of shape {found.shape}, expected one name for each "
      "example"
    )
  return np.unique(found[rows], return_inverse=True)[1].astype(np.int32)


def path_of(task: Mapping[str, Any]) -> str:
  """Returns `task.path` of a task that is of a file."""
  if not task["path"]:
    raise UserError(
      f"task.path is missing: task.name = {task['name']!r} is of a file"
    )
  return task["path"]


def load_arrays(task: Mapping[str, Any]) -> Task:
  """Reads a task from NumPy's .npz: `inputs` [N, ...], `classes` int [N], if
  they have names `class_names` [V], and if some belong together `groups` [N].

  Args:
    task: the config's section; `path` names the file.

  Raises:
    UserError: the file can't be read, or lacks an array.
  """
  path = path_of(task)
  found = f"task.path = {path!r}: "
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: np.asarray(file[name]) for name in file.files}
  except (OSError, ValueError, EOFError, TypeError, MemoryError) as error:
    raise UserError(f"{found}{NPZ} ({why(error)})") from error
  except (zipfile.BadZipFile, AttributeError) as error:
    raise UserError(f"{found}{NPZ} ({why(error)})") from error
  if lacking := {"inputs", "classes"} - set(arrays):
    raise UserError(
      f"{found}lacks the array {min(lacking)!r}, holds "
      f"{', '.join(arrays) or 'none'}"
    )
  inputs, classes = arrays["inputs"], arrays["classes"]
  groups = arrays.get("groups")
  if "class_names" in arrays:
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U":
      raise UserError(
        f"{found}class_names are {names.dtype} of shape {names.shape}, "
        "expected texts [V]"
      )
    return task_of(task, inputs, classes, [str(n) for n in names], None, groups)
  whole = classes.dtype.kind in "iu" and classes.size
  most = int(classes.max()) if whole else 1
  if most >= MOST_CLASSES:
    raise UserError(
      f"{found}a class is {most}, expected below {MOST_CLASSES}, or class_names"
    )
  numbers = [str(n) for n in range(most + 1)]
  return task_of(task, inputs, classes, numbers, None, groups)
