"""The compiled program of a study: a step, an interval of steps, its start.

The state is a tuple with one entry for each group of arms
(kd.train.arms.Group), whose arrays start with the axes [S seeds, A arms]. One
call of the program runs an interval of steps for every run, then looks at the
validation split:

    for each seed (vmapped, or one after another)
      scan over steps
        gather the seed's batch, once for each transfer set; where its
          teacher is live, ask it
        for each group: one forward and backward pass of its arms, vmapped

Runs of a seed share batches, their order, dropout's random numbers and the
initialisation; all are functions of (seed, step) alone, so that a run does
not depend on which other arms stand beside it. A run whose loss or gradient
is not finite keeps its last finite weights and is marked with the step.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from kd import metrics, signals
from kd.models.functional import define, predict
from kd.parallel import mesh
from kd.signals import Signal
from kd.train import batches
from kd.train.arms import Group
from kd.train.batches import Setup


def optimizer(group: Group, train: Mapping, numbers: Mapping):
  """Makes the optax optimiser of one arm; its numbers may be traced."""
  steps, warmup = train["steps"], train["warmup_steps"]
  if train["schedule"] == "cosine":
    shape = (
      optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)
      if warmup
      else optax.cosine_decay_schedule(1.0, steps)
    )
  else:
    shape = (
      optax.warmup_constant_schedule(0.0, 1.0, warmup)
      if warmup
      else optax.constant_schedule(1.0)
    )

  def rate(count):
    return numbers["learning_rate"] * shape(count)

  decay = numbers["weight_decay"]
  if group.optimizer == "adamw":
    return optax.adamw(rate, weight_decay=decay)
  if group.optimizer == "adam":
    return optax.adam(rate)
  return optax.chain(
    optax.add_decayed_weights(decay), optax.sgd(rate, numbers["momentum"])
  )


def init_key(seed) -> Array:
  """Returns the key of a seed's initialisation; its steps use another."""
  return jax.random.fold_in(jax.random.key(seed), 0)


def make_init(groups: Sequence[Group], setup: Setup):
  """Returns the compiled start: seeds [S] -> the state before the first step,
  a tuple with one entry for each group, of arrays [S, A, ...]."""

  def one_seed(seed):
    key = init_key(seed)
    return tuple(one_group(group, key) for group in groups)

  def one_group(group, key):
    params, rest = define(group.student, setup.task.signature)[1](key)

    def one_arm(numbers):
      opt = optimizer(group, setup.train, numbers).init(params)
      return {
        "params": params,
        "rest": rest,
        "opt": opt,
        "best": {"params": params, "rest": rest},
        "best_accuracy": jnp.float32(-1.0),
        "best_step": jnp.int32(0),
        "diverged": jnp.int32(0),  # the step; 0 is never
      }

    return jax.vmap(one_arm)(group.numbers)

  return jax.jit(jax.vmap(one_seed))


def jitter(key: Array, images: Array, pixels: int) -> Array:
  """Shifts each image [B, H, W, C] by up to `pixels` each way, zeros in."""
  pad = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
  shifts = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)

  def crop(image, shift):
    start = (shift[0], shift[1], 0)
    return jax.lax.dynamic_slice(image, start, images.shape[1:])

  return jax.vmap(crop)(jnp.pad(images, pad), shifts)


def _ask(graphdef, weights, live: batches.Live, inputs, signal, key) -> Signal:
  """Returns what a live teacher says of a batch, once for all arms."""
  model = nnx.merge(graphdef, weights["params"], weights["rest"])
  return signals.of_teacher(
    jax.lax.stop_gradient(model(inputs)),
    signal.truth.ids,
    samples=live.samples,
    temperature=live.temperature,
    key=key,
  )


def _step(graphdef, group, setup, state, batch, key, step):
  """Takes one optimiser step of a group's arms: (state, logs), arrays [A],
  or without that axis where there is one arm."""
  inputs, signal = batch

  def apply(params, rest):
    # A copy, since training updates the batch statistics.
    model = nnx.merge(graphdef, params, rest, copy=True)
    outputs = model(inputs, nnx.Rngs(dropout=key))
    _, _, rest = nnx.split(model, nnx.Param, ...)
    return outputs, rest

  outputs, pullback, rest = jax.vjp(
    lambda params: _each_arm(apply, group)(params, state["rest"]),
    state["params"],
    has_aux=True,
  )
  loss, cotangents = _losses(group, outputs, signal)
  (grads,) = pullback(cotangents)
  norm = _each_arm(optax.tree.norm, group)(grads)
  alive = state["diverged"] == 0
  good = alive & jnp.isfinite(loss) & jnp.isfinite(norm)
  update = functools.partial(_update, group, setup)
  params, opt = _each_arm(update, group)(
    _drop_axis(group, group.numbers), grads, state["opt"], state["params"], good
  )
  return {
    **state,
    "params": params,
    "rest": _where(good, rest, state["rest"]),
    "opt": opt,
    "diverged": jnp.where(alive & ~good, step + 1, state["diverged"]),
  }, {"loss": loss, "grad_norm": norm}


def _each_arm(fn, group: Group):
  """Maps fn over the arms' axis, the first of its arguments' arrays.

  A single arm has no such axis in a step (`_drop_axis`).
  """
  return jax.vmap(fn) if len(group.names) > 1 else fn


def _drop_axis(group: Group, tree):
  """Returns the tree without the arms' axis where there is one arm.

  XLA folds the transpositions of a plain product into it, but not those of a
  batch of one; and it copies a loop's state that it sees through a reshape.
  """
  return tree if len(group.names) > 1 else jax.tree.map(lambda x: x[0], tree)


def _restore_axis(group: Group, tree):
  if len(group.names) > 1:
    return tree
  return jax.tree.map(lambda x: jnp.expand_dims(x, 0), tree)


def _losses(group: Group, outputs, signal):
  """Returns each arm's loss [A], and its gradient in the model's outputs."""

  def score(part, outputs):
    fn = lambda outputs, numbers: part.loss(outputs, signal, numbers)
    numbers = _drop_axis(group, part.numbers)
    return _each_arm(jax.value_and_grad(fn), group)(outputs, numbers)

  if len(group.parts) == 1:
    return score(group.parts[0], outputs)
  scored, first = [], 0
  for part in group.parts:
    own = slice(first, first + len(part.names))
    of_part = jax.tree.map(lambda x, own=own: x[own], outputs)
    scored.append(score(part, of_part))
    first = own.stop
  return jax.tree.map(lambda *xs: jnp.concatenate(xs), *scored)


def _update(group, setup, numbers, grads, opt, params, good):
  """Moves one arm's weights if `good`.

  A stopped run never moves again, so its optimiser's state may hold anything:
  selecting that too would cost a copy of it at every step.
  """
  updates, opt = optimizer(group, setup.train, numbers).update(
    grads, opt, params
  )
  updates = jax.tree.map(lambda u: jnp.where(good, u, 0.0), updates)
  return optax.apply_updates(params, updates), opt


def _where(choice: Array, yes, no):
  """Selects arm by arm between two trees of arrays [A, ...]."""
  return jax.tree.map(
    lambda a, b: jnp.where(
      jnp.expand_dims(choice, range(choice.ndim, a.ndim)), a, b
    ),
    yes,
    no,
  )


def _validate(graphdef, setup, state, inputs, labels, step):
  """Scores one run on the validation split and keeps the best weights."""
  current = {k: state[k] for k in ("params", "rest")}
  logits = predict(
    graphdef, current, inputs, setup.task.signature, setup.eval_batch
  )
  accuracy = metrics.accuracy(logits, labels)
  better = (accuracy > state["best_accuracy"]) & (state["diverged"] == 0)
  best = {
    "best": current,
    "best_accuracy": accuracy,
    "best_step": jnp.asarray(step, jnp.int32),
  }
  kept = {k: state[k] for k in best}
  return {
    **state,
    **jax.tree.map(lambda a, b: jnp.where(better, a, b), best, kept),
  }, {
    "validation_accuracy": accuracy,
    "validation_nll": metrics.nll_from_logits(logits, labels),
    "diverged": state["diverged"],
  }


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
  """Returns the compiled program: (state, seeds, xs, start, resident) ->
  (state, logs), with `xs` the batches of kd.train.batches, [S, steps, ...]."""
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
    inputs, signal = batches.gather(placed, x)
    inputs = inputs.astype(jnp.float32) * setup.task.scale
    if transfer.jitter:
      inputs = jitter(key, inputs, transfer.jitter)
    if transfer.live:
      ask = functools.partial(_ask, teachers[name], placed["teacher"])
      draws = jax.random.fold_in(key, 1)
      signal = ask(transfer.live, inputs, signal, draws)
    return inputs, signal

  def train(bundle, state, stream, steps, xs, resident):
    """Scans over the steps, a bundle of groups side by side."""
    members = [groups[i] for i in bundle]

    def body(state, item):
      step, x = item
      drop, look = jax.random.split(jax.random.fold_in(stream, step))
      found = {k: batch(k, resident[k], x[k], look) for k in x}
      out = [
        _step(graphdefs[i], groups[i], setup, st, found[names[i]], drop, step)
        for i, st in zip(bundle, state, strict=True)
      ]
      return tuple(st for st, _ in out), tuple(log for _, log in out)

    xs = {names[i]: xs[names[i]] for i in bundle}
    state = tuple(map(_drop_axis, members, state))
    state, logs = jax.lax.scan(body, state, (steps, xs))
    state = tuple(map(_restore_axis, members, state))
    logs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), logs)
    return state, tuple(map(_restore_axis, members, logs))  # [A, steps]

  def validate(i, state, logs, step, examples):
    look = functools.partial(_validate, graphdefs[i], setup)
    state, seen = jax.vmap(lambda st: look(st, *examples, step))(state)
    return state, logs | seen

  def one_seed(state, seed, xs, start, resident):
    stream = jax.random.fold_in(jax.random.key(seed), 1)
    length = jax.tree.leaves(xs)[0].shape[0]
    steps = start + jnp.arange(length, dtype=jnp.int32)
    done = {}
    for bundle in bundles:
      own = tuple(state[i] for i in bundle)
      trained = train(bundle, own, stream, steps, xs, resident)
      for i, *of_group in zip(bundle, *trained, strict=True):
        examples = resident["validation"]
        done[i] = validate(i, *of_group, start + length, examples)
    out = [done[i] for i in range(len(groups))]
    return tuple(st for st, _ in out), tuple(log for _, log in out)

  def every_seed(state, seeds, xs, start, resident):
    def run(args):
      return one_seed(*args, start, resident)

    over_seeds = (
      functools.partial(jax.lax.map, run) if one_by_one else (jax.vmap(run))
    )
    return over_seeds((state, seeds, xs))

  if setup.devices > 1:
    split, whole = P("seeds"), P()
    every_seed = jax.shard_map(
      every_seed,
      mesh=mesh.of_seeds(setup.devices),
      in_specs=(split, split, split, whole, whole),
      out_specs=split,
      check_vma=False,
    )
  return jax.jit(every_seed, donate_argnums=0)
