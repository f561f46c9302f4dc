"""What is outside of a task: its test inputs shifted, other data, classes.

`evaluate.outside` names the sets (kd.config.outside). The inside is the test
split without the classes of any set of classes. A shift is of the inside.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from kd.config.outside import CLASSES, DATA, SHIFT, TEST
from kd.data import memory, shifts
from kd.data.inputs import MODES, Form
from kd.data.task import Split, Task
from kd.errors import UserError

Sections = Mapping[str, Mapping[str, Any]]

_NAMED = 4  # shifts that a set's words name


@dataclasses.dataclass(frozen=True, eq=False)
class Outside:
  """A set of examples, in the task's form.

  Attributes:
    name: in results.json; that of the config, with a severity behind it.
    of: the config's name of it.
    words: what it is, in a report.
    split: N examples; the labels are -1 where none is of the task's.
    severity: of a shift, 1 to 5; else 0.
    parts: what its shifts are.
    part: int [N], of which of them each example is.
  """

  name: str
  of: str
  words: str
  split: Split
  severity: int = 0
  parts: tuple[str, ...] = ()
  part: Int[np.ndarray, "N"] | None = None

  @property
  def labelled(self) -> bool:
    return bool(np.all(self.split.labels() >= 0))


def check(sections: Sections, task: Mapping[str, Any]) -> None:
  """Checks what the config alone tells.

  Args:
    sections: `evaluate.outside`.
    task: the config's section.

  Raises:
    UserError: naming the key.
  """
  for name, own in sections.items():
    path = f"evaluate.outside.{name}"
    if task["tokens"]["length"]:
      raise UserError(
        f"{path}: a task of tokens has a label for each token, and no set "
        "outside; expected evaluate.outside = {}"
      )
    for one in own["of"] if own["kind"] == SHIFT else ():
      if one not in shifts.NAMES:
        close = difflib.get_close_matches(one, shifts.NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
          f"{path}.of: {one!r}, {hint}expected some of "
          f"{', '.join(shifts.NAMES)}"
        )


def check_task(sections: Sections, task: Task) -> None:
  """Checks what the task's form and classes decide, reading its test split and
  other data sets.

  Raises:
    UserError: naming the key.
  """
  for name, own in sections.items():
    path = f"evaluate.outside.{name}"
    if own["kind"] == SHIFT:
      form = _form(task)
      for one in own["of"]:
        if form is None or one not in shifts.FORMS[form]:
          of = [f for f, table in shifts.FORMS.items() if one in table]
          have = ", ".join(shifts.FORMS[form]) if form else "none"
          raise UserError(
            f"{path}.of: {one!r} is of {' and '.join(of)}, and the task's "
            f"inputs are {form or _shape(task.test.form)}; expected some of "
            f"{have}"
          )
    if own["kind"] == CLASSES:
      wrong = [c for c in own["classes"] if c >= task.num_classes]
      if wrong:
        raise UserError(
          f"{path}.classes = {tuple(own['classes'])}: expected some of 0 to "
          f"{task.num_classes - 1}"
        )
      _of_classes(name, own, task)
    if own["kind"] == DATA:
      _data(name, own, task)
  if not len(_inside(sections, task)):
    raise UserError(
      "evaluate.outside: its classes are all that the test split has; expected "
      "fewer"
    )


def sets(sections: Sections, task: Task) -> list[Outside]:
  """Makes the sets, the inside first; reads other data sets.

  Raises:
    UserError: another data set can't be read, or is of another form.
  """
  found = [inside(sections, task)]
  for name, own in sections.items():
    if own["kind"] == SHIFT:
      found += _shifted(name, own, task, found[0].split)
    elif own["kind"] == DATA:
      found.append(_data(name, own, task))
    else:
      found.append(_of_classes(name, own, task))
  return found


def inside(sections: Sections, task: Task) -> Outside:
  """Returns the test split less the classes that a set is of."""
  rows = _inside(sections, task)
  return Outside(TEST, TEST, "test split", _of_rows(task.test, rows, TEST))


def _inside(sections: Sections, task: Task) -> np.ndarray:
  out = [c for own in sections.values() for c in own.get("classes", ())]
  return np.flatnonzero(~np.isin(task.test.labels(), out))


def _of_rows(split: Split, rows: np.ndarray, label: str) -> Split:
  form, labels = split.form, split.labels()[rows]
  if form.text:
    return memory.InMemory(split.texts(rows), labels, form, label)
  return _packed(split.read(rows), labels, form, label)


def _packed(inputs: np.ndarray, labels, form: Form, label: str) -> Split:
  """Returns inputs that are in the form already as a split."""
  ready = dataclasses.replace(form, pack=_stack, encoded=False)
  return memory.InMemory([*inputs], labels, ready, label)


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
  return np.stack(rows)


def _form(task: Task) -> str | None:
  """Returns which shifts the task's inputs can have: a name of shifts.FORMS."""
  form = task.test.form
  if form.text:
    return "texts"
  if len(form.shape) == 3 and form.shape[-1] in (1, 3):
    return "images"
  if len(form.shape) == 1:
    seen = task.test.arrays()[0]
    whole = (seen == np.rint(seen)) & (seen >= 0) & (seen <= shifts.PADDING)
    return "bytes" if whole.all() and seen.max() > 1 else None
  return None


def _shape(form: Form) -> str:
  return f"numbers of shape {form.shape}"


def _shifted(
  name: str, own: Mapping[str, Any], task: Task, of: Split
) -> list[Outside]:
  """Shifts the first examples of the inside, each by all shifts."""
  form = _form(task)
  assert form is not None  # `check_task` sees to it
  count = min(own["examples"] or len(of), len(of))
  rows = np.arange(count)
  inputs = of.texts(rows) if form == "texts" else of.read(rows)
  labels = np.tile(of.labels()[:count], len(own["of"]))
  part = np.repeat(np.arange(len(own["of"])), count)
  found, kinds = [], [one.replace("_", " ") for one in own["of"]]
  if len(kinds) > _NAMED:
    kinds = [*kinds[:_NAMED], f"{len(kinds) - _NAMED} other shifts"]
  for severity in own["severities"]:
    each = [
      shifts.apply(form, one, inputs, severity, own["seed"])
      for one in own["of"]
    ]
    many = len(own["severities"]) > 1
    full = f"{name}_{severity}" if many else name
    split = (
      memory.InMemory([x for xs in each for x in xs], labels, of.form, full)
      if form == "texts"
      else _packed(np.concatenate(each), labels, of.form, full)
    )
    words = f"{', '.join(kinds)}, severity {severity}"
    found.append(
      Outside(full, name, words, split, severity, tuple(own["of"]), part)
    )
  return found


def _of_classes(name: str, own: Mapping[str, Any], task: Task) -> Outside:
  """Returns test examples of some classes: with their labels where somebody
  may have learned them, without where they are held out of the task."""
  path, classes = f"evaluate.outside.{name}.classes", own["classes"]
  known = np.isin(task.test.labels(), classes)
  held = task.held_out
  out = np.isin(held.labels(), classes) if held else np.zeros(0, bool)
  if known.any() and out.any():
    raise UserError(
      f"{path} = {tuple(classes)}: some are held out of the task and some are "
      "not; expected two sets"
    )
  said = "class " if len(classes) == 1 else "classes "
  said += ", ".join(task.class_names[c] for c in classes)
  if held is not None and out.any():
    rows = np.flatnonzero(out)
    split = _of_rows(held, rows, name)
    split = _unlabelled(split, name)
    return Outside(name, name, f"{said}, which nobody learned", split)
  if not known.any():
    raise UserError(
      f"{path} = {tuple(classes)}: the test split has none of them; expected "
      "classes that it has"
    )
  split = _of_rows(task.test, np.flatnonzero(known), name)
  return Outside(name, name, said, split)


def _unlabelled(split: Split, label: str) -> Split:
  none = np.full(len(split), -1)
  if split.form.text:
    return memory.InMemory(split.texts(), none, split.form, label)
  return _packed(split.arrays()[0], none, split.form, label)


def _data(name: str, own: Mapping[str, Any], task: Task) -> Outside:
  """Brings another data set to the task's form.

  It has labels where each of its classes has the name of one of the task's.
  """
  from kd.data import registry  # which makes tasks that this reads

  path, form = f"evaluate.outside.{name}", task.test.form
  height = form.shape[0]
  section = {
    "name": own["name"],
    "path": own["path"],
    "data_dir": own["data_dir"],
    "text_features": form.shape[0] if form.text else 1,
  }
  if len(form.shape) == 3:
    section["image_size"] = max(height, form.shape[1])
  try:
    other = registry.one_split(section, own["slice"])
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  split = other.test
  rows = np.arange(min(own["examples"] or len(split), len(split)))
  names = [str(n) for n in task.class_names]
  same = all(n in names for n in other.class_names)
  index = np.array([names.index(n) for n in other.class_names] if same else [])
  labels = index[split.labels()[rows]] if same else np.full(len(rows), -1)
  words = f"{own['name']}, brought to the task's form"
  if form.text != split.form.text or len(form.shape) != len(split.form.shape):
    raise UserError(
      f"{path}.name = {own['name']!r}: {_kind(split.form)}, and the task's "
      f"inputs are {_kind(form)}; expected a data set of their kind"
    )
  if form.text:
    made = memory.InMemory(split.texts(rows), labels, form, name)
    return Outside(name, name, words, made)
  inputs = split.read(rows)
  if len(form.shape) == 3:
    inputs = as_images(inputs, form)
  elif inputs.shape[1:] != form.shape:
    raise UserError(
      f"{path}.name = {own['name']!r}: {_kind(split.form)}, and the task's "
      f"inputs are {_kind(form)}; expected the same shape"
    )
  return Outside(name, name, words, _packed(inputs, labels, form, name))


def _kind(form: Form) -> str:
  if form.text:
    return "texts"
  return ("images" if len(form.shape) == 3 else "numbers") + (
    f" of shape {form.shape}"
  )


def as_images(images: np.ndarray, form: Form) -> np.ndarray:
  """Brings images [N, h, w, c] to a form's size, channels and type.

  Grey is Pillow's luma; other sizes are resized bilinearly.
  """
  height, width, channels = form.shape
  bits = images if images.dtype == np.uint8 else np.rint(255 * images)
  mode = MODES[channels]
  found: list[np.ndarray] = []
  for image in bits.astype(np.uint8):
    one = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    one = one.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
    found.append(np.asarray(one).reshape(form.shape))
  whole = np.stack(found)
  return whole if form.dtype == np.uint8 else (whole / 255).astype(form.dtype)
