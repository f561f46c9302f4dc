"""SIGINT and SIGTERM: one line that says what goes on from where, and the end.

All that a study writes is there whole or not at all, so that it can end at any
moment, in the middle of a compilation too, which no exception would reach.
"""

import os
import signal
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_says: list[Callable[[], str]] = [lambda: "nothing was begun"]


def say(words: Callable[[], str]) -> None:
  """Sets what is said of the work that the next signal ends."""
  _says[0] = words


def watch() -> None:
  """Ends the process with 128 + its number when one of the signals comes.

  The handler in C writes the number, whatever Python is doing; a thread reads
  it, which needs no turn of the main thread.
  """
  heard, told = os.pipe()
  os.set_blocking(told, False)
  signal.set_wakeup_fd(told)
  for number in SIGNALS:
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, lambda number, frame: None)

  def wait() -> None:
    number = os.read(heard, 1)[0]
    try:
      words = f"stopped by {signal.Signals(number).name}: {_says[0]()}\n"
      os.write(2, words.encode(errors="backslashreplace"))  # waits for no lock
    finally:  # whoever read it may be gone
      os._exit(128 + number)

  threading.Thread(target=wait, daemon=True).start()
