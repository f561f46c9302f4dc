"""What stands beside the trained arms: those that share a training, or have
none (kd.config.made).

    groups, states of what trained  ->  groups, states of every arm

After it an arm is a model, `group.student`, and the weights of its runs,
`states[arm].weights`, however it came to them; what scores, times or exports
arms asks no more.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd.config import made
from kd.data.task import Task
from kd.errors import UserError
from kd.study import compression, students
from kd.teachers import answers, model
from kd.teachers.teacher import Teacher
from kd.train import loop
from kd.train.arms import Group, Part
from kd.train.step import TrainState

Compressed = Callable[
  [str, str | None, Mapping[str, Any], TrainState],
  tuple[Mapping[str, Any], TrainState],
]


def check(settings: Mapping[str, Any]) -> None:
  """Checks what the config alone tells of arms that are made.

  Raises:
    UserError: naming the key.
  """
  if not made.trained(settings["arms"]):
    raise UserError(
      f"arms: none of {', '.join(settings['arms'])} is trained; expected at "
      "least one that is"
    )
  for name, arm in settings["arms"].items():
    path = f"arms.{name}"
    if not made.is_made(arm):
      continue
    made.check(path, arm)
    for section in () if _recovers(arm) else arm["overrides"]:
      raise UserError(
        f"{path}.{section} = {arm['overrides'][section]}: expected none, since "
        f"objective = {arm['objective']!r} trains nothing"
      )
    if arm["objective"] == "cascade":
      _check_cascade(path, arm, settings)
    elif answers.is_black_box(settings["teacher"]):
      raise UserError(
        f"{path}.objective = {arm['objective']!r}: the teacher is a black box; "
        "expected a teacher that is a model"
      )


def _check_cascade(
  path: str, arm: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
  others = [
    name
    for name, other in settings["arms"].items()
    if other["objective"] not in ("cascade", "teacher")
  ]
  if "compress" in arm:
    raise UserError(
      f"{path}.compress: expected none of a cascade, but of arms.{arm['of']}"
    )
  if arm["of"] not in others:
    raise UserError(
      f"{path}.of = {arm['of']!r}: expected the arm that answers first, one of "
      f"{', '.join(others)}"
    )
  if settings["task"]["tokens"]["length"]:
    raise UserError(
      f"{path}.objective = 'cascade': hands on whole examples, and a task of "
      "tokens has positions; expected task.tokens.length = 0"
    )


def check_task(settings: Mapping[str, Any], task: Task) -> None:
  """Checks what the task decides of arms that are made, or compressed.

  Raises:
    UserError: naming the key.
  """
  for name, arm in settings["arms"].items():
    if chain := arm.get("compress"):
      path = f"arms.{name}.student"
      student = model.kind(settings["teacher"])
      if not made.is_made(arm):
        student, _ = students.resolve(path, arm["student"], settings, task)
      compression.check(f"arms.{name}.compress", chain, student, task)
    if arm["objective"] == "teacher" and model.is_prompted(
      settings["teacher"], task
    ):
      raise UserError(
        f"arms.{name}.objective = {arm['objective']!r}: a teacher that reads "
        "texts in a prompt of its own reads nothing that students do; expected "
        "another teacher"
      )


def extended(
  settings: Mapping[str, Any],
  groups: Sequence[Group],
  states: Mapping[str, TrainState],
  teacher: Teacher | None,
  compressed: Compressed | None = None,
) -> tuple[list[Group], dict[str, TrainState]]:
  """Returns groups and states of every arm, in the config's order of arms.

  Args:
    settings: the resolved config.
    groups, states: of the arms that trained, for each the runs of a replicate.
    teacher: the replicate's.
    compressed: (arm, the one whose training it has or None, options and state
      of what it is made of) -> (options, state) of an arm that is compressed;
      None where none is.
  """
  trained = {name: group for group in groups for name in group.names}
  runs = len(next(iter(states.values())).diverged)
  leaders, found = made.leaders(settings["arms"]), {}
  plain = [n for n, arm in settings["arms"].items() if "compress" not in arm]
  every = [g for some in groups for g in _of_arms(some, plain)]
  asks = lambda name: settings["arms"][name]["objective"] == "cascade"
  for name in sorted(settings["arms"], key=asks):
    arm, leader = settings["arms"][name], leaders[name]
    if asks(name):
      # The model of a cascade is the one that answers first.
      (first,) = (g for g in every if arm["of"] in g.names)
      every.append(untrained(name, first.student, first.signal))
      found[name] = found[arm["of"]]
      continue
    if leader is None:
      assert teacher is not None  # `check` sees to it
      alike = untrained(name, teacher.model)
      state = of_weights(teacher.weights, runs)
    else:
      alike, state = trained[leader], states[leader]
    if arm.get("compress"):
      assert compressed is not None
      student, state = compressed(name, leader, alike.student, state)
      every.append(untrained(name, student, alike.signal))
    elif name != leader:
      every.append(untrained(name, alike.student, alike.signal))
    found[name] = state
  return every, {name: found[name] for name in settings["arms"]}


def _of_arms(group: Group, names: Sequence[str]) -> list[Group]:
  """Returns the group less the arms that are compressed: what these learned is
  no arm."""
  if set(group.names) <= set(names):
    return [group]
  return [g for g in loop.split(group) if g.names[0] in names]


def recovering(settings: Mapping[str, Any]) -> list[Group]:
  """Returns what arms of the teacher train to recover from pruning."""
  return [
    compression.recovery(name, arm, model.kind(settings["teacher"]))
    for name, arm in settings["arms"].items()
    if made.is_made(arm) and _recovers(arm)
  ]


def _recovers(arm: Mapping[str, Any]) -> bool:
  return any(step.get("recover") for step in arm.get("compress", ()))


def untrained(
  name: str, student: Mapping[str, Any], signal: Mapping[str, Any] | None = None
) -> Group:
  """Returns the group of an arm that has a model, and no loss of its own."""
  part = Part((name,), (), ())
  return Group((part,), {}, student, "", signal or {})


def of_weights(weights: Mapping[str, Any], runs: int) -> TrainState:
  """Returns the state of runs that all have the same weights, held once."""

  def every(x):
    x = np.asarray(x)
    return np.broadcast_to(x, (runs, *x.shape))

  own = jax.tree.map(every, dict(weights))
  none = jnp.zeros(runs, jnp.int32)
  return TrainState(
    params=own["params"],
    rest=own["rest"],
    opt=(),
    best=own,
    best_score=jnp.zeros(runs),
    best_step=none,
    diverged=none,
  )
