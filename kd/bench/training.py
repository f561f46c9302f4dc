"""Time a study's training against Python loops over a jitted step.

    python -m kd.bench.training [--repeats=5] [--doc=docs/performance.md]

First table. All train the same: A arms (temperatures 1, 2, 4, 8, 20) x S seeds
of MLPs of several widths on the same random data, Adam, on the present device.

  nnx loop      Flax's usual way: nnx.jit, nnx.Optimizer, batches that NumPy
                gathers; one run after another
  careful loop  jax.jit of a function of donated state, which gathers its
                batch on the device; one run after another
  study         kd.train.program, from the initial state to the last weights,
                under train.runs = "vmap", "map" and "auto"

The loops are timed over the seeds of one arm and multiplied by A: their runs
follow one another and differ in a number. Compilation is left out (a first call
each), and all are timed in turn, so that ratios hold on a noisy machine.

Second table: the same study with one hidden layer and more and more classes,
its losses from logits or through kernels.distill_loss (`fused_from` of
kd.train.arms).
"""

import dataclasses
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

from kd import config, models, objectives, signals
from kd.models import functional
from kd.report import markdown
from kd.train import arms, coverage, loop, program
from kd.train.batches import (
  Setup,
  Transfer,
  gather,
  intervals,
  resident,
  transfer_of,
)

_DOC = flags.DEFINE_string(
  "doc", "", "A file whose section <!-- arms --> is to hold the table."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Times that each is timed.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each arm.")
_STEPS = flags.DEFINE_integer("steps", 300, "Of each run, a multiple of 3.")
_STUDENTS = flags.DEFINE_list(
  "students", ["30-30", "100-100", "800-800"], "Hidden widths, first table."
)
_CLASSES = flags.DEFINE_list(
  "classes", ["10", "32", "100", "1000", "4000"], "Of the second table."
)

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
BATCH = 128
EXAMPLES = 4096
WIDTH = (64,)
SECONDS = 60  # that repeats may take for each student; at least one is timed


@dataclasses.dataclass(frozen=True)
class Size:
  """How long the timed study trains: runs of each arm, steps of each run."""

  seeds: int
  steps: int


class _Split:
  """Random images with random labels."""

  def __init__(self, count: int, shape: tuple[int, ...], classes: int):
    rng = np.random.default_rng(0)
    self._images = rng.integers(0, 256, (count, *shape), np.uint8)
    self._labels = rng.integers(0, classes, count, np.int32)

  def __len__(self):
    return len(self._labels)

  def labels(self):
    return self._labels

  def arrays(self):
    return self._images, self._labels


class RandomImages:
  """What training needs of a task, with as many classes as are wanted."""

  name = "random images"
  scale = 1 / 255
  resident = True

  def __init__(
    self,
    num_classes: int,
    input_shape: tuple[int, ...] = (28, 28, 1),
    examples: int = EXAMPLES,
  ):
    self.num_classes = num_classes
    self.input_shape = input_shape
    self.signature = functional.Signature(input_shape, num_classes, self.scale)
    self.train = _Split(examples, input_shape, num_classes)
    self.validation = _Split(16, input_shape, num_classes)


def study(
  hidden: tuple[int, ...],
  runs: str,
  size: Size,
  classes: int = 10,
  fused_from: int = arms.FUSED_FROM,
):
  """Returns (groups, setup) of the timed study."""
  options = config.defaults()
  options.student = {"name": "mlp", "hidden": hidden, "dropout": 0.0}
  options.train.steps = size.steps
  options.train.batch_size = BATCH
  options.train.log_every = size.steps // 3
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
  groups = arms.group(settings["arms"], classes, fused_from=fused_from)
  rng = np.random.default_rng(1)
  signal = signals.make(
    rng.normal(size=(EXAMPLES, classes)).astype(np.float32),
    None,
    samples=16,
    temperature=1.0,
    seed=0,
  )
  rows = np.tile(np.arange(EXAMPLES, dtype=np.int32), (size.seeds, 1))
  task: Any = RandomImages(classes)
  transfers = {
    transfer_of(settings["signal"]): Transfer(task.train, signal, rows)
  }
  groups = coverage.bind(groups, transfers, classes)
  setup = Setup(
    task=task,
    transfers=transfers,
    seeds=list(range(size.seeds)),
    train=settings["train"],
  )
  return groups, setup


def in_one_program(
  hidden: tuple[int, ...], runs: str, size: Size, **options
) -> tuple[Callable[[], Any], str]:
  """Returns (run, how): training as a study does it, and how it was mapped."""
  groups, setup = study(hidden, runs, size, **options)
  one_by_one, _ = loop.fills_the_machine(groups, setup)
  if one_by_one:
    groups = [single for group in groups for single in loop.split(group)]
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


def _rows(setup: Setup) -> np.ndarray:
  """Returns the rows of every batch [S, steps, B]."""
  return np.concatenate(
    [x["rows"] for _, xs in intervals(setup, 0) for x in xs.values()], axis=1
  )


def careful_loop(hidden: tuple[int, ...], size: Size) -> Callable[[float], Any]:
  """Returns run(temperature): the seeds of an arm, state and data on device."""
  groups, setup = study(hidden, "auto", size)
  (group,) = groups
  (part,) = group.parts
  placed = resident(setup)[transfer_of(group.signal)]
  graphdef, init = functional.define(group.student, setup.task.signature)
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
      return part.loss(outputs, signal, numbers)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt = tx.update(grads, opt, params)
    return (optax.apply_updates(params, updates), rest, opt), loss

  # Each batch's rows lie on the device already.
  batches = [[jnp.asarray(r) for r in of_seed] for of_seed in _rows(setup)]

  def run(temperature):
    states = []
    for seed in setup.seeds:
      state = start(seed)
      for t in range(size.steps):
        state, loss = step(state, temperature, batches[seed][t])
      states.append((state, loss))
    return jax.block_until_ready(states)

  return run


def nnx_loop(hidden: tuple[int, ...], size: Size) -> Callable[[float], Any]:
  """Returns run(temperature): the seeds of an arm, as Flax's guides train."""
  groups, setup = study(hidden, "auto", size)
  student = dict(groups[0].student)
  images, _ = setup.task.train.arrays()
  inputs = images.astype(np.float32) * setup.task.scale
  (transfer,) = setup.transfers.values()
  teacher = np.asarray(transfer.signal.dense.logits)
  rows = _rows(setup)

  @nnx.jit
  def step(model, optimizer, inputs, teacher, temperature):
    def loss_fn(model):
      student = model(inputs).logits
      return jnp.mean(objectives.soft(student, teacher, temperature))

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss

  def run(temperature):
    trained = []
    for seed in setup.seeds:
      rngs = nnx.Rngs(params=program.init_key(seed))
      model = models.create(num_classes=10, rngs=rngs, **student)
      tx = optax.adam(setup.train["learning_rate"])
      optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      for t in range(size.steps):
        batch = rows[seed, t]
        step(model, optimizer, inputs[batch], teacher[batch], temperature)
      trained.append(nnx.state(model, nnx.Param))
    return jax.block_until_ready(trained)

  return run


def seconds(run: Callable[[], Any]) -> float:
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def measure(
  hidden: tuple[int, ...], repeats: int, size: Size
) -> dict[str, Any]:
  """Times a student's ways in turn; returns medians and ratios."""
  loops = {
    "nnx": nnx_loop(hidden, size),
    "careful": careful_loop(hidden, size),
  }
  ways: dict[str, Callable[[], Any]] = {
    k: functools.partial(f, TEMPERATURES[0]) for k, f in loops.items()
  }
  for runs in ("vmap", "map"):
    ways[runs], _ = in_one_program(hidden, runs, size)
  _, chosen = in_one_program(hidden, "auto", size)
  scale = {way: len(TEMPERATURES) if way in loops else 1 for way in ways}
  first = {way: scale[way] * seconds(run) for way, run in ways.items()}
  times: dict[str, list[float]] = {way: [] for way in ways}
  count = max(1, min(repeats, int(SECONDS / sum(first.values()))))
  for _ in range(count):
    for way, run in ways.items():
      times[way].append(scale[way] * seconds(run))
  auto = times["map" if chosen == "one after another" else "vmap"]

  def ratio(way):
    pairs = zip(times[way], auto, strict=True)
    return statistics.median(a / b for a, b in pairs)

  return {
    "student": "-".join(map(str, (784, *hidden, 10))),
    "auto": chosen,
    "repeats": count,
    "seconds": {way: statistics.median(t) for way, t in times.items()},
    "first_seconds": first,
    "ratio": {way: ratio(way) for way in loops},
  }


def table(rows: list[dict[str, Any]], size: Size) -> str:
  """Returns the measurements as Markdown."""
  device = jax.devices()[0]
  header = [
    "student", "times", "nnx loop", "careful loop",
    "study, vmapped (with compilation)", "study, one after another",
    "auto takes", "nnx loop / auto", "careful loop / auto",
  ]  # fmt: skip
  body = []
  for row in rows:
    t, first, ratio = row["seconds"], row["first_seconds"], row["ratio"]
    body.append(
      [
        row["student"],
        str(row["repeats"]),
        f"{t['nnx']:.2f}",
        f"{t['careful']:.2f}",
        f"{t['vmap']:.2f} ({first['vmap']:.1f})",
        f"{t['map']:.2f} ({first['map']:.1f})",
        row["auto"],
        f"**{ratio['nnx']:.1f}**",
        f"**{ratio['careful']:.1f}**",
      ]
    )
  words = (
    f"{len(TEMPERATURES)} arms x {size.seeds} seeds, {size.steps} steps of "
    f"batch {BATCH}, Adam, float32; medians in seconds, timed in turn, "
    f"compilation left out. Evidence: run, on {jax.device_count()} x "
    f"{device.device_kind} ({os.cpu_count()} cores), jax {jax.__version__}, by "
    "`python -m kd.bench.training`."
  )
  return f"{words}\n\n{markdown.table(header, body)}"


def measure_classes(classes: int, repeats: int, size: Size) -> dict[str, Any]:
  """Times a study's losses from logits and through the kernels."""
  ways = {}
  for way, first in (("logits", classes + 1), ("kernels", classes)):
    ways[way], _ = in_one_program(
      WIDTH, "vmap", size, classes=classes, fused_from=first
    )
    ways[way]()  # compiled
  times: dict[str, list[float]] = {way: [] for way in ways}
  for _ in range(repeats):
    for way, run in ways.items():
      times[way].append(seconds(run))
  pairs = zip(times["kernels"], times["logits"], strict=True)
  return {
    "classes": classes,
    "seconds": {way: statistics.median(t) for way, t in times.items()},
    "ratio": statistics.median(a / b for a, b in pairs),
  }


def classes_table(rows: list[dict[str, Any]]) -> str:
  """Returns the measurements as Markdown."""
  hidden = "-".join(map(str, (784, *WIDTH, "V")))
  words = (
    f"The same arms, seeds, steps and batches of {hidden}, vmapped. Evidence: "
    "run, as above."
  )
  body = [
    [
      str(row["classes"]),
      f"{row['seconds']['logits']:.2f}",
      f"{row['seconds']['kernels']:.2f}",
      f"**{row['ratio']:.2f}**",
    ]
    for row in rows
  ]
  header = ["V", "from logits", "through the kernels", "ratio"]
  return f"{words}\n\n{markdown.table(header, body)}"


def main(argv: list[str]) -> None:
  del argv
  size, repeats = Size(_SEEDS.value, _STEPS.value), _REPEATS.value
  wide = [measure_classes(int(v), repeats, size) for v in _CLASSES.value]
  print(classes_table(wide), flush=True)
  rows = []
  for widths in _STUDENTS.value:
    hidden = tuple(map(int, widths.split("-")))
    rows.append(measure(hidden, repeats, size))
    print(table(rows[-1:], size).splitlines()[-1], flush=True)
  if _DOC.value:
    markdown.replace_section(_DOC.value, "arms", table(rows, size))
    markdown.replace_section(_DOC.value, "classes", classes_table(wide))


if __name__ == "__main__":
  app.run(main)
