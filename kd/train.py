"""Train all arms and seeds of a study in one compiled program.

The state of a study is a tuple with one entry for each group of arms
(kd.arms.Group), whose arrays start with the axes [S seeds, A arms]. One call
of the compiled program runs an interval of steps for every run, then looks at
the validation split:

    for each seed (vmapped, or one after another)
      scan over steps
        gather the seed's batch, once for each transfer set
        for each group: one forward and backward pass of its arms, vmapped

Runs of a seed share batches, their order, dropout's random numbers and the
initialisation; all are functions of (seed, step) alone, so that a run does
not depend on which other arms stand beside it. A run whose loss or gradient
is not finite keeps its last finite weights and is marked with the step.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from kd import config, data, feed, metrics, models
from kd.arms import Group
from kd.checkpoint import Checkpoints
from kd.feed import Setup

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


def define(student: Mapping, task: data.Task):
  """Returns (graphdef, init): the model's structure, and weights by key."""

  def make(key):
    model = models.create(
      input_shape=task.input_shape,
      num_classes=task.num_classes,
      rngs=nnx.Rngs(params=key),
      **student,
    )
    return nnx.split(model, nnx.Param, ...)

  graphdef, _, _ = nnx.eval_shape(make, jax.random.key(0))

  def init(key):
    _, params, rest = make(key)
    return params, rest

  return graphdef, init


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


def predict(graphdef, weights, inputs: Array, task: data.Task, batch: int):
  """Returns logits [N, V] of one run, `batch` examples at a time."""
  model = nnx.merge(graphdef, weights["params"], weights["rest"])
  starts = range(0, len(inputs), batch)
  chunks = [inputs[i : i + batch].astype(jnp.float32) for i in starts]
  return jnp.concatenate([model(x * task.scale).logits for x in chunks])


def forward(student: Mapping, task: data.Task, batch: int):
  """Returns the compiled `predict` of a model: (weights, inputs) -> logits."""
  key = json.dumps(student, sort_keys=True)
  return _forward(key, task, batch)


@functools.lru_cache(maxsize=32)
def _forward(student: str, task: data.Task, batch: int):
  graphdef, _ = define(config.tuples(json.loads(student)), task)
  return jax.jit(
    lambda weights, inputs: predict(graphdef, weights, inputs, task, batch)
  )


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
    lambda params: jax.vmap(apply)(params, state["rest"]),
    state["params"],
    has_aux=True,
  )
  loss, cotangents = _losses(group, outputs, signal)
  (grads,) = pullback(cotangents)
  norm = jax.vmap(optax.tree.norm)(grads)
  moved = {"rest": rest}
  moved["params"], moved["opt"] = jax.vmap(
    functools.partial(_update, group, setup)
  )(group.numbers, grads, state["opt"], state["params"])
  alive = state["diverged"] == 0
  good = alive & jnp.isfinite(loss) & jnp.isfinite(norm)
  kept = {k: state[k] for k in moved}
  return {
    **state,
    **_where(good, moved, kept),
    "diverged": jnp.where(alive & ~good, step + 1, state["diverged"]),
  }, {"loss": loss, "grad_norm": norm}


def _losses(group: Group, outputs, signal):
  """Returns each arm's loss [A], and its gradient in the model's outputs."""
  losses, cotangents, first = [], [], 0
  for part in group.parts:
    last = first + len(part.names)
    own = jax.tree.map(lambda x, a=first, b=last: x[a:b], outputs)

    def mean(outputs, numbers, part=part):
      return jnp.mean(part.loss(outputs, signal, numbers))

    loss, cotangent = jax.vmap(jax.value_and_grad(mean))(own, part.numbers)
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
    mesh = _mesh(setup.devices)
    split, whole = P("seeds"), P()
    every_seed = jax.shard_map(
      every_seed,
      mesh=mesh,
      in_specs=(split, split, split, whole, whole),
      out_specs=split,
      check_vma=False,
    )
  return jax.jit(every_seed, donate_argnums=0)


def _mesh(devices: int):
  return jax.make_mesh(
    (devices,), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,)
  )


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
  graphdef, init = define(group.student, setup.task)
  weights = jax.eval_shape(init, jax.random.key(0))

  def forward(weights, inputs):
    return nnx.merge(graphdef, *weights)(inputs).logits

  lowered = jax.jit(forward).lower(
    weights, jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  return float((lowered.cost_analysis() or {})["flops"])


def fit(
  groups: Sequence[Group],
  setup: Setup,
  checkpoints: Checkpoints | None = None,
  on_log: Callable[[Log], None] = lambda log: None,
  on_resume: Callable[[int], None] = lambda step: None,
):
  """Trains every run and returns the state by arm.

  Args:
    groups: the arms, gathered by kd.arms.group.
    setup: what they share.
    checkpoints: where the state is kept; training continues from the last
      good one.
    on_log: called with each interval's Log, in order, one interval late so
      that the device never waits for it, and before the checkpoint that
      covers it is written.
    on_resume: called once, with the step that training continues from.

  Returns:
    {arm: {"params", "rest", "best", "best_step", "diverged"}}, each array
    with the leading axis S.
  """
  one_by_one, why = fills_the_machine(groups, setup)
  if one_by_one:
    groups = [single for group in groups for single in split(group)]
  runs = len(setup.seeds) * sum(len(g.names) for g in groups)
  logging.info(
    "%d runs %s: %s",
    runs,
    "one after another" if one_by_one else "vmapped",
    why,
  )
  program = make_interval(groups, setup, one_by_one)
  seeds = jnp.asarray(setup.seeds, jnp.uint32)
  state = make_init(groups, setup)(seeds)
  done = 0
  if checkpoints is not None:
    done, state = checkpoints.restore(state)
  on_resume(done)
  if setup.devices > 1:
    by_seed = NamedSharding(_mesh(setup.devices), P("seeds"))
    state = jax.device_put(state, by_seed)
  resident = feed.resident(setup)
  late = None
  for stop, xs in feed.intervals(setup, done):
    state, logs = program(state, seeds, xs, jnp.int32(done), resident)
    if late is not None:
      late()
    late = _later(groups, setup, checkpoints, on_log, stop, state, logs)
    done = stop
  if late is not None:
    late()
  if checkpoints is not None:
    checkpoints.wait()
  return _by_arm(groups, state)


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
