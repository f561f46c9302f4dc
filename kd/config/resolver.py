"""From a config to the dictionary that the rest of the library reads.

Sweeps are expanded into arms, and every key is checked that the table of keys
(kd.config.sections) knows. A mistake raises `UserError` naming the key, what
was found and what is accepted.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from kd.config import (
  compression,
  contrasts,
  costs,
  outside,
  rules,
  sections,
  sweeps,
)
from kd.config.sections import IN_ARMS, IN_ARMS_TRAIN, SECTIONS
from kd.errors import UserError


def resolve(config: ConfigDict | Mapping) -> dict[str, Any]:
  """Expands the sweeps and checks all that needs no model, teacher or data.

  Returns a plain dictionary: the config's sections, with `arms` mapping each
  expanded arm's name to its keys, its full `signal`, `student` and `train`
  sections, `overrides` (what it changes of them) and its `baseline` (None for
  the baseline itself). Options of models, keys of objectives and filters are
  checked where they are known (kd.study.check).
  """
  try:
    tree = sweeps.plain(config)
  except RequiredValueError as error:  # of a placeholder
    raise UserError(f"the config lacks a value: {error}") from error
  except RecursionError as error:
    raise UserError("the config holds itself") from error
  for key in tree:
    if key not in SECTIONS:
      raise UserError(
        f"{key}: unknown section, expected one of {', '.join(SECTIONS)}"
      )
  for key in SECTIONS:
    if key not in tree:
      raise UserError(f"{key} is missing from the config")
    sections.check_section(key, key, tree[key])
    tree[key] = sections.normal(key, tree[key])
  costs.check(tree["cost"], tree["evaluate"]["measure"])
  tree["evaluate"]["outside"] = outside.normal(tree["evaluate"]["outside"])
  for section in ("arms", "filters"):
    seen: dict[str, str] = {}
    for name in tree[section]:
      rules.check(f"{section}: a name", name, rules.NAME)
      if other := seen.get(name.casefold()):
        raise UserError(
          f"{section}: {other!r} and {name!r} would be one file's name where "
          "case does not count; expected names that differ in more"
        )
      seen[name.casefold()] = name
  _check_student("student", tree["student"])
  if not tree["arms"]:
    raise UserError("arms is empty: expected at least one arm")
  variants = {n: sweeps.expand(n, arm) for n, arm in tree["arms"].items()}
  arms = {}
  for family, members in variants.items():
    for name, (swept, arm) in members.items():
      target = arm.get("baseline", tree["baseline"])
      key = f"arms.{name}.baseline" if "baseline" in arm else "baseline"
      rules.check(key, target, rules.TEXT)
      arms[name] = _merge(name, arm, tree) | {
        "baseline": sweeps.baseline_of(
          key, target, family, name, swept, variants
        )
      }
  contrasts.check(tree["contrasts"], arms)
  return {**tree, "arms": arms}


def leaves(
  tree: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any]]:
  """Yields a tree's values, each with its dotted key.

  >>> list(leaves({"train": {"steps": 9}, "seeds": 2}))
  [('train.steps', 9), ('seeds', 2)]
  """
  for key, value in tree.items():
    at = f"{path}.{key}" if path else str(key)
    if isinstance(value, Mapping):
      yield from leaves(value, at)
    else:
      yield at, value


def tuples(tree: Any) -> Any:
  """Turns the lists of a tree read from JSON back into tuples."""
  if isinstance(tree, Mapping):
    return {k: tuples(v) for k, v in tree.items()}
  return tuple(map(tuples, tree)) if isinstance(tree, list) else tree


def _merge(name: str, arm: dict, tree: Mapping) -> dict[str, Any]:
  """Fills an arm's sections from the study's and checks them."""
  merged = {k: v for k, v in arm.items() if k not in IN_ARMS}
  merged["overrides"] = {k: arm[k] for k in IN_ARMS if k in arm}
  for section in IN_ARMS:
    own = arm.get(section, {})
    path = f"arms.{name}.{section}"
    if not isinstance(own, Mapping):
      raise UserError(f"{path} = {own!r}: expected a section")
    for key in own if section == "train" else ():
      if key not in IN_ARMS_TRAIN:
        raise UserError(
          f"{path}.{key} = {own[key]!r}: an arm may change "
          f"{', '.join(IN_ARMS_TRAIN)}; the rest is shared by all arms"
        )
    # A student of another kind shares no options with the study's.
    base = {} if section == "student" and "name" in own else tree[section]
    merged[section] = {**base, **own}
    sections.check_section(section, path, merged[section])
    merged[section] = sections.normal(section, merged[section])
  if "compress" in arm:
    path = f"arms.{name}.compress"
    merged["compress"] = compression.normal(path, arm["compress"])
  _check_signal(f"arms.{name}.signal", merged["signal"], tree["filters"])
  _check_student(f"arms.{name}.student", merged["student"])
  sections.check_train(f"arms.{name}.train", merged["train"])
  return merged


def _check_signal(path: str, section: Mapping, filters: Mapping) -> None:
  """Checks keys of a signal against each other."""
  name = section["filter"]
  if name and name not in filters:
    raise UserError(
      f"{path}.filter = {name!r}: expected '' or one of the filters "
      f"{', '.join(filters) or '(the config has none)'}"
    )
  if name and section["keep"] == "top_k":
    raise UserError(
      f"{path}.keep = 'top_k': filters look at whole distributions; expected "
      "'dense', or signal.filter = ''"
    )
  if section["calibrate"] != "none" and section["keep"] == "top_k":
    raise UserError(
      f"{path}.keep = 'top_k': {path}.calibrate = 'uniform' shifts the logits "
      "of all classes; expected 'dense'"
    )
  if section["rank_by"] == "rubric" and not section["rubric"]:
    raise UserError(
      f"{path}.rubric is empty: signal.rank_by = 'rubric' needs weights by "
      "criterion"
    )
  stores = {"keep": "dense", "dtype": "float32", "path": ""}
  stores |= {"calibrate": "none"}
  for key, usual in stores.items():
    if section["live"] and section[key] != usual:
      raise UserError(
        f"{path}.{key} = {section[key]!r}: expected {usual!r}, since a live "
        f"teacher ({path}.live = True) leaves nothing to store"
      )


def _check_student(path: str, student: Mapping[str, Any]) -> None:
  if "name" not in student:
    raise UserError(f"{path}.name is missing: expected a model's name")
  if "quantized" in student:
    raise UserError(
      f"{path}.quantized = {student['quantized']!r}: no option; expected "
      "arms.NAME.compress"
    )
