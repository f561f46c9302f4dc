"""What each arm asks of a device, run by run: bytes, memory and seconds.

Arms of the same options are one compiled program, and are timed once. Of each
run all programs are timed in turn, in a few rounds, so that what else the host
does in the meantime hits them alike, and differences pair.
"""

import dataclasses
import json
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kd import compress
from kd.data.task import Task
from kd.evaluate import cost
from kd.models import functional, quantized
from kd.train.arms import Group
from kd.train.step import TrainState

FEWEST, MOST = 3, 25  # rounds, more than the fewest while they take PATIENCE
PATIENCE = 1.0  # seconds
SECONDS = 1e-3  # that one timing takes at least
SIZES = (16, 128, 1024)  # batches, of which the one of best throughput is taken


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled model of batches of one size."""

  call: Any
  inputs: Any

  def seconds(self, weights: Any) -> float:
    """Returns the seconds of a call, a mean over as many as take SECONDS."""
    count, began = 0, time.perf_counter()
    while True:
      jax.block_until_ready(self.call(weights, self.inputs))
      count, spent = count + 1, time.perf_counter() - began
      if spent >= SECONDS:
        return spent / count


@dataclasses.dataclass
class Meter:
  """Measures the arms of a study, replicate by replicate.

  Attributes:
    task: of any replicate.
    most: examples of a batch.
    programs: {(options, examples): compiled}, filled as they are needed.
    sizes: {options: the batch of best throughput}, likewise.
    arithmetic: {arm: what its products are}, by the compiled program, likewise.
  """

  task: Task
  most: int
  programs: dict[tuple[str, int], Program] = dataclasses.field(
    default_factory=dict
  )
  sizes: dict[str, int] = dataclasses.field(default_factory=dict)
  arithmetic: dict[str, str] = dataclasses.field(default_factory=dict)

  def __call__(
    self,
    groups: Sequence[Group],
    states: Mapping[str, TrainState],
    places: Mapping[str, Sequence[str]],
  ) -> dict[str, dict[str, list[float]]]:
    """Returns {arm: {metric: values [S]}}.

    Args:
      groups, states: of arms that have a model of their own.
      places: {arm: the folder of each run's model}.
    """
    key_of = lambda group: json.dumps(group.student, sort_keys=True)
    of = {name: key_of(group) for group in groups for name in group.names}
    students = {of[n]: g.student for g in groups for n in g.names}
    first = {key: next(n for n in of if of[n] == key) for key in students}
    runs = len(states[next(iter(of))].diverged)
    timed: dict[str, dict[str, list[float]]] = {key: {} for key in students}
    for run in range(runs):
      weights = {
        key: jax.device_put(functional.of_run(states[n].weights, run))
        for key, n in first.items()
      }
      for key, own in self._seconds(students, weights).items():
        for name, value in own.items():
          timed[key].setdefault(name, []).append(value)
    found: dict[str, dict[str, list[float]]] = {}
    for name, key in of.items():
      memory = self.programs[key, 1].call.memory_analysis()
      count = cost.parameters(functional.of_run(states[name].weights, 0))
      own: dict[str, Sequence[float]] = {
        "bytes": [compress.size_bytes(place) for place in places[name]],
        "parameters": [count] * runs,
        "peak_bytes": [_peak(memory)] * runs,
        **timed[key],
      }
      found[name] = {k: [float(v) for v in x] for k, x in own.items()}
      text = self.programs[key, 1].call.as_text()
      self.arithmetic[name] = said(text, students[key])
    return found

  def _seconds(
    self, students: Mapping[str, Mapping], weights: Mapping[str, Any]
  ) -> dict[str, dict[str, float]]:
    """Returns one run's times of each program."""
    for key, student in students.items():
      if key not in self.sizes:
        self.sizes[key] = self._best(key, student, weights[key])
    sizes = {
      "latency_seconds": dict.fromkeys(students, 1),
      "throughput_seconds": self.sizes,
    }
    found: dict[str, dict[str, float]] = {key: {} for key in students}
    for name, of in sizes.items():
      programs = {k: self.programs[k, of[k]] for k in students}
      rounds: list[dict[str, float]] = []
      began = time.perf_counter()
      while len(rounds) < FEWEST or (
        len(rounds) < MOST and time.perf_counter() - began < PATIENCE
      ):
        rounds.append({k: p.seconds(weights[k]) for k, p in programs.items()})
      for key in students:
        median = statistics.median(times[key] for times in rounds)
        found[key][name] = median / of[key]
    return found

  def _best(self, key: str, student: Mapping, weights: Any) -> int:
    """Compiles a model for all sizes; returns the one of best throughput."""
    most = min(self.most, len(self.task.test))
    sizes = sorted({1, *(min(size, most) for size in SIZES)})
    each = {}
    for size in sizes:
      program = self._compile(student, weights, size)
      self.programs[key, size] = program
      each[size] = min(program.seconds(weights) for _ in range(2)) / size
    return min(each, key=lambda size: each[size])

  def _compile(self, student: Mapping, weights: Any, size: int) -> Program:
    signature = self.task.signature
    graphdef, _ = functional.define(student, signature)
    inputs = jax.device_put(self.task.test.read(np.arange(size)))

    def predict(weights, inputs):
      return functional.over(
        graphdef, weights, inputs, signature, size, functional.logits
      )

    return Program(jax.jit(predict).lower(weights, inputs).compile(), inputs)


def _peak(memory: Any) -> int:
  """Returns the bytes that are there at most: inputs, weights, results, and
  what the program holds in between."""
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
  )


NUMBERS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def said(compiled: str, student: Mapping[str, Any]) -> str:
  """Says what a compiled program's products are.

  >>> text = "%a = f32[1,9]{1,0} dot(%x, %w), %b = s32[1,3]{1,0} dot(%a, %v)"
  >>> said(text, {"quantized": {"weights": "int4"}}).partition(", run on")[0]
  'int8 x int4 -> int32 in 1 of 2 products, else float32'

  Args:
    compiled: its text, of XLA.
    student: the model's name and options.
  """
  platform = jax.default_backend()
  results = re.findall(r"= (\w+)\[[^ ]* (?:dot|convolution)\(", compiled)
  whole = sum(kind == "s32" for kind in results)
  kinds = sorted({NUMBERS.get(k, k) for k in results if k != "s32"})
  floats = " and ".join(kinds) or "float32"
  how = student.get(quantized.OPTION)
  if not how or how.get("aware"):
    return f"{floats} products, run on {platform}"
  if not whole:
    again = f"{how['weights']} weights made {floats} again"
    return f"{again} for {floats} products, run on {platform}"
  rest = f", else {floats}" if kinds else ""
  share = f"in {whole} of {len(results)} products{rest}"
  return f"int8 x {how['weights']} -> int32 {share}, run on {platform}"
