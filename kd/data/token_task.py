"""A task of tokens: texts or instructions in rows of L, a label a position.

With `task.tokens.length` set, what `task.name` names is read as texts: a TFDS
data set with a Text feature; or "texts", whose `task.path` is JSONL, Parquet or
text files (kd.data.documents). With `task.tokens.template` a text of a TFDS
data set stands in a prompt, and its completion is the name of its class. A
student predicts the next token wherever that is a token of the same text, or of
a completion.

A student may know fewer ids than the tokenizer has, those that cover a share of
the training tokens. All others are one further class, `other`, the last: as an
input it stands for any of them, as a label for the event that one comes, and a
teacher's probability of it is the sum of theirs. So every metric is of proper
distributions over the same events.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd.data import (
  documents,
  templates,
  tfds_task,
  tokenizers,
  tokens,
  vocabulary,
)
from kd.data.inputs import Form
from kd.data.memory import path_of
from kd.data.task import (
  PARTS,
  Classified,
  Split,
  Task,
  Tokens,
  is_resident,
)
from kd.errors import UserError
from kd.models import checkpoints

NAME = "texts"  # of a user's own
TEXT = "{text}"
LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


class TokenSplit(Split):
  """Rows of tokens, in memory."""

  def __init__(self, inputs, labels, form: Form, label: str, size: int = 0):
    """Makes a split of inputs [N, ...] and labels [N L], -1 where none counts.

    Args:
      inputs, labels: of the rows.
      form: of a row.
      label: what to call the split in errors.
      size: up to which empty rows are added.
    """
    more = max(size - len(inputs), 0)
    self._filled = len(inputs)
    empty = np.zeros((more, *inputs.shape[1:]), inputs.dtype)
    each = len(labels) // len(inputs)
    inputs = np.concatenate([inputs, empty])
    labels = np.concatenate([labels, np.full(more * each, -1, labels.dtype)])
    super().__init__(len(inputs), form, label)
    for x in (inputs, labels):
      x.flags.writeable = False
    self._arrays = inputs, labels
    self._labels = labels
    self._counts = labels >= 0

  @property
  def filled(self) -> int:
    return self._filled

  def of_size(self, size: int) -> "TokenSplit":
    """Returns the same rows, and empty ones up to `size`."""
    assert self._arrays is not None
    n, each = self._filled, len(self.labels()) // len(self)
    inputs, labels = self._arrays[0][:n], self._arrays[1][: n * each]
    return TokenSplit(inputs, labels, self._form, self._label, size)


def of_one_size(tasks: Mapping[Any, Task]) -> dict[Any, Task]:
  """Fills the splits of tasks of tokens to the size of the largest.

  Documents differ in length, so that splits of as many have other numbers of
  rows; with equal ones one compiled program serves all replicates.

  Raises:
    UserError: their vocabularies differ in size.
  """
  sizes = {task.num_classes for task in tasks.values()}
  first = next(iter(tasks.values()))
  if first.tokens is None or len(tasks) == 1:
    return dict(tasks)
  if len(sizes) > 1:
    raise UserError(
      f"task.tokens.coverage = {first.tokens.coverage}: the replicates' splits "
      f"have from {min(sizes)} to {max(sizes)} ids; expected None, or "
      "replicates.vary without 'split'"
    )
  most = {
    part: max(len(getattr(task, part)) for task in tasks.values())
    for part in PARTS
  }
  return {
    key: dataclasses.replace(
      task,
      **{part: getattr(task, part).of_size(n) for part, n in most.items()},
    )
    for key, task in tasks.items()
  }


def load(task: Mapping[str, Any]) -> Task:
  """Reads a task of tokens.

  Args:
    task: the config's section, checked; `tokens` says what becomes of texts.

  Raises:
    UserError: naming the key, or the file and line.
  """
  options = task["tokens"]
  length, where = options["length"], f"task.name = {task['name']!r}"
  parts, classified = _records(task)
  for part, records in parts.items():
    if not records:
      raise UserError(f"task.{part} = {task[part]!r}: holds no text")
  tokenizer = _tokenizer(options, parts["train"])
  template = templates.of(tokenizer) if options["chat"] else None
  rows = {
    part: tokens.rows(
      documents.encode(records, tokenizer, template),
      length,
      pad=tokenizer.pad,
      packed=options["pack"],
    )
    for part, records in parts.items()
  }
  subset = None
  if options["coverage"] is not None:
    seen = rows["train"].x[:, 0][rows["train"].x[:, 1] > 0]
    subset = vocabulary.subset(
      seen,
      tokenizer.vocab_size,
      coverage=options["coverage"],
      keep=(tokenizer.pad, *tokenizer.stops),
    )
  if subset and len(subset) == tokenizer.vocab_size:
    subset = None  # there are no others
  view = Tokens(
    tokenizer,
    subset,
    {part: own.positions for part, own in rows.items()},
    {part: own.fill for part, own in rows.items()},
    {
      part: [] if any(r.text is not None for r in records) else records
      for part, records in parts.items()
    },
    template,
    options["coverage"],
    classified,
  )
  arrays = {part: arrays_of(own, view) for part, own in rows.items()}
  shape = arrays["train"][0].shape[1:]
  stack = functools.partial(np.asarray, dtype=np.int32)
  form = Form("tokens", "next", shape, np.int32, None, stack)
  splits = {
    part: TokenSplit(*arrays[part], form, f"task.{part} = {task[part]!r}")
    for part in PARTS
  }
  test = rows["test"]
  if not all(own.positions for own in rows.values()):
    raise UserError(f"{where}: texts of one token each, with none to predict")
  of_subset = f"-{subset.fingerprint}" if subset else ""
  return Task(
    name=task["name"],
    version=f"{tokenizer.fingerprint}{of_subset}",
    num_classes=view.num_classes,
    class_names=(),
    input_shape=shape,
    scale=None,
    resident=is_resident(task, form, splits),
    slices=(*(task[part] for part in PARTS), f"seed {task['seed']}"),
    test_groups=test.documents[test.weights > 0],
    positions=length,
    tokens=view,
    train=splits["train"],
    validation=splits["validation"],
    test=splits["test"],
  )


def _records(
  task: Mapping[str, Any],
) -> tuple[dict[str, list[documents.Record]], Classified | None]:
  """Returns the records of each of PARTS, and what prompts were made of."""
  options = task["tokens"]
  if task["name"] != NAME:
    return _of_tfds(task, options)
  for key in ("template", "characters"):
    if options[key]:
      raise UserError(
        f"task.tokens.{key} = {options[key]!r}: of a TFDS data set's texts; "
        f"expected none, since task.name = {NAME!r}"
      )
  path = path_of(task)
  if path.endswith(LINES):
    records = documents.of_lines(path)
  else:
    records = documents.of_files(path, options["unit"])
  return documents.split(task, records), None


def _of_tfds(
  task: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, list[documents.Record]], Classified | None]:
  """Returns a TFDS data set's texts as they are, or with a template as prompts
  that their classes' names follow."""
  template, most = options["template"], options["characters"]
  names = tfds_task.text_classes(task) if template else ()
  if template and template.count(TEXT) != 1:
    raise UserError(
      f"task.tokens.template = {template!r}: expected {TEXT} once, or ''"
    )
  found = tfds_task.read_texts(task, options["feature"])
  found = {
    part: [(where, x[:most], c) for where, x, c in own if x]
    for part, own in found.items()
  }
  if not template:
    return {
      part: [documents.Record(text=x, where=where) for where, x, _ in own]
      for part, own in found.items()
    }, None
  classified = Classified(
    names,
    {part: [x for _, x, _ in own] for part, own in found.items()},
    {part: np.array([c for *_, c in own]) for part, own in found.items()},
  )
  return {
    part: [
      documents.Record(
        prompt=template.replace(TEXT, x),
        completion=classified.completion(c),
        where=where,
      )
      for where, x, c in own
    ]
    for part, own in found.items()
  }, classified


def _tokenizer(
  options: Mapping[str, Any], train: Sequence[documents.Record]
) -> tokenizers.Tokenizer:
  name = options["tokenizer"]
  if name == "bytes":
    return tokenizers.of_bytes()
  if name != "bpe":
    try:
      return tokenizers.load(checkpoints.folder(name))
    except UserError as error:
      raise UserError(
        f"task.tokens.tokenizer = {name!r}: {error}; or 'bytes' or 'bpe'"
      ) from error
  texts = (
    text
    for record in train
    for text in (record.text, record.prompt, record.completion)
    if text
  )
  return tokenizers.train_bpe(texts, options["vocab_size"])


def arrays_of(rows: tokens.Rows, view: Tokens) -> tuple[np.ndarray, np.ndarray]:
  """Returns inputs [N, 2, L] and labels [N L]; with a subset the inputs are
  [N, 3, L], of which the third are the ids as a teacher numbers them."""
  labels = np.where(rows.weights > 0, rows.labels, -1).ravel()
  if view.subset is None:
    return rows.x, labels.astype(np.int32)
  other = view.num_classes - 1
  own = view.subset.to_student(rows.x[:, :1], other)
  inputs = np.concatenate([own, rows.x[:, 1:], rows.x[:, :1]], axis=1)
  labels = np.where(
    labels < 0, -1, view.subset.to_student(np.maximum(labels, 0), other)
  )
  return inputs.astype(np.int32), labels.astype(np.int32)
