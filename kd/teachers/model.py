"""The teacher: trained by the study, loaded from an earlier one, or published.

A study keeps its teacher in `teacher/`: Orbax checkpoints of its training and
a teacher.json that says what it is. Another study takes it from there with
`--config.teacher.path=OTHER/teacher`.

With `teacher.pretrained` the model fills itself with published weights, and
nothing is trained: teacher.json keeps their fingerprint, and the weights stay
where they were installed. A model class offers this with two methods (see
kd.models.magika): `published_classes()`, which the task's classes must be, and
`load_published()`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from kd import config, files, models
from kd.config import sections
from kd.data import tokenizers, vocabulary
from kd.data.task import Task
from kd.errors import UserError, brief
from kd.models import Decoder, checkpoints, functional
from kd.teachers import answers, prompted
from kd.teachers.teacher import Teacher
from kd.train import checkpoint


def options(section: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the model's name and options in a config's teacher section."""
  return {k: v for k, v in section.items() if k not in sections.TEACHER}


def check(section: Mapping[str, Any], task: Task) -> float:
  """Checks a config's teacher section against its task.

  Returns:
    The fraction of the train split that the teacher learns, or learned, from.
  """
  if has_answers(section):
    return 0.0
  if checkpoints.is_checkpoint(section["path"]):
    if is_prompted(section, task):
      prompted.check(section, task)
      return section["fraction"]
    _check_checkpoint(section, task)
    return 0.0
  if section["path"]:
    found = _description(section["path"])
    _check_fit(section["path"], found, task)
    return found["fraction"]
  if section["pretrained"]:
    _check_published(section["name"], task)
  # Raises where the inputs don't fit.
  functional.define(options(section), task.signature)
  check_jitter("teacher.train.jitter", section["train"]["jitter"], task)
  return 0.0 if section["pretrained"] else section["fraction"]


def is_prompted(section: Mapping[str, Any], task: Task) -> bool:
  """Whether the teacher is a language model that says how likely the classes of
  texts are, which it reads in a prompt of its own."""
  tokens = task.tokens
  scores = tokens is None or (tokens.classified and section["black_box"])
  return bool(scores) and checkpoints.is_checkpoint(section["path"])


def has_answers(section: Mapping[str, Any]) -> bool:
  """Whether `teacher.path` holds a black box's answers, not a model."""
  return answers.is_answers(section["path"])


def check_jitter(path: str, pixels: int, task: Task) -> None:
  """Raises UserError where inputs that are no images are to be shifted."""
  if pixels and len(task.input_shape) != 3:
    raise UserError(
      f"{path} = {pixels}: expected 0, since inputs of shape "
      f"{task.input_shape} are no images"
    )


def first_unseen(fraction: float, task: Task) -> int:
  """Returns the first row of the train split that a teacher of a fraction of
  it hasn't seen; of tasks of tokens filled to one size, as many are left."""
  size = len(task.train)
  left = size - round(fraction * size)
  return max(1, task.train.filled - left) if fraction else 0


def describe(
  folder: str, teacher: Teacher, task: Task, *, pretrained: bool
) -> None:
  """Writes teacher.json: with it the folder holds a teacher."""
  files.write_json(
    _json(folder),
    {
      "model": teacher.model,
      "num_classes": task.num_classes,
      "input_shape": list(task.input_shape),
      "task": task.fingerprint,
      "fingerprint": teacher.fingerprint,
      "fraction": teacher.fraction,
      "pretrained": pretrained,
    },
  )


def _check_published(name: str, task: Task) -> None:
  """Checks that a model has published weights, of the task's classes."""
  kind: Any = models.MODELS[name]
  if not hasattr(kind, "load_published"):
    able = [k for k, v in models.MODELS.items() if hasattr(v, "load_published")]
    raise UserError(
      f"teacher.pretrained = True: model {name!r} has no published weights, "
      f"expected teacher.name to be one of {', '.join(able)}"
    )
  classes = kind.published_classes()
  if tuple(task.class_names) != tuple(classes):
    raise UserError(
      f"teacher.pretrained = True: {name!r} tells {len(classes)} classes apart "
      f"({brief(classes)}), which are not those of task.name = {task.name!r} "
      f"({brief(task.class_names)})"
    )


def published(model: Mapping[str, Any], task: Task) -> dict[str, Any]:
  """Returns a model's published weights, {"params", "rest"}."""
  made: Any = models.create(
    input_shape=task.input_shape,
    num_classes=task.num_classes,
    rngs=nnx.Rngs(0),
    **model,
  )
  made.load_published()
  _, params, rest = nnx.split(made, nnx.Param, ...)
  return {"params": params, "rest": rest}


def _check_fit(folder: str, found: Mapping, task: Task) -> None:
  for key, value in (
    ("num_classes", task.num_classes),
    ("input_shape", list(task.input_shape)),
  ):
    if found[key] != value:
      raise UserError(
        f"teacher.path = {folder!r}: the teacher has {key} = {found[key]}, "
        f"the student's task {task.name!r} has {value}"
      )


def _check_checkpoint(section: Mapping[str, Any], task: Task) -> None:
  """Checks that a language model reads what the task's tokenizer writes."""
  assert task.tokens is not None
  folder = checkpoints.folder(section["path"])
  check_tokenizer(folder, task)
  functional.define(_checkpoint(section, folder), task.signature)


def check_tokenizer(folder: str, task: Task) -> None:
  """Raises UserError unless a language model's is the task's tokenizer."""
  assert task.tokens is not None
  own = tokenizers.load(folder)
  if own.fingerprint != task.tokens.tokenizer.fingerprint:
    vocabulary.refuse_others(own, task.tokens.tokenizer)


def kind(section: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the name and options of the model that a config's section means."""
  if checkpoints.is_checkpoint(section["path"]):
    return _checkpoint(section, checkpoints.folder(section["path"]))
  if section["path"]:
    return config.tuples(_description(section["path"])["model"])
  return options(section)


def _checkpoint(section: Mapping[str, Any], folder: str) -> dict[str, Any]:
  own = {k: v for k, v in options(section).items() if k != "name"}
  return {**own, "name": "checkpoint", "folder": folder}


def load_checkpoint(section: Mapping[str, Any], task: Task) -> Teacher:
  """Returns the language model that `teacher.path` names."""
  folder = checkpoints.folder(section["path"])
  kind = _checkpoint(section, folder)
  if is_prompted(section, task):
    return _load_prompted(section, kind, task)
  weights = checkpoint_weights(kind, task)
  what = {k: v for k, v in kind.items() if k != "folder"}
  return Teacher(kind, weights, fingerprint_of(what, weights), 0.0)


def _load_prompted(
  section: Mapping[str, Any], kind: Mapping[str, Any], task: Task
) -> Teacher:
  """Returns a language model that reads the task's texts in a prompt."""
  prompt, model = prompted.make(section, task), _read(kind)
  _, params, rest = nnx.split(model, nnx.Param, ...)
  weights = {"params": params, "rest": rest}
  kind = {**kind, "prompt": prompt.facts}
  what = {k: v for k, v in kind.items() if k != "folder"}
  return Teacher(
    kind,
    weights,
    fingerprint_of(what, weights),
    section["fraction"],
    reader=prompted.Reader(model, prompt),
  )


def _read(kind: Mapping[str, Any]) -> Decoder:
  """Reads the decoder that options of the model `checkpoint` name."""
  return models.load_pretrained(
    kind["folder"],
    kind.get("dtype", "float32"),
    param_dtype=kind.get("param_dtype", "float32"),
  )


def checkpoint_weights(kind: Mapping[str, Any], task: Task) -> dict[str, Any]:
  """Returns a checkpoint's weights, {"params", "rest"}.

  Args:
    kind: options of the model `checkpoint`.
    task: whose ids students know.
  """
  params = nnx.state(_read(kind), nnx.Param)
  model: Any = nnx.eval_shape(
    lambda: models.create(
      input_shape=task.input_shape,
      num_classes=task.num_classes,
      rngs=nnx.Rngs(0),
      **kind,
    )
  )
  nnx.update(model, params)
  if task.tokens and task.tokens.subset:
    model.kept = nnx.Variable(jax.numpy.asarray(task.tokens.subset.ids))
  _, params, rest = nnx.split(model, nnx.Param, ...)
  return {"params": params, "rest": rest}


def obtained(section: Mapping[str, Any], folder: str, task: Task) -> Teacher:
  """Returns the teacher that a study has, or keeps in `folder`."""
  if checkpoints.is_checkpoint(section["path"]):
    return load_checkpoint(section, task)
  return load(section["path"] or folder, task)


def load(folder: str, task: Task) -> Teacher:
  found = _description(folder)
  _check_fit(folder, found, task)
  other = not found.get("pretrained") and found["task"] != task.fingerprint
  model = config.tuples(found["model"])
  if found.get("pretrained"):
    weights = published(model, task)
    if fingerprint_of(model, weights) != found["fingerprint"]:
      raise UserError(
        f"{folder}: the weights that are installed for {model['name']!r} are "
        "not those that teacher.json tells of: expected the package's earlier "
        "version, or another workdir"
      )
    return Teacher(model, weights, found["fingerprint"], found["fraction"])
  _, init = functional.define(model, task.signature)
  params, rest = jax.eval_shape(init, jax.random.key(0))
  like = {"params": params, "rest": rest}
  weights = checkpoint.read(os.path.join(folder, "weights"), like)
  if fingerprint_of(model, weights) != found["fingerprint"]:
    raise UserError(
      f"{folder}: the weights are not those that teacher.json tells of: "
      f"expected the fingerprint {found['fingerprint']}"
    )
  return Teacher(model, weights, found["fingerprint"], found["fraction"], other)


def is_there(folder: str) -> bool:
  """Whether a folder holds a teacher."""
  return os.path.exists(_json(folder))


def _json(folder: str) -> str:
  return os.path.join(folder, "teacher.json")


def _description(folder: str) -> dict[str, Any]:
  """Returns what teacher.json says.

  Raises:
    UserError: it can't be read, or lacks something.
  """
  path = _json(folder)
  found = files.read_json(path, "description of a teacher")
  needed: dict[str, Any] = {
    "model": dict,
    "num_classes": int,
    "input_shape": list,
    "task": str,
    "fingerprint": str,
    "fraction": int | float,
  }
  for key, kind in needed.items():
    if not isinstance(found, dict) or not isinstance(found.get(key), kind):
      raise UserError(
        f"{path}: lacks {key!r}, expected what a study writes of its teacher"
      )
  return found


def fingerprint_of(model: Mapping, weights: Any) -> str:
  digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode())
  for leaf in jax.tree.leaves(weights):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()[:16]
