"""Pack the arrays of a signal into bytes, a fixed number for each row.

A field is an array [N, ...] and a way to pack it:

    plain     the array's own bytes
    bfloat16  float32 rounded to 16 bits
    int8      blocks of 64 numbers, each as 255 steps from its least to its
              largest: codes, and two float32 a block. |error| <= step / 2
    ids       K distinct ids below V, ascending, by Elias and Fano: of each id
              the low bits as they are, in planes, and the high ones in unary

Since every row takes the same bytes, row n of a record is found without an
index, and whole shards are unpacked at once. K ids take about log2(V / K) + 2
bits each. Source of the ids' code: Elias (1974), doi:10.1145/321812.321820.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

BLOCK = 64  # numbers that share a step
BFLOAT16 = np.dtype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Field:
  """One array of a signal.

  Attributes:
    name: of the array.
    kind: "plain", "bfloat16", "int8" or "ids".
    shape: of one row.
    dtype: of the array once unpacked.
    bound: V, of "ids"; 0 for the others.
  """

  name: str
  kind: str
  shape: tuple[int, ...]
  dtype: str
  bound: int = 0

  @property
  def size(self) -> int:
    """The numbers in a row."""
    return int(np.prod(self.shape, dtype=int))

  @property
  def width(self) -> int:
    """The bytes of a row."""
    if self.kind == "ids":
      return sum(_ids_parts(self.size, self.bound)[1:])
    if self.kind == "int8":
      return self.size + 8 * -(-self.size // BLOCK)
    each = 2 if self.kind == "bfloat16" else np.dtype(self.dtype).itemsize
    return each * self.size

  def pack(self, values: np.ndarray) -> np.ndarray:
    """Packs [N, *shape] into bytes [N, width]."""
    rows = np.ascontiguousarray(values, self.dtype)
    rows = rows.reshape(len(values), self.size)
    if self.kind == "ids":
      return _pack_ids(rows, self.bound)
    if self.kind == "int8":
      return _pack_int8(rows)
    if self.kind == "bfloat16":
      rows = rows.astype(BFLOAT16)
    return _bytes(rows)

  def unpack(self, packed: np.ndarray) -> np.ndarray:
    """Unpacks bytes [N, width] into [N, *shape]."""
    count = len(packed)
    if self.kind == "ids":
      rows = _unpack_ids(packed, self.size, self.bound)
    elif self.kind == "int8":
      rows = _unpack_int8(packed, self.size)
    elif self.kind == "bfloat16":
      rows = _view(packed, BFLOAT16).astype(np.float32)
    else:
      rows = _view(packed, np.dtype(self.dtype))
    return rows.reshape(count, *self.shape)


def layout(fields: Sequence[Field]) -> np.dtype:
  """Returns the bytes of one row as a structured dtype."""
  return np.dtype([(f.name, np.uint8, (f.width,)) for f in fields])


def pack(fields: Sequence[Field], arrays: Mapping[str, np.ndarray]) -> bytes:
  """Packs arrays [N, ...], row after row."""
  packed = [field.pack(arrays[field.name]) for field in fields]
  return np.concatenate(packed, axis=1).tobytes()


def unpack(fields: Sequence[Field], data: bytes) -> dict[str, np.ndarray]:
  """Unpacks whole rows of `pack` into arrays [N, ...]."""
  table = np.frombuffer(data, layout(fields))
  return {field.name: field.unpack(table[field.name]) for field in fields}


def describe(fields: Sequence[Field]) -> list[dict[str, Any]]:
  """Returns the fields as JSON, with their bytes a row."""
  return [dataclasses.asdict(f) | {"bytes": f.width} for f in fields]


def described(schema: Sequence[Mapping[str, Any]]) -> list[Field]:
  """Returns the fields of `describe`."""
  return [
    Field(f["name"], f["kind"], tuple(f["shape"]), f["dtype"], f["bound"])
    for f in schema
  ]


def _bytes(rows: np.ndarray) -> np.ndarray:
  if not rows.size:
    return np.zeros((len(rows), 0), np.uint8)
  return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)


def _view(packed: np.ndarray, dtype: np.dtype) -> np.ndarray:
  return np.frombuffer(np.ascontiguousarray(packed), dtype)


def _pack_int8(rows: np.ndarray) -> np.ndarray:
  count, size = rows.shape
  blocks = -(-size // BLOCK)
  padded = np.pad(rows, ((0, 0), (0, blocks * BLOCK - size)), "edge")
  padded = padded.reshape(count, blocks, BLOCK)
  least = padded.min(axis=2)
  step = (padded.max(axis=2) - least) / np.float32(255)
  divisor = np.where(step > 0, step, np.float32(1))[..., None]
  codes = np.rint((padded - least[..., None]) / divisor)
  codes = codes.astype(np.uint8).reshape(count, -1)[:, :size]
  return np.concatenate([codes, _bytes(least), _bytes(step)], axis=1)


def _unpack_int8(packed: np.ndarray, size: int) -> np.ndarray:
  count, blocks = len(packed), -(-size // BLOCK)
  least, step = (
    _view(packed[:, size + 4 * blocks * i :][:, : 4 * blocks], np.dtype("f4"))
    .reshape(count, blocks)
    for i in range(2)
  )  # fmt: skip
  out = packed[:, :size].astype(np.float32)
  for block in range(blocks):
    own = out[:, block * BLOCK : (block + 1) * BLOCK]
    own *= step[:, block, None]
    own += least[:, block, None]
  return out


@functools.cache
def _ids_parts(count: int, bound: int) -> tuple[int, int, int]:
  """Returns how many low bits make the code shortest: (their number, the bytes
  of the low bits, those of the high ones)."""

  def parts(low: int) -> tuple[int, int, int]:
    planes = (low // 8) * count + (low % 8) * -(-count // 8)
    return low, planes, -(-_unary(count, bound, low) // 8)

  # Of equally short ones that with the fewest planes, the quickest to read.
  return min(
    map(parts, range(bound.bit_length())),
    key=lambda p: (p[1] + p[2], p[0] % 8),
  )


def _unary(count: int, bound: int, low: int) -> int:
  """Returns the bits of the high parts: a one for each id, and as many zeros
  before the last as its high part is large."""
  return count + ((bound - 1) >> low)


def _pack_ids(rows: np.ndarray, bound: int) -> np.ndarray:
  count, size = rows.shape
  low = _ids_parts(size, bound)[0]
  # `>= bound` and `< 0` at once; and ascending means distinct.
  if (rows.astype(np.uint32) >= bound).any() or (np.diff(rows) <= 0).any():
    raise ValueError(f"ids are not ascending within 0 to {bound - 1}")
  parts = [
    (rows >> shift & 255).astype(np.uint8) for shift in range(0, low - 7, 8)
  ]
  for shift in range(low - low % 8, low):
    bit = (rows >> shift & 1).astype(np.uint8)
    parts.append(np.packbits(bit, axis=1, bitorder="little"))
  unary = np.zeros((count, _unary(size, bound, low)), np.uint8)
  places = (rows >> low) + np.arange(size)
  np.put_along_axis(unary, places, 1, axis=1)
  parts.append(np.packbits(unary, axis=1, bitorder="little"))
  return np.concatenate(parts, axis=1)


def _unpack_ids(packed: np.ndarray, size: int, bound: int) -> np.ndarray:
  count = len(packed)
  low, low_bytes, _ = _ids_parts(size, bound)
  length = _unary(size, bound, low)
  unary = np.unpackbits(
    packed[:, low_bytes:], axis=1, count=length, bitorder="little"
  )
  places = np.flatnonzero(unary.view(bool).ravel()).astype(np.int32)
  ids = places.reshape(count, size)
  ids -= np.arange(0, count * length, length, dtype=np.int32)[:, None]
  ids -= np.arange(size, dtype=np.int32)
  ids <<= low
  at = 0
  for shift in range(0, low - 7, 8):
    ids |= packed[:, at : at + size].astype(np.int32) << shift
    at += size
  width = -(-size // 8)
  for shift in range(low - low % 8, low):
    bits = np.unpackbits(
      packed[:, at : at + width], axis=1, count=size, bitorder="little"
    )
    ids |= bits.astype(np.int32) << shift
    at += width
  return ids
