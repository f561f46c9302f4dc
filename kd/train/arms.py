"""Arms gathered to train together, and what their losses make of a batch.

Arms with the same student, optimiser and transfer set form a group: one
forward and one backward pass serves them all, vmapped. Within it, those that
differ only in numbers form a part: one loss function, vmapped over arrays of
those numbers. What an arm's config may say of its loss: kd.objectives.terms.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kd import divergences, models
from kd.models.outputs import AT_A_TIME, Outputs
from kd.objectives import terms
from kd.objectives.objective import Objective
from kd.objectives.registry import OBJECTIVES
from kd.signals import Signal, apart, present
from kernels import distill_loss

NO_TEACHER: dict[str, Any] = dict(
  teacher=None, divergence=divergences.forward_kl, soft_weight=0.0
)
# The classes from which on the kernels' loss is taken: docs/performance.md.
FUSED_FROM = 32
OPTIMIZER = ("learning_rate", "weight_decay", "momentum")  # arms' numbers


@dataclasses.dataclass(frozen=True)
class Part:
  """Arms of one loss function, which differ in its numbers alone.

  Attributes:
    names: the arms, A of them.
    terms: (objective, static keys) of each part of the loss.
    numbers: {key: [A]} for each term, `weight` among them.
    fused_from: the classes from which on the kernels' loss is taken.
    partial: for each term, whether some example of the transfer set may lack
      what it reads; None, before kd.train.coverage has looked, where any may.
  """

  names: tuple[str, ...]
  terms: tuple[tuple[str, Mapping[str, Any]], ...]
  numbers: tuple[Mapping[str, np.ndarray], ...]
  fused_from: int = FUSED_FROM
  partial: tuple[bool, ...] | None = None

  def loss(
    self,
    student: Outputs,
    signal: Signal,
    numbers: Sequence[Mapping],
    whole: Signal | None = None,
  ) -> Float[Array, ""]:
    """Returns a batch's loss, or what a part of it adds to that.

        sum over terms of weight mean_n loss_n,  n over rows that count

    A row is a position, or of an objective of completions a prompt. One counts
    that the signal counts and that has what the term reads; without one, the
    term is 0. From V = fused_from on, the terms that
    kernels.distill_loss expresses are one call of it, which never holds the
    logits of a large batch, but for those of which some rows may lack what is
    read. The others then look at a few rows at a time.

    Args:
      student, signal: of the batch, or of the part.
      numbers: one arm's.
      whole: the signal of the batch that this is a part of.
    """
    large = student.num_classes >= self.fused_from
    partial = self.partial or (True,) * len(self.terms)
    total = jnp.zeros(())
    shared: dict[str, Any] = {}
    for (name, static), traced, some in zip(
      self.terms, numbers, partial, strict=True
    ):
      keys = {**static, **traced}
      weight = keys.pop("weight")
      objective = OBJECTIVES[name]
      lacking = objective.rows if some else None

      def counted(of, lacking=lacking, static=static, objective=objective):
        counts = None if objective.sequences else of.counts
        if lacking is None:
          return counts
        own = lacking(of, student.num_classes, **static)
        return own if counts is None else own & counts

      counts, every = counted(signal), counted(whole or signal)
      weights = _weights(counts, every, whole, objective.sequences)
      if large and objective.fused is not None:
        arguments = objective.fused(signal, weight, **keys)
        if lacking is not None:
          total = total + _fused(student, arguments, counts, weights)
          continue
        if not shared.keys() & arguments.keys():  # one teacher in one call
          shared |= arguments
          continue
      losses = _losses(objective, student, signal, keys)
      total = total + weight * _mean(losses, weights)
    if shared:
      counts = signal.counts
      weights = _weights(counts, (whole or signal).counts, whole)
      total = total + _fused(student, shared, counts, weights)
    return total


def _weights(
  counts: Bool[Array, "B"] | None,
  every: Bool[Array, "N"] | None,
  whole: Signal | None,
  prompts: bool = False,
) -> Float[Array, "B"] | float | None:
  """Returns each row's share of the mean over a whole batch.

  Args:
    counts: which rows do; None is all.
    every: the same of the whole batch.
    whole: its signal, where these rows are a part of it.
    prompts: whether rows are prompts with their completions.

  Returns:
    None where rows have equal shares that sum to 1.
  """
  if counts is not None:
    assert every is not None
    return counts / jnp.maximum(every.sum(), 1)
  if whole is None:
    return None
  if prompts:
    return 1 / len(present(whole.completions, "completions").kinds)
  return 1 / len(whole.truth.ids)


def _fused(
  student: Outputs,
  arguments: dict[str, Any],
  counts: Bool[Array, "B"] | None,
  weights: Float[Array, "B"] | float | None,
) -> Float[Array, ""]:
  """Returns the kernels' loss, a weighted sum over rows."""
  arguments = NO_TEACHER | arguments
  if weights is not None:
    arguments["weights"] = jnp.broadcast_to(weights, len(student.hidden))
  if counts is not None and "labels" in arguments:
    # The kernels make NaN of what is no class.
    arguments["labels"] = jnp.where(counts, arguments["labels"], 0)
  return distill_loss(student.head, **arguments)[0]


def _losses(objective: Objective, student: Outputs, signal: Signal, keys):
  """Returns an objective's losses [B]; where V is large, of a few rows at a
  time and again in the backward pass, so that the logits of a batch are never
  there."""
  rows, size = len(student.hidden), AT_A_TIME // student.num_classes
  together = objective.couples or objective.sequences
  if together or not student.is_large or rows <= size:
    return objective.loss(student, signal, **keys)
  # What has other rows than positions.
  arrays, join = apart(dataclasses.replace(signal, completions=None))

  @jax.checkpoint
  def some(rows):
    hidden, own = rows
    few = dataclasses.replace(student, hidden=hidden)
    return objective.loss(few, join(own), **keys)

  # Not lax.map of one row, which makes a gradient of the head for each.
  size = max(size, 1)
  count, rest = divmod(rows, size)
  every, whole = (student.hidden, arrays), count * size
  cut = lambda x: x[:whole].reshape(count, size, *x.shape[1:])
  losses = jax.lax.map(some, jax.tree.map(cut, every)).reshape(-1)
  if not rest:
    return losses
  last = some(jax.tree.map(lambda x: x[whole:], every))
  return jnp.concatenate([losses, last])


def _mean(
  losses: Float[Array, "B"], weights: Float[Array, "B"] | float | None
) -> Float[Array, ""]:
  """Returns the weighted sum of losses; of weight 0, whatever they are."""
  if weights is None:
    return jnp.mean(losses)
  return jnp.where(weights > 0, losses * weights, 0.0).sum()


@dataclasses.dataclass(frozen=True)
class Group:
  """Arms whose students train in one vmapped step, on the same batches.

  Attributes:
    parts: the arms, by loss function.
    numbers: {"learning_rate": [A], ...} of the optimiser.
    student: the model's name and options.
    optimizer: "sgd", "adam" or "adamw".
    signal: the section that says what the arms' transfer set is.
    start: which weights the runs begin with (kd.study.students); None where
      each seed draws its own.
    sparse: whether weights that are 0 stay so.
  """

  parts: tuple[Part, ...]
  numbers: Mapping[str, np.ndarray]
  student: Mapping[str, Any]
  optimizer: str
  signal: Mapping[str, Any]
  start: Mapping[str, Any] | None = None
  sparse: bool = False

  @property
  def names(self) -> tuple[str, ...]:
    """The A arms, in the order of their axis."""
    return tuple(name for part in self.parts for name in part.names)


def numbers_of(groups: Sequence[Group]) -> list[Any]:
  """Returns the arms' numbers, which a compiled program takes as arrays."""
  return [(g.numbers, [part.numbers for part in g.parts]) for g in groups]


def with_numbers(
  groups: Sequence[Group], numbers: Sequence[Any]
) -> list[Group]:
  """Returns the groups with other numbers, of `numbers_of`."""
  return [
    dataclasses.replace(
      g,
      numbers=own,
      parts=tuple(
        dataclasses.replace(part, numbers=n)
        for part, n in zip(g.parts, of_parts, strict=True)
      ),
    )
    for g, (own, of_parts) in zip(groups, numbers, strict=True)
  ]


def group(
  arms: Mapping[str, Mapping],
  num_classes: int | None = None,
  black_box: bool = False,
  writes: bool = False,
  fused_from: int = FUSED_FROM,
) -> list[Group]:
  """Checks every arm's keys and gathers the arms that can train together.

  Args:
    arms: of `kd.config.resolve`.
    num_classes: V of the task; None where it isn't known yet, and then
      `check_classes` follows.
    black_box: whether the teacher leaves sampled answers alone.
    writes: whether these are completions that it wrote.
    fused_from: the classes from which on the kernels' loss is taken.

  Raises:
    UserError: an unknown objective, model or key; a value out of range.
  """
  entries = []
  for name, arm in arms.items():
    models.check(f"arms.{name}.student", arm["student"])
    found = terms.check(f"arms.{name}", arm, black_box, writes)
    entries.append((name, arm, found))
  groups = []
  for together in _gather(entries, _trains_with):
    parts = [
      _part(members, fused_from) for members in _gather(together, _loss_of)
    ]
    _, arm, _ = together[0]
    sections = [arms[n]["train"] for part in parts for n in part.names]
    groups.append(
      Group(
        parts=tuple(parts),
        numbers={k: _array(s[k] for s in sections) for k in OPTIMIZER},
        student=arm["student"],
        optimizer=arm["train"]["optimizer"],
        signal=arm["signal"],
      )
    )
  if num_classes is not None:
    check_classes(groups, num_classes)
  return groups


def check_classes(groups: Sequence[Group], num_classes: int) -> None:
  """Raises UserError where an arm's loss does not fit the task's V."""
  for part in (part for group in groups for part in group.parts):
    for name, static in part.terms:
      path = f"arms.{part.names[0]}"
      terms.check_classes(path, name, static, num_classes)


def _gather(entries, kind) -> list[list]:
  """Gathers entries of the same kind, both in the order of appearance."""
  gathered: dict[str, list] = {}
  for entry in entries:
    key = json.dumps(kind(entry), sort_keys=True)
    gathered.setdefault(key, []).append(entry)
  return list(gathered.values())


def _trains_with(entry):
  _, arm, _ = entry
  return arm["student"], arm["train"]["optimizer"], arm["signal"]


def _loss_of(entry):
  return [(term.name, term.static) for term in entry[2]]


def _part(members, fused_from: int) -> Part:
  every = [of_arm for _, _, of_arm in members]
  return Part(
    names=tuple(name for name, _, _ in members),
    terms=tuple((term.name, term.static) for term in every[0]),
    numbers=tuple(
      {
        key: _array(term.numbers[key] for term in same)
        for key in same[0].numbers
      }
      for same in zip(*every, strict=True)
    ),
    fused_from=fused_from,
  )


def _array(values) -> np.ndarray:
  return np.asarray([float(v) for v in values], np.float32)
