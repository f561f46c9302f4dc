"""What a config may say: the sections' keys, and what each accepts."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from kd.errors import UserError

ARM_SECTIONS = ("signal", "student", "train")  # what an arm may override


@dataclasses.dataclass(frozen=True)
class Check:
  """What a key accepts: `accepts(value)`, and `words` for the error.

  `traced` marks a number that may differ between the arms of one compiled
  program, where it is an array with one entry for each arm.
  """

  words: str
  accepts: Callable[[Any], bool]
  traced: bool = False


def _is_number(value, kinds) -> bool:
  return isinstance(value, kinds) and not isinstance(value, bool)


def number(*, above=None, low=None, high=None, below=None) -> Check:
  """A traced float in the given range."""
  bounds = [
    (above, ">", lambda v: v > above),
    (low, ">=", lambda v: v >= low),
    (high, "<=", lambda v: v <= high),
    (below, "<", lambda v: v < below),
  ]
  bounds = [b for b in bounds if b[0] is not None]
  words = " and ".join(f"{sign} {bound}" for bound, sign, _ in bounds)
  return Check(
    f"a number {words}".rstrip(),
    lambda v: (
      _is_number(v, int | float)
      and abs(v) != float("inf")
      and all(holds(v) for _, _, holds in bounds)
    ),
    traced=True,
  )


def integer(low: int, high: int | None = None) -> Check:
  words = f">= {low}" if high is None else f"from {low} to {high}"
  return Check(
    f"a whole number {words}",
    lambda v: _is_number(v, int) and v >= low and (high is None or v <= high),
  )


def integers(low: int) -> Check:
  return Check(
    f"a tuple of whole numbers >= {low}",
    lambda v: (
      isinstance(v, tuple | list)
      and all(_is_number(x, int) and x >= low for x in v)
    ),
  )


def numbers(rule: Check) -> Check:
  return Check(
    f"a tuple of at least one, each {rule.words}",
    lambda v: (
      isinstance(v, tuple | list) and len(v) > 0 and all(map(rule.accepts, v))
    ),
  )


def choice(*names) -> Check:
  return Check(
    "one of " + ", ".join(map(repr, names)),
    lambda v: any(v == n and type(v) is type(n) for n in names),
  )


def optional(check: Check) -> Check:
  return Check(
    f"None or {check.words}", lambda v: v is None or check.accepts(v)
  )


TEXT = Check("a text", lambda v: isinstance(v, str))
FLAG = Check("True or False", lambda v: isinstance(v, bool))

TRAIN = {
  "steps": integer(1),
  "batch_size": integer(1),
  "optimizer": choice("sgd", "adam", "adamw"),
  "learning_rate": number(above=0),
  "weight_decay": number(low=0),
  "momentum": number(low=0, below=1),
  "schedule": choice("constant", "cosine"),
  "warmup_steps": integer(0),
  "log_every": integer(1),
  "checkpoint_every": integer(1),
  "keep": integer(1),
}
# What an arm may change of `train`: the rest is what the arms share.
ARM_TRAIN = ("optimizer", "learning_rate", "weight_decay", "momentum")


def _is_regex(value) -> bool:
  try:
    re.compile(value)
  except (re.error, TypeError):
    return False
  return True


REGEX = Check("a regular expression", _is_regex)
WEIGHTS = Check(
  "a section of weights > 0 by name",
  lambda v: (
    isinstance(v, Mapping)
    and all(_is_number(w, int | float) and w > 0 for w in v.values())
  ),
)
FILTERS = Check(
  "a section of tuples of filters by name", lambda v: isinstance(v, Mapping)
)
TEACHER = {
  "path": TEXT,
  "black_box": FLAG,
  "extract": REGEX,
  "max_bad": number(low=0, high=1),
  "pretrained": FLAG,
  "seed": integer(0),
  "fraction": number(above=0, high=1),
  "select": choice("last", "best"),
  "train": TRAIN | {"jitter": integer(0)},
}
SECTIONS: dict[str, Any] = {
  "study": TEXT,
  "question": TEXT,
  "seeds": integer(1),
  "seed": integer(0),
  "baseline": TEXT,
  "task": {
    "name": TEXT,
    "data_dir": TEXT,
    "path": TEXT,
    "seed": integer(0),
    "train": TEXT,
    "validation": TEXT,
    "test": TEXT,
    "image_size": integer(0),
    "text_features": integer(1),
    "resident": choice("auto", True, False),
    "resident_mib": number(above=0),
  },
  "teacher": TEACHER,
  "filters": FILTERS,
  "signal": {
    "pool": choice("train", "rest"),
    "filter": TEXT,
    "rank_by": choice("score", "logprob", "rubric"),
    "rubric": WEIGHTS,
    "labelled": FLAG,
    "live": FLAG,
    "jitter": integer(0),
    "size": optional(integer(1)),
    "omit_classes": integers(0),
    "only_classes": integers(0),
    "keep": choice("dense", "top_k"),
    "k": integer(1),
    "temperatures": numbers(number(above=0)),
    "dtype": choice("float32", "bfloat16", "int8"),
    "samples": integer(0),
    "temperature": number(above=0),
    "seed": integer(0),
    "path": TEXT,
    "shard_size": integer(1),
  },
  "student": {},
  "train": TRAIN | {"runs": choice("auto", "vmap", "map")},
  "evaluate": {
    "metric": TEXT,
    "batch_size": integer(1),
    "bins": integer(2),
    "shift_classes": integers(0),
  },
  "mesh": {"seeds": integer(1)},
}


def check(path: str, value, rule: Check) -> None:
  """Raises UserError unless `rule` accepts `value` for the key `path`."""
  if not rule.accepts(value):
    raise UserError(f"{path} = {value!r}: expected {rule.words}")


def check_keys(path: str, found: Mapping, rules: Mapping[str, Check]) -> None:
  """Checks a section: no unknown key, none missing, every value accepted."""
  for key in found:
    if key not in rules:
      raise UserError(
        f"{path}.{key} = {found[key]!r}: unknown key, expected one of "
        + ", ".join(rules)
      )
  for key, rule in rules.items():
    if key not in found:
      words = getattr(rule, "words", "a section")
      raise UserError(f"{path}.{key} is missing: expected {words}")
    check_section(f"{path}.{key}", found[key], rule)


def check_section(path: str, value, rules: Mapping | Check) -> None:
  """Checks a key's value, or a section and all that is in it."""
  if isinstance(rules, Check):
    return check(path, value, rules)
  if not isinstance(value, Mapping):
    raise UserError(f"{path} = {value!r}: expected a section")
  if path.endswith("student") or path == "teacher":
    # These hold the model's own options as well, checked in kd.models.
    value = {k: v for k, v in value.items() if k in rules}
  return check_keys(path, value, rules)


def check_student(path, student) -> None:
  if "name" not in student:
    raise UserError(f"{path}.name is missing: expected a model's name")


def check_optimizer(path: str, train: Mapping[str, Any]) -> None:
  """Refuses a weight decay that the optimiser would ignore."""
  if train["optimizer"] == "adam" and train["weight_decay"]:
    raise UserError(
      f"{path}.weight_decay = {train['weight_decay']!r}: 'adam' has none, "
      f"expected 0, or {path}.optimizer = 'adamw' or 'sgd'"
    )


def tuple_of(rule: Check, *, most: int, least: int = 0) -> Check:
  """A tuple of `least` to `most` values that `rule` accepts, which may itself
  be of tuples."""
  count = f"{least} to {most}" if least else f"at most {most}"
  return Check(
    f"a tuple of {count}, each {rule.words}",
    lambda v: (
      isinstance(v, tuple | list)
      and least <= len(v) <= most
      and all(map(rule.accepts, v))
    ),
  )


RATE = dataclasses.replace(
  number(low=0, below=1), words="a rate in [0, 1)", traced=False
)
