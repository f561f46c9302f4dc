"""Files line by line: JSONL, .gz, .zst and Parquet, read as streams."""

import gzip
from collections.abc import Iterator
from typing import Any, NamedTuple

from kd.errors import UserError, why

LONGEST = 1 << 24  # bytes of a line
BLOCK = 1 << 20  # bytes read at once


class Line(NamedTuple):
  """One line of a file: its number from 1, and its bytes, row or fault."""

  number: int
  value: bytes | dict[str, Any] | None
  fault: str = ""


def lines(path: str) -> Iterator[Line]:
  """Reads a file line by line; a line longer than LONGEST is a fault.

  Raises:
    UserError: the file cannot be opened. One that breaks off further on
      (a truncated .gz) ends in a Line with a fault.
  """
  try:
    is_table = path.endswith(".parquet")
    rows = _parquet(path) if is_table else _split(_open(path))
    first = next(rows, None)
  except (OSError, EOFError, ValueError) as error:
    raise UserError(f"{path}: cannot be read ({why(error)})") from error
  number = 0
  while first is not None:
    number += 1
    yield Line(number, *first)
    try:
      first = next(rows, None)
    except Exception as error:  # each reader has kinds of its own
      yield Line(number + 1, None, f"the file breaks off: {why(error)}")
      return


def _open(path: str) -> Any:
  if path.endswith(".gz"):
    return gzip.open(path)
  if path.endswith(".zst"):
    import zstandard

    reader = zstandard.ZstdDecompressor()
    return reader.stream_reader(open(path, "rb"), closefd=True)
  return open(path, "rb")


def _split(stream: Any) -> Iterator[tuple[bytes | None, str]]:
  """Splits at newlines; of a line that is too long only its length is kept."""
  with stream:
    rest, skipped = b"", 0
    while block := stream.read(BLOCK):
      first, *more = block.split(b"\n")
      rest += first
      for part in more:
        yield _entry(rest, skipped)
        rest, skipped = part, 0
      if len(rest) > LONGEST:
        skipped, rest = skipped + len(rest), b""
    if rest or skipped:
      yield _entry(rest, skipped)


def _entry(line: bytes, skipped: int) -> tuple[bytes | None, str]:
  length = skipped + len(line)
  if length > LONGEST:
    return None, f"too long: {length:,} bytes, expected at most {LONGEST:,}"
  return line, ""


def _parquet(path: str) -> Iterator[tuple[dict[str, Any], str]]:
  from pyarrow import parquet

  with parquet.ParquetFile(path) as table:
    for batch in table.iter_batches(1024):
      for row in batch.to_pylist():
        yield row, ""
