"""Seconds of work on a machine that may be busy with something else."""

import os
import time
from collections.abc import Callable


def stopwatch() -> Callable[[], float]:
  """Returns a function that gives the seconds since.

  The lesser of the wall's and of the CPU's, subprocesses included: on an idle
  machine what a user waits, on a busy one not what others took.
  """
  cpu = lambda: sum(os.times()[:4])
  begun = time.perf_counter(), cpu()
  return lambda: min(time.perf_counter() - begun[0], cpu() - begun[1])
