"""Sweeps: a value that is a grid makes an arm for each of its points."""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kd.errors import UserError

LONGEST = 200  # bytes of an arm's name, which names folders too


def sweep(*values) -> ConfigDict:
  """A grid as a config value: each value makes an arm.

  `temperature=sweep(1.0, 4.0)` in arm `soft` makes the arms
  `soft[temperature=1]` and `soft[temperature=4]`. On the command line:
  `--config.arms.soft.temperature.sweep='(1.0, 2.0)'`.
  """
  return ConfigDict({"sweep": tuple(values)})


def is_sweep(node: Any) -> bool:
  return isinstance(node, Mapping | ConfigDict) and set(node) == {"sweep"}


def plain(node: Any) -> Any:
  """Copies a config to dictionaries, and numpy's values to Python's."""
  if isinstance(node, Mapping | ConfigDict):
    return {str(k): plain(v) for k, v in node.items()}
  if isinstance(node, tuple | list):
    return type(node)(map(plain, node))
  if isinstance(node, np.generic):
    return node.item()
  if isinstance(node, np.ndarray):
    value = node.tolist()
    return plain(tuple(value) if isinstance(value, list) else value)
  return node


def expand(name: str, arm: Mapping) -> dict[str, tuple[dict, dict]]:
  """Names the arms that one entry makes: {name: (swept values, arm)}.

  Raises:
    UserError: an empty sweep, two of its arms have the same name, or one's
      name is too long.
  """
  if not isinstance(arm, Mapping) or "objective" not in arm:
    raise UserError(f"arms.{name}.objective is missing")
  axes = dict(sorted(_sweeps((), arm)))
  for path, values in axes.items():
    if not values:
      raise UserError(f"arms.{name}.{'.'.join(path)}: the sweep is empty")
  members: dict[str, tuple[dict, dict]] = {}
  for values in itertools.product(*axes.values()):
    swept = {".".join(p): v for p, v in zip(axes, values, strict=True)}
    member = plain(arm)
    for path, value in zip(axes, values, strict=True):
      _put(member, path, value)
    label = ",".join(f"{k}={_short(v)}" for k, v in swept.items())
    full = f"{name}[{label}]" if label else name
    if full in members:
      raise UserError(
        f"arms.{name}: two arms of its sweep have the name {full!r}; expected "
        "values that differ"
      )
    if len(full) > LONGEST:
      raise UserError(
        f"arms.{name}: {full!r} is a name of {len(full)} characters, expected "
        f"at most {LONGEST}: sweep fewer keys, or shorter values"
      )
    members[full] = (swept, member)
  return members


def _sweeps(path, node) -> Iterator[tuple[tuple[str, ...], tuple]]:
  for key, value in node.items():
    if is_sweep(value):
      grid = value["sweep"]
      if not isinstance(grid, tuple | list):
        raise UserError(
          f"{'.'.join((*path, key))}.sweep = {grid!r}: expected a tuple"
        )
      yield (*path, key), tuple(grid)
    elif isinstance(value, Mapping):
      yield from _sweeps((*path, key), value)


def _put(node, path, value) -> None:
  for key in path[:-1]:
    node = node[key]
  node[path[-1]] = value


def _short(value) -> str:
  """Names a value: exactly if it's a number, in safe characters if a text."""
  if isinstance(value, tuple | list):
    return "x".join(map(_short, value)) or "none"
  if isinstance(value, float):
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
  return re.sub(r"[^A-Za-z0-9_.+-]", "_", str(value)) or "none"


def baseline_of(key, target, family, name, swept, variants) -> str | None:
  """Finds the arm that one is compared with, or None for a baseline.

  A target with a sweep stands for the one of its variants whose swept values
  agree with this arm's on the keys that both sweep.

  Args:
    key: of the config, that names the target.
    target: an entry of `arms`, or one of the arms that it makes.
    family: the arm's own entry.
    name: the arm's own.
    swept: its swept values.
    variants: {entry: what `expand` makes of it}.
  """
  if target in (family, name):
    return None
  if target not in variants:
    exact = [n for members in variants.values() for n in members]
    if target in exact:
      return target
    raise UserError(
      f"{key} = {target!r}: expected one of the arms {', '.join(variants)}"
    )
  fits = [
    other
    for other, (values, _) in variants[target].items()
    if all(swept[k] == v for k, v in values.items() if k in swept)
  ]
  if len(fits) != 1:
    raise UserError(
      f"{key} = {target!r}: {len(fits)} of its variants fit arms.{name} "
      f"({', '.join(fits) or 'none'}), expected one: sweep the same keys, or "
      f"set arms.{name}.baseline"
    )
  return fits[0]
