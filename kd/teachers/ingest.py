"""Turn the answers of a black-box teacher into a store.

    python -m kd.teachers.ingest FILE... --out=DIR [--max_bad=0.02]

Files are JSONL (kd.teachers.answers says of what), plain or ending in .gz or
.zst, or Parquet. They are read as streams: memory holds one line, a shard's few
records and eight bytes for each id. What is good goes into DIR as ArrayRecord
shards with a metadata.json; what is not goes into DIR/rejected.jsonl with its
file, line and reason. Where more than `max_bad` of the lines are bad, there is
no store, but rejected.jsonl is left beside it as DIR.rejected.jsonl. A file
that breaks off (half a .gz) is refused whatever `max_bad` is.

Exit code: 0 there is a store, 2 something is refused and there is none, 130 and
143 for SIGINT and SIGTERM, which leave none either.
"""

import collections
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from absl import flags, logging

from kd import files
from kd.errors import UserError, why
from kd.lines import Line, lines
from kd.teachers import answers, command
from kd.teachers.answers import Answers

KEPT = 500  # bytes of a bad line that rejected.jsonl keeps
PER_SHARD = 100_000
AT_ONCE = 256  # records
_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(Answers).decode


class _Shards:
  """Writes records to shards of PER_SHARD."""

  def __init__(self, folder: str):
    self.folder, self.count = folder, 0
    self.names: list[str] = []
    self._writer: Any = None

  def write(self, record: bytes) -> None:
    # Late: it takes seconds, in which a wrong argument could be told.
    from array_record.python import array_record_module  # ty: ignore

    if self.count % PER_SHARD == 0:
      self.close()
      self.names.append(f"answers-{len(self.names):05d}.array_record")
      path = os.path.join(self.folder, self.names[-1])
      self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    self._writer.write(record)
    self.count += 1

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
      self._writer = None


def ingest(
  paths: Sequence[str], out: str, max_bad: float = 0.02
) -> dict[str, Any]:
  """Reads files into a store; see the module.

  Returns:
    The store's metadata: counts by file and of each kind of fault.

  Raises:
    UserError: a file that cannot be read to its end, a folder that exists or
      cannot be made, or more bad lines than `max_bad`.
  """
  if not paths:
    raise UserError("FILE is missing: expected JSONL or Parquet files")
  if not out:
    raise UserError("--out is missing: expected a folder")
  if not 0 <= max_bad <= 1:
    raise UserError(f"--max_bad = {max_bad}: expected a share from 0 to 1")
  if os.path.exists(out):
    raise UserError(f"--out = {out!r}: exists; expected a new folder")
  for path in paths:  # all of them before the first is read
    if not os.path.isfile(path):
      raise UserError(f"{path}: no such file")
  parent = os.path.dirname(os.path.abspath(out))
  try:
    os.makedirs(parent, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".answers-", dir=parent)
    try:
      return _ingest(paths, out, max_bad, scratch)
    finally:
      shutil.rmtree(scratch, ignore_errors=True)
  except OSError as error:
    raise UserError(
      f"--out = {out!r}: cannot be made ({why(error)})"
    ) from error


def _ingest(paths, out: str, max_bad: float, scratch: str) -> dict[str, Any]:
  seen: set[bytes] = set()
  shards = _Shards(scratch)
  kinds: collections.Counter[str] = collections.Counter()
  sources_read = []
  began = time.monotonic()
  rejected = os.path.join(scratch, "rejected.jsonl")
  with open(rejected, "w", encoding="utf-8") as bad_lines:
    for path in paths:
      read = bad = 0
      for line in lines(path):
        read += 1
        try:
          shards.write(_accept(line, seen))
        except ValueError as error:
          bad += 1
          kinds[str(error).partition(":")[0]] += 1
          bad_lines.write(_reject(path, line, str(error)))
        if read % 100_000 == 0:
          rate = read / (time.monotonic() - began)
          logging.info("%s: %d lines, %.0f lines/s", path, read, rate)
      sources_read.append(
        {"path": path, "lines": read, "bad": bad, "crc32": files.crc32(path)}
      )
    shards.close()
  total = sum(s["lines"] for s in sources_read)
  bad = sum(kinds.values())
  if bad > max_bad * total or not shards.count:
    left = f"{out.rstrip('/')}.rejected.jsonl"
    os.replace(rejected, left)
    raise UserError(
      f"{bad} of {total} lines are bad "
      f"({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}), more "
      f"than --max_bad = {max_bad:g} of them, or all: see {left}"
    )
  metadata = {
    "kind": "answers",
    "version": 1,
    "examples": shards.count,
    "rejected": bad,
    "reasons": dict(kinds.most_common()),
    "sources": sources_read,
    "shards": shards.names,
    "crc32": [
      files.crc32(os.path.join(scratch, name)) for name in shards.names
    ],
  }
  files.write_json(os.path.join(scratch, "metadata.json"), metadata)
  os.replace(scratch, out)
  return metadata


def _accept(line: Line, seen: set[bytes]) -> bytes:
  """Returns the record of a line; raises ValueError with what is wrong."""
  found = answers.of_line(line)
  digest = hashlib.blake2b(found.id.encode(), digest_size=8).digest()
  if digest in seen:
    raise ValueError(f"duplicate id: {found.id[:100]!r}")
  try:
    record = _ENCODE(found)
  except (OverflowError, RecursionError) as error:  # of a trace
    raise ValueError(f"cannot be stored: {why(error)}") from error
  seen.add(digest)
  return record


def _reject(path: str, line: Line, reason: str) -> str:
  text = line.value if isinstance(line.value, bytes) else b""
  if isinstance(line.value, dict):
    text = repr(line.value).encode()
  kept = text[:KEPT].decode("utf-8", "replace")
  entry = {"file": path, "line": line.number, "reason": reason, "text": kept}
  return json.dumps(entry, ensure_ascii=False) + "\n"


class _Source(msgspec.Struct):
  """A file that a store was made of."""

  crc32: int


class _Metadata(msgspec.Struct):
  """What of a store's metadata.json is read again."""

  kind: Literal["answers"]
  examples: int
  sources: list[_Source]
  shards: list[str]
  crc32: list[int]


def _metadata(folder: str) -> _Metadata:
  path = os.path.join(folder, "metadata.json")
  try:
    found = msgspec.convert(files.read_json(path, "store"), _Metadata)
  except msgspec.ValidationError as error:
    raise UserError(f"{path}: of no store of answers: {error}") from error
  if len(found.shards) != len(found.crc32):
    raise UserError(f"{path}: expected one CRC-32 for each shard")
  return found


def fingerprint(folder: str) -> str:
  """Hashes the answers of a store, whatever files they came from."""
  metadata = _metadata(folder)
  text = json.dumps([metadata.examples, metadata.crc32])
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_source(folder: str, path: str) -> None:
  """Raises UserError where a file has changed since a store was made of it."""
  made_of = [source.crc32 for source in _metadata(folder).sources]
  if made_of != [crc := files.crc32(path)]:
    raise UserError(
      f"{folder}: made of another file than {path} (CRC-32 {made_of}, now "
      f"{crc}); choose another --workdir"
    )


def read(folder: str) -> Iterator[Answers]:
  """Reads a store's answers in their order, a few records at a time.

  Raises:
    UserError: no store; a shard that is missing or damaged, naming it.
  """
  from grain import sources

  metadata = _metadata(folder)
  for name, expected in zip(metadata.shards, metadata.crc32, strict=True):
    shard = os.path.join(folder, name)
    try:
      crc = files.crc32(shard)
    except OSError as error:
      raise UserError(f"{shard}: cannot be read ({why(error)})") from error
    if crc != expected:
      raise UserError(
        f"{shard}: damaged, CRC-32 {crc}, the metadata says {expected}"
      )
    records = sources.ArrayRecordDataSource([shard])
    for start in range(0, len(records), AT_ONCE):
      stop = min(start + AT_ONCE, len(records))
      for record in records.__getitems__(range(start, stop)):
        yield _DECODE(record)


def define_flags() -> None:
  """Defines the command's flags."""
  flags.DEFINE_string("out", "", "The store's folder; must not exist.")
  flags.DEFINE_float("max_bad", 0.02, "Bad lines, as a share of all.")


def main(argv: list[str]) -> int:
  *paths, out = map(os.path.expanduser, (*argv[1:], flags.FLAGS.out))
  made = ingest(paths, out, flags.FLAGS.max_bad)
  print(f"{made['examples']} examples, {made['rejected']} lines rejected")
  return 0


if __name__ == "__main__":
  define_flags()
  command.run(main)
