"""What stands beside the trained arms: those that share a training, or have
none (kd.config.made).

    groups, states of what trained  ->  groups, states of every arm

After it an arm is a model, `group.student`, and the weights of its runs,
`states[arm].weights`, however it came to them; what scores, times or exports
arms asks no more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd.config import made
from kd.data.task import Task
from kd.errors import UserError
from kd.teachers import answers, model
from kd.teachers.teacher import Teacher
from kd.train.arms import Group, Part
from kd.train.step import TrainState


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
    for section in arm["overrides"]:
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
  """Checks what the task decides of arms that are made.

  Raises:
    UserError: naming the key.
  """
  for name, arm in settings["arms"].items():
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
) -> tuple[list[Group], dict[str, TrainState]]:
  """Returns groups and states of every arm, in the config's order of arms.

  Args:
    settings: the resolved config.
    groups, states: of the arms that trained, for each the runs of a replicate.
    teacher: the replicate's.
  """
  trained = {name: group for group in groups for name in group.names}
  runs = len(next(iter(states.values())).diverged)
  every, found = list(groups), {}
  leaders = made.leaders(settings["arms"])
  for name, arm in settings["arms"].items():
    # The model of a cascade is the one that answers first.
    leader = leaders[arm["of"] if arm["objective"] == "cascade" else name]
    if leader is None:
      assert teacher is not None  # `check` sees to it
      every.append(untrained(name, teacher.model))
      found[name] = of_weights(teacher.weights, runs)
      continue
    found[name] = states[leader]
    if name != leader:
      alike = trained[leader]
      every.append(untrained(name, alike.student, alike.signal))
  return every, found


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
