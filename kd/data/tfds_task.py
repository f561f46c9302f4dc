"""A task of a TFDS data set: slices of its builder's own splits.

Any data set works whose supervised keys are an Image, Text or Tensor and a
ClassLabel. Each slice is one of a seeded shuffle of a builder's split.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

import kd.datasets.digit_triples
import kd.datasets.digits
import kd.datasets.docstrings
import kd.datasets.file_types
import kd.datasets.newsgroups
import kd.datasets.photo_patches
import kd.datasets.snippets  # noqa: F401  these register our data sets
from kd.data import inputs, slices
from kd.data.task import PARTS, Split, Task, is_resident
from kd.errors import UserError, why


class TfdsSplit(Split):
  """Rows of TFDS data sources, joined."""

  def __init__(
    self,
    sources: Sequence[Any],
    source_of: np.ndarray,
    row_of: np.ndarray,
    form: inputs.Form,
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
    super().__init__(len(row_of), form, label)
    self._sources = tuple(sources)
    self._source_of = source_of
    self._row_of = row_of

  def _example(self, position: int, decode: bool) -> Mapping[str, Any]:
    """Reads one record, and decodes its input or leaves it as stored."""
    source = self._sources[self._source_of[position]]
    record = source.data_source[int(self._row_of[position])]
    skip = {self._form.input_key: tfds.decode.SkipDecoding()}
    return source.dataset_info.features.deserialize_example_np(
      record, decoders=None if decode else skip
    )


def load(task: Mapping[str, Any]) -> Task:
  """Prepares a data set and cuts it into train, validation and test.

  Checks what can be checked first, then downloads and prepares the data set
  (ArrayRecord) unless `task.data_dir` holds it. Reads no example.

  Args:
    task: the config's section, checked by kd.data.registry.load.

  Raises:
    UserError: naming the key to change.
  """
  builder = _builder(task)
  form = inputs.form(builder.info, task)
  builder = _prepare(builder, task)

  sources, rows = _cut(builder, task)
  splits = {
    part: _split(f"task.{part} = {task[part]!r}", rows[part], sources, form)
    for part in PARTS
  }
  label = builder.info.features[form.label_key]
  if not label.num_classes:
    raise UserError(
      f"task.name = {task['name']!r}: {form.label_key!r} has no classes; "
      "accepted: a data set whose ClassLabel says how many there are"
    )
  groups, key = None, task["group"]
  if key:
    known = [k for k in builder.info.features if k != form.input_key]
    if key not in known:
      raise UserError(
        f"task.group = {key!r}: expected one of {', '.join(known)}, or ''"
      )
    groups = splits["test"].groups(key)
  return Task(
    name=task["name"],
    version=str(builder.version),
    num_classes=label.num_classes,
    class_names=tuple(label.names),
    input_shape=form.shape,
    scale=form.scale,
    resident=is_resident(task, form, splits),
    slices=(*(task[part] for part in PARTS), f"seed {task['seed']}"),
    test_groups=groups,
    train=splits["train"],
    validation=splits["validation"],
    test=splits["test"],
    about=" ".join((builder.info.description or "").split()),
  )


def read_texts(
  task: Mapping[str, Any], feature: str = ""
) -> dict[str, list[tuple[str, str, int]]]:
  """Reads the texts of a TFDS data set, each with its name and its class.

  Args:
    task: the config's section, as `load` takes it.
    feature: a Text feature; "" is `text`, or the only one that there is.

  Returns:
    For each of PARTS, [("split row", text, class)] in the shuffled order; the
    class is -1 where the data set has none (`text_classes`).

  Raises:
    UserError: naming the key to change, or the features there are.
  """
  builder = _builder(task)
  known = [
    name
    for name, kind in builder.info.features.items()
    if isinstance(kind, tfds.features.Text) and kind.shape == ()
  ]
  if not feature:
    feature = "text" if "text" in known else "".join(known)
  if feature not in known:
    raise UserError(
      f"task.tokens.feature = {feature!r}: {task['name']!r} has the texts "
      f"{', '.join(known) or '(none)'}; expected one of them"
    )
  label = _label_key(builder)
  sources, rows = _cut(_prepare(builder, task), task)

  def example(name, row):
    record = sources[name][int(row)]
    text = record[feature].decode(errors="replace")
    return f"{name} {row}", text, int(record[label]) if label else -1

  return {
    part: [example(name, row) for name, of in rows[part] for row in of]
    for part in PARTS
  }


def text_classes(task: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the names of the classes of a TFDS data set's texts.

  Raises:
    UserError: it has no classes.
  """
  builder = _builder(task)
  label = _label_key(builder)
  if not label:
    raise UserError(
      f"task.tokens.template = {task['tokens']['template']!r}: "
      f"{task['name']!r} has no classes; expected '', or a data set with a "
      "ClassLabel among its supervised keys"
    )
  return tuple(builder.info.features[label].names)


def _label_key(builder: Any) -> str:
  """Returns the feature that is a text's class, or ""."""
  keys, features = builder.info.supervised_keys or (), builder.info.features
  label = str(keys[-1]) if keys else ""
  is_class = label and isinstance(features[label], tfds.features.ClassLabel)
  return label if is_class else ""


def _cut(
  builder: Any, task: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[tuple[str, np.ndarray]]]]:
  """Opens the builder splits that the slices name; see `slices.rows`."""
  sources: dict[str, Any] = {}

  def size_of(name):
    if name not in sources:
      sources[name] = _source(builder, task, name)
    return len(sources[name])

  # TFDS's mock_data knows no splits, and takes any.
  rows = slices.rows(task, list(builder.info.splits), size_of)
  return sources, rows


def _builder(task: Mapping[str, Any]) -> Any:
  """Finds the TFDS builder that `task.name` names."""
  name = task["name"]
  try:
    return tfds.builder(name, data_dir=task["data_dir"] or None)
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
  pieces: Sequence[tuple[str, np.ndarray]],
  sources: Mapping[str, Any],
  form: inputs.Form,
) -> TfdsSplit:
  """Joins the pieces of one part: rows of builder splits."""
  names = list(sources)
  source_of = [
    np.full(len(rows), names.index(name), np.int32) for name, rows in pieces
  ]
  return TfdsSplit(
    list(sources.values()),
    np.concatenate(source_of),
    np.concatenate([rows for _, rows in pieces]),
    form,
    where,
  )
