"""Errors that are the user's to mend, and words for them."""

from collections.abc import Sequence
from typing import Any


class UserError(Exception):
  """Says what to change: the key or file, its value, what is accepted.

  `str()` is exactly one line, so that main.py can print it and exit with
  code 2 and no traceback.

  >>> print(UserError("task.name = 'digit':  did you mean\\n  digits?"))
  task.name = 'digit': did you mean digits?
  """

  def __init__(self, message: str):
    super().__init__(" ".join(message.split()))


def brief(items: Sequence[Any], most: int = 12) -> str:
  """Lists items for an error, the first few where there are many."""
  words = ", ".join(str(item) for item in items[:most])
  return words + (f", ... ({len(items)} in all)" if len(items) > most else "")


def why(error: BaseException) -> str:
  """Says in a few words what a library's exception said in many."""
  error = error.__cause__ or error  # TFDS wraps what it raises in context
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
