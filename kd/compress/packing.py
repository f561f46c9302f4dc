"""Arrays in few bytes: four bits two to a byte, and zeros left out."""

import json
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

KINDS = {
  "int4": ml_dtypes.int4,
  "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "bfloat16": ml_dtypes.bfloat16,
}


class Packed(NamedTuple):
  """An array as it is kept: parts by suffix, and how to read them."""

  parts: dict[str, np.ndarray]
  form: dict[str, Any]


def pack(array: np.ndarray) -> Packed:
  """Returns an array in the form that takes the fewest bytes.

      dense   all values
      mask    a bit for each value, and those that are not 0
      csr     of a matrix, for each row how many are not 0 up to its end, for
              each of these its column, and its value (uint16 or uint32)

  Values of 4 bits are two to a byte, the first in its low half. A sign of zero
  is not kept.

  >>> packed = pack(np.eye(64, dtype=ml_dtypes.int4))
  >>> packed.form["form"], sum(x.nbytes for x in packed.parts.values())
  ('csr', 416)
  """
  form = {"dtype": array.dtype.name, "shape": list(array.shape)}
  flat = array.ravel()
  there = np.asarray(flat.astype(np.float32) != 0)
  forms = [Packed({"": stored(flat)}, {**form, "form": "dense"})]
  if not there.all() and array.size:
    parts = {"": stored(flat[there]), "mask": np.packbits(there)}
    forms.append(Packed(parts, {**form, "form": "mask"}))
    wide = array.reshape(-1, array.shape[-1]) if array.ndim else array[None]
    rows, columns = np.nonzero(there.reshape(wide.shape))
    ends = np.cumsum(np.bincount(rows, minlength=len(wide)))
    small = np.uint16 if wide.shape[-1] <= 2**16 else np.uint32
    parts = {
      "": stored(flat[there]),
      "columns": columns.astype(small),
      "ends": ends.astype(np.uint32),
    }
    forms.append(Packed(parts, {**form, "form": "csr"}))
  # Each part has a header too, and is no gain where the array is small.
  return min(
    forms, key=lambda p: sum(x.nbytes + _HEADER for x in p.parts.values())
  )


_HEADER = len(json.dumps({"name": {"dtype": "U8", "data_offsets": [0, 0]}}))


def unpack(packed: Packed) -> np.ndarray:
  """Returns the array that `pack` was given."""
  parts, form = packed
  shape = tuple(form["shape"])
  dtype = np.dtype(KINDS.get(form["dtype"], form["dtype"]))
  if form["form"] == "dense":
    return _read(parts[""], dtype, int(np.prod(shape))).reshape(shape)
  flat = np.zeros(int(np.prod(shape)), dtype)
  if form["form"] == "mask":
    there = np.flatnonzero(np.unpackbits(parts["mask"], count=flat.size))
  else:
    counts = np.diff(parts["ends"].astype(np.int64), prepend=0)
    rows = np.repeat(np.arange(len(counts)), counts)
    there = rows * shape[-1] + parts["columns"].astype(np.int64)
  flat[there] = _read(parts[""], dtype, len(there))
  return flat.reshape(shape)


def stored(flat: np.ndarray) -> np.ndarray:
  """Returns values [N] as arrays that a file of safetensors may hold."""
  if flat.dtype == ml_dtypes.int4:
    own = flat.astype(np.int8).view(np.uint8) & 15
    own = np.pad(own, (0, -len(own) % 2))
    return own[::2] | (own[1::2] << 4)
  if flat.dtype.name in KINDS:
    return np.ascontiguousarray(flat).view(np.uint8)
  return np.ascontiguousarray(flat)


def _read(stored: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:
  if dtype == ml_dtypes.int4:
    halves = np.stack([stored & 15, stored >> 4], -1).ravel()[:count]
    signed = np.where(halves > 7, halves.astype(np.int8) - 16, halves)
    return signed.astype(np.int8).astype(dtype)
  return stored.view(dtype) if dtype.name in KINDS else stored
