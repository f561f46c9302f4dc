"""Read a study's config: defaults, sweeps, validation. Starts no device.

A config is an `ml_collections.ConfigDict` with the sections of
DESIGN.md. `defaults()` holds every key that a study may leave alone, and
`resolve` turns a config into the plain nested dictionary that the rest of the
library reads: sweeps expanded into arms, every key checked. A mistake raises
`UserError` naming the key, what was found and what is accepted.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

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

TEACHER = {
  "path": TEXT,
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
  "signal": {
    "pool": choice("train", "rest"),
    "labelled": FLAG,
    "size": optional(integer(1)),
    "omit_classes": integers(0),
    "only_classes": integers(0),
    "samples": integer(1),
    "temperature": number(above=0),
    "seed": integer(0),
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


def sweep(*values) -> ConfigDict:
  """A grid as a config value: each value makes an arm.

  `temperature=sweep(1.0, 4.0)` in arm `soft` makes the arms
  `soft[temperature=1]` and `soft[temperature=4]`. On the command line:
  `--config.arms.soft.temperature.sweep='(1.0, 2.0)'`.
  """
  return ConfigDict({"sweep": tuple(values)})


def defaults() -> ConfigDict:
  """Every key of a study outside its arms, with its usual value."""
  train = {
    "steps": 400,
    "batch_size": 64,
    "optimizer": "adam",  # sgd | adam | adamw
    "learning_rate": 3e-3,
    "weight_decay": 0.0,  # decoupled; of sgd and adamw
    "momentum": 0.9,  # of sgd
    "schedule": "constant",  # constant | cosine (to 0 at `steps`)
    "warmup_steps": 0,  # linear, from 0
    "log_every": 20,  # steps in one dispatch: losses, validation
    "checkpoint_every": 100,  # steps; rounded up to a dispatch
    "keep": 2,  # checkpoints
  }
  return ConfigDict(
    {
      "study": "",
      "question": "",
      "seeds": 5,  # how many
      "seed": 0,  # the first
      "baseline": "hard",
      "task": {
        "name": "digits",  # any TFDS name
        "data_dir": "",  # "" is TFDS's own default
        "seed": 0,  # of the split
        "train": "train[:60%]",
        "validation": "train[60%:80%]",
        "test": "train[80%:]",
        "image_size": 0,  # 0 keeps the size
        "text_features": 4096,  # hashed n-grams, for text
        "resident": "auto",
        "resident_mib": 1024.0,
      },
      "teacher": {
        "path": "",  # the teacher/ folder of an earlier study
        "seed": 0,
        "fraction": 1.0,  # of the train split, its first rows
        "select": "last",  # or best, on validation
        "train": dict(train, jitter=0),  # pixels
      },
      "signal": {
        "pool": "train",  # or rest: what the teacher didn't see
        "labelled": False,  # whether arms may see the true labels
        "size": None,  # examples drawn for each seed; None is all
        "omit_classes": (),
        "only_classes": (),
        "samples": 16,  # K
        "temperature": 1.0,  # at which the samples are drawn
        "seed": 0,
      },
      "student": {},
      "train": dict(train, runs="auto"),
      "arms": {},
      "evaluate": {
        "metric": "accuracy",  # what the verdict is about
        "batch_size": 1024,
        "bins": 15,
        "shift_classes": (),  # biases shifted, chosen on validation
      },
      "mesh": {"seeds": 1},  # devices over which the seeds are spread
    }
  )


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
      raise UserError(f"{path}.{key} is missing: expected {rule.words}")
    check(f"{path}.{key}", found[key], rule)


def resolve(config: ConfigDict | Mapping) -> dict[str, Any]:
  """Expands the sweeps and checks all that needs no model or data set.

  Returns a plain dictionary: the config's sections, with `arms` mapping each
  expanded arm's name to its keys, its full `signal`, `student` and `train`
  sections, `overrides` (what it changes of them) and its `baseline` (None for
  the baseline itself). Model options and objective keys are checked where
  they are known: kd.models, kd.arms.
  """
  tree = _plain(config)
  for key in tree:
    if key not in SECTIONS and key != "arms":
      raise UserError(
        f"{key}: unknown section, expected one of "
        + ", ".join([*SECTIONS, "arms"])
      )
  for key, rules in SECTIONS.items():
    if key not in tree:
      raise UserError(f"{key} is missing from the config")
    _check_section(key, tree[key], rules)
  _check_student("student", tree["student"])
  if not tree["arms"]:
    raise UserError("arms is empty: expected at least one arm")
  variants = {name: _expand(name, arm) for name, arm in tree["arms"].items()}
  arms = {}
  for family, members in variants.items():
    for name, (swept, arm) in members.items():
      target = arm.get("baseline", tree["baseline"])
      key = f"arms.{name}.baseline" if "baseline" in arm else "baseline"
      arms[name] = _merge(name, arm, tree) | {
        "baseline": _baseline(key, target, family, name, swept, variants)
      }
  return {**tree, "arms": arms}


def _plain(node: ConfigDict | Mapping) -> dict[str, Any]:
  """Copies a config to dictionaries."""
  return {
    k: _plain(v) if isinstance(v, Mapping | ConfigDict) else v
    for k, v in node.items()
  }


def _check_section(path, value, rules) -> None:
  if isinstance(rules, Check):
    return check(path, value, rules)
  if not isinstance(value, Mapping):
    raise UserError(f"{path} = {value!r}: expected a section")
  # These two hold the model's own options as well, checked in kd.models.
  free = path.endswith("student") or path == "teacher"
  for key in value:
    if key not in rules and not free:
      raise UserError(
        f"{path}.{key} = {value[key]!r}: unknown key, expected one of "
        + ", ".join(rules)
      )
  for key, rule in rules.items():
    if key not in value:
      raise UserError(f"{path}.{key} is missing from the config")
    _check_section(f"{path}.{key}", value[key], rule)
  return None


def _check_student(path, student) -> None:
  if "name" not in student:
    raise UserError(f"{path}.name is missing: expected a model's name")


def check_optimizer(path: str, train: Mapping[str, Any]) -> None:
  """Refuses a weight decay that the optimiser would ignore."""
  if train["optimizer"] == "adam" and train["weight_decay"]:
    raise UserError(
      f"{path}.weight_decay = {train['weight_decay']!r}: 'adam' has none, "
      f"expected 0, or {path}.optimizer = 'adamw' or 'sgd'"
    )


def tuples(tree: Any) -> Any:
  """Turns the lists of a tree read from JSON back into tuples."""
  if isinstance(tree, Mapping):
    return {k: tuples(v) for k, v in tree.items()}
  return tuple(map(tuples, tree)) if isinstance(tree, list) else tree


def _expand(name: str, arm: Mapping) -> dict[str, tuple[dict, dict]]:
  """Names the arms that one entry makes: {name: (swept values, arm)}."""
  if not isinstance(arm, Mapping) or "objective" not in arm:
    raise UserError(f"arms.{name}.objective is missing")
  axes = dict(sorted(_sweeps((), arm)))
  for path, values in axes.items():
    if not values:
      raise UserError(f"arms.{name}.{'.'.join(path)}: the sweep is empty")
  members = {}
  for values in itertools.product(*axes.values()):
    swept = {".".join(p): v for p, v in zip(axes, values, strict=True)}
    member = _plain(arm)
    for path, value in zip(axes, values, strict=True):
      _put(member, path, value)
    label = ",".join(f"{k}={_short(v)}" for k, v in swept.items())
    members[f"{name}[{label}]" if label else name] = (swept, member)
  return members


def _sweeps(path, node):
  for key, value in node.items():
    if isinstance(value, Mapping):
      if set(value) == {"sweep"}:
        yield (*path, key), tuple(value["sweep"])
      else:
        yield from _sweeps((*path, key), value)


def _put(node, path, value) -> None:
  for key in path[:-1]:
    node = node[key]
  node[path[-1]] = value


def _short(value) -> str:
  if isinstance(value, tuple | list):
    return "x".join(map(_short, value)) or "none"
  return f"{value:g}" if isinstance(value, float) else str(value)


def _merge(name: str, arm: dict, tree: Mapping) -> dict[str, Any]:
  """Fills an arm's sections from the study's and checks them."""
  merged = {k: v for k, v in arm.items() if k not in ARM_SECTIONS}
  merged["overrides"] = {k: arm[k] for k in ARM_SECTIONS if k in arm}
  for section in ARM_SECTIONS:
    own = arm.get(section, {})
    path = f"arms.{name}.{section}"
    if not isinstance(own, Mapping):
      raise UserError(f"{path} = {own!r}: expected a section")
    if section == "train":
      accepted = ARM_TRAIN
      for key in own:
        if key not in accepted:
          raise UserError(
            f"{path}.{key} = {own[key]!r}: an arm may change "
            f"{', '.join(accepted)}; the rest is shared by all arms"
          )
    # A student of another kind shares no options with the study's.
    base = {} if section == "student" and "name" in own else tree[section]
    merged[section] = {**base, **own}
    _check_section(path, merged[section], SECTIONS[section])
  _check_student(f"arms.{name}.student", merged["student"])
  check_optimizer(f"arms.{name}.train", merged["train"])
  return merged


def _baseline(key, target, family, name, swept, variants) -> str | None:
  """Finds the arm that this one is compared with, or None for a baseline.

  A target with a sweep stands for the one of its variants whose swept values
  agree with this arm's on the keys that both sweep.
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
