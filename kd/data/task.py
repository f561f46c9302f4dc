"""What a task is: three splits of examples with random access.

`kd.data.registry.load` makes one from a config's `task` section.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Int32

from kd.data.inputs import Form
from kd.data.order import stream
from kd.data.tokenizers import Tokenizer
from kd.data.vocabulary import Subset
from kd.errors import UserError
from kd.models.functional import Signature

if TYPE_CHECKING:  # which is made of tasks
  from kd.data.documents import Record
  from kd.data.templates import Template

PARTS = ("train", "validation", "test")
CHUNK = 256  # records decoded at once
PARALLEL = 10_000  # records from which decoding is worth grain's 1 s of import
SAMPLE = 1024  # inputs of each split that the fingerprint reads


class Split:
  """Random access to one part of a task; decodes what is asked for.

  Rows count from 0 within the part. `arrays` and `labels` are read once
  and kept, as read-only arrays. A subclass says how one record is read.
  """

  def __init__(self, size: int, form: Form, label: str):
    """Makes a split of `size` examples.

    Args:
      size: N.
      form: what a record becomes.
      label: what to call the split in errors.
    """
    self._size = size
    self._form = form
    self._label = label
    self._labels: np.ndarray | None = None
    self._counts: np.ndarray | None = None
    self._arrays: tuple[np.ndarray, np.ndarray] | None = None

  def _example(self, position: int, decode: bool) -> Mapping[str, Any]:
    """Reads one record, and decodes its input or leaves it as stored."""
    raise NotImplementedError

  def __len__(self) -> int:
    return self._size

  @property
  def filled(self) -> int:
    """How many examples there are, before empty ones that fill a size."""
    return self._size

  @property
  def form(self) -> Form:
    """What a record becomes."""
    return self._form

  def texts(self, rows: Iterable[int] | None = None) -> list[str]:
    """Returns inputs of a task of texts, as they were written; None is all."""
    key = self._form.input_key
    rows = range(len(self)) if rows is None else rows
    raw = (self._example(int(i), True)[key] for i in rows)
    return [x.decode() if isinstance(x, bytes) else str(x) for x in raw]

  def _load(self, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the positions int [n]: inputs [n, ...] and labels [n]."""
    form = self._form
    examples = [self._example(i, not form.encoded) for i in chunk]
    inputs = form.pack([example[form.input_key] for example in examples])
    labels = [example[form.label_key] for example in examples]
    finite = np.isfinite(inputs).reshape(len(chunk), -1).all(axis=1)
    if not finite.all():
      raise UserError(
        f"{self._label}: the input of example {chunk[np.argmin(finite)]} is "
        "not finite; expected numbers"
      )
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

  def counts(self) -> Bool[np.ndarray, " N"] | None:
    """Returns which labels count, of texts; None where all do."""
    return self._counts

  def groups(self, key: str) -> Int32[np.ndarray, " N"]:
    """Numbers what records hold under `key`: equal ones are one group."""
    found = [self._example(i, False)[key] for i in range(len(self))]
    return np.unique(np.array(found), return_inverse=True)[1].astype(np.int32)

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

  def read_in_chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the inputs at positions int [n], CHUNK of them at once."""
    for i in range(0, len(rows), CHUNK):
      yield self.read(rows[i : i + CHUNK])


def joined(parts: Sequence[Split]) -> Split:
  """Returns splits of one form one after another, as a split in memory."""
  if len(parts) == 1:
    return parts[0]
  whole = Split(sum(map(len, parts)), parts[0].form, "splits joined")
  inputs, labels = zip(*(part.arrays() for part in parts), strict=True)
  whole._arrays = np.concatenate(inputs), np.concatenate(labels)
  whole._labels = whole._arrays[1]
  counts = [part.counts() for part in parts]
  known = [c for c in counts if c is not None]
  whole._counts = np.concatenate(known) if known else None
  return whole


@dataclasses.dataclass(frozen=True, eq=False)
class Classified:
  """Texts with a class each, as a task of tokens has them in its prompts.

  Attributes:
    names: of the V classes.
    texts: by part, in the order of its records.
    labels: by part, int [N] of its texts.
  """

  names: tuple[str, ...]
  texts: Mapping[str, Sequence[str]]
  labels: Mapping[str, np.ndarray]

  def completion(self, label: int) -> str:
    """Returns what follows the prompt of a text of a class."""
    return f" {self.names[label]}"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
  """What a task of tokens knows beside its rows.

  Attributes:
    tokenizer: of its texts.
    subset: the ids that students know; None is all. See kd.data.token_task.
    positions: by part, the positions that count.
    fill: by part, the share of its rows that is no padding.
    records: by part, the records, if they have prompts; else none.
    template: of chats; None where prompts are read as they are.
    coverage: by which the subset was chosen.
    classified: what the prompts were made of; None where they are not of texts
      with classes.
  """

  tokenizer: Tokenizer
  subset: Subset | None
  positions: Mapping[str, int]
  fill: Mapping[str, float]
  records: "Mapping[str, Sequence[Record]]"
  template: "Template | None" = None
  coverage: float | None = None
  classified: Classified | None = None

  @property
  def num_classes(self) -> int:
    """V of a student."""
    if self.subset is None:
      return self.tokenizer.vocab_size
    return len(self.subset) + 1


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
      text vectors and tensors; None for tokens.
    train: what students (and the teacher) learn from.
    validation: for choices.
    test: for reporting.
    resident: whether the inputs belong on the device as a whole.
    slices: the config's slices and the seed of the shuffle they cut.
    test_groups: int [N of test], which of its labels belong together, as those
      of a text do; None where each stands for itself.
    positions: L, the labels of an example: 1, or those of a row of tokens.
    tokens: of a task of tokens; None of any other.
    about: what the data set says of itself.
    held_out: test examples of classes that nobody learns (kd.data.held_out).
  """

  name: str
  version: str
  num_classes: int
  class_names: tuple[str, ...]
  input_shape: tuple[int, ...]
  scale: float | None
  train: Split
  validation: Split
  test: Split
  resident: bool
  slices: tuple[str, ...]
  test_groups: np.ndarray | None = None
  positions: int = 1
  tokens: Tokens | None = None
  about: str = ""
  held_out: Split | None = None

  @property
  def signature(self) -> Signature:
    """What a model is asked."""
    return Signature(self.input_shape, self.num_classes, self.scale)

  @property
  def facts(self) -> dict[str, Any]:
    """What results.json says of a task of tokens."""
    if self.tokens is None:
      return {}
    labels = self.test.labels()
    other = labels == self.num_classes - 1
    subset = self.tokens.subset is not None
    return {
      "row_tokens": self.positions,
      "train_tokens": self.tokens.positions["train"],
      "test_tokens": self.tokens.positions["test"],
      "vocabulary": self.tokens.tokenizer.vocab_size,
      "student_vocabulary": self.num_classes,
      **(
        {"unknown_share": float(np.mean(other[labels >= 0]))} if subset else {}
      ),
    }

  @property
  def criterion(self) -> str:
    """The metric by which weights are chosen on validation."""
    return "accuracy" if self.tokens is None else "nll"

  def score(self, accuracy, nll):
    """Returns the criterion's value, the higher the better."""
    return accuracy if self.criterion == "accuracy" else -nll

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
      n = split.filled
      rows = np.linspace(0, n - 1, min(n, SAMPLE), dtype=int)
      labels = split.labels()[: n * self.positions]
      digest.update(np.ascontiguousarray(labels).tobytes())
      for inputs in split.read_in_chunks(rows):
        digest.update(np.ascontiguousarray(inputs))
    return digest.hexdigest()[:16]


def is_resident(
  task: Mapping[str, Any], form: Form, splits: Mapping[str, Split]
) -> bool:
  """Decides whether the inputs stay on the device, and logs why."""
  one = form.bytes
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
