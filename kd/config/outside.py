"""The section `evaluate.outside`: named sets beside the test split.

    {NAME: dict(kind="shift", of=("gaussian_noise",), severities=(1, 3, 5))}

A set is the task's own test inputs shifted (kd.data.shifts), another data set
in the task's form, or the test examples of some classes. What each is made of:
kd.data.outside.
"""

from collections.abc import Mapping
from typing import Any

from kd.config import rules
from kd.config.rules import NAME, PATH, TEXT, Key, choice, integer, integers
from kd.errors import UserError

SHIFT, DATA, CLASSES = "shift", "data", "classes"
_EXAMPLES = Key(None, rules.optional(integer(1)))  # at most; None is all
KINDS: dict[str, dict[str, Key]] = {
  SHIFT: {
    "of": Key((), rules.tuple_of(TEXT, least=1)),
    "severities": Key((1, 2, 3, 4, 5), rules.tuple_of(integer(1, 5), least=1)),
    "examples": _EXAMPLES,
    "seed": Key(0, integer(0)),
  },
  DATA: {
    "name": Key("", TEXT),
    "path": Key("", PATH),
    "data_dir": Key("", PATH),
    "slice": Key("train", TEXT),
    "examples": _EXAMPLES,
  },
  CLASSES: {"classes": Key((), integers(0))},
}
TEST = "test"  # what is inside


def normal(found: Any) -> dict[str, Any]:
  """Returns the section with the usual values of what its sets lack.

  Raises:
    UserError: naming the key of a set that is none.
  """
  made = {}
  for name, own in found.items():
    path = f"evaluate.outside.{name}"
    rules.check("evaluate.outside: a name", name, NAME)
    if name == TEST:
      raise UserError(
        f"{path}: the name of the test split itself; expected another"
      )
    if not isinstance(own, Mapping):
      raise UserError(f"{path} = {own!r}: expected a section")
    rules.check(f"{path}.kind", own.get("kind"), choice(*KINDS))
    keys = KINDS[own["kind"]]
    usual = {k: key.default for k, key in keys.items()}
    made[name] = {**usual, **own}
    accepted = {k: key.rule for k, key in keys.items()}
    rules.check_keys(path, made[name], {"kind": choice(*KINDS), **accepted})
    severities = made[name].get("severities", ())
    if len(set(severities)) < len(severities):
      raise UserError(
        f"{path}.severities = {tuple(severities)}: expected each once"
      )
    if own["kind"] == CLASSES and not made[name]["classes"]:
      raise UserError(f"{path}.classes = (): expected some classes")
    if own["kind"] == DATA and not made[name]["name"]:
      raise UserError(f"{path}.name = '': expected a data set's name")
  return made
