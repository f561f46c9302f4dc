"""Our side of kd.bench.language: a case, written for torch, and worked on.

`python -m kd.bench.language_case FOLDER CASE` writes the case, its models as
Hugging Face folders, and its batch; then it works once for each line of stdin,
as kd/bench/torch_step.py does.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd import models
from kd.bench import decoders
from kd.models import functional
from kd.signals import label
from kd.teachers.model import Teacher
from kd.train import arms, batches, loop


def size_of(case: dict[str, Any]) -> decoders.Size:
  return decoders.Size(
    teacher=case["teacher"],
    student=case["student"],
    vocab_size=case["vocab_size"],
    rows=case["rows"],
    length=case["length"],
    steps=case["steps"],
    train={"learning_rate": case["learning_rate"], "runs": "auto"},
  )


def weights_of(model: dict[str, Any], size: decoders.Size) -> dict[str, Any]:
  params, rest = jax.jit(functional.define(model, size.signature)[1])(
    jax.random.key(1)
  )
  return {"params": params, "rest": rest}


def save(folder: pathlib.Path, model, size: decoders.Size, weights) -> None:
  graphdef, _ = functional.define(model, size.signature)
  made = nnx.merge(graphdef, weights["params"], weights["rest"])
  models.save_pretrained(made, folder)


def write(folder: pathlib.Path, case, size, student, teacher) -> None:
  """Writes what torch reads: case.json, batch.npz, student/, teacher/."""
  (folder / "case.json").write_text(json.dumps(case))
  task: Any = decoders.RandomTokens(size)
  shape = size.rows, size.length
  counts = task.train.counts().reshape(shape)
  found = decoders.top_k(size)
  each = lambda x: np.asarray(x).reshape(*shape, -1)
  np.savez(
    folder / "batch.npz",
    ids=task.train.arrays()[0][:, 0].astype(np.int64),
    weights=(counts / counts.sum()).astype(np.float32),
    top_ids=each(found.ids).astype(np.int64),
    top_log_probs=each(found.log_probs),
  )
  for name, weights in (("student", student), ("teacher", teacher)):
    if weights is not None:
      save(folder / name, case[name], size, weights)


def train(folder: pathlib.Path, case) -> Callable[[], list[float]]:
  """Returns work(): a study's interval of steps, and the loss before each."""
  size, signal = size_of(case), case["signal"]
  teacher = weights_of(case["teacher"], size) if signal == "live" else None
  groups, setup = decoders.study(size, signal, weights=teacher)
  compiled = loop.programs(groups, setup)
  seeds, numbers = jnp.zeros(1, jnp.uint32), arms.numbers_of(groups)
  state = compiled.init(seeds, numbers)
  first = jax.tree.map(lambda x: x[0, 0], state[0].weights)
  write(folder, case, size, first, teacher)
  placed = batches.resident(setup)
  _, xs = next(batches.intervals(setup, 0))
  kept = [state]

  def work() -> list[float]:
    args = seeds, xs, numbers, jnp.int32(0), placed
    state, logs = compiled.interval(kept.pop(), *args)
    kept.append(state)
    return jax.block_until_ready(logs[0]["loss"])[0, 0].tolist()

  return work


def labelling(folder: pathlib.Path, case) -> Callable[[], list[float]]:
  """Returns work(): the teacher's top 64 of a batch, as a study labels it."""
  size = size_of(case)
  weights = weights_of(case["teacher"], size)
  write(folder, case, size, None, weights)
  task: Any = decoders.RandomTokens(size)
  teacher = Teacher(case["teacher"], weights, "", 0.0)
  asked = label.Asked(decoders.K, (1.0,), 0, 1.0)
  numbers = np.arange(size.positions, dtype=np.int32)
  own = [np.full_like(numbers, -1), numbers, np.zeros_like(numbers)]
  last = size.length - 1  # of the first row

  def work() -> list[float]:
    rows = np.arange(size.rows)
    found = teacher.ask(task.train, rows, task, size.rows, asked, own)
    return [float(found.dense.lse[last, 0])]

  return work


def main(folder: str, text: str) -> None:
  case = json.loads(text)
  make = labelling if case["signal"] == "label" else train
  work = make(pathlib.Path(folder), case)
  own = pathlib.Path("/proc/self")
  print(json.dumps({"ready": True}), flush=True)
  for i, _ in enumerate(sys.stdin):
    began = time.perf_counter(), time.process_time()
    losses = work()
    seconds = time.perf_counter() - began[0]
    cpu = time.process_time() - began[1]  # of all threads
    if i == 0:  # compiled; the peak is of what follows
      (own / "clear_refs").write_text("5")
    lines = (own / "status").read_text().splitlines()
    (peak,) = [line for line in lines if "VmHWM" in line]
    kib = int(peak.split()[1])
    out = {"seconds": seconds, "cpu": cpu, "losses": losses, "kib": kib}
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
