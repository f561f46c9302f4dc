"""Files line by line: JSONL, .gz, .zst and Parquet, read as streams.

The one reader of lines that the project has: of what users bring (`lines`) and
of what a process appends to while it may be killed (`entries`, `mend`).
"""

import codecs
import functools
import gzip
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from kd.errors import UserError, why

LONGEST = 1 << 24  # bytes of a line
BLOCK = 1 << 20  # bytes read at once
BOM = codecs.BOM_UTF8
# UTF-32 before UTF-16, whose mark its own begins with.
OTHER_MARKS = {
  codecs.BOM_UTF32_LE: "UTF-32",
  codecs.BOM_UTF32_BE: "UTF-32",
  codecs.BOM_UTF16_LE: "UTF-16",
  codecs.BOM_UTF16_BE: "UTF-16",
}


class Line(NamedTuple):
  """One line of a file.

  Attributes:
    number: from 1.
    value: its bytes without the newline and without a byte order mark, or a
      row of Parquet; None where there is a fault.
    fault: what is wrong with it.
    whole: whether a newline ended it; a last line may have none.
  """

  number: int
  value: bytes | dict[str, Any] | None
  fault: str = ""
  whole: bool = True


def lines(path: str) -> Iterator[Line]:
  """Reads a file line by line; a line longer than LONGEST is a fault.

  Raises:
    UserError: the file cannot be read, is not in UTF-8 by its byte order mark,
      or breaks off: a .gz or .zst without its end, wherever it was cut.
  """
  is_table = path.endswith(".parquet")
  read = _parquet(path) if is_table else _split(path)
  number = 0
  while True:
    try:
      line = next(read, None)
    except UserError:
      raise
    except Exception as error:  # each reader has kinds of its own
      cut = f"breaks off after line {number}" if number else "cannot be read"
      raise UserError(f"{path}: {cut} ({why(error)})") from error
    if line is None:
      return
    number = line.number
    yield line


def decode[T](line: Line, kind: type[T]) -> T:
  """Reads a line as a type of msgspec; a null of Parquet is an absent field.

  Raises:
    ValueError: in a few words, what is wrong with it; the kind of fault stands
      before a colon.
  """
  if line.value is None:
    raise ValueError(line.fault)
  try:
    if isinstance(line.value, dict):
      return msgspec.convert(_without_nulls(line.value), kind)
    if not line.value.strip():
      raise ValueError("empty line")
    return _decoder(kind).decode(line.value)
  except UnicodeDecodeError as error:
    raise ValueError(f"invalid UTF-8: {error.reason}") from error
  except msgspec.ValidationError as error:
    raise ValueError(f"schema: {error}") from error
  except msgspec.DecodeError as error:
    raise ValueError(f"not JSON: {error}") from error
  except RecursionError as error:
    raise ValueError("not JSON: nested too deeply") from error


def entries(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Reads JSON objects that a process appends, a line each, with its number.

  A last line that a kill left without its newline is left out.

  Raises:
    UserError: as `lines`, or a whole line is no JSON object.
  """
  for line in lines(path):
    if line.whole:
      try:
        yield line.number, decode(line, dict)
      except ValueError as error:
        raise UserError(f"{path}:{line.number}: {error}") from error


def mend(path: str) -> None:
  """Cuts off a last line that a kill left without its newline."""
  with open(path, "rb+") as f:
    end = place = f.seek(0, os.SEEK_END)
    while place:
      start = max(0, place - BLOCK)
      f.seek(start)
      at = f.read(place - start).rfind(b"\n")
      if at >= 0:
        place = start + at + 1
        break
      place = start
    if place < end:
      f.truncate(place)


_decoder = functools.cache(msgspec.json.Decoder)


def _without_nulls(node: Any) -> Any:
  if isinstance(node, dict):
    return {k: _without_nulls(v) for k, v in node.items() if v is not None}
  if isinstance(node, list):
    return [_without_nulls(v) for v in node]
  return node


def _split(path: str) -> Iterator[Line]:
  """Splits at newlines; of a line that is too long only its length is kept."""
  number = 1
  with _open(path) as stream:
    rest, skipped = b"", 0
    is_first = True
    while block := stream.read(BLOCK):
      if is_first:
        for mark, name in OTHER_MARKS.items():
          if block.startswith(mark):
            raise UserError(f"{path}: is in {name}, expected UTF-8")
        is_first = False
      first, *more = block.split(b"\n")
      rest += first
      for part in more:
        yield _entry(number, rest, skipped, True)
        number += 1
        rest, skipped = part, 0
      if len(rest) > LONGEST:
        skipped, rest = skipped + len(rest), b""
    if rest or skipped:
      yield _entry(number, rest, skipped, False)


def _open(path: str) -> Any:
  packed = {".gz": gzip.open, ".zst": _zstd}
  read = packed.get(os.path.splitext(path)[1])
  if read is None:
    return open(path, "rb")
  if not os.path.getsize(path):
    raise EOFError("it is empty, without even a header")
  return read(path)


def _zstd(path: str) -> Any:
  # Unlike zstandard's reader, Arrow's reads all frames and sees a missing end.
  import pyarrow

  return pyarrow.input_stream(path, compression="zstd")


def _entry(number: int, line: bytes, skipped: int, whole: bool) -> Line:
  length = skipped + len(line)
  if length > LONGEST:
    words = f"too long: {length:,} bytes, expected at most {LONGEST:,}"
    return Line(number, None, words, whole)
  # Files that were put together may have a mark in their middle.
  return Line(number, line.removeprefix(BOM), "", whole)


def _parquet(path: str) -> Iterator[Line]:
  from pyarrow import parquet

  number = 0
  with parquet.ParquetFile(path) as table:
    for batch in table.iter_batches(1024):
      for row in batch.to_pylist():
        number += 1
        yield Line(number, row)
