"""From a config's arms to loss functions, gathered to train together.

An arm names an objective of kd.objectives.registry and that objective's keys:

    arms.soft = dict(objective="soft", temperature=4.0, divergence="forward_kl")

or a weighted sum, each part with its own keys and weight:

    arms.both = dict(objective="hard + soft", hard=dict(weight=0.1, ...),
                     soft=dict(weight=0.9, temperature=4.0, ...))

Arms with the same student, optimiser and transfer set form a group: one
forward and one backward pass serves them all, vmapped. Within it, those that
differ only in numbers form a part: one loss function, vmapped over arrays of
those numbers.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kd import divergences, models
from kd.config import rules, sections
from kd.errors import UserError
from kd.models.outputs import Outputs
from kd.objectives.registry import OBJECTIVES
from kd.signals import Signal
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
  """

  names: tuple[str, ...]
  terms: tuple[tuple[str, Mapping[str, Any]], ...]
  numbers: tuple[Mapping[str, np.ndarray], ...]

  def loss(
    self, student: Outputs, signal: Signal, numbers: Sequence[Mapping]
  ) -> Float[Array, ""]:
    """Returns a batch's mean loss; `numbers` are one arm's.

    From V = FUSED_FROM on, the terms that kernels.distill_loss expresses are
    one call of it, which never holds the logits of a large batch.
    """
    large = student.num_classes >= FUSED_FROM
    total = jnp.zeros(())
    fused: dict[str, Any] = {}
    for (name, static), traced in zip(self.terms, numbers, strict=True):
      keys = {**static, **traced}
      weight = keys.pop("weight")
      objective = OBJECTIVES[name]
      if large and objective.fused is not None:
        arguments = objective.fused(signal, weight, **keys)
        if not fused.keys() & arguments.keys():  # one teacher in one call
          fused |= arguments
          continue
      term = objective.loss(student, signal, **keys)
      total = total + weight * jnp.mean(term)
    if fused:
      fused = NO_TEACHER | fused
      total = total + distill_loss(student.head, **fused)[0]
    return total


@dataclasses.dataclass(frozen=True)
class Group:
  """Arms whose students train in one vmapped step, on the same batches.

  Attributes:
    parts: the arms, by loss function.
    numbers: {"learning_rate": [A], ...} of the optimiser.
    student: the model's name and options.
    optimizer: "sgd", "adam" or "adamw".
    signal: the section that says what the arms' transfer set is.
  """

  parts: tuple[Part, ...]
  numbers: Mapping[str, np.ndarray]
  student: Mapping[str, Any]
  optimizer: str
  signal: Mapping[str, Any]

  @property
  def names(self) -> tuple[str, ...]:
    """The A arms, in the order of their axis."""
    return tuple(name for part in self.parts for name in part.names)


def group(
  arms: Mapping[str, Mapping], num_classes: int, black_box: bool = False
) -> list[Group]:
  """Checks every arm's keys and gathers the arms that can train together.

  Args:
    arms: of `kd.config.rules.resolve`.
    num_classes: V of the task.
    black_box: whether the teacher leaves sampled answers alone.

  Raises:
    UserError: an unknown objective, model or key; a value out of range.
  """
  entries = []
  for name, arm in arms.items():
    models.check(f"arms.{name}.student", arm["student"])
    terms = _terms(f"arms.{name}", arm, num_classes)
    for term, static, _ in terms:
      _check_reads(f"arms.{name}", term, static, black_box)
    entries.append((name, arm, terms))
  groups = []
  for together in _gather(entries, _trains_with):
    parts = [_part(members) for members in _gather(together, _loss_of)]
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
  return groups


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
  return [(objective, static) for objective, static, _ in entry[2]]


def _part(members) -> Part:
  numbers = [[n for *_, n in terms] for _, _, terms in members]
  return Part(
    names=tuple(name for name, _, _ in members),
    terms=tuple((objective, static) for objective, static, _ in members[0][2]),
    numbers=tuple(
      {key: _array(arm[key] for arm in of_term) for key in of_term[0]}
      for of_term in zip(*numbers, strict=True)
    ),
  )


def _array(values) -> np.ndarray:
  return np.asarray([float(v) for v in values], np.float32)


def _terms(path, arm, num_classes):
  """Yields (objective, static keys, numbers) of each part of an arm's loss."""
  names = [part.strip() for part in str(arm["objective"]).split("+")]
  for name in names:
    if name not in OBJECTIVES:
      raise UserError(
        f"{path}.objective = {arm['objective']!r}: expected one of "
        f"{', '.join(OBJECTIVES)}, or a sum such as 'hard + soft'"
      )
  own = {
    k: v
    for k, v in arm.items()
    if k not in ("objective", "baseline", "overrides", *sections.IN_ARMS)
  }
  if len(names) == 1:
    return [_term(path, names[0], {**own, "weight": 1.0}, arm, num_classes)]
  if len(set(names)) < len(names):
    raise UserError(f"{path}.objective = {arm['objective']!r}: repeats a part")
  weight = rules.number(low=0)
  for key, value in own.items():
    if key not in names:
      raise UserError(
        f"{path}.{key} = {value!r}: unknown key of a sum, expected the "
        f"sections {', '.join(names)}"
      )
  for name in names:
    part = own.get(name)
    if not isinstance(part, Mapping) or "weight" not in part:
      raise UserError(
        f"{path}.{name}.weight is missing: expected {weight.words}"
      )
    rules.check(f"{path}.{name}.weight", part["weight"], weight)
  return [
    _term(f"{path}.{name}", name, own[name], arm, num_classes) for name in names
  ]


def _check_reads(path, name, static, black_box: bool) -> None:
  """Refuses what this kind of teacher does not leave."""
  of_logits = ("logits", "top_k")
  if black_box and OBJECTIVES[name].reads in of_logits:
    known = [k for k, v in OBJECTIVES.items() if v.reads not in of_logits]
    raise UserError(
      f"{path}: {name!r} needs the teacher's logits, and a black box leaves "
      f"sampled answers alone; expected one of {', '.join(known)}"
    )
  if not black_box and OBJECTIVES[name].reads == "rejected":
    raise UserError(
      f"{path}: {name!r} needs rejected alternatives, which only a black box "
      "leaves (teacher.path, teacher.black_box)"
    )
  if not black_box and static.get("scores") == "scores":
    raise UserError(
      f"{path}.scores = 'scores': only a black box gives scores; expected "
      "'votes' or 'log_probs'"
    )


def _term(path, name, keys, arm, num_classes):
  objective = OBJECTIVES[name]
  accepted = objective.keys
  if not isinstance(accepted, Mapping):
    accepted = accepted(path, keys)
  given = {k: v for k, v in keys.items() if k != "weight"}
  rules.check_keys(path, given, accepted)
  if given.get("target") == "truth" and not arm["signal"]["labelled"]:
    raise UserError(
      f"{path}.target = 'truth': the transfer set is unlabelled; expected "
      f"'answer', or signal.labelled = True"
    )
  if "samples" in given and given["samples"] > arm["signal"]["samples"]:
    raise UserError(
      f"{path}.samples = {given['samples']}: expected at most "
      f"signal.samples = {arm['signal']['samples']}"
    )
  if given.get("k", 0) > num_classes:
    raise UserError(
      f"{path}.k = {given['k']}: expected at most the task's {num_classes} "
      f"classes"
    )
  if arm["signal"].get("keep") == "top_k":
    _check_top_k(path, name, given, arm["signal"])
  if name == "dkd" and num_classes < 3:
    raise UserError(
      f"{path}.objective = 'dkd': undefined for {num_classes} classes, "
      f"expected a task with at least 3"
    )
  traced = {k: float(v) for k, v in given.items() if accepted[k].traced}
  static = {k: v for k, v in given.items() if not accepted[k].traced}
  return name, static, {**traced, "weight": float(keys["weight"])}


def _check_top_k(path, name, keys, signal) -> None:
  """Checks a term of an arm whose signal has the top k alone."""
  if OBJECTIVES[name].reads == "logits":
    raise UserError(
      f"{path}.objective = {name!r}: needs the logits of all classes, but "
      f"signal.keep = 'top_k'; expected objective = 'top_k', or signal.keep = "
      f"'dense'"
    )
  if keys.get("k", 0) > signal["k"]:
    raise UserError(
      f"{path}.k = {keys['k']}: expected at most signal.k = {signal['k']}"
    )
  kept = [float(t) for t in signal["temperatures"]]
  if name == "top_k" and float(keys["temperature"]) not in kept:
    raise UserError(
      f"{path}.temperature = {keys['temperature']}: expected one of "
      f"signal.temperatures = {tuple(kept)}, at which the tail is known"
    )
