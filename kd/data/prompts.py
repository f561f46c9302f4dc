"""Texts with classes that are a user's own: a task from JSONL, no TFDS.

    task.name = "prompts"
    task.path = "labelled.jsonl"     # {"id", "prompt", "reference"} a line
    task.test = "train[50%:]"          # slices of its one split, `train`

The class names are the distinct references, sorted. The file may end in
.gz or .zst, or be Parquet.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from kd.data import inputs, slices
from kd.data.order import SPLIT, permutation
from kd.data.task import PARTS, Split, Task, is_resident
from kd.errors import UserError
from kd.lines import decode, lines

SPLIT_NAME = "train"


class Labelled(msgspec.Struct):
  """One line; other fields, as of kd.teachers.answers, are left alone."""

  prompt: str
  reference: str
  id: str = ""


class Prompts(Split):
  """Texts with a class each, -1 where there is none, read as any split is."""

  def __init__(
    self,
    texts: Sequence[str],
    classes: Any,
    form: inputs.Form,
    label: str,
  ):
    super().__init__(len(texts), form, label)
    self._texts = texts
    self._classes = np.asarray(classes, np.int32)

  def _example(self, position: int, decode: bool) -> Mapping[str, Any]:
    del decode  # nothing is encoded
    form, i = self._form, int(position)
    return {
      form.input_key: self._texts[i],
      form.label_key: self._classes[i],
    }

  def _keep_labels(self, labels: np.ndarray) -> np.ndarray:
    labels.flags.writeable = False
    self._labels = labels
    return labels


def load(task: Mapping[str, Any]) -> Task:
  """Reads a task of a user's own texts.

  Args:
    task: the config's section, checked by kd.data.registry.load.

  Raises:
    UserError: the file is missing, a line is not as it should be (named), or a
      slice is not of `train`.
  """
  examples = _read(task["path"])
  names = sorted({e.reference for e in examples})
  if len(names) < 2:
    raise UserError(
      f"task.path = {task['path']!r}: {len(names)} distinct references, "
      "expected 2 or more"
    )
  index = {name: i for i, name in enumerate(names)}
  form = inputs.text_form("prompt", "reference", task["text_features"])
  order = permutation(
    SPLIT, task["seed"], zlib.crc32(SPLIT_NAME.encode()), len(examples)
  )
  sizes = {SPLIT_NAME: len(examples)}
  pieces, splits = {}, {}
  for part in PARTS:
    key, text = f"task.{part}", task[part]
    slices.names(key, text, [SPLIT_NAME])
    where = f"{key} = {text!r}"
    pieces[where] = slices.cut(key, text, sizes)
    rows = np.concatenate([order[low:high] for _, low, high in pieces[where]])
    own = [examples[i] for i in rows]
    classes = [index[e.reference] for e in own]
    splits[part] = Prompts([e.prompt for e in own], classes, form, where)
  slices.refuse_overlaps(pieces)
  return Task(
    name=task["name"],
    version="",
    num_classes=len(names),
    class_names=tuple(names),
    input_shape=form.shape,
    scale=form.scale,
    resident=is_resident(task, form, splits),
    slices=(*(task[part] for part in PARTS), f"seed {task['seed']}"),
    **splits,
  )


def _read(path: str) -> list[Labelled]:
  if not path:
    raise UserError(
      "task.path is missing: task.name = 'prompts' needs a file of labelled "
      "prompts (kd/data/prompts.py)"
    )
  examples = []
  for line in lines(path):
    try:
      examples.append(decode(line, Labelled))
    except ValueError as error:
      raise UserError(f"{path}:{line.number}: {error}") from error
  if not examples:
    raise UserError(f"{path}: no line, expected labelled prompts")
  return examples
