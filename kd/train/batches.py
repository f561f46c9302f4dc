"""The batches of a study: which rows, in which order, from where.

Which rows a step trains on is a function of (seed, step) alone
(kd.data.order.positions). Inputs that fit on the device lie there and a batch
is gathered inside the compiled step; those that don't are read by grain ahead
of the device, one interval at a time, in the same order. So is the signal,
where it is larger than what `task.resident_mib` allows.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kd.data.order import positions, stream
from kd.data.task import Split, Task
from kd.signals import Signal, present, rows_of
from kd.signals.store import Streamed


@dataclasses.dataclass(frozen=True)
class Live:
  """A teacher inside the step.

  Attributes:
    model: its name and options.
    weights: {"params", "rest"}.
    samples, temperature: of the answers that are drawn, at each step anew.
  """

  model: Mapping[str, Any]
  weights: Any
  samples: int
  temperature: float


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A transfer set: where its inputs and signal are, and each seed's rows.

  Attributes:
    inputs: the split that holds it.
    signal: what the teacher left on the split's rows from `first` on, with a
      row for each of their positions.
    rows: [S, n], positions in the split, drawn for each seed.
    first: the split's row that the signal begins with.
    jitter: pixels by which its images are shifted at random.
    live: how the teacher answers each batch inside the step, after the jitter;
      None where its signal was stored. `signal` then holds true labels alone.
    positions: L, the signal's rows of an example; of C completions, C L.
    references: by `student_of`, what students give the completions before their
      training [S, N, C], where an objective asks for it.
  """

  inputs: Split
  signal: Signal | Streamed
  rows: np.ndarray
  first: int = 0
  jitter: int = 0
  live: Live | None = None
  positions: int = 1
  references: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Setup:
  """What `fit` needs beside the arms. All arms share it.

  Attributes:
    task: gives shapes, the scale of the inputs and the validation split.
    start: the weights that groups begin with, as `loop.fit` asks for them; None
      where all are drawn.
    validations: a split for each run instead of the task's, all of one size;
      empty where all runs share that.
    transfers: by the name that `transfer_of` gives a group of arms.
    seeds: one for each run of an arm.
    train: the config's section.
    eval_batch: examples in one forward pass of the validation split.
    devices: over how many devices the seeds are spread.
  """

  task: Task
  transfers: Mapping[str, Transfer]
  seeds: Sequence[int]
  train: Mapping[str, Any]
  eval_batch: int = 1024
  devices: int = 1
  validations: Sequence[Split] = ()
  start: Callable[[Sequence[Any]], Sequence[Mapping[str, Array]]] | None = None


def transfer_of(section: Mapping[str, Any]) -> str:
  """Names the transfer set that an arm's `signal` section describes."""
  return json.dumps(section, sort_keys=True)


def student_of(group: Any) -> str:
  """Names the student of a group of arms, and the weights it begins with."""
  return json.dumps([group.student, group.start], sort_keys=True)


def interval_bytes(
  train: Mapping[str, Any], seeds: int, task: Task, signal: int = 0
) -> int:
  """Bounds from below what the batches of an interval take, host and device.

  Args:
    train: the config's section.
    seeds: how many runs an arm has.
    task: says how large an input is, and whether inputs are streamed.
    signal: bytes of an example's signals that are streamed.
  """
  size, every = train["batch_size"], min(train["log_every"], train["steps"])
  numbers = math.prod(task.input_shape)
  need = seeds * size * (4 * every + 4 * numbers)  # rows, and a float32 batch
  if not task.resident:
    signal += np.dtype(task.train.form.dtype).itemsize * numbers
  # Two intervals that were read ahead, and two in work.
  return need + 4 * seeds * size * every * signal


def resident(setup: Setup) -> dict[str, Any]:
  """Returns what lies on the device: {transfer: {"inputs", "signal", "first",
  "teacher"}}, None for what is streamed, and under "validation" that split's
  (inputs, labels, which of them count), with an axis of runs before them where
  each run has its own."""
  shared: dict[int, Array] = {}  # transfer sets of one pool share its inputs

  def inputs(split: Split):
    if not setup.task.resident:
      return None
    if id(split) not in shared:
      shared[id(split)] = jnp.asarray(split.arrays()[0])
    return shared[id(split)]

  placed = {
    name: {
      "inputs": inputs(t.inputs),
      "signal": None
      if isinstance(t.signal, Streamed)
      else jax.tree.map(jnp.asarray, t.signal),
      "first": t.first,
      "teacher": t.live and jax.tree.map(jnp.asarray, t.live.weights),
    }
    for name, t in setup.transfers.items()
  }
  validation = _examples(setup.task.validation)
  if setup.validations:
    each = [_examples(split) for split in setup.validations]
    validation = tuple(map(np.stack, zip(*each, strict=True)))
  return {**placed, "validation": jax.tree.map(jnp.asarray, validation)}


def _examples(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  inputs, labels = split.arrays()
  counts = split.counts()
  return (
    inputs,
    labels,
    np.ones(len(labels), bool) if counts is None else counts,
  )


def gather(placed, x: Mapping[str, Array], positions: int):
  """Gathers one batch (inputs, signal) inside the compiled step; the signal has
  a row for each of an example's `positions`."""
  signal = x.get("signal")
  if signal is None:
    rows = x["rows"] - placed["first"]
    count = len(placed["signal"].truth.ids) // positions
    signal = placed["signal"].at(rows, count)
  if placed["inputs"] is None:
    return x["inputs"], signal
  return jnp.take(placed["inputs"], x["rows"], axis=0), signal


def referred(signal: Signal, x: Mapping[str, Any], group: Any):
  """Returns a batch's signal with what a student gave its completions before
  its training, where that was asked for."""
  own = x.get("references", {}).get(student_of(group))
  if own is None:
    return signal
  of = dataclasses.replace(
    present(signal.completions, "completions"), reference=own
  )
  return dataclasses.replace(signal, completions=of)


def intervals(
  setup: Setup, done: int
) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
  """Yields (last step, {transfer: {"rows": [S, steps, B], "inputs"?,
  "signal"?}}) for the intervals after step `done`; one at a time, however many
  there are."""
  every, steps = setup.train["log_every"], setup.train["steps"]
  batch, count = setup.train["batch_size"], -(-(steps - done) // every)

  def span(interval: int) -> tuple[int, int]:
    start = done + interval * every
    return start, min(start + every, steps)

  def rows(transfer: Transfer, interval: int) -> np.ndarray:
    return np.stack(
      [
        table[positions(seed, len(table), batch, *span(interval))]
        for seed, table in zip(setup.seeds, transfer.rows, strict=True)
      ]
    )

  feeds = {
    name: _feed(setup, transfer, rows, count)
    for name, transfer in setup.transfers.items()
  }
  for interval in range(count):
    _, end = span(interval)
    yield end, {name: next(feed) for name, feed in feeds.items()}


def _feed(setup, transfer, rows, count) -> Iterator[dict[str, Any]]:
  signal = transfer.signal

  def refer(rows):
    if not transfer.references:
      return {}
    own = rows - transfer.first
    return {
      "references": {
        student: np.stack([x[at] for x, at in zip(of, own, strict=True)])
        for student, of in transfer.references.items()
      }
    }

  def read(rows):
    found = refer(rows)
    if not setup.task.resident:
      found["inputs"] = transfer.inputs.read(rows)
    if isinstance(signal, Streamed):
      places = rows_of(rows - transfer.first, transfer.positions)
      found["signal"] = signal.at(places)
    return found

  if setup.task.resident and not isinstance(signal, Streamed):
    for interval in range(count):
      own = rows(transfer, interval)
      yield {"rows": own, **refer(own)}
    return
  ahead = stream(read, lambda k: rows(transfer, k), stop=count)
  for interval, found in enumerate(ahead):
    yield {"rows": rows(transfer, interval), **found}
