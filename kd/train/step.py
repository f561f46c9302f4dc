"""A training step: a batch, forward, the arms' losses, an update.

The arms of a group (kd.train.arms.Group) take it side by side: a state's arrays
start with their axis A, unless there is one arm alone (`each_arm`). Runs of a
seed share batches, dropout's random numbers and the initialisation, so that a
run does not depend on which other arms stand beside it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from kd import metrics, signals
from kd.data.task import Task
from kd.models.functional import over, scaled
from kd.signals import Signal
from kd.train import batches, optimizer
from kd.train.arms import Group
from kd.train.batches import Setup, Transfer


@dataclasses.dataclass(frozen=True)
class TrainState:
  """A run between two steps; of many, arrays with leading axes [S, A].

  Attributes:
    params: the trained weights.
    rest: the model's other variables, such as batch statistics.
    opt: the optimiser's state.
    best: the `weights` that were best on the validation split.
    best_score: theirs there, of `Task.score`; -inf where none was looked at.
    best_step: the step after which they were.
    diverged: the step at which the run was stopped, counted from 1; 0 is never.
    frozen: weights that all runs share, without those axes; in a program and in
      checkpoints None, where they are no part of the state.
  """

  params: Any
  rest: Any
  opt: Any
  best: Mapping[str, Any]
  best_score: Array
  best_step: Array
  diverged: Array
  frozen: Any = None

  @property
  def weights(self) -> dict[str, Any]:
    """The last ones, as kd.models.functional takes them."""
    shared = {"frozen": self.frozen} if self.frozen else {}
    return {"params": self.params, "rest": self.rest} | shared

  def sharing(self, frozen: Any) -> "TrainState":
    """Returns the state with weights that all runs share, once for them all."""
    if not frozen:
      return self
    best = {**self.best, "frozen": frozen}
    return dataclasses.replace(self, best=best, frozen=frozen)


# Checkpoints hold the arrays in this order.
jax.tree_util.register_dataclass(
  TrainState,
  data_fields=sorted(f.name for f in dataclasses.fields(TrainState)),
  meta_fields=[],
)


def initial(group: Group, setup: Setup, params, rest, numbers) -> TrainState:
  """Returns one arm's state before its first step."""
  return TrainState(
    params=params,
    rest=rest,
    opt=_optimizer(group, setup, numbers).init(params),
    best={"params": params, "rest": rest},
    best_score=jnp.float32(-jnp.inf),
    best_step=jnp.int32(0),
    diverged=jnp.int32(0),
  )


def make_batch(
  transfer: Transfer, task: Task, graphdef, placed, x, key: Array
) -> tuple[Array, Signal]:
  """Makes a batch, once for all arms of a transfer set.

  Args:
    transfer: says what is done with the examples.
    task: that they are of.
    graphdef: the live teacher's, if there is one.
    placed: what lies on the device of the transfer set (kd.train.batches).
    x: which rows, and their inputs where those are streamed.
    key: of what is random in it.
  """
  inputs, signal = batches.gather(placed, x, transfer.positions)
  if inputs.ndim > 1 + len(task.input_shape):  # a prompt has several rows
    inputs = inputs.reshape(-1, *task.input_shape)
  inputs = scaled(inputs, task.signature)
  if transfer.jitter:
    inputs = jitter(key, inputs, transfer.jitter)
  if transfer.live:
    draws = jax.random.fold_in(key, 1)
    signal = ask(
      graphdef, placed["teacher"], transfer.live, inputs, signal, draws
    )
  return inputs, signal


def jitter(key: Array, images: Array, pixels: int) -> Array:
  """Shifts each image [B, H, W, C] by up to `pixels` each way, zeros in."""
  pad = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
  shifts = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)

  def crop(image, shift):
    start = (shift[0], shift[1], 0)
    return jax.lax.dynamic_slice(image, start, images.shape[1:])

  return jax.vmap(crop)(jnp.pad(images, pad), shifts)


def ask(graphdef, weights, live: batches.Live, inputs, signal, key) -> Signal:
  """Returns what a live teacher says of a batch, once for all arms."""
  model = nnx.merge(graphdef, weights["params"], weights["rest"])
  return signals.of_teacher(
    jax.lax.stop_gradient(model(inputs)),
    signal.truth.ids,
    samples=live.samples,
    temperature=live.temperature,
    key=key,
    counts=signal.counts,
  )


def train_step(
  graphdef,
  group: Group,
  setup: Setup,
  state: TrainState,
  batch: tuple[Array, Signal],
  key: Array,
  step: Array,
  frozen: Any = None,
) -> tuple[TrainState, dict[str, Array]]:
  """Takes one optimiser step of a group's arms.

  A run whose loss or gradient is not finite is marked with the step, and its
  weights never move again. What its update makes of them is seen in the next
  step, or in `validate`.

  Args:
    graphdef: the student's.
    group: the arms.
    setup: what they share.
    state: of arrays [A, ...].
    batch: inputs and signal.
    key: of dropout, the same for every arm.
    step: counted from 0.
    frozen: weights that all runs share and none trains.

  Returns:
    (state, {"loss" [A], "grad_norm" [A]}).
  """
  loss, grads, rest = gradients(
    graphdef, group, state, batch, key, setup.train["accumulate"], frozen
  )
  norm = each_arm(optax.tree.norm, group)(grads)
  alive = state.diverged == 0
  good = alive & jnp.isfinite(loss) & jnp.isfinite(norm)
  params, opt = each_arm(functools.partial(update, group, setup), group)(
    drop_axis(group, group.numbers), grads, state.opt, state.params, good
  )
  state = dataclasses.replace(
    state,
    params=params,
    rest=_where(good, rest, state.rest),
    opt=opt,
    diverged=jnp.where(alive & ~good, step + 1, state.diverged),
  )
  return state, {"loss": loss, "grad_norm": norm}


def gradients(
  graphdef,
  group: Group,
  state,
  batch: tuple[Array, Signal],
  key,
  parts: int,
  frozen: Any = None,
):
  """Returns each arm's loss [A], its gradient, and the model's other variables.

  Args:
    graphdef, group, state, batch, key, frozen: of `train_step`.
    parts: in which the batch is looked at, one after another, so that fewer
      activations are there at once. The loss is that of the whole batch, a
      mean over all the positions in it that count.
  """
  inputs, signal = batch

  def look(rest, part, key, whole):
    inputs, signal = part

    def apply(params, rest):
      # A copy, since training updates the batch statistics.
      model = nnx.merge(graphdef, params, rest, frozen or {}, copy=True)
      outputs = model(inputs, nnx.Rngs(dropout=key))
      _, _, rest = nnx.split(model, nnx.Param, ...)
      return outputs, rest

    outputs, pullback, rest = jax.vjp(
      lambda params: each_arm(apply, group)(params, rest),
      state.params,
      has_aux=True,
    )
    loss, cotangents = losses(group, outputs, signal, whole)
    return loss, *pullback(cotangents), rest

  if parts == 1:
    return look(state.rest, batch, key, None)

  def add(carry, i):
    total, rest = carry
    part = signals.part(signal, i, parts)
    size = len(inputs) // parts
    own = jax.lax.dynamic_slice_in_dim(inputs, i * size, size)
    *found, rest = look(rest, (own, part), jax.random.fold_in(key, i), signal)
    return (jax.tree.map(jnp.add, total, tuple(found)), rest), None

  count = jnp.zeros(len(group.names) if len(group.names) > 1 else ())
  zero = count, jax.tree.map(jnp.zeros_like, state.params)
  ((loss, grads), rest), _ = jax.lax.scan(
    add, (zero, state.rest), jnp.arange(parts)
  )
  return loss, grads, rest


def losses(group: Group, outputs, signal: Signal, whole: Signal | None):
  """Returns each arm's loss [A], and its gradient in the model's outputs; of a
  part of a batch, what it adds to them (`Part.loss`)."""

  def score(part, outputs):
    fn = lambda outputs, numbers: part.loss(outputs, signal, numbers, whole)
    numbers = drop_axis(group, part.numbers)
    return each_arm(jax.value_and_grad(fn), group)(outputs, numbers)

  if len(group.parts) == 1:
    return score(group.parts[0], outputs)
  scored, first = [], 0
  for part in group.parts:
    own = slice(first, first + len(part.names))
    of_part = jax.tree.map(lambda x, own=own: x[own], outputs)
    scored.append(score(part, of_part))
    first = own.stop
  return jax.tree.map(lambda *xs: jnp.concatenate(xs), *scored)


def update(group: Group, setup: Setup, numbers, grads, opt, params, good):
  """Moves one arm's weights if `good`: (params, opt).

  A stopped run never moves again, so its optimiser's state may hold anything:
  selecting that too would cost a copy of it at every step.
  """
  tx = _optimizer(group, setup, numbers)
  updates, opt = tx.update(grads, opt, params)
  updates = jax.tree.map(lambda u: jnp.where(good, u, 0.0), updates)
  return optax.apply_updates(params, updates), opt


def validate(
  graphdef,
  setup: Setup,
  examples: Sequence[Array],
  step: Array,
  state: TrainState,
  frozen: Any = None,
) -> tuple[TrainState, dict[str, Array]]:
  """Scores one run on the validation split and keeps the best weights.

  A run whose weights, or what they make of the split, are not finite is marked
  with the step: no later step may come that would see it.

  Args:
    graphdef: the student's.
    setup: what the runs share.
    examples: inputs and labels of the split, and which labels count.
    step: the last that was taken, counted from 1.
    state: of one run.
    frozen: of `train_step`.
  """
  inputs, labels, counts = examples
  right, nll, finite = over(
    graphdef,
    state.weights | {"frozen": frozen or {}},
    inputs,
    setup.task.signature,
    setup.eval_batch,
    _judge,
    (labels,),
  )
  accuracy, nll = (jnp.mean(x, where=counts) for x in (right, nll))
  step = jnp.asarray(step, jnp.int32)
  bad = ~(_all_finite(state.weights) & jnp.all(finite))
  diverged = jnp.where((state.diverged == 0) & bad, step, state.diverged)
  score = setup.task.score(accuracy, nll)
  better = (score > state.best_score) & (diverged == 0)
  best = state.weights, score, step
  kept = state.best, state.best_score, state.best_step
  best, best_score, best_step = jax.tree.map(
    lambda a, b: jnp.where(better, a, b), best, kept
  )
  state = dataclasses.replace(
    state,
    best=best,
    best_score=best_score,
    best_step=best_step,
    diverged=diverged,
  )
  return state, {
    "validation_accuracy": accuracy,
    "validation_nll": nll,
    "diverged": diverged,
  }


def _judge(outputs, labels):
  """Returns what `validate` needs of each label: whether it is the answer, its
  NLL, and whether all logits are finite."""

  def one(logits, label):
    label = jnp.maximum(label, 0)  # one that does not count
    return (
      metrics.accuracy(logits, label),
      metrics.nll_from_logits(logits, label),
      jnp.all(jnp.isfinite(logits)),
    )

  return outputs.each(one, labels)


def _all_finite(tree) -> Array:
  """Whether all numbers of a tree are finite."""
  finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
  return jnp.all(jnp.stack(finite))


def each_arm(fn, group: Group):
  """Maps fn over the arms' axis, the first of its arguments' arrays.

  A single arm has no such axis in a step (`drop_axis`).
  """
  return jax.vmap(fn) if len(group.names) > 1 else fn


def drop_axis(group: Group, tree):
  """Returns the tree without the arms' axis where there is one arm.

  XLA folds the transpositions of a plain product into it, but not those of a
  batch of one; and it copies a loop's state that it sees through a reshape.
  """
  return tree if len(group.names) > 1 else jax.tree.map(lambda x: x[0], tree)


def restore_axis(group: Group, tree):
  """Undoes `drop_axis`."""
  if len(group.names) > 1:
    return tree
  return jax.tree.map(lambda x: jnp.expand_dims(x, 0), tree)


def _optimizer(group: Group, setup: Setup, numbers: Mapping[str, Any]):
  tx = optimizer.create(group.optimizer, setup.train, numbers)
  return optax.chain(tx, optimizer.keep_zeros()) if group.sparse else tx


def _where(choice: Array, yes, no):
  """Selects arm by arm between two trees of arrays [A, ...]."""
  return jax.tree.map(
    lambda a, b: jnp.where(
      jnp.expand_dims(choice, range(choice.ndim, a.ndim)), a, b
    ),
    yes,
    no,
  )
