"""An arm's loss as its config says it: checked, and in words.

An arm names an objective of kd.objectives.registry and that objective's keys:

    arms.soft = dict(objective="soft", temperature=4.0, divergence="forward_kl")

or a weighted sum, each part with its own keys and weight:

    arms.both = dict(objective="hard + soft", hard=dict(weight=0.1, ...),
                     soft=dict(weight=0.9, temperature=4.0, ...))
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kd import divergences
from kd.config import made, rules, sections
from kd.errors import UserError
from kd.objectives.objective import Keys
from kd.objectives.reads import PARTS, of_completions
from kd.objectives.registry import OBJECTIVES

WEIGHT = rules.number(low=0)


@dataclasses.dataclass(frozen=True)
class Term:
  """One objective of an arm's loss.

  Attributes:
    name: of OBJECTIVES.
    static: the keys that a compiled program is made for.
    numbers: those that may be traced, `weight` among them.
  """

  name: str
  static: Mapping[str, Any]
  numbers: Mapping[str, float]


def check(
  path: str,
  arm: Mapping[str, Any],
  black_box: bool,
  writes: bool = False,
) -> list[Term]:
  """Checks what an arm's config says of its loss; returns its terms.

  Args:
    path: the arm's, for messages.
    arm: of kd.config.resolve.
    black_box: whether the teacher leaves sampled answers alone.
    writes: whether these are completions that it wrote.

  Raises:
    UserError: an unknown objective or key, a value out of range, or an
      objective that reads what such a signal does not have.
  """
  names = _names(arm)
  for name in names:
    if name not in OBJECTIVES:
      raise UserError(
        f"{path}.objective = {arm['objective']!r}: expected one of "
        f"{', '.join([*OBJECTIVES, *made.MADE])}, or a sum such as 'hard + "
        "soft'"
      )
  own = loss_keys(arm)
  if len(names) == 1:
    keys = {**own, "weight": 1.0}
    return [_term(path, names[0], keys, arm, black_box, writes)]
  if len(set(names)) < len(names):
    raise UserError(f"{path}.objective = {arm['objective']!r}: repeats a part")
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
        f"{path}.{name}.weight is missing: expected {WEIGHT.words}"
      )
    rules.check(f"{path}.{name}.weight", part["weight"], WEIGHT)
  return [
    _term(f"{path}.{name}", name, own[name], arm, black_box, writes)
    for name in names
  ]


def check_classes(
  path: str, name: str, keys: Mapping, num_classes: int
) -> None:
  """Checks an objective against the task's V, once that is known.

  Raises:
    UserError: it is undefined for so few classes, or reads more.
  """
  least = OBJECTIVES[name].classes
  if num_classes < least:
    raise UserError(
      f"{path}.objective = {name!r}: undefined for {num_classes} classes, "
      f"expected a task with at least {least}"
    )
  if keys.get("k", 0) > num_classes:
    raise UserError(
      f"{path}.k = {keys['k']}: expected at most the task's {num_classes} "
      "classes"
    )


def reads(name: str, static: Mapping[str, Any]) -> list[str]:
  """Returns the parts of a signal (kd.objectives.reads) that a term reads."""
  return OBJECTIVES[name].reads.format(**static).split()


def parts(arm: Mapping[str, Any]) -> set[str]:
  """Returns all parts of a signal that an arm's loss reads.

  Args:
    arm: one that `check` accepted.

  >>> parts({"objective": "hard", "target": "truth"})
  {'truth'}
  """
  names, keys = _names(arm), loss_keys(arm)
  of_each = [keys] if len(names) == 1 else [keys[name] for name in names]
  return {
    part
    for name, of in zip(names, of_each, strict=True)
    for part in reads(name, of)
  }


def words(arm: Mapping[str, Any]) -> str:
  """Says an arm's loss, a single objective or a weighted sum.

  Args:
    arm: one that `check` accepted.

  >>> words({"objective": "hard", "target": "answer"})
  "cross-entropy on teacher's answers"
  >>> soft = {"temperature": 4.0, "divergence": "jsd", "beta": 0.5}
  >>> words({"objective": "soft", **soft})
  "teacher's distribution (T = 4, JSD, beta = 0.5)"
  >>> hard = {"weight": 0.1, "target": "truth"}
  >>> top = {"weight": 0.9, "k": 3}
  >>> words(
  ...   {
  ...     "objective": "hard + partial_plackett_luce",
  ...     "hard": hard,
  ...     "partial_plackett_luce": top,
  ...   }
  ... )
  "0.1 x cross-entropy on true labels + 0.9 x order of the teacher's top 3"
  """
  names, own = _names(arm), loss_keys(arm)
  if len(names) == 1:
    return _words(names[0], own)
  return " + ".join(
    f"{_plain(own[name]['weight'])} x {_words(name, own[name])}"
    for name in names
  )


def _names(arm: Mapping[str, Any]) -> list[str]:
  return [part.strip() for part in str(arm["objective"]).split("+")]


def loss_keys(arm: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an arm's keys of the loss: the rest is how it trains."""
  others = ("objective", *made.NOT_TRAINING, *sections.IN_ARMS)
  return {k: v for k, v in arm.items() if k not in others}


def _accepted(path: str, name: str, keys: Mapping[str, Any]) -> Keys:
  """Returns an objective's keys, with those of the divergence it names."""
  accepted = OBJECTIVES[name].keys
  if "divergence" not in accepted or "divergence" not in keys:
    return accepted
  chosen = keys["divergence"]
  if not accepted["divergence"].accepts(chosen):
    raise UserError(
      f"{path}.divergence = {chosen!r}: expected one of "
      f"{', '.join(divergences.DIVERGENCES)}"
    )
  return {**accepted, **divergences.DIVERGENCES[chosen].parameters}


def _term(path, name, keys, arm, black_box: bool, writes: bool) -> Term:
  accepted = _accepted(path, name, keys)
  given = {k: v for k, v in keys.items() if k != "weight"}
  rules.check_keys(path, given, accepted)
  objective = OBJECTIVES[name]
  if refused := objective.limit(given):
    raise UserError(f"{path}.{refused}")
  traced = {k: float(v) for k, v in given.items() if accepted[k].traced}
  static = {k: v for k, v in given.items() if not accepted[k].traced}
  named = {**given, "objective": name}
  for part in reads(name, static):
    refused = of_completions(named, part) if writes else ""
    refused = refused or PARTS[part](named, arm["signal"], black_box)
    if not writes and objective.sequences:
      refused = (
        f"objective = {name!r}: needs a teacher that writes completions "
        "(task.tokens.length, teacher.black_box)"
      )
    if refused:
      raise UserError(f"{path}.{refused}")
  return Term(name, static, {**traced, "weight": float(keys["weight"])})


# Of keys and their values, where they are not their own words.
_SYMBOLS = {"temperature": "T", "samples": "K"}
_TARGETS = {
  "answer": "teacher's answers",
  "best": "teacher's best-scored answers",
  "truth": "true labels",
}


def _words(name: str, keys: Mapping[str, Any]) -> str:
  objective = OBJECTIVES[name]
  said = {k: _value(k, v) for k, v in keys.items() if k != "weight"}
  text = objective.words.format(**said)
  details = [
    said[k] if k == "divergence" else f"{_SYMBOLS.get(k, k)} = {said[k]}"
    for k in _accepted(name, name, keys)
    if f"{{{k}}}" not in objective.words
  ]
  return f"{text} ({', '.join(details)})" if details else text


def _value(key: str, value: Any) -> str:
  if key == "divergence":
    return divergences.DIVERGENCES[value].words
  return _TARGETS[value] if key == "target" else _plain(value)


def _plain(value: Any) -> str:
  if value is None:
    return "none"
  return f"{value:g}" if isinstance(value, float) else str(value)
