"""TFDS slice notation, of a seeded shuffle: train[:70%], test[100:200]+test2.

A slice here cuts a builder split's rows after they were shuffled, where TFDS
itself cuts them in the order of the files. Percentages are rounded to the
nearest row, so that `train[:70%]` ends where `train[70%:]` begins.
"""

import itertools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from kd.data.order import SPLIT, permutation
from kd.data.task import PARTS
from kd.errors import UserError, brief, why


class Piece(NamedTuple):
  """A stretch low..high-1 of a builder split's shuffled rows."""

  split: str
  low: int
  high: int


def parse(key: str, text: str) -> tfds.core.splits.AbstractSplit:
  """Reads slice notation, without a data set.

  Raises:
    UserError: naming `key`, if `text` isn't slice notation.
  """
  try:
    if re.search(r"\dshard\b", text):
      raise ValueError("the slices cut a shuffle, which has no shards")
    return tfds.core.ReadInstruction.from_spec(text)
  except Exception as error:  # ValueErrors that TFDS wraps in other kinds
    raise UserError(
      f"{key} = {text!r}: {why(error)}; accepted: TFDS slices, such as "
      "train, train[:70%], test[100:200] or train[:10%]+test"
    ) from error


def names(key: str, text: str, known: Sequence[str]) -> list[str]:
  """Returns the builder splits that a slice names.

  Args:
    key: the config key, for errors.
    text: slice notation.
    known: the builder's splits; empty if it can't tell (TFDS's mock_data).

  Raises:
    UserError: if the builder has no such split.
  """
  named = [piece.split("[")[0].strip() for piece in text.split("+")]
  if "all" in named:
    return list(known)
  for name in named:
    if known and name not in known:
      raise UserError(
        f"{key} = {text!r}: no split {name!r}; accepted: {brief(known)}"
      )
  return list(dict.fromkeys(named))


def cut(key: str, text: str, sizes: Mapping[str, int]) -> list[Piece]:
  """Resolves a slice against the sizes of the splits it names.

  Raises:
    UserError: if it reaches past a split's end, or holds no example.
  """
  infos: dict[str, Any] = {
    name: tfds.core.SplitInfo(name, [size], num_bytes=0)
    for name, size in sizes.items()
  }
  counts = brief([f"{name} ({size} examples)" for name, size in sizes.items()])
  try:
    absolute = parse(key, text).to_absolute(infos)
  except ValueError as error:
    raise UserError(
      f"{key} = {text!r}: {why(error)} accepted: slices within {counts}"
    ) from error
  pieces = []
  for part in absolute:
    low = part.from_ or 0
    high = sizes[part.splitname] if part.to is None else part.to
    if low < high:
      pieces.append(Piece(part.splitname, low, high))
  if not pieces:
    raise UserError(f"{key} = {text!r}: holds no example of {counts}")
  return pieces


def refuse_overlaps(pieces: Mapping[str, Sequence[Piece]]) -> None:
  """Raises UserError where two slices share an example.

  Args:
    pieces: by what to call the slice, `key = 'notation'`.
  """
  flat = [(where, piece) for where in pieces for piece in pieces[where]]
  for (first, a), (second, b) in itertools.combinations(flat, 2):
    low, high = max(a.low, b.low), min(a.high, b.high)
    if a.split == b.split and low < high:
      both = first if first == second else f"{first} and {second}"
      raise UserError(
        f"{both} overlap in {high - low} examples, {a.split}[{low}:{high}]; "
        "accepted: slices that share none"
      )


def rows(
  task: Mapping[str, Any], known: Sequence[str], size_of: Callable[[str], int]
) -> dict[str, list[tuple[str, np.ndarray]]]:
  """Returns which rows of which builder split each part of a task holds.

  Args:
    task: the config's section: `train`, `validation`, `test` and `seed`, of the
      shuffle.
    known: the builder's splits, as in `names`.
    size_of: the size of a split, asked of those that are named.

  Returns:
    For each of PARTS, [(split, int32 rows)] by the pieces of its slice.

  Raises:
    UserError: a slice is of no split, holds nothing, or overlaps another.
  """
  pieces = {}
  for part in PARTS:
    key, text = f"task.{part}", task[part]
    sizes = {name: size_of(name) for name in names(key, text, known)}
    pieces[f"{key} = {text!r}"] = cut(key, text, sizes)
  if task.get("apart", True):  # kd.data.registry.one_split
    refuse_overlaps(pieces)

  def order(name):
    crc = zlib.crc32(name.encode())
    return permutation(SPLIT, task["seed"], crc, size_of(name))

  return {
    part: [(name, order(name)[low:high]) for name, low, high in of]
    for part, of in zip(PARTS, pieces.values(), strict=True)
  }
