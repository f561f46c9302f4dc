"""The compiled program of a study: a step, an interval of steps, its start.

The state is a tuple with one entry for each group of arms (kd.arms.Group),
whose arrays start with the axes [S seeds, A arms]. One call of the program runs
an interval of steps for every run, then looks at the validation split:

    for each seed (vmapped, or one after another)
      scan over steps
        gather the seed's batch, once for each transfer set
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

from kd import feed, metrics
from kd.apply import define, predict
from kd.arms import Group, Part
from kd.feed import Setup


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
    params, rest = define(group.student, setup.task)[1](key)

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


def _step(graphdef, group, setup, state, batch, key, step):
  """Takes one optimiser step of a group's arms: (state, logs), arrays [A]."""
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
  moved = {"rest": rest}
  update = functools.partial(_update, group, setup)
  moved["params"], moved["opt"] = _each_arm(update, group)(
    group.numbers, grads, state["opt"], state["params"]
  )
  alive = state["diverged"] == 0
  good = alive & jnp.isfinite(loss) & jnp.isfinite(norm)
  kept = {k: state[k] for k in moved}
  return {
    **state,
    **_where(good, moved, kept),
    "diverged": jnp.where(alive & ~good, step + 1, state["diverged"]),
  }, {"loss": loss, "grad_norm": norm}


def _each_arm(fn, arms: Group | Part):
  """Maps fn over the arms' axis, the first of its arguments' arrays.

  A single arm is not vmapped: XLA folds the transpositions of a plain product
  into it, but not those of a batch of one.
  """
  if len(arms.names) > 1:
    return jax.vmap(fn)

  def one(*trees):
    out = fn(*jax.tree.map(lambda x: x[0], trees))
    return jax.tree.map(lambda x: jnp.expand_dims(x, 0), out)

  return one


def _losses(group: Group, outputs, signal):
  """Returns each arm's loss [A], and its gradient in the model's outputs."""
  losses, cotangents, first = [], [], 0
  for part in group.parts:
    last = first + len(part.names)
    own = jax.tree.map(lambda x, a=first, b=last: x[a:b], outputs)

    def mean(outputs, numbers, part=part):
      return jnp.mean(part.loss(outputs, signal, numbers))

    score = _each_arm(jax.value_and_grad(mean), part)
    loss, cotangent = score(own, part.numbers)
    losses.append(loss)
    cotangents.append(cotangent)
    first = last
  join = functools.partial(jax.tree.map, lambda *xs: jnp.concatenate(xs))
  return jnp.concatenate(losses), join(*cotangents)


def _update(group, setup, numbers, grads, opt, params):
  updates, opt = optimizer(group, setup.train, numbers).update(
    grads, opt, params
  )
  return optax.apply_updates(params, updates), opt


def _where(choice: Array, yes, no):
  """Selects arm by arm between two trees of arrays [A, ...]."""
  return jax.tree.map(
    lambda a, b: jnp.where(jnp.expand_dims(choice, range(1, a.ndim)), a, b),
    yes,
    no,
  )


def _validate(graphdef, setup, state, inputs, labels, step):
  """Scores one run on the validation split and keeps the best weights."""
  current = {k: state[k] for k in ("params", "rest")}
  logits = predict(graphdef, current, inputs, setup.task, setup.eval_batch)
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


def make_interval(groups: Sequence[Group], setup: Setup, one_by_one: bool):
  """Returns the compiled program: (state, seeds, xs, start, resident) ->
  (state, logs), with `xs` the batches of kd.feed, [S, steps, ...]."""
  graphdefs = [define(g.student, setup.task)[0] for g in groups]
  named = [(feed.transfer_of(g.signal), g) for g in groups]

  def one_seed(state, seed, xs, start, resident):
    stream = jax.random.fold_in(jax.random.key(seed), 1)
    scale = setup.task.scale

    def batch(name, x, key):
      inputs, signal = feed.gather(resident[name], x)
      inputs = inputs.astype(jnp.float32) * scale
      if setup.jitter:
        inputs = jitter(key, inputs, setup.jitter)
      return inputs, signal

    def body(state, item):
      step, x = item
      drop, shift = jax.random.split(jax.random.fold_in(stream, step))
      batches = {name: batch(name, x[name], shift) for name in x}
      out = [
        _step(g, group, setup, st, batches[name], drop, step)
        for g, (name, group), st in zip(graphdefs, named, state, strict=True)
      ]
      return tuple(st for st, _ in out), tuple(log for _, log in out)

    length = jax.tree.leaves(xs)[0].shape[0]
    steps = start + jnp.arange(length, dtype=jnp.int32)
    state, logs = jax.lax.scan(body, state, (steps, xs))
    logs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), logs)  # [A, steps]
    out = [
      jax.vmap(
        lambda st, g=g: _validate(
          g, setup, st, *resident["validation"], start + length
        )
      )(st)
      for g, st in zip(graphdefs, state, strict=True)
    ]
    logs = tuple(a | b for a, (_, b) in zip(logs, out, strict=True))
    return tuple(st for st, _ in out), logs

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
      mesh=mesh(setup.devices),
      in_specs=(split, split, split, whole, whole),
      out_specs=split,
      check_vma=False,
    )
  return jax.jit(every_seed, donate_argnums=0)


def mesh(devices: int) -> jax.sharding.Mesh:
  """Returns the devices that the seeds are spread over."""
  return jax.make_mesh(
    (devices,), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,)
  )
