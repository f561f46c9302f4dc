"""SIGINT and SIGTERM: one line that says what goes on from where, and the end.

All that a study writes is there whole or not at all, so that it can end at any
moment, in the middle of a compilation too, which no exception would reach.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_says: list[Callable[[], str]] = [lambda: "nothing was begun"]


def say(words: Callable[[], str]) -> None:
  """Sets what is said of the work that the next signal ends."""
  _says[0] = words


def watch() -> None:
  """Ends the process with 128 + its number when one of the signals comes.

  To be called before any other thread begins.
  """
  signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

  def wait() -> None:
    number = signal.sigwait(SIGNALS)
    name = signal.Signals(number).name
    print(f"stopped by {name}: {_says[0]()}", file=sys.stderr, flush=True)
    os._exit(128 + number)

  threading.Thread(target=wait, daemon=True).start()
