"""Arms that train nothing of their own, told from those that do.

    trained   minimises its objective, for every seed
    shared    says nothing else that training reads than another arm, and takes
              its weights: ten ways to compress a student train once
    made      has no loss, and is made of what the study has

To add a kind that is made, give it an entry in MADE, and to
kd.study.untrained what makes its model.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from kd.config import compression, rules
from kd.config.rules import Check
from kd.config.sections import IN_ARMS

# Of an arm, what its training does not read.
NOT_TRAINING = ("baseline", "overrides", "compress")


@dataclasses.dataclass(frozen=True)
class Made:
  """A kind of arm that is made: its own keys, and its words in a report."""

  keys: Mapping[str, Check]
  words: str


MADE: dict[str, Made] = {
  "teacher": Made({}, "the teacher itself"),
  # `of` answers, and where it is unsure the teacher does (kd.evaluate.cascade).
  "cascade": Made(
    {"of": rules.TEXT, "margin": rules.number(low=0, high=1)},
    "{of}, and the teacher where it is unsure (margin {margin})",
  ),
}


def is_made(arm: Mapping[str, Any]) -> bool:
  """Whether an arm has no loss."""
  return arm["objective"] in MADE


def leaders(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
  """Returns the arm whose training each arm has: itself, another one, of those
  alike the first without `compress`, or None where it is made.

  >>> leaders(
  ...   {
  ...     "a": {"objective": "soft"},
  ...     "b": {"objective": "soft", "baseline": "a"},
  ...     "c": {"objective": "teacher"},
  ...   }
  ... )
  {'a': 'a', 'b': 'a', 'c': None}
  """
  first: dict[str, str] = {}
  kinds = {
    name: json.dumps(_training(arm), sort_keys=True)
    for name, arm in arms.items()
    if not is_made(arm)
  }
  for name in sorted(kinds, key=lambda name: "compress" in arms[name]):
    first.setdefault(kinds[name], name)
  return {name: first.get(kinds.get(name, "")) for name in arms}


def trained(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the arms that train for themselves."""
  of = leaders(arms)
  return {name: _student(arm) for name, arm in arms.items() if of[name] == name}


def _student(arm: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns an arm whose student knows what it will be rounded to."""
  step = compression.aware(arm)
  if step is None:
    return arm
  return {**arm, "student": {**arm["student"], "quantized": step}}


def of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a resolved config with the arms that train for themselves."""
  return {**settings, "arms": trained(settings["arms"])}


def check(path: str, arm: Mapping[str, Any]) -> None:
  """Checks the keys of an arm that is made.

  Args:
    path: the arm's.
    arm: of kd.config.resolve.

  Raises:
    UserError: naming the key.
  """
  own = {k: v for k, v in arm.items() if k not in _COMMON}
  rules.check_keys(path, own, MADE[arm["objective"]].keys)


_COMMON = (*IN_ARMS, *NOT_TRAINING, "objective")


def _training(arm: Mapping[str, Any]) -> dict[str, Any]:
  own = {k: v for k, v in arm.items() if k not in NOT_TRAINING}
  return own | {"aware": compression.aware(arm)}
