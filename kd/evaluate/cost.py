"""What a model costs to ask: its parameters, and the time of a forward pass."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kd.data.task import Task
from kd.models import functional, quantized, sampler
from kd.teachers.writing import Writer
from kd.train.arms import Group
from kd.train.step import TrainState

SECONDS = 0.3  # that a measurement may take, but for its FEWEST calls
FEWEST, MOST = 3, 50  # calls


def median_seconds(call: Callable[[], Any]) -> float:
  """Returns the median seconds of a call, after one that isn't counted."""
  jax.block_until_ready(call())
  times: list[float] = []
  while len(times) < FEWEST or (sum(times) < SECONDS and len(times) < MOST):
    began = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - began)
  return statistics.median(times)


def distinct(
  groups: Sequence[Group],
  states: Mapping[str, TrainState],
  student: Mapping[str, Any],
  arms: Sequence[str],
) -> dict[str, tuple[Mapping[str, Any], Any]]:
  """Returns the students that differ, by name: (options, one run's weights).

  The study's own is "student", another is "student of" its first arm.

  Args:
    groups: the arms.
    states: by arm, with the seeds' axis first.
    student: the study's own section.
    arms: every arm, in the order of the report.
  """
  options = {arm: g.student for g in groups for arm in g.names}
  found: dict[str, tuple[Mapping[str, Any], Any]] = {}
  for arm in arms:
    own = options[arm]
    if any(own == other for other, _ in found.values()):
      continue
    weights = functional.of_run(states[arm].weights, 0)
    found["student" if own == student else f"student of {arm}"] = own, weights
  return found


def parameters(weights: Mapping[str, Any]) -> int:
  """Counts a model's numbers, but for such as batch statistics and scales."""
  own = weights["params"], weights.get("frozen")
  is_kernel = lambda x: isinstance(x, quantized.Kernel)
  found = jax.tree.leaves(own, is_leaf=is_kernel)
  return sum(math.prod(x.shape) for x in found)


def measure(
  model: Mapping[str, Any],
  weights: Mapping[str, Any],
  task: Task,
  batch: int,
  new_tokens: int = 0,
) -> dict[str, float | int]:
  """Times a model on the task's test examples, compiled, on this host.

  Args:
    model, weights: the model.
    task: the examples.
    batch: examples in a call.
    new_tokens: that a decoder is to write; 0 is of no writing.

  Returns:
    of `timed`, for up to `batch` examples. Of a decoder that writes, `prefill`,
    the median seconds to read half a row and choose a token; `token`, those of
    each further token; and `prompt`, the tokens of half a row.
  """
  forward = functional.forward(model, task.signature, batch)
  rows = np.arange(min(batch, len(task.test)))
  inputs = jax.device_put(task.test.read(rows))
  weights = jax.device_put(weights)
  found = timed(lambda x: forward(weights, x), inputs)
  if new_tokens:
    found |= writing(Writer(model, weights, task), new_tokens)
  return found


def timed(forward: Callable[[Any], Any], inputs: Any) -> dict[str, float | int]:
  """Times a function of a batch.

  Returns:
    `call`, the median seconds of a call with one example; `example`, those of
    a call with all, divided by them; `batch`, how many there are. Whatever else
    the host does at the time is in them.
  """
  one, batch = inputs[:1], len(inputs)
  return {
    "call": median_seconds(lambda: forward(one)),
    "example": median_seconds(lambda: forward(inputs)) / batch,
    "batch": batch,
  }


def writing(writer: Writer, new_tokens: int) -> dict[str, float | int]:
  """Times a decoder that writes one text, of no end but `new_tokens`."""
  length = max(writer.task.positions // 2, 1)
  prompt, lengths = np.zeros((1, length), np.int32), np.array([length])

  def seconds(count: int) -> float:
    return median_seconds(
      lambda: sampler.generate(
        writer.model, prompt, lengths, max_new_tokens=count, temperature=0.0
      )
    )

  prefill, more = seconds(1), max(new_tokens, 2)
  each = max(seconds(more) - prefill, 0.0) / (more - 1)
  return {"prefill": prefill, "token": each, "prompt": length}
