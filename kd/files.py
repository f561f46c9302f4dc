"""Files that are there whole or not at all, and what is said of them."""

import importlib.util
import json
import os
import pathlib
import zlib
from typing import Any

from kd.errors import UserError, why


def write_text(path: str, text: str) -> None:
  """Writes a text beside `path` and renames it, so that no reader sees half.

  The text is on the disk when this returns.

  Raises:
    UserError: it cannot be written.
  """
  write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
  """Writes bytes as `write_text` a text."""
  scratch = f"{path}.tmp"
  try:
    with open(scratch, "wb") as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(scratch, path)
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({why(error)})") from error


def write_json(path: str, value: Any) -> None:
  """Writes strict JSON (no NaN), indented; see `write_text`."""
  write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str, what: str) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: there is none, or it is no JSON; `what` says what was expected.
  """
  try:
    with open(path, encoding="utf-8") as f:
      return json.load(f)
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: no readable {what} ({error})") from error


def crc32(path: str) -> int:
  """Returns the CRC-32 of a file's bytes, 1 MiB of which are held at once."""
  crc, block = 0, memoryview(bytearray(1 << 20))
  with open(path, "rb", buffering=0) as f:
    while size := f.readinto(block):
      crc = zlib.crc32(block[:size], crc)
  return crc


def package_folder(name: str) -> pathlib.Path | None:
  """Returns an installed package's folder, without importing the package."""
  try:
    spec = importlib.util.find_spec(name)
  except ModuleNotFoundError:  # of the package that it is a part of
    spec = None
  if spec is None or not spec.submodule_search_locations:
    return None
  return pathlib.Path(spec.submodule_search_locations[0])


def cache() -> str:
  """Returns our folder among the user's caches."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(home, "kd-jax")
