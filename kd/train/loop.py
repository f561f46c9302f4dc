"""Train every arm and seed of a study, from its start or a checkpoint.

One dispatch of kd.train.program for each interval of steps. What an interval
leaves is fetched once the next one runs, so that the device never waits for the
host.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kd.models import functional
from kd.models.functional import create
from kd.parallel import mesh
from kd.train import batches, checkpoint, program, references
from kd.train.arms import Group, numbers_of
from kd.train.batches import Setup
from kd.train.checkpoint import Checkpoints
from kd.train.step import TrainState

# The forward pass of one run's batch from which on a run fills the machine
# by itself, so that runs go one after another: docs/performance.md.
FLOPS_OF_A_FULL_CPU = 5e7


@dataclasses.dataclass(frozen=True)
class Log:
  """What one interval leaves.

  Attributes:
    step: the interval's last step, counted from 1.
    arms: by arm, `loss` and `grad_norm` [S, steps], `validation_accuracy` and
      `validation_nll` [S], and `diverged` [S]: the step at which a run was
      stopped, 0 for none.
  """

  step: int
  arms: Mapping[str, Mapping[str, np.ndarray]]


def fills_the_machine(
  groups: Sequence[Group], setup: Setup
) -> tuple[bool, str]:
  """Decides whether runs go one after another, and says why.

  On a CPU a run whose forward pass takes FLOPS_OF_A_FULL_CPU or more keeps
  every core busy by itself, and vmapped weights only turn its matrix products
  into slower batched ones. On an accelerator runs are always vmapped. The
  config's `train.runs` ("vmap", "map") overrides the rule.
  """
  mode = setup.train.get("runs", "auto")
  if mode != "auto":
    return mode == "map", f"train.runs = {mode!r}"
  if jax.default_backend() != "cpu":
    return False, f"runs are vmapped on a {jax.default_backend()}"
  flops = max(_forward_flops(group, setup) for group in groups)
  full = flops >= FLOPS_OF_A_FULL_CPU
  sign = ">=" if full else "<"
  return full, (
    f"a forward pass of {flops / 1e6:.3g} MFLOP {sign} "
    f"{FLOPS_OF_A_FULL_CPU / 1e6:.0f}, where one run fills this CPU"
  )


def _forward_flops(group: Group, setup: Setup) -> float:
  shape = (setup.train["batch_size"], *setup.task.input_shape)
  shell = nnx.eval_shape(
    lambda: create(group.student, setup.task.signature, jax.random.key(0))
  )
  graphdef, weights = nnx.split(shell)

  def forward(weights, inputs):
    return nnx.merge(graphdef, weights)(inputs).logits

  dtype = jnp.float32 if setup.task.scale is not None else jnp.int32
  lowered = jax.jit(forward).lower(weights, jax.ShapeDtypeStruct(shape, dtype))
  return float((lowered.cost_analysis() or {})["flops"])


@dataclasses.dataclass(frozen=True)
class Programs:
  """What `fit` runs, for any data of the same shapes.

  Attributes:
    one_by_one: whether runs go one after another.
    init, interval: of kd.train.program.
  """

  one_by_one: bool
  init: Callable
  interval: Callable


def programs(groups: Sequence[Group], setup: Setup) -> Programs:
  """Prepares a training; its first `fit` compiles it."""
  one_by_one, why = fills_the_machine(groups, setup)
  groups = _singly(groups, one_by_one)
  runs = len(setup.seeds) * sum(len(g.names) for g in groups)
  logging.info(
    "%d %s %s: %s; compiling",
    runs,
    "run" if runs == 1 else "runs",
    "one after another" if one_by_one else "vmapped",
    why,
  )
  return Programs(
    one_by_one,
    program.make_init(groups, setup),
    program.make_interval(groups, setup, one_by_one),
  )


def fit(
  groups: Sequence[Group],
  setup: Setup,
  checkpoints: Checkpoints | None = None,
  on_log: Callable[[Log], None] = lambda log: None,
  on_resume: Callable[[int], None] = lambda step: None,
  compiled: Programs | None = None,
  weights: Mapping[str, Any] | None = None,
) -> dict[str, TrainState]:
  """Trains every run and returns the state by arm.

  Args:
    groups: the arms, gathered by kd.train.arms.group.
    setup: what they share.
    checkpoints: where the state is kept; training continues from the last
      good one.
    on_log: called with each interval's Log, in order, one interval late so
      that the device never waits for it, and before the checkpoint that
      covers it is written.
    on_resume: called once, with the step that training continues from.
    compiled: of `programs`, for arms that differ in their numbers alone and a
      setup that differs in its data and seeds alone.
    weights: {arm: those that its runs begin with, arrays [S, ...]}; None where
      they are drawn, or given by `setup.start`.

  Returns:
    {arm: its runs' state}, each array with the leading axis S.
  """
  compiled = compiled or programs(groups, setup)
  groups = _singly(groups, compiled.one_by_one)
  numbers = numbers_of(groups)
  seeds = jnp.asarray(setup.seeds, jnp.uint32)
  given, frozen = _start(groups, setup)
  state = compiled.init(seeds, numbers, given)
  del given  # each run has its own now
  if weights is not None:
    state = tuple(
      _begun(*one, weights) for one in zip(groups, state, strict=True)
    )
  begun = [x.sharing(own) for x, own in zip(state, frozen, strict=True)]
  setup = references.with_references(groups, setup, begun)
  done = 0
  if checkpoints is not None:
    done, state = checkpoints.restore(state)
  on_resume(done)
  if setup.devices > 1:
    by_seed = NamedSharding(mesh.of_seeds(setup.devices), P("seeds"))
    state = jax.device_put(state, by_seed)
  resident = {**batches.resident(setup), "frozen": frozen}
  late, length = None, None
  for stop, xs in batches.intervals(setup, done):
    if length not in (None, stop - done):
      logging.info("compiling the last %d steps", stop - done)
    length = stop - done
    state, logs = compiled.interval(
      state, seeds, xs, numbers, jnp.int32(done), resident
    )
    if late is not None:
      late()
    late = _later(groups, setup, checkpoints, on_log, stop, state, logs)
    done = stop
  if late is not None:
    late()
  if checkpoints is not None:
    checkpoints.wait()
  return _shared(groups, state, frozen)


def read(
  groups: Sequence[Group], setup: Setup, folder: str, arm: str
) -> TrainState:
  """Returns the state of an arm's runs that `fit` left in its checkpoints.

  Raises:
    UserError: as kd.train.checkpoint.read.
  """
  one_by_one, _ = fills_the_machine(groups, setup)
  groups = _singly(groups, one_by_one)
  seeds = jax.ShapeDtypeStruct((len(setup.seeds),), jnp.uint32)
  like = jax.eval_shape(
    program.make_init(groups, setup), seeds, numbers_of(groups)
  )
  every = zip(groups, checkpoint.read(folder, like), strict=True)
  own = [(group, state) for group, state in every if arm in group.names]
  groups, state = zip(*own, strict=True)
  return _shared(groups, state, _start(groups, setup)[1])[arm]


def _start(groups: Sequence[Group], setup: Setup):
  """Returns the weights that the groups begin with: ({path: array} of those
  that train, state of those that don't) of each. What groups share is there
  once."""
  if setup.start is None:
    return [{} for _ in groups], [{} for _ in groups]
  placed: dict[int, jax.Array] = {}
  every = mesh.of_seeds(setup.devices) if setup.devices > 1 else None
  where = every and NamedSharding(every, P())

  def put(x):
    if id(x) not in placed:
      placed[id(x)] = jax.device_put(x, where)
    return placed[id(x)]

  given, frozen = [], []
  for group, arrays in zip(groups, setup.start(groups), strict=True):
    shapes = functional.frozen(group.student, setup.task.signature)
    held = {functional.dotted(path) for path, _ in nnx.to_flat_state(shapes)}
    frozen.append(
      functional.filled(shapes, {k: put(arrays[k]) for k in sorted(held)})
    )
    given.append({k: x for k, x in arrays.items() if k not in held})
  return given, frozen


def _begun(group: Group, state: TrainState, weights) -> TrainState:
  """Returns a state before the first step with other weights."""
  every = [weights[name] for name in group.names]
  own = jax.tree.map(lambda *x: jnp.stack(x, 1), *every)
  best = jax.tree.map(jnp.copy, own)
  params, rest = own["params"], own["rest"]
  return dataclasses.replace(state, params=params, rest=rest, best=best)


def _shared(groups, state, frozen) -> dict[str, TrainState]:
  """Returns the state by arm, with what the runs of each group share."""
  of_arm = {
    name: held
    for group, held in zip(groups, frozen, strict=True)
    for name in group.names
  }
  own = _by_arm(groups, state)
  return {name: x.sharing(of_arm[name]) for name, x in own.items()}


def _later(groups, setup, checkpoints, on_log, step, state, logs):
  """Returns what is left to do with an interval once the next one runs."""
  every, last = setup.train["checkpoint_every"], setup.train["steps"]
  log_every = setup.train["log_every"]
  due = step == last or step % every < log_every
  # The next interval is given the state's own memory, so keep a copy.
  saved = jax.tree.map(jnp.copy, state) if checkpoints and due else None

  def late():
    on_log(Log(step, _by_arm(groups, jax.device_get(logs))))
    if saved is not None:
      checkpoints.save(step, saved)

  return late


def _singly(groups: Sequence[Group], one_by_one: bool) -> Sequence[Group]:
  return [x for g in groups for x in split(g)] if one_by_one else groups


def split(group: Group) -> list[Group]:
  """Returns the group's arms as groups of one."""
  singles = []
  for part in group.parts:
    for a, name in enumerate(part.names):
      at = group.names.index(name)
      one = dataclasses.replace(
        part,
        names=(name,),
        numbers=jax.tree.map(lambda x, a=a: x[a : a + 1], part.numbers),
      )
      numbers = {k: x[at : at + 1] for k, x in group.numbers.items()}
      singles.append(dataclasses.replace(group, parts=(one,), numbers=numbers))
  return singles


def _by_arm(groups, tree):
  """{arm: its part of each group's arrays [S, A, ...]}, in the arms' order."""
  return {
    name: jax.tree.map(lambda x, a=a: x[:, a], part)
    for group, part in zip(groups, tree, strict=True)
    for a, name in enumerate(group.names)
  }
