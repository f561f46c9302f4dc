"""The ways to train that kd.bench.training times, all on one random study."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from kd import config, models, objectives, signals
from kd.models import functional
from kd.train import arms, coverage, loop, program
from kd.train.batches import (
  Setup,
  Transfer,
  gather,
  intervals,
  resident,
  transfer_of,
)

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
BATCH = 128
EXAMPLES = 4096


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

  def counts(self):
    return None

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

  def score(self, accuracy, nll):
    del nll
    return accuracy


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
  groups = coverage.bind(groups, [transfers], classes)
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
  numbers = arms.numbers_of(groups)

  def run():
    state, done, logs = init(seeds, numbers), 0, None
    for stop, xs in intervals(setup, done):
      state, logs = step(state, seeds, xs, numbers, jnp.int32(done), placed)
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
    inputs, signal = gather(placed, {"rows": rows}, 1)

    def loss_fn(params):
      model = nnx.merge(graphdef, params, rest)
      outputs = model(functional.scaled(inputs, setup.task.signature))
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
