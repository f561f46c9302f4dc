"""Where a training leaves its numbers while it runs.

metrics.jsonl (one line for each arm, seed and logged step), TensorBoard (one
run for each arm, means over its seeds) and the terminal: a progress bar where
there is one, else plain lines.
"""

import json
import logging as stdlib_logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import tensorboardX
import tqdm
from absl import logging

from kd.errors import UserError, brief, why
from kd.train.loop import Log

SECONDS_BETWEEN_LINES = 10.0


def listen() -> None:
  """Shows what the project logs, and of libraries the warnings alone."""
  here = pathlib.Path(__file__).resolve().parents[2]

  def ours(record) -> bool:
    inside = record.pathname.startswith((f"{here}/kd/", f"{here}/kernels/"))
    return inside or record.levelno >= stdlib_logging.WARNING

  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(ours)


class Metrics:
  """Writes each interval's numbers to metrics.jsonl and TensorBoard.

  Args:
    workdir: of the study.
    seeds: the runs of each arm.
    steps: of the whole training, for the progress.
    name: what is trained, for the progress.
    write: False shows the progress alone.
    board: the folder in tensorboard/ of these runs; "" is that itself.
  """

  def __init__(self, workdir, seeds, steps, name, write=True, board=""):
    self._path = os.path.join(workdir, "metrics.jsonl")
    self._board = os.path.join(workdir, "tensorboard", board)
    self._seeds = seeds
    self._write = write
    self._file = None
    self._writers = {}
    self._progress = Progress(name, steps)
    self._resumed_at = 0

  def resume(self, step: int) -> None:
    """Drops what was logged of these runs after `step`, from which training
    goes on.

    Raises:
      UserError: metrics.jsonl can't be read or written.
    """
    self._progress.start(step)
    self._resumed_at = step
    if not self._write:
      return
    try:
      self._drop_after(step)
      self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
      raise UserError(f"{self._path}: {why(error)}") from error

  def _drop_after(self, step: int) -> None:
    """Keeps the lines up to `step`, and says so where some of them are gone."""
    scratch, last, count = f"{self._path}.tmp", 0, 0
    counts, bad, inside = set(), [], []
    with open(scratch, "wb") as new:
      for number, line in enumerate(_lines(self._path), 1):
        logged, seed = _step_of(line)
        if logged is None:
          bad.append(number)
        elif seed not in self._seeds:
          new.write(line)
        elif logged <= step:
          inside, bad = inside + bad, []
          new.write(line)
          if logged != last:
            counts.add(count)
            last, count = logged, 0
          count += 1
      new.flush()
      os.fsync(new.fileno())
    os.replace(scratch, self._path)
    if inside or last < step or len(counts - {0} | {count}) > 1:
      logging.warning(
        "%s lacks some of what was logged up to step %d%s: its curves have "
        "gaps, the results do not",
        self._path,
        step,
        f" (no metrics in line {brief(inside)})" if inside else "",
      )

  def __call__(self, log: Log) -> None:
    self._progress.update(log)
    if self._file is None:
      return
    for arm, values in log.arms.items():
      for s, seed in enumerate(self._seeds):
        self._file.write(json.dumps(_line(arm, seed, s, log.step, values)))
        self._file.write("\n")
      writer = self._writer(arm)
      for key in ("loss", "grad_norm", "validation_accuracy", "validation_nll"):
        mean = float(np.mean(values[key]))
        if math.isfinite(mean):
          writer.add_scalar(key, mean, log.step)
    self._file.flush()

  def _writer(self, arm: str):
    if arm not in self._writers:
      self._writers[arm] = tensorboardX.SummaryWriter(
        # A name may hold what separates folders.
        os.path.join(self._board, quote(arm, safe=" =,+()[]")),
        purge_step=self._resumed_at + 1,
      )
    return self._writers[arm]

  def close(self) -> None:
    self._progress.close()
    for writer in self._writers.values():
      writer.close()
    if self._file is not None:
      self._file.close()


class Progress:
  """A bar with rate and time left on a terminal, plain lines in a log.

  Both count from the end of the first interval, since what comes before it is
  compilation.
  """

  def __init__(self, name: str, steps: int):
    self._name, self._steps = name, steps
    self._bar = None
    self._first: tuple[int, float] | None = None  # step and time of the first

  def start(self, step: int) -> None:
    if step:
      logging.info("%s: continuing from step %d", self._name, step)
    self._began = time.monotonic()

  def update(self, log: Log) -> None:
    now = time.monotonic()
    if self._first is None:  # compiling took a part of the time till here
      self._first, self._said = (log.step, now), now
      if sys.stderr.isatty():
        self._bar = tqdm.tqdm(
          total=self._steps, initial=log.step, desc=self._name, unit="step"
        )
      else:
        logging.info(
          "%s: step %d of %d, after %.0f s with compilation",
          self._name,
          log.step,
          self._steps,
          now - self._began,
        )
      return
    if self._bar is not None:
      self._bar.update(log.step - self._bar.n)
      return
    if log.step == self._steps or now - self._said > SECONDS_BETWEEN_LINES:
      first, began = self._first
      rate = (log.step - first) / max(now - began, 1e-9)
      logging.info(
        "%s: step %d of %d, %.1f steps/s, %.0f s left",
        self._name,
        log.step,
        self._steps,
        rate,
        (self._steps - log.step) / rate,
      )
      self._said = now

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def _lines(path: str) -> Iterator[bytes]:
  if os.path.exists(path):
    with open(path, "rb") as f:
      yield from f


def _step_of(line: bytes) -> tuple[int | None, Any]:
  """Returns (step, seed) of a line of metrics.jsonl, None of anything else."""
  try:
    row = json.loads(line)
    step, seed = row["step"], row["seed"]
  except (ValueError, KeyError, TypeError):  # no JSON, no object, another one
    return None, None
  whole = isinstance(step, int) and line.endswith(b"\n")
  return (step, seed) if whole else (None, None)


def _line(arm, seed, s, step, values):
  return {
    "arm": arm,
    "seed": seed,
    "step": step,
    "loss": _finite(np.mean(values["loss"][s], dtype=np.float64)),
    "grad_norm": _finite(np.mean(values["grad_norm"][s], dtype=np.float64)),
    "validation_accuracy": _finite(values["validation_accuracy"][s]),
    "validation_nll": _finite(values["validation_nll"][s]),
  }


def _finite(value) -> float | None:
  return float(value) if math.isfinite(value) else None
