"""Keep a signal on disk: ArrayRecord shards and a metadata.json.

    FOLDER/metadata.json                       what it holds, and of what
    FOLDER/signal-00000-of-00003.array_record  the transfer set's first rows

A record is `ROWS` rows (kd.signals.codec), of which the last of a shard may
have fewer. A row begins with its key, a hash of the example's input, so that a
study sees whether a signal was made of its own examples, in its own order. A
folder is there whole or not at all (kd.signals.label), and `read` refuses one
that is damaged, or made of anything else than the study expects, and says what.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import (  # ty: ignore
  ArrayRecordWriter,
)
from grain import sources

from kd import files
from kd.errors import UserError, why
from kd.signals import Signal, codec, schema
from kd.signals.codec import Field
from kd.signals.schema import KEY

FORMAT = 2
ROWS = 64  # in a record: whole records are read, and random ones quickly
MOST_KEYS = 4096  # that are looked at of a signal that is streamed
AT_ONCE = 128  # records unpacked by one thread at once; measured: docs/top_k.md
# What a study may ask less of than a store holds.
LESS = {"k", "samples"}


def keys(inputs: np.ndarray) -> np.ndarray:
  """Hashes each input [N, ...] to 64 bits, the same on every machine."""
  digests = (
    hashlib.blake2b(np.ascontiguousarray(x), digest_size=8).digest()
    for x in inputs
  )
  return np.frombuffer(b"".join(digests), "<u8")


def write_shard(
  path: str, fields: Sequence[Field], parts: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
  """Writes a shard beside its place and renames it; on the disk on return.

  Args:
    path: of the shard.
    fields: what a row holds.
    parts: arrays of consecutive rows, each but the last a multiple of ROWS.

  Returns:
    What the metadata says of it: name, examples, bytes, crc32.
  """
  scratch = f"{path}.tmp"
  count = 0
  writer = ArrayRecordWriter(scratch, "group_size:1,uncompressed")
  for arrays in parts:
    size = len(arrays[KEY])
    data = codec.pack(fields, arrays)
    step = len(data) // size * ROWS
    for at in range(0, len(data), step):
      writer.write(data[at : at + step])
    count += size
  writer.close()
  with open(scratch, "rb") as f:
    os.fsync(f.fileno())
  about = {"name": os.path.basename(path), "examples": count, **_sum(scratch)}
  os.replace(scratch, path)
  return about


def _sum(path: str) -> dict[str, int]:
  """Returns a file's bytes and their CRC-32."""
  return {"bytes": os.path.getsize(path), "crc32": files.crc32(path)}


def exists(folder: str) -> bool:
  return os.path.exists(os.path.join(folder, "metadata.json"))


def check(folder: str, expected: Mapping[str, Any]) -> dict[str, Any]:
  """Reads a store's metadata and checks that it is what is `expected`.

  Args:
    folder: of the store.
    expected: metadata that must be the same; keys that it leaves out may be
      anything. Of `k` and `samples` a store may have more, and temperatures
      that aren't asked for.

  Raises:
    UserError: no store, one of another format, or one made otherwise; says
      which key differs.
  """
  path = os.path.join(folder, "metadata.json")
  metadata = files.read_json(path, "signal")
  if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
    found = metadata.get("format") if isinstance(metadata, dict) else metadata
    raise UserError(
      f"{path}: format = {found!r}, this version reads {FORMAT}; label again"
    )
  for key, want in json.loads(json.dumps(expected)).items():
    have = metadata.get(key)
    if not isinstance(want, Mapping):
      want, have, prefix = {key: want}, {key: have}, ""
    else:
      have, prefix = dict(have or {}), f"{key}."
    for name, value in want.items():
      if not _enough(name, have.get(name), value):
        raise UserError(
          f"{path}: {prefix}{name} = {have.get(name)!r}, this study expects "
          f"{value!r}"
        )
  return metadata


def _enough(name: str, have: Any, want: Any) -> bool:
  if have == want:
    return True
  if name in LESS and have is not None:
    return have >= want
  if name == "tokenizer" and have is None:  # noted since then; `task` tells it
    return True
  return name == "temperatures" and set(want) <= set(have or ())


class Store:
  """Random access to the rows of a store, as grain's data sources have it.

  `len()` rows, and `store[n]` the arrays of row n, by name. It keeps the record
  that it read last, so that rows in order cost what whole records cost.
  """

  def __init__(self, folder: str, expected: Mapping[str, Any] | None = None):
    """Opens a store, and checks every byte of it.

    Raises:
      UserError: as `check`, or a shard is missing or damaged.
    """
    self.folder = folder
    self.metadata = check(folder, expected or {})
    self.schema = codec.described(self.metadata["schema"])
    shards = self.metadata["shards"]
    paths = [os.path.join(folder, shard["name"]) for shard in shards]
    for path, shard in zip(paths, shards, strict=True):
      _check_shard(path, shard)
    try:
      self._records = sources.ArrayRecordDataSource(paths)
      count = len(self._records)
    # array_record raises several kinds for what it can't read.
    except Exception as error:
      raise UserError(f"{folder}: unreadable shards ({why(error)})") from error
    sizes = [shard["examples"] for shard in shards]
    # The row that each record begins with, and the end.
    starts = [
      first + np.arange(0, size, ROWS)
      for first, size in zip(np.cumsum([0, *sizes]), sizes, strict=False)
    ]
    self._starts = np.concatenate([*starts, [sum(sizes)]]).astype(np.int64)
    if count != len(self._starts) - 1:
      raise UserError(
        f"{folder}: {count} records of {ROWS} rows, its metadata says "
        f"{sum(sizes)} examples"
      )
    self._last: tuple[int, dict[str, np.ndarray]] = (-1, {})

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    if not 0 <= row < len(self):
      raise IndexError(f"row {row} of a store of {len(self)}")
    record = int(np.searchsorted(self._starts, row, "right")) - 1
    if record != self._last[0]:
      arrays = codec.unpack(self.schema, self._records[record])
      self._last = (record, arrays)
    return {k: x[row - self._starts[record]] for k, x in self._last[1].items()}

  def at(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays of rows [...], by name, reading each record once."""
    records = np.searchsorted(self._starts, rows, "right") - 1
    distinct, place = np.unique(records, return_inverse=True)
    data = b"".join(self._records.__getitems__(distinct.tolist()))
    sizes = self._starts[distinct + 1] - self._starts[distinct]
    firsts = np.cumsum(sizes) - sizes  # of each record, in what was read
    own = firsts[place.reshape(rows.shape)] + rows - self._starts[records]
    return {k: x[own] for k, x in codec.unpack(self.schema, data).items()}

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the arrays of all rows, by name."""
    out = {
      f.name: np.empty((len(self), *f.shape), f.dtype) for f in self.schema
    }

    def load(first: int) -> None:
      last = min(first + AT_ONCE, len(self._starts) - 1)
      data = b"".join(self._records.__getitems__(range(first, last)))
      rows = slice(self._starts[first], self._starts[last])
      for name, x in codec.unpack(self.schema, data).items():
        out[name][rows] = x

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(load, range(0, len(self._starts) - 1, AT_ONCE)))
    return out


def _check_shard(path: str, shard: Mapping[str, Any]) -> None:
  try:
    found = _sum(path)
  except OSError as error:
    raise UserError(f"{path}: the shard is missing ({why(error)})") from error
  if any(found[key] != shard[key] for key in found):
    raise UserError(
      f"{path}: damaged, {found['bytes']} bytes with CRC-32 {found['crc32']}, "
      f"the metadata says {shard['bytes']} with {shard['crc32']}"
    )


@dataclasses.dataclass(frozen=True)
class Streamed:
  """A signal that is read from its store as batches need it.

  Attributes:
    store: where it is.
    counts: as of a Signal.
  """

  store: Store
  counts: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.store)

  def at(self, rows: np.ndarray) -> Signal:
    """Returns the signal of rows [...], of numpy arrays."""
    temperatures = self.store.metadata["signal"]["temperatures"]
    made = schema.to_signal(self.store.at(rows), temperatures)
    if self.counts is None:
      return made
    return dataclasses.replace(made, counts=self.counts[rows])


@dataclasses.dataclass(frozen=True)
class Keys:
  """The keys that a study's examples have.

  Attributes:
    rows: which rows of the store, counted from 0, all or some of them.
    keys: of each.
  """

  rows: np.ndarray
  keys: np.ndarray


def read(
  folder: str,
  expected: Mapping[str, Any],
  own: Keys | None = None,
  counts: np.ndarray | None = None,
  most: float = math.inf,
) -> Signal | Streamed:
  """Reads a signal back and checks that it is the one `expected`.

  Args:
    folder: of the store.
    expected: as in `check`.
    own: the study's keys, which must be the store's.
    counts: which of its rows count; None is all.
    most: bytes that it may take in memory; a larger one is streamed.

  Raises:
    UserError: as `Store`, or the examples are others or in another order.
  """
  store = Store(folder, expected)
  if schema.row_memory(store.schema) * len(store) > most:
    if own is not None:
      some = np.linspace(0, len(own.rows) - 1, MOST_KEYS, dtype=int)
      own = Keys(own.rows[some], own.keys[some])
      _check_keys(folder, len(store), lambda rows: store.at(rows)[KEY], own)
    return Streamed(store, counts)
  arrays = store.arrays()
  if own is not None:
    found = arrays[KEY]
    _check_keys(folder, len(found), lambda rows: found[rows], own, found)
  arrays = {k: jnp.asarray(v) for k, v in arrays.items() if k != KEY}
  made = schema.to_signal(arrays, store.metadata["signal"]["temperatures"])
  if counts is None:
    return made
  return dataclasses.replace(made, counts=jnp.asarray(counts))


def _check_keys(
  folder: str,
  count: int,
  at: Callable[[np.ndarray], np.ndarray],
  own: Keys,
  every: np.ndarray | None = None,
) -> None:
  """Raises UserError unless a store of `count` rows has the study's keys.

  Args:
    folder: of the store.
    count: its rows.
    at: reads the keys of rows.
    own: the study's.
    every: the keys of all rows, where they are known.
  """
  if own.rows.max() >= count:
    raise UserError(
      f"{folder}: {count} examples, this study's transfer set has "
      f"{int(own.rows.max()) + 1} or more"
    )
  have = at(own.rows)
  wrong = np.flatnonzero(have != own.keys)
  if len(wrong):
    first = wrong[0]
    moved = own.keys[first] in (have if every is None else every)
    raise UserError(
      f"{folder}: row {own.rows[first]} is of another example than this study's"
      + (" (which is there in another order)" if moved else " (other data)")
      + f": key {have[first]:016x}, expected {own.keys[first]:016x}; "
      f"{len(wrong)} of {len(have)} rows differ"
    )
