"""The table of keys: each with its usual value, and what it accepts.

A section that is OPEN also holds options of the model that it names, and
`arms` are entries of one's own; both are checked where they are known
(kd.models, kd.train.arms).
"""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from kd.config import rules
from kd.config.costs import COST
from kd.config.rules import (
  FLAG,
  NAME,
  PATH,
  PROSE,
  REGEX,
  TEXT,
  WEIGHTS,
  Check,
  Key,
  choice,
  integer,
  integers,
  number,
  optional,
  tuple_of,
)
from kd.errors import UserError

MOST_ROWS = 2**20  # of a batch
SEED = integer(0, 2**32 - 1)
SIGNAL_SEED = integer(0, 2**32 - 3)
COUNT = integer(1, 10_000)
COUNTS = Check(
  f"{COUNT.words}, or a tuple of them",
  lambda v: COUNT.accepts(v) or tuple_of(COUNT, least=1).accepts(v),
)
STUDY = Check(f"'' or {NAME.words}", lambda v: v == "" or NAME.accepts(v))
SECTION = Check("a section", lambda v: isinstance(v, Mapping))

TRAIN = {
  "steps": Key(400, integer(1)),
  "batch_size": Key(64, integer(1, MOST_ROWS)),
  # Parts in which a step looks at its batch, so that it takes less memory.
  "accumulate": Key(1, integer(1, MOST_ROWS)),
  "optimizer": Key("adam", choice("sgd", "adam", "adamw")),
  "learning_rate": Key(3e-3, number(above=0)),
  # Decoupled; of sgd and adamw.
  "weight_decay": Key(0.0, number(low=0)),
  "momentum": Key(0.9, number(low=0, below=1)),  # of sgd
  # Cosine goes to 0 at `steps`.
  "schedule": Key("constant", choice("constant", "cosine")),
  "warmup_steps": Key(0, integer(0)),  # linear, from 0
  # Steps in one dispatch, after which losses and validation are logged.
  "log_every": Key(20, integer(1)),
  # Steps; rounded up to a dispatch.
  "checkpoint_every": Key(100, integer(1)),
  "keep": Key(2, integer(1, 10_000)),  # checkpoints
}
TEACHER = {
  # The teacher/ folder of an earlier study; or what a black box answered:
  # JSONL or Parquet, or a store of them (kd.teachers.ingest).
  "path": Key("", PATH),
  "pretrained": Key(False, FLAG),  # published weights instead of training
  # Only sampled answers, as text, leave the teacher.
  "black_box": Key(False, FLAG),
  "extract": Key("", REGEX),  # its group 1 is the answer
  "max_bad": Key(0.02, number(low=0, high=1)),  # of a black box's lines
  "seed": Key(0, SEED),
  # How a language model that is a black box writes; its temperature, and how
  # many completions, are signal's.
  "generate": {
    "max_new_tokens": Key(64, integer(1, 2**20)),
    "top_k": Key(None, optional(integer(1))),
    "top_p": Key(None, optional(number(above=0, high=1))),
  },
  # Of the train split, its first rows.
  "fraction": Key(1.0, number(above=0, high=1)),
  "select": Key("last", choice("last", "best")),  # best on validation
  "train": TRAIN | {"jitter": Key(0, integer(0, 64))},  # pixels
  # Of a language model that classifies texts (kd.teachers.prompted).
  "prompt": {
    "shots": Key(0, integer(0, 1000)),  # examples of the train split
    "seed": Key(0, SEED),  # that draws them
    # Around a text {text}, with {label} at the end.
    "template": Key("{text}\n\nLabel: {label}", PROSE),
    "words": Key((), tuple_of(TEXT)),  # of the classes; () is their names
  },
}
SIGNAL = {
  "filter": Key("", TEXT),  # one of `filters`; "" keeps all
  # The prior of the teacher's answers (kd.signals.calibrate): its own, or one
  # under which all classes are equally likely on average.
  "calibrate": Key("none", choice("none", "uniform")),
  # What a black box's scores are.
  "rank_by": Key("score", choice("score", "logprob", "rubric")),
  "rubric": Key({}, WEIGHTS),  # by criterion, where rank_by is rubric
  # What comes before a prompt whose rationale is asked for.
  "rationale": Key("", PROSE),
  # The train split, or the rest: what the teacher didn't see of it.
  "pool": Key("train", choice("train", "rest")),
  "labelled": Key(False, FLAG),  # whether arms may see the true labels
  # The teacher answers inside the step, not beforehand.
  "live": Key(False, FLAG),
  # Pixels; a stored signal is that of the unshifted image.
  "jitter": Key(0, integer(0, 64)),
  # Examples drawn for each seed; None is all.
  "size": Key(None, optional(integer(1))),
  "omit_classes": Key((), integers(0)),
  "only_classes": Key((), integers(0)),
  "keep": Key("dense", choice("dense", "top_k")),
  "k": Key(128, integer(1)),  # of top_k
  # At which top_k knows the tail.
  "temperatures": Key((1.0,), tuple_of(number(above=0), least=1)),
  # Of the logits; int8 is in blocks.
  "dtype": Key("float32", choice("float32", "bfloat16", "int8")),
  "samples": Key(16, integer(0, 4096)),  # K
  "temperature": Key(1.0, number(above=0)),  # at which samples are drawn
  # A black box that is made here draws with this and the next two.
  "seed": Key(0, SIGNAL_SEED),
  "path": Key("", PATH),  # a store in the signals/ of an earlier study
  # Examples; what a kill can cost at most.
  "shard_size": Key(16384, integer(1, 2**24)),
}
SECTIONS: dict[str, Any] = {
  "study": Key("", STUDY),
  "question": Key("", PROSE),
  "seeds": Key(5, integer(1, 100_000)),  # how many
  "seed": Key(0, SEED),  # the first
  # How often all of it is done again, and what changes (kd.study.replicates).
  "replicates": {
    "count": Key(1, COUNTS),
    "vary": Key((), tuple_of(choice("split", "teacher", "signal"))),
  },
  # Trials of each arm before its own runs, and their space (kd.study.tune).
  "tune": {"budget": Key(0, integer(0, 10_000)), "space": Key({}, SECTION)},
  "baseline": Key("hard", TEXT),
  # "A - B" of two arms, or "A - B within MARGIN", tested with the rest.
  "contrasts": Key((), tuple_of(TEXT)),
  "task": {
    "name": Key("digits", TEXT),  # any TFDS name, or one of kd.data.registry
    "path": Key("", PATH),  # the file of a task that is no TFDS data set
    "data_dir": Key("", PATH),  # "" is TFDS's own default
    "seed": Key(0, SEED),  # of the split
    "train": Key("train[:60%]", TEXT),
    "validation": Key("train[60%:80%]", TEXT),
    "test": Key("train[80%:]", TEXT),
    # Classes that nobody learns: left out of all three (kd.data.held_out).
    "held_out": Key((), integers(0)),
    # The TFDS feature that says which examples belong together.
    "group": Key("", TEXT),
    "image_size": Key(0, integer(0, 8192)),  # pixels; 0 keeps the size
    "text_features": Key(4096, integer(1, 2**24)),  # hashed n-grams, for text
    # Texts as tokens, with a label for each (kd.data.token_task).
    "tokens": {
      "length": Key(0, integer(0, 2**20)),  # L; 0: texts are hashed n-grams
      # "bytes"; "bpe", trained on the training texts; or a checkpoint's.
      "tokenizer": Key("bytes", TEXT),
      "vocab_size": Key(1024, integer(257, 2**20)),  # of "bpe"
      # The share of training tokens whose ids students know; None is all ids.
      "coverage": Key(None, optional(number(above=0, high=1))),
      "pack": Key(True, FLAG),  # several texts in a row
      "chat": Key(False, FLAG),  # through the tokenizer's chat template
      "feature": Key("", TEXT),  # of TFDS; "" is `text`, or the only one
      "unit": Key("document", choice("document", "line")),  # of text files
      # Around the {text} of a TFDS data set with classes: a prompt, whose
      # completion is the class's name. "" is texts alone.
      "template": Key("", PROSE),
      # What {text} has at most; the rest is cut off. None is all of it.
      "characters": Key(None, optional(integer(1))),
    },
    # Whether the inputs lie on the device as a whole.
    "resident": Key("auto", choice("auto", True, False)),
    "resident_mib": Key(1024.0, number(above=0)),
  },
  "teacher": TEACHER,
  # Chains by name (kd.teachers.filters), for signal.filter.
  "filters": Key({}, SECTION),
  "signal": SIGNAL,
  "student": {},
  "train": TRAIN | {"runs": Key("auto", choice("auto", "vmap", "map"))},
  "arms": Key({}, SECTION),
  "evaluate": {
    "metric": Key("accuracy", TEXT),  # what the verdict is about
    "batch_size": Key(1024, integer(1, MOST_ROWS)),
    "bins": Key(15, integer(2, 10_000)),
    # What a smaller or faster student may lose of the metric, in its unit.
    "margin": Key(0.01, number(above=0)),
    # What each arm takes to ask: bytes, memory, seconds.
    "measure": Key(False, FLAG),
    # Test examples in the report, where teacher and students disagree most.
    "disagreements": Key(12, integer(0, 100)),
    # Named sets beside the test split (kd.config.outside).
    "outside": Key({}, SECTION),
    # Biases shifted, chosen on validation.
    "shift_classes": Key((), integers(0)),
    # What decoders write after the test prompts, greedily.
    "generate": {
      "prompts": Key(0, integer(0)),  # at most; 0 asks for nothing
      "max_new_tokens": Key(64, integer(1, 2**20)),
      "metrics": Key(
        ("exact_match", "token_f1", "rouge_l", "text_agreement"),
        tuple_of(TEXT),
      ),
      "schema": Key("", PATH),  # a JSON Schema, for json_valid
      "shown": Key(4, integer(0, 100)),  # prompts in the report
    },
  },
  "cost": COST,
  "mesh": {"seeds": Key(1, integer(1))},  # devices that share the seeds
  # What an exported model's card says; "" is not stated.
  "licence": {
    "model": Key("", TEXT),
    "data": Key("", TEXT),
    "teacher": Key("", TEXT),
  },
}
OPEN = ("student", "teacher")
IN_ARMS = ("signal", "student", "train")  # what an arm may override
# What an arm may change of `train`: the rest is what the arms share.
IN_ARMS_TRAIN = ("optimizer", "learning_rate", "weight_decay", "momentum")


def defaults() -> ConfigDict:
  """Every key of a study outside its arms, with its usual value.

  A key takes a value of any kind until the study starts, so that a sweep can
  stand where a number was, and the other way round.
  """
  return ConfigDict(_usual(SECTIONS), type_safe=False)


def _usual(keys: Mapping[str, Any]) -> dict[str, Any]:
  return {
    name: key.default if isinstance(key, Key) else _usual(key)
    for name, key in keys.items()
  }


def check_section(name: str, path: str, found: Any) -> None:
  """Raises UserError unless `found` is as the section `name` has to be."""
  _check(path, found, SECTIONS[name], name in OPEN)


def _check(path: str, found: Any, keys: Any, is_open: bool = False) -> None:
  if isinstance(keys, Key):
    return rules.check(path, found, keys.rule)
  if not isinstance(found, Mapping):
    raise UserError(f"{path} = {found!r}: expected a section")
  if not is_open:
    rules.refuse_unknown(path, found, keys)
  for key, own in keys.items():
    if key not in found:
      raise UserError(f"{path}.{key} is missing from the config")
    _check(f"{path}.{key}", found[key], own)


def normal(name: str, found: Any) -> Any:
  """Returns a checked section in one form, so that one study is said once.

  Whole numbers are floats where its rules say number, and a path's ~ is the
  home folder.
  """
  return _normal(found, SECTIONS[name])


def _normal(found: Any, keys: Any) -> Any:
  if not isinstance(keys, Key):
    return {
      k: _normal(v, keys[k]) if k in keys else v for k, v in found.items()
    }
  if keys.rule is PATH:
    return os.path.expanduser(found)
  is_whole = keys.rule.traced and isinstance(found, int)
  return float(found) if is_whole else found


def fill(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a section, checked and in one form (`normal`), with the usual
  values of what it lacks."""
  section = _over(_usual(SECTIONS[name]), found)
  check_section(name, name, section)
  return normal(name, section)


def completed(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a resolved config with the usual values of keys that it lacks,
  which is one of a time before there were these keys."""
  usual = _usual(SECTIONS)
  own = {k: usual[k] for k in IN_ARMS}
  whole = _over(usual, tree)
  arms = {name: _over(own, arm) for name, arm in whole["arms"].items()}
  return {**whole, "arms": arms}


def _over(usual: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the usual values, and over them those found, section by section."""
  return {
    **usual,
    **{
      k: _over(usual[k], v)
      if isinstance(usual.get(k), Mapping)
      and isinstance(v, Mapping | ConfigDict)
      else v
      for k, v in found.items()
    },
  }


def check_train(path: str, train: Mapping[str, Any]) -> None:
  """Refuses a weight decay that the optimiser would ignore, and a warm-up that
  would not end."""
  if train["batch_size"] % train["accumulate"]:
    raise UserError(
      f"{path}.accumulate = {train['accumulate']}: expected a divisor of "
      f"{path}.batch_size = {train['batch_size']}"
    )
  if train["warmup_steps"] >= train["steps"]:
    raise UserError(
      f"{path}.warmup_steps = {train['warmup_steps']}: expected fewer than "
      f"{path}.steps = {train['steps']}"
    )
  if train["optimizer"] == "adam" and train["weight_decay"]:
    raise UserError(
      f"{path}.weight_decay = {train['weight_decay']!r}: 'adam' has none, "
      f"expected 0, or {path}.optimizer = 'adamw' or 'sgd'"
    )
