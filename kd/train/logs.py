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

import numpy as np
import tensorboardX
import tqdm
from absl import logging

from kd import files
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
  """

  def __init__(self, workdir, seeds, steps, name, write=True):
    self._path = os.path.join(workdir, "metrics.jsonl")
    self._board = os.path.join(workdir, "tensorboard")
    self._seeds = seeds
    self._write = write
    self._file = None
    self._writers = {}
    self._progress = Progress(name, steps)
    self._resumed_at = 0

  def resume(self, step: int) -> None:
    """Drops what was logged after `step`, from which training goes on."""
    self._progress.start(step)
    self._resumed_at = step
    if not self._write:
      return
    kept = []
    if os.path.exists(self._path):
      with open(self._path, encoding="utf-8") as f:
        for line in f:
          # Lines stand in the order of their steps; the last may be cut.
          if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
          kept.append(line)
    files.write_text(self._path, "".join(kept))
    self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

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
        os.path.join(self._board, arm), purge_step=self._resumed_at + 1
      )
    return self._writers[arm]

  def close(self) -> None:
    self._progress.close()
    for writer in self._writers.values():
      writer.close()
    if self._file is not None:
      self._file.close()


class Progress:
  """A bar with rate and time left on a terminal, plain lines in a log."""

  def __init__(self, name: str, steps: int):
    self._name, self._steps = name, steps
    self._bar = None

  def start(self, step: int) -> None:
    self._first = self._last = step
    self._began = self._said = time.monotonic()
    if step:
      logging.info("%s: continuing from step %d", self._name, step)
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=self._steps, initial=step, desc=self._name, unit="step"
      )

  def update(self, log: Log) -> None:
    if self._bar is not None:
      self._bar.update(log.step - self._last)
      self._last = log.step
      return
    now = time.monotonic()
    done = log.step == self._steps
    if done or now - self._said > SECONDS_BETWEEN_LINES:
      rate = (log.step - self._first) / (now - self._began)
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
