"""Keep a signal on disk: ArrayRecord shards and a metadata.json.

One record is one example: the bytes of its arrays, in the order that the
metadata's schema gives. A store is written beside its place and renamed, so
that it is there whole or not at all; its records are checked against the
CRC-32 of the metadata when they are read.
"""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import (  # ty: ignore
  ArrayRecordWriter,
)
from grain import sources

from kd import files
from kd.errors import UserError
from kd.signals import Dense, Labels, Samples, Signal

SHARD = "signal-00000-of-00001.array_record"


def write(folder: str, signal: Signal, metadata: Mapping[str, Any]) -> None:
  """Writes a signal of N examples with what is known of its making.

  Args:
    folder: where; its parent exists.
    signal: the arrays.
    metadata: JSON-safe; what `read` is to find again unchanged.
  """
  arrays = _arrays(signal)
  count = len(signal.truth.ids)
  crc = 0
  parent = os.path.dirname(os.path.abspath(folder))
  scratch = tempfile.mkdtemp(prefix=".signal-", dir=parent)
  try:
    writer = ArrayRecordWriter(os.path.join(scratch, SHARD), "group_size:1")
    for row in range(count):
      record = b"".join(x[row].tobytes() for x in arrays.values())
      crc = zlib.crc32(record, crc)
      writer.write(record)
    writer.close()
    description = {
      "schema": {
        name: {"dtype": str(x.dtype), "shape": list(x.shape[1:])}
        for name, x in arrays.items()
      },
      "examples": count,
      "shards": [SHARD],
      "crc32": crc,
      **metadata,
    }
    with open(os.path.join(scratch, "metadata.json"), "w") as f:
      json.dump(description, f, indent=1)  # the schema's order is the record's
    shutil.rmtree(folder, ignore_errors=True)  # one that `read` refused
    os.replace(scratch, folder)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def exists(folder: str) -> bool:
  return os.path.exists(os.path.join(folder, "metadata.json"))


def read(folder: str, expected: Mapping[str, Any]) -> Signal:
  """Reads a signal back and checks that it is the one `expected`.

  Args:
    folder: of `write`.
    expected: metadata that must be the same.

  Raises:
    UserError: no store, a damaged one, or one made otherwise; says which
      key differs, or what is damaged.
  """
  path = os.path.join(folder, "metadata.json")
  metadata = files.read_json(path, "signal")
  for key, value in json.loads(json.dumps(expected)).items():
    if metadata.get(key) != value:
      raise UserError(
        f"{path}: {key} = {metadata.get(key)!r}, this study expects {value!r}"
      )
  shards = [os.path.join(folder, name) for name in metadata["shards"]]
  try:
    records = sources.ArrayRecordDataSource(shards)
    rows = records.__getitems__(range(len(records)))
  # array_record raises several kinds for a shard that is missing or damaged.
  except Exception as error:
    raise UserError(f"{folder}: cannot read its shards ({error})") from error
  crc = 0
  for record in rows:
    crc = zlib.crc32(record, crc)
  if len(rows) != metadata["examples"] or crc != metadata["crc32"]:
    raise UserError(
      f"{shards[0]}: damaged, {len(rows)} records with CRC-32 {crc}, the "
      f"metadata says {metadata['examples']} with {metadata['crc32']}"
    )
  return _signal(b"".join(rows), metadata["schema"], len(rows))


def _arrays(signal: Signal) -> dict[str, np.ndarray]:
  assert signal.dense is not None  # a black box's store is its answers
  return {
    "truth": np.asarray(signal.truth.ids),
    "answer": np.asarray(signal.answer.ids),
    "logits": np.asarray(signal.dense.logits),
    "sample_ids": np.asarray(signal.samples.ids),
    "sample_log_probs": np.asarray(signal.samples.log_probs),
  }


def _signal(data: bytes, schema: Mapping, count: int) -> Signal:
  layout = np.dtype(
    [(k, s["dtype"], tuple(s["shape"])) for k, s in schema.items()]
  )
  table = np.frombuffer(data, layout, count)
  arrays = {name: jnp.asarray(table[name]) for name in schema}
  return Signal(
    truth=Labels(arrays["truth"]),
    answer=Labels(arrays["answer"]),
    dense=Dense(arrays["logits"]),
    samples=Samples(arrays["sample_ids"], arrays["sample_log_probs"]),
  )
