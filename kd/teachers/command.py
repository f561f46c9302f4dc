"""What the commands of this room share: one line for a refusal or a signal."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

from kd.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
  """A signal came; `str()` says what is done, and how it goes on."""

  def __init__(self, number: int, words: str = ""):
    super().__init__(words)
    self.number = number


def run(main: Callable[[list[str]], int]) -> None:
  """Runs a command, and exits with what `main(arguments)` returns.

  With 2, where flags or anything else is refused (UserError), and with 128 and
  the signal's number where one comes: 130 and 143.
  """

  def parse(argv: list[str]) -> list[str]:
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      raise UserError(str(error)) from error

  def guarded(argv: list[str]) -> int:
    logging.set_verbosity(logging.INFO)
    return main(argv)

  came: list[int] = []

  def interrupt(number: int, frame: object) -> None:
    del frame
    came.append(number)
    raise Interrupted(number)

  for number in SIGNALS:
    signal.signal(number, interrupt)
  try:
    app.run(guarded, flags_parser=parse)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except Interrupted as error:
    _leave(error)
  except Exception:
    if not came:
      raise
    _leave(Interrupted(came[0]))  # an import of C may turn it into another


def _leave(error: Interrupted) -> NoReturn:
  words = str(error) or "nothing was done; give the same command again"
  name = signal.Signals(error.number).name
  print(f"interrupted ({name}): {words}", file=sys.stderr)
  sys.exit(128 + error.number)
