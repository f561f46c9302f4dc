"""What a task is, and how its examples are read.

`load` turns the config's `task` section into three `Split`s of a TFDS data
set, each a slice of a seeded shuffle of one of the builder's own splits.
"""

import dataclasses
import difflib
import functools
import hashlib
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Int32

import kd.builders
import kd.file_types
import kd.triples  # noqa: F401  these three register our data sets
from kd import features, slices
from kd.errors import UserError, why
from kd.order import SPLIT, permutation, positions, stream, subset

__all__ = ["Split", "Task", "load", "positions", "stream", "subset"]

PARTS = ("train", "validation", "test")
CHUNK = 256  # records decoded at once
PARALLEL = 10_000  # records from which decoding is worth grain's 1 s of import
SAMPLE = 1024  # inputs of each split that the fingerprint reads
DEFAULTS: dict[str, Any] = {
  "data_dir": "",
  "path": "",
  "seed": 0,
  "image_size": 0,
  "text_features": 4096,
  "resident": "auto",
  "resident_mib": 1024.0,
}


class Split:
  """Random access to one part of a task; decodes what is asked for.

  Positions count from 0 within the part. `arrays` and `labels` are read once
  and kept, as read-only arrays.
  """

  def __init__(
    self,
    sources: Sequence[Any],
    source_of: np.ndarray,
    row_of: np.ndarray,
    form: features.Form,
    label: str,
  ):
    """Joins rows of data sources.

    Args:
      sources: `tfds.data_source`s.
      source_of: int [N], index into `sources` of each example.
      row_of: int [N], its row in that source.
      form: what a record becomes.
      label: what to call the split in errors.
    """
    self._sources = tuple(sources)
    self._source_of = source_of
    self._row_of = row_of
    self._form = form
    self._label = label
    self._labels: np.ndarray | None = None
    self._arrays: tuple[np.ndarray, np.ndarray] | None = None

  def __len__(self) -> int:
    return len(self._row_of)

  @property
  def form(self) -> features.Form:
    """What a record becomes."""
    return self._form

  def texts(self) -> list[str]:
    """Returns the inputs of a task of texts, as they were written."""
    key = self._form.input_key
    raw = (self._example(i, True)[key] for i in range(len(self)))
    return [x.decode() if isinstance(x, bytes) else str(x) for x in raw]

  def _example(self, position: int, decode: bool) -> Mapping[str, Any]:
    """Reads one record, and decodes its input or leaves it as stored."""
    source = self._sources[self._source_of[position]]
    record = source.data_source[int(self._row_of[position])]
    skip = {self._form.input_key: tfds.decode.SkipDecoding()}
    return source.dataset_info.features.deserialize_example_np(
      record, decoders=None if decode else skip
    )

  def _load(self, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the positions int [n]: inputs [n, ...] and labels [n]."""
    form = self._form
    examples = [self._example(i, not form.encoded) for i in chunk]
    inputs = form.pack([example[form.input_key] for example in examples])
    labels = [example[form.label_key] for example in examples]
    return inputs, np.array(labels, np.int32)

  def _keep_labels(self, labels: np.ndarray) -> np.ndarray:
    if labels.size and labels.min() < 0:  # TFDS writes -1 for "no label"
      raise UserError(
        f"{self._label}: {np.sum(labels < 0)} of {len(labels)} examples have "
        "no label; accepted: a split with labels"
      )
    labels.flags.writeable = False
    self._labels = labels
    return labels

  def labels(self) -> Int32[np.ndarray, " N"]:
    """Returns the classes, int32 [N], without decoding the inputs."""
    if self._labels is not None:
      return self._labels
    key = self._form.label_key
    labels = (self._example(i, False)[key] for i in range(len(self)))
    return self._keep_labels(np.fromiter(labels, np.int32, len(self)))

  def arrays(self) -> tuple[np.ndarray, Int32[np.ndarray, " N"]]:
    """Returns all inputs [N, ...], uint8 or float32, and labels int32 [N]."""
    if self._arrays is not None:
      return self._arrays
    n = len(self)
    inputs = np.empty((n, *self._form.shape), self._form.dtype)
    labels = np.empty(n, np.int32)
    chunks = [np.arange(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]
    threads = os.cpu_count() or 1
    loaded = (
      map(self._load, chunks)
      if n < PARALLEL
      else stream(self._load, chunks, prefetch=2 * threads, threads=threads)
    )
    for chunk, (x, y) in zip(chunks, loaded, strict=True):
      inputs[chunk[0] : chunk[-1] + 1] = x
      labels[chunk[0] : chunk[-1] + 1] = y
    inputs.flags.writeable = False
    self._arrays = inputs, self._keep_labels(labels)
    return self._arrays

  def read(self, rows: np.ndarray) -> np.ndarray:
    """Returns the inputs at positions int [...], as an array [..., *shape].

    Decodes each distinct position once, however often `rows` names it.

    Raises:
      IndexError: if a position is outside 0..N-1.
    """
    rows = np.asarray(rows)
    if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
      raise IndexError(
        f"positions {rows.min()}..{rows.max()} of a split of {len(self)}"
      )
    if self._arrays is not None:
      return self._arrays[0][rows]
    if not rows.size:
      return np.empty((*rows.shape, *self._form.shape), self._form.dtype)
    distinct, inverse = np.unique(rows, return_inverse=True)
    return self._load(distinct)[0][inverse.reshape(rows.shape)]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A data set, split, as a study sees it.

  Attributes:
    name: the data set's TFDS name.
    version: the data set's version.
    num_classes: V.
    class_names: V names.
    input_shape: of one example, as the model sees it.
    scale: what the step multiplies inputs with: 1/255 for 8-bit images, 1 for
      text vectors and tensors.
    train: what students (and the teacher) learn from.
    validation: for choices.
    test: for reporting.
    resident: whether the inputs belong on the device as a whole.
    slices: the config's slices and the seed of the shuffle they cut.
  """

  name: str
  version: str
  num_classes: int
  class_names: tuple[str, ...]
  input_shape: tuple[int, ...]
  scale: float
  train: Split
  validation: Split
  test: Split
  resident: bool
  slices: tuple[str, ...]

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of what was read, 16 hexadecimal digits.

    Covers the name, version, slices, seed, shape, class names, every label,
    and up to `SAMPLE` evenly spaced inputs of each split. Does not depend on
    residency, process or folder.
    """
    facts = ("name", "version", "slices", "class_names", "input_shape", "scale")
    facts = [getattr(self, fact) for fact in facts]
    digest = hashlib.sha256(repr(facts).encode())
    for split in (self.train, self.validation, self.test):
      rows = np.linspace(0, len(split) - 1, min(len(split), SAMPLE), dtype=int)
      digest.update(np.ascontiguousarray(split.labels()).tobytes())
      digest.update(np.ascontiguousarray(split.read(rows)).tobytes())
    return digest.hexdigest()[:16]


def load(task: Mapping[str, Any]) -> Task:
  """Prepares a data set and cuts it into train, validation and test.

  Any TFDS data set works whose supervised keys are an Image, Text or Tensor
  and a ClassLabel. Checks what can be checked first, then downloads and
  prepares the data set (ArrayRecord) unless `task.data_dir` holds it. Reads
  no example.

  Args:
    task: `name`, `train`, `validation`, `test` (TFDS slice notation), and
      optionally `data_dir`, `seed`, `image_size` (pixels; 0 keeps the size),
      `text_features`, `resident` ("auto", True, False), `resident_mib`; and
      `path`, where `name` is "prompts" (kd.prompts).

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
  if task["name"] == "prompts":
    from kd import prompts  # whose splits are made of this module's

    return prompts.load(task)
  if task["path"]:
    raise UserError(
      f"task.path = {task['path']!r}: expected '', since the task is "
      f"{task['name']!r} and not 'prompts'"
    )
  builder = _builder(task)
  form = features.form(builder.info, task)
  builder = _prepare(builder, task)

  sources: dict[str, Any] = {}
  pieces: dict[str, list[slices.Piece]] = {}
  for part in PARTS:
    key, text = f"task.{part}", task[part]
    # TFDS's mock_data knows no splits, and takes any.
    named = slices.names(key, text, list(builder.info.splits))
    sources |= {n: _source(builder, task, n) for n in named if n not in sources}
    sizes = {name: len(sources[name]) for name in named}
    pieces[f"{key} = {text!r}"] = slices.cut(key, text, sizes)
  slices.refuse_overlaps(pieces)
  splits = {
    part: _split(where, task["seed"], cut, sources, form)
    for part, (where, cut) in zip(PARTS, pieces.items(), strict=True)
  }
  label = builder.info.features[form.label_key]
  if not label.num_classes:
    raise UserError(
      f"task.name = {task['name']!r}: {form.label_key!r} has no classes; "
      "accepted: a data set whose ClassLabel says how many there are"
    )
  return Task(
    name=task["name"],
    version=str(builder.version),
    num_classes=label.num_classes,
    class_names=tuple(label.names),
    input_shape=form.shape,
    scale=form.scale,
    resident=is_resident(task, form, splits),
    slices=(*(task[part] for part in PARTS), f"seed {task['seed']}"),
    **splits,
  )


def _builder(task: Mapping[str, Any]) -> Any:
  """Finds the TFDS builder that `task.name` names."""
  name = task["name"]
  data_dir = os.path.expanduser(task["data_dir"]) or None
  try:
    return tfds.builder(name, data_dir=data_dir)
  except tfds.core.registered.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(re.split("[/:]", name)[0], known, n=3)
    hint = (
      f"did you mean {' or '.join(close)}?"
      if close
      else f"accepted: digits, mnist_subset or another of {len(known)} in TFDS"
    )
    raise UserError(
      f"task.name = {name!r}: no such data set; {hint}"
    ) from error
  except Exception as error:  # of whatever kind: a builder is others' code
    raise UserError(
      f"task.name = {name!r}: TFDS can't construct it ({why(error)})"
    ) from error


def _prepare(builder: Any, task: Mapping[str, Any]) -> Any:
  """Returns the builder with its data on disk, downloading it if need be."""
  if builder.data_path.exists():
    return builder
  try:
    builder.download_and_prepare(
      file_format="array_record",  # the one with random access
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
  except Exception as error:  # of whatever kind: download, disk, TensorFlow
    # TFDS prepares in a folder with a random name and renames it when done, so
    # a data set is there as a whole or not at all. Where another process was
    # faster, our rename fails and its data is as good as ours.
    if not builder.data_path.exists():
      raise UserError(
        f"task.name = {task['name']!r}: can't be downloaded and prepared here "
        f"({why(error)}); prepare it elsewhere with "
        "file_format='array_record' and point task.data_dir = "
        f"{task['data_dir']!r} to it (looked in {builder.data_path})"
      ) from error
  return _builder(task)  # afresh, to read what was written


def _source(builder: Any, task: Mapping[str, Any], name: str) -> Any:
  """Opens a builder split for random access."""
  try:
    # Not Parquet, of which TFDS 4.9.10 wrote 500 of our 1,797 digits.
    return builder.as_data_source(name, file_format="array_record")
  except (NotImplementedError, ValueError) as error:
    found = [kind.value for kind in builder.info.available_file_formats()]
    raise UserError(
      f"task.data_dir = {task['data_dir']!r}: {builder.data_path} holds "
      f"{' and '.join(sorted(found)) or 'no'} files; accepted: a folder "
      "prepared with file_format='array_record', or an empty one"
    ) from error


def _split(
  where: str,
  seed: int,
  pieces: Sequence[slices.Piece],
  sources: Mapping[str, Any],
  form: features.Form,
) -> Split:
  """Joins the pieces of one part: slices of each builder split's shuffle."""
  names = list(sources)
  source_of, row_of = [], []
  for name, low, high in pieces:
    key = zlib.crc32(name.encode())
    order = permutation(SPLIT, seed, key, len(sources[name]))
    source_of.append(np.full(high - low, names.index(name), np.int32))
    row_of.append(order[low:high])
  return Split(
    list(sources.values()),
    np.concatenate(source_of),
    np.concatenate(row_of),
    form,
    where,
  )


def is_resident(
  task: Mapping[str, Any], form: features.Form, splits: Mapping[str, Split]
) -> bool:
  """Decides whether the inputs stay on the device, and logs why."""
  one = math.prod(form.shape) * np.dtype(form.dtype).itemsize
  mib = one * sum(map(len, splits.values())) / 2**20
  fits = mib <= task["resident_mib"]
  resident = fits if task["resident"] == "auto" else bool(task["resident"])
  logging.info(
    "task %s: %s examples of %d B, %.1f MiB; resident = %s "
    "(task.resident = %s, task.resident_mib = %g)",
    *(task["name"], " + ".join(str(len(s)) for s in splits.values()), one, mib),
    *(resident, task["resident"], task["resident_mib"]),
  )
  return resident
