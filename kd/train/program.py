"""The compiled program of a study: its start, and an interval of steps.

The state is a tuple with one kd.train.step.TrainState for each group of arms
(kd.train.arms.Group), whose arrays start with the axes [S seeds, A arms]. One
call of the program runs an interval of steps for every run, then looks at the
validation split:

    for each seed (vmapped, or one after another)
      scan over steps
        gather the seed's batch, once for each transfer set; where its
          teacher is live, ask it
        for each group: one forward and backward pass of its arms, vmapped

Batches, their order, dropout's random numbers and the initialisation are
functions of (seed, step) alone.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from kd.models.functional import define, filled
from kd.parallel import mesh
from kd.train import batches
from kd.train.arms import Group, with_numbers
from kd.train.batches import Setup
from kd.train.step import (
  TrainState,
  drop_axis,
  initial,
  make_batch,
  restore_axis,
  train_step,
  validate,
)


def init_key(seed) -> Array:
  """Returns the key of a seed's initialisation; its steps use another."""
  return jax.random.fold_in(jax.random.key(seed), 0)


def make_init(groups: Sequence[Group], setup: Setup):
  """Returns the compiled start: (seeds [S], numbers, given) -> the state before
  the first step, a tuple with one entry for each group, of arrays [S, A, ...].

  `given` holds for each group {path: weights} that its runs begin with; others
  are drawn for each seed, all of them without it.
  """

  def every_seed(seeds, numbers, given=None):
    own = with_numbers(groups, numbers)
    given = given or [{} for _ in groups]
    one = lambda seed: one_seed(own, given, init_key(seed))
    return jax.vmap(one)(seeds)

  def one_seed(groups, given, key):
    own = zip(groups, given, strict=True)
    return tuple(one_group(group, arrays, key) for group, arrays in own)

  def one_group(group, arrays, key) -> TrainState:
    params, rest = define(group.student, setup.task.signature)[1](key)
    params = filled(params, arrays)
    one_arm = functools.partial(initial, group, setup, params, rest)
    return jax.vmap(one_arm)(group.numbers)

  return jax.jit(every_seed)


def _bundles(groups: Sequence[Group], setup: Setup) -> list[list[int]]:
  """Returns which groups take their steps together where runs go one by one.

  Each by itself, so that its weights and moments stay in cache; but those that
  ask the same live teacher together, so that it answers once for all of them.
  """
  bundles: dict[str | int, list[int]] = {}
  for i, group in enumerate(groups):
    name = batches.transfer_of(group.signal)
    key = name if setup.transfers[name].live else i
    bundles.setdefault(key, []).append(i)
  return list(bundles.values())


def make_interval(groups: Sequence[Group], setup: Setup, one_by_one: bool):
  """Returns the compiled program: (state, seeds, xs, numbers, start, resident)
  -> (state, logs), with `xs` the batches of kd.train.batches, [S, steps, ...],
  `numbers` the arms' and `resident` what lies on the device, with "frozen" the
  weights of each group that do not train, if any. It serves other numbers, data
  and seeds as well."""
  every = [list(range(len(groups)))]
  bundles = _bundles(groups, setup) if one_by_one else every
  graphdefs = [define(g.student, setup.task.signature)[0] for g in groups]
  names = [batches.transfer_of(g.signal) for g in groups]
  teachers = {
    name: define(transfer.live.model, setup.task.signature)[0]
    for name, transfer in setup.transfers.items()
    if transfer.live
  }

  def batch(name, placed, x, key):
    transfer = setup.transfers[name]
    return make_batch(transfer, setup.task, teachers.get(name), placed, x, key)

  def frozen(resident, i):
    return resident["frozen"][i] if "frozen" in resident else None

  def train(own, bundle, state, stream, steps, xs, resident):
    """Scans over the steps, a bundle of groups side by side."""
    members = [own[i] for i in bundle]

    def body(state, item):
      step, x = item
      drop, look = jax.random.split(jax.random.fold_in(stream, step))
      found = {k: batch(k, resident[k], x[k], look) for k in x}

      def own_batch(i):
        inputs, signal = found[names[i]]
        return inputs, batches.referred(signal, x[names[i]], own[i])

      out = [
        train_step(
          *(graphdefs[i], own[i], setup, st),
          *(own_batch(i), drop, step, frozen(resident, i)),
        )
        for i, st in zip(bundle, state, strict=True)
      ]
      return tuple(st for st, _ in out), tuple(log for _, log in out)

    xs = {names[i]: xs[names[i]] for i in bundle}
    state = tuple(map(drop_axis, members, state))
    state, logs = jax.lax.scan(body, state, (steps, xs))
    state = tuple(map(restore_axis, members, state))
    logs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), logs)
    return state, tuple(map(restore_axis, members, logs))  # [A, steps]

  def look(i, state, logs, step, examples, frozen):
    one = functools.partial(
      validate, graphdefs[i], setup, examples, step, frozen=frozen
    )
    state, seen = jax.vmap(one)(state)
    return state, logs | seen

  def one_seed(groups, state, seed, xs, held, start, resident):
    stream = jax.random.fold_in(jax.random.key(seed), 1)
    length = jax.tree.leaves(xs)[0].shape[0]
    steps = start + jnp.arange(length, dtype=jnp.int32)
    done = {}
    for bundle in bundles:
      own = tuple(state[i] for i in bundle)
      trained = train(groups, bundle, own, stream, steps, xs, resident)
      for i, *of_group in zip(bundle, *trained, strict=True):
        examples = resident["validation"] if held is None else held
        shared = frozen(resident, i)
        done[i] = look(i, *of_group, start + length, examples, shared)
    out = [done[i] for i in range(len(groups))]
    return tuple(st for st, _ in out), tuple(log for _, log in out)

  def every_seed(state, seeds, xs, numbers, start, resident):
    own = with_numbers(groups, numbers)

    def run(args):
      return one_seed(own, *args, start, resident)

    held = resident["validation"] if setup.validations else None
    over_seeds = (
      functools.partial(jax.lax.map, run) if one_by_one else (jax.vmap(run))
    )
    return over_seeds((state, seeds, xs, held))

  if setup.devices > 1:
    split, whole = P("seeds"), P()
    every_seed = jax.shard_map(
      every_seed,
      mesh=mesh.of_seeds(setup.devices),
      in_specs=(split, split, split, whole, whole, whole),
      out_specs=split,
      check_vma=False,
    )
  return jax.jit(every_seed, donate_argnums=0)
