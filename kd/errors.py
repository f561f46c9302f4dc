"""Errors that are the user's to mend, and words for them."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
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


@contextlib.contextmanager
def out_of_memory(what: str, lower: Mapping[str, Any]) -> Generator[None]:
  """Says what to lower where memory, the device's or the host's, runs out.

  Args:
    what: is being done, such as "training".
    lower: the config's keys that it takes memory for, with their values.

  Raises:
    UserError: NumPy or XLA could not allocate.
  """
  try:
    yield
  except Exception as error:
    # jax's error is a RuntimeError with the status in its text.
    if not isinstance(error, MemoryError) and (
      "RESOURCE_EXHAUSTED" not in str(error)
    ):
      raise
    keys = " or ".join(f"{key} = {value}" for key, value in lower.items())
    raise UserError(
      f"out of memory while {what} ({why(error)}): lower {keys}"
    ) from error
