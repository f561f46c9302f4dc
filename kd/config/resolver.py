"""Read a study's config: defaults, sweeps, validation. Starts no device.

A config is an `ml_collections.ConfigDict` with the sections of
DESIGN.md. `defaults()` holds every key that a study may leave alone, and
`resolve` turns a config into the plain nested dictionary that the rest of the
library reads: sweeps expanded into arms, every key checked. A mistake raises
`UserError` naming the key, what was found and what is accepted.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from kd.config import rules
from kd.errors import UserError


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
        "name": "digits",  # any TFDS name, or prompts
        "path": "",  # the file of labelled prompts, of the task `prompts`
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
        # The teacher/ folder of an earlier study; or what a black box answered:
        # JSONL or Parquet, or a store of them (kd.teachers.ingest).
        "path": "",
        "pretrained": False,  # published weights instead of training
        "black_box": False,  # only sampled answers, as text, leave the teacher
        "extract": "",  # regular expression; its group 1 is the answer
        "max_bad": 0.02,  # of a black box's lines
        "seed": 0,
        "fraction": 1.0,  # of the train split, its first rows
        "select": "last",  # or best, on validation
        "train": dict(train, jitter=0),  # pixels
      },
      "filters": {},  # chains by name (kd.teachers.filters), for signal.filter
      "signal": {
        "filter": "",  # the name of a chain; "" keeps everything
        "rank_by": "score",  # what a black box's scores are; logprob, rubric
        "rubric": {},  # weights by criterion, where rank_by is rubric
        "pool": "train",  # or rest: what the teacher didn't see
        "labelled": False,  # whether arms may see the true labels
        "live": False,  # the teacher answers inside the step, not beforehand
        "jitter": 0,  # pixels; a stored signal is that of the unshifted image
        "size": None,  # examples drawn for each seed; None is all
        "omit_classes": (),
        "only_classes": (),
        "keep": "dense",  # or top_k
        "k": 128,  # of top_k
        "temperatures": (1.0,),  # at which top_k knows the tail
        "dtype": "float32",  # of the logits: bfloat16, or int8 in blocks
        "samples": 16,  # K
        "temperature": 1.0,  # at which the samples are drawn
        "seed": 0,
        "path": "",  # a store in the signals/ folder of an earlier study
        "shard_size": 16384,  # examples; what a kill can cost at most
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


def resolve(config: ConfigDict | Mapping) -> dict[str, Any]:
  """Expands the sweeps and checks all that needs no model or data set.

  Returns a plain dictionary: the config's sections, with `arms` mapping each
  expanded arm's name to its keys, its full `signal`, `student` and `train`
  sections, `overrides` (what it changes of them) and its `baseline` (None for
  the baseline itself). Model options and objective keys are checked where
  they are known: kd.models, kd.train.arms.
  """
  tree = _plain(config)
  for key in tree:
    if key not in rules.SECTIONS and key != "arms":
      raise UserError(
        f"{key}: unknown section, expected one of "
        + ", ".join([*rules.SECTIONS, "arms"])
      )
  for key, accepted in rules.SECTIONS.items():
    if key not in tree:
      raise UserError(f"{key} is missing from the config")
    rules.check_section(key, tree[key], accepted)
  rules.check_student("student", tree["student"])
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
  return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def _merge(name: str, arm: dict, tree: Mapping) -> dict[str, Any]:
  """Fills an arm's sections from the study's and checks them."""
  merged = {k: v for k, v in arm.items() if k not in rules.ARM_SECTIONS}
  merged["overrides"] = {k: arm[k] for k in rules.ARM_SECTIONS if k in arm}
  for section in rules.ARM_SECTIONS:
    own = arm.get(section, {})
    path = f"arms.{name}.{section}"
    if not isinstance(own, Mapping):
      raise UserError(f"{path} = {own!r}: expected a section")
    if section == "train":
      accepted = rules.ARM_TRAIN
      for key in own:
        if key not in accepted:
          raise UserError(
            f"{path}.{key} = {own[key]!r}: an arm may change "
            f"{', '.join(accepted)}; the rest is shared by all arms"
          )
    # A student of another kind shares no options with the study's.
    base = {} if section == "student" and "name" in own else tree[section]
    merged[section] = {**base, **own}
    rules.check_section(path, merged[section], rules.SECTIONS[section])
  _check_filter(f"arms.{name}.signal", merged["signal"], tree)
  rules.check_student(f"arms.{name}.student", merged["student"])
  rules.check_optimizer(f"arms.{name}.train", merged["train"])
  return merged


def _check_filter(path: str, section: Mapping, tree: Mapping) -> None:
  name = section["filter"]
  if name and name not in tree["filters"]:
    raise UserError(
      f"{path}.filter = {name!r}: expected '' or one of the filters "
      f"{', '.join(tree['filters']) or '(the config has none)'}"
    )
  if name and section["keep"] == "top_k":
    raise UserError(
      f"{path}.keep = 'top_k': filters look at whole distributions; expected "
      "'dense', or signal.filter = ''"
    )
  if section["rank_by"] == "rubric" and not section["rubric"]:
    raise UserError(
      f"{path}.rubric is empty: signal.rank_by = 'rubric' needs weights by "
      "criterion"
    )


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
