"""Time a study's training against a Python loop over a jitted step.

    python -m kd.bench [--repeats=5] [--doc=docs/performance.md]

Both do the same: A arms (temperatures 1, 2, 4, 8, 20) x S seeds of an MLP on
the same random data, Adam, on the present device. "loop" trains one run after
another, each step a call of a jitted function with donated state, on batches
that lie on the device. "study" is kd.train.fit, from the initial state to the
last weights, under train.runs = "vmap", "map" and "auto". Compilation is left
out of both (a first call each), and the two are timed in turn, so that the
ratios hold on a noisy machine.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from kd import apply, arms, config, files, program, signals, train
from kd.feed import Setup, Transfer, gather, intervals, resident, transfer_of

_DOC = flags.DEFINE_string(
  "doc", "", "A file whose section <!-- arms --> is to hold the table."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Times that each is timed.")

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
SEEDS = 5
STEPS = 300
BATCH = 128
EXAMPLES = 4096
STUDENTS = ((30, 30), (100, 100), (300, 300), (800, 800))


class _Inputs:
  """Random images that stand in for a split of a data set."""

  def __init__(self, count: int):
    rng = np.random.default_rng(0)
    self._inputs = rng.integers(0, 256, (count, 28, 28, 1), np.uint8)
    self._labels = rng.integers(0, 10, count, np.int32)

  def __len__(self):
    return len(self._labels)

  def arrays(self):
    return self._inputs, self._labels


class _Task:
  """What training needs of a task: shapes, a scale, validation images."""

  name = "random images"
  num_classes = 10
  input_shape = (28, 28, 1)
  scale = 1 / 255
  resident = True
  train = _Inputs(EXAMPLES)
  validation = _Inputs(16)


def study(hidden: tuple[int, ...], runs: str):
  """Returns (groups, setup) of the timed study."""
  options = config.defaults()
  options.student = {"name": "mlp", "hidden": hidden, "dropout": 0.0}
  options.train.steps = STEPS
  options.train.batch_size = BATCH
  options.train.log_every = STEPS // 3
  options.train.runs = runs
  options.baseline = "soft"
  options.arms = {
    "soft": {
      "objective": "soft",
      "temperature": config.sweep(*TEMPERATURES),
      "divergence": "forward_kl",
    }
  }
  settings = config.resolve(options)
  groups = arms.group(settings["arms"], _Task.num_classes)
  rng = np.random.default_rng(1)
  signal = signals.make(
    rng.normal(size=(EXAMPLES, 10)).astype(np.float32),
    None,
    samples=16,
    temperature=1.0,
    seed=0,
  )
  rows = np.tile(np.arange(EXAMPLES, dtype=np.int32), (SEEDS, 1))
  task: Any = _Task()
  transfer = Transfer(task.train, signal, rows)
  setup = Setup(
    task=task,
    transfers={transfer_of(settings["signal"]): transfer},
    seeds=list(range(SEEDS)),
    train=settings["train"],
  )
  return groups, setup


def in_one_program(
  hidden: tuple[int, ...], runs: str
) -> tuple[Callable[[], Any], str]:
  """Returns (run, how): training as a study does it, and how it was mapped."""
  groups, setup = study(hidden, runs)
  one_by_one, _ = train.fills_the_machine(groups, setup)
  if one_by_one:
    groups = [single for group in groups for single in train.split(group)]
  init = program.make_init(groups, setup)
  step = program.make_interval(groups, setup, one_by_one)
  placed = resident(setup)
  seeds = jnp.asarray(setup.seeds, jnp.uint32)

  def run():
    state, done, logs = init(seeds), 0, None
    for stop, xs in intervals(setup, done):
      state, logs = step(state, seeds, xs, jnp.int32(done), placed)
      done = stop
    return jax.block_until_ready((state, logs))

  return run, "one after another" if one_by_one else "vmapped"


def loop(hidden: tuple[int, ...]) -> Callable[[], Any]:
  """Returns the plain way: a Python loop over a jitted step, run after run."""
  groups, setup = study(hidden, "auto")
  (group,) = groups
  (part,) = group.parts
  placed = resident(setup)[transfer_of(group.signal)]
  graphdef, init = apply.define(group.student, setup.task)
  tx = optax.adam(setup.train["learning_rate"])

  @jax.jit
  def start(seed):
    params, rest = init(program.init_key(seed))
    return params, rest, tx.init(params)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, temperature, rows):
    params, rest, opt = state
    inputs, signal = gather(placed, {"rows": rows})

    def loss_fn(params):
      model = nnx.merge(graphdef, params, rest)
      outputs = model(inputs.astype(jnp.float32) * setup.task.scale)
      numbers = [{"weight": 1.0, "temperature": temperature}]
      return jnp.mean(part.loss(outputs, signal, numbers))

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt = tx.update(grads, opt, params)
    return (optax.apply_updates(params, updates), rest, opt), loss

  rows = np.concatenate(
    [x["rows"] for _, xs in intervals(setup, 0) for x in xs.values()], axis=1
  )
  # Each batch's rows lie on the device already, as a careful loop has them.
  batches = [[jnp.asarray(r) for r in of_seed] for of_seed in rows]

  def run():
    states = []
    for temperature in TEMPERATURES:
      for seed in setup.seeds:
        state = start(seed)
        for t in range(STEPS):
          state, loss = step(state, temperature, batches[seed][t])
        states.append((state, loss))
    return jax.block_until_ready(states)

  return run


def seconds(run: Callable[[], Any]) -> float:
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def measure(hidden: tuple[int, ...], repeats: int) -> dict[str, Any]:
  """Times a student's three ways in turn; returns medians and ratios."""
  ways = {"loop": loop(hidden)}
  for runs in ("vmap", "map"):
    ways[runs], _ = in_one_program(hidden, runs)
  _, chosen = in_one_program(hidden, "auto")
  first = {name: seconds(run) for name, run in ways.items()}
  times: dict[str, list[float]] = {name: [] for name in ways}
  for _ in range(repeats):
    for name, run in ways.items():
      times[name].append(seconds(run))
  auto = "map" if chosen == "one after another" else "vmap"
  ratio = [a / b for a, b in zip(times["loop"], times[auto], strict=True)]
  return {
    "student": "-".join(map(str, (784, *hidden, 10))),
    "auto": chosen,
    **{f"{name}_seconds": statistics.median(t) for name, t in times.items()},
    **{f"{name}_first_seconds": t for name, t in first.items()},
    "loop_over_auto": statistics.median(ratio),
    "loop_over_auto_range": [min(ratio), max(ratio)],
  }


def table(rows: list[dict[str, Any]], repeats: int) -> str:
  """Returns the measurements as Markdown."""
  device = jax.devices()[0]
  lines = [
    f"{len(TEMPERATURES)} arms x {SEEDS} seeds, {STEPS} steps of batch "
    f"{BATCH}, Adam, float32; medians of {repeats} in turn, compilation left "
    f"out (in brackets: the first call, with it). Evidence: run, on "
    f"{jax.device_count()} x {device.device_kind} ({os.cpu_count()} cores), "
    f"jax {jax.__version__}, by `python -m kd.bench`.",
    "",
    "| student | Python loop (s) | vmapped (s) | one after another (s) "
    "| auto takes | loop / auto |",
    "| :-- | --: | --: | --: | :-- | --: |",
  ]
  for row in rows:
    times = [
      f"{row[f'{way}_seconds']:.2f} ({row[f'{way}_first_seconds']:.1f})"
      for way in ("loop", "vmap", "map")
    ]
    low, high = row["loop_over_auto_range"]
    lines.append(
      f"| {row['student']} | {' | '.join(times)} | {row['auto']} "
      f"| **{row['loop_over_auto']:.1f}** [{low:.1f}, {high:.1f}] |"
    )
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  del argv
  rows = []
  for hidden in STUDENTS:
    rows.append(measure(hidden, _REPEATS.value))
    print(table(rows[-1:], _REPEATS.value).splitlines()[-1], flush=True)
  if _DOC.value:
    files.replace_section(_DOC.value, "arms", table(rows, _REPEATS.value))


if __name__ == "__main__":
  app.run(main)
