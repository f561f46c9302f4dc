"""Equal search: the same number of trials for every arm, on validation.

    tune = dict(budget=16, space=dict(
      temperature=(1.0, 2.0, 4.0, 8.0),
      train=dict(learning_rate=("log", 1e-3, 1e-2)),
    ))

trains each arm once for each of 16 points, and takes the one of the best
validation accuracy, a mean over seeds, by the study's stopping rule. The arm's
own runs follow, at that point, with seeds that no trial had.

Points are the same for all arms; an arm takes of a point the keys that it has.
Where the space is a grid of as many points as the budget, they are all of it,
else a Halton sequence. Each replicate searches for itself, so that no image
that it tests on took part, and its choice is a part of what varies between
replicates. Trials differ in numbers alone: one compiled program runs them all.
"""

import copy
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kd import files
from kd.config import leaves, made, rules, sections
from kd.config.tuned import places
from kd.errors import UserError
from kd.evaluate import registry
from kd.teachers import answers
from kd.train import arms
from kd.train.arms import OPTIMIZER, Group

RANGES = ("log", "uniform")
NUMBER = rules.number()
SPACE = (
  "(low, high) behind 'log' or 'uniform', as in ('log', 1e-3, 1e-2), or a "
  "tuple of numbers to choose from"
)


def points(tune: Mapping[str, Any]) -> list[dict[str, float]]:
  """Returns what the trials set, {key: number} for each.

  >>> points(dict(budget=2, space={"temperature": (1.0, 4.0)}))
  [{'temperature': 1.0}, {'temperature': 4.0}]
  """
  space, budget = dict(leaves(tune["space"])), tune["budget"]
  choices = [v for v in space.values() if v[0] not in RANGES]
  if len(choices) == len(space) and math.prod(map(len, choices)) == budget:
    return [
      dict(zip(space, point, strict=True))
      for point in itertools.product(*space.values())
    ]
  from scipy.stats import qmc  # seconds, that most studies need not wait for

  unit = qmc.Halton(len(space), rng=np.random.default_rng(0)).random(budget)
  return [
    {key: _at(space[key], u) for key, u in zip(space, row, strict=True)}
    for row in unit.tolist()
  ]


def _at(values: Sequence[Any], u: float) -> float:
  """Returns the number at 0 <= u < 1 of a range or of choices."""
  if values[0] not in RANGES:
    return values[int(u * len(values))]
  low, high = values[1:]
  if values[0] == "log":
    return float(low * (high / low) ** u)
  return float(low + (high - low) * u)


def check(
  settings: Mapping[str, Any], groups: Sequence[Group], black_box: bool
) -> None:
  """Checks the section `tune` against the arms.

  Raises:
    UserError: naming the key of the space.
  """
  tune = settings["tune"]
  if bool(tune["budget"]) != bool(dict(leaves(tune["space"]))):
    raise UserError(
      f"tune.budget = {tune['budget']}: expected trials for tune.space = "
      f"{dict(tune['space'])}, or neither"
    )
  for key, values in leaves(tune["space"]):
    _check_values(f"tune.space.{key}", key, values)
    if not any(list(places(arm, key)) for arm in settings["arms"].values()):
      raise UserError(
        f"tune.space.{key}: no arm has this key; expected train."
        f"{', train.'.join(OPTIMIZER)}, or a number of an objective"
      )
  tried = points(tune) if tune["budget"] else []
  writes = answers.writes(settings)
  for point in tried:
    own = _set(settings["arms"], point)
    made = arms.group(own, black_box=black_box, writes=writes)
    if _form(made) != _form(groups):
      raise UserError(
        f"tune.space has {', '.join(point)}: expected keys of numbers, which "
        "change no program"
      )
  _check_sweeps(settings["arms"], tried)


def _check_sweeps(
  every: Mapping[str, Any], tried: Sequence[Mapping[str, float]]
) -> None:
  """Refuses arms that differ in what is tuned alone, and would be one arm."""

  def said(arm):
    own = {k: v for k, v in arm.items() if k not in ("overrides", "baseline")}
    return json.dumps(own, sort_keys=True)

  seen: dict[str, str] = {}
  for name, arm in _set(every, tried[0]).items() if tried else ():
    other = seen.setdefault(said(arm), name)
    if said(every[other]) != said(every[name]):
      raise UserError(
        f"tune.space has {', '.join(tried[0])}: arms.{other} and arms.{name} "
        "differ in nothing else, so that their searches would be one; expected "
        "arms without a sweep of what is tuned"
      )


def _check_values(path: str, key: str, values: Any) -> None:
  whole = isinstance(values, tuple | list) and len(values) > 0
  ranged = whole and values[0] in RANGES
  numbers = values[1:] if ranged else values
  if not whole or not all(map(NUMBER.accepts, numbers)):
    raise UserError(f"{path} = {values!r}: expected {SPACE}")
  if ranged and (
    len(numbers) != 2
    or numbers[0] >= numbers[1]
    or (values[0] == "log" and numbers[0] <= 0)
  ):
    raise UserError(f"{path} = {values!r}: expected {SPACE}")
  section, _, name = key.rpartition(".")
  if section == "train":
    if name not in OPTIMIZER:
      raise UserError(f"{path}: expected one of {', '.join(OPTIMIZER)}")
    for number in numbers:
      rules.check(path, number, sections.TRAIN[name].rule)


def _form(groups: Sequence[Group]) -> list[Any]:
  """Returns what a compiled program is made for."""
  return [
    (g.student, g.optimizer, g.signal, [(p.names, p.terms) for p in g.parts])
    for g in groups
  ]


def _set(
  every: Mapping[str, Any], point: Mapping[str, float]
) -> dict[str, Any]:
  """Returns the arms at a point."""
  made = copy.deepcopy(dict(every))
  for arm in made.values():
    for key, value in point.items():
      for place in places(arm, key):
        place[key.rpartition(".")[2]] = value
  return made


def at(
  settings: Mapping[str, Any],
  groups: Sequence[Group],
  which: Mapping[str, int],
  black_box: bool,
) -> list[Group]:
  """Returns the groups with each arm at one of the points.

  Args:
    settings: the resolved config.
    groups: the study's.
    which: {arm: number of its point}.
    black_box: whether the teacher leaves sampled answers alone.
  """
  found = points(settings["tune"])
  every = {
    name: _set({name: arm}, found[which[name]])[name]
    for name, arm in settings["arms"].items()
  }
  made = arms.group(every, black_box=black_box, writes=answers.writes(settings))
  return arms.with_numbers(groups, arms.numbers_of(made))


def search(
  path: str,
  settings: Mapping[str, Any],
  trial: Callable[[Mapping[str, int]], Mapping[str, float]],
) -> dict[str, Any]:
  """Runs the trials that are missing, and chooses.

  Args:
    path: of the JSON file that keeps their scores.
    settings: the resolved config.
    trial: trains the arms at a point each, and returns their scores; the
      higher the better, -1 for one whose runs diverged.

  Returns:
    {"scores": {arm: one for each trial}, "choice": {arm: number of a point}};
    the first of the best.
  """
  names, budget = list(settings["arms"]), settings["tune"]["budget"]
  found: dict[str, Any] = {
    "selection": registry.selection(settings["evaluate"]["metric"]),
    "scores": {name: [] for name in names},
  }
  if os.path.exists(path):
    found = read(path, settings)
  for number in range(len(found["scores"][names[0]]), budget):
    scores = trial(dict.fromkeys(names, number))
    for name in names:
      found["scores"][name].append(float(scores[name]))
    files.write_json(path, found)
  if "choice" not in found:
    found["choice"] = {n: int(np.argmax(s)) for n, s in found["scores"].items()}
    files.write_json(path, found)
  return found


def read(path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Reads what `search` left.

  Raises:
    UserError: it is damaged, or chose by another stopping rule.
  """
  found = files.read_json(path, "scores of trials")
  names, budget = list(settings["arms"]), settings["tune"]["budget"]
  scores, choice = (
    found.get(k, {}) if isinstance(found, dict) else None
    for k in ("scores", "choice")
  )
  whole = isinstance(scores, dict) and isinstance(choice, dict)
  if (
    not whole
    or list(scores) != names
    or not all(
      isinstance(s, list) and len(s) <= budget for s in scores.values()
    )
    or len({len(s) for s in scores.values()}) > 1
    or not all(NUMBER.accepts(x) for s in scores.values() for x in s)
    or (choice and list(choice) != names)
    or not all(c in range(budget) for c in choice.values())
  ):
    raise UserError(
      f"{path}: not the scores of this study's {budget} trials; expected what "
      "the search wrote, or no such file, and it is made again"
    )
  by, metric = found.get("selection"), settings["evaluate"]["metric"]
  ours = registry.selection(metric)
  if by not in (None, ours):
    raise UserError(
      f"{path}: the search chose by the {by} weights, evaluate.metric = "
      f"{metric!r} is of the {ours}; expected a metric of the same, or another "
      "--workdir"
    )
  return found


def describe(
  settings: Mapping[str, Any],
  searched: Sequence[Mapping[str, Any]],
  metric: str,
) -> dict[str, Any]:
  """Returns what results.json says of the search.

  Args:
    settings: the resolved config.
    searched: of each replicate, from `search`.
    metric: by which it chose, on validation.
  """
  section = settings["tune"]
  leaders = {a: b for a, b in made.leaders(settings["arms"]).items() if b}
  return {
    "budget": section["budget"],
    "space": section["space"],
    "seeds": settings["seeds"],
    "metric": metric,
    "points": points(section),
    "choices": {
      name: [one["choice"][leader] for one in searched]
      for name, leader in leaders.items()
    },
    "scores": {
      name: [one["scores"][leader] for one in searched]
      for name, leader in leaders.items()
    },
  }
