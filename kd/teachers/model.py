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

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from kd import config, files, models, signals
from kd.config import sections
from kd.data.task import Split, Task, joined
from kd.errors import UserError, brief
from kd.models import functional
from kd.parallel import mesh
from kd.teachers import answers
from kd.train import arms, checkpoint, coverage, loop
from kd.train.batches import Setup, Transfer, transfer_of
from kd.train.checkpoint import Checkpoints

ARM = "teacher"


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A trained model.

  Attributes:
    model: its name and options.
    weights: {"params", "rest"}.
    fingerprint: a hash of the model's options and weights.
    fraction: of the train split, the first rows that it learned from.
    of_another_split: whether it was trained on another task or split, and so
      perhaps on examples that this one tests on.
  """

  model: Mapping[str, Any]
  weights: Mapping[str, Any]
  fingerprint: str
  fraction: float
  of_another_split: bool = False

  @functools.cached_property
  def _everywhere(self):
    return mesh.everywhere(self.weights)

  def logits(self, split: Split, rows, task: Task, batch: int):
    """Returns the logits [N, V] on the split's `rows`, as numpy float32.

    Every batch is padded to the same shape, and spread over the devices.
    """
    forward, ahead = functional.spread(self.model, task.signature, batch)
    out = []
    for i in range(0, len(rows), ahead):
      inputs = split.read(rows[i : i + ahead])
      lacking = [(0, ahead - len(inputs)), *[(0, 0)] * (inputs.ndim - 1)]
      logits = forward(self._everywhere, np.pad(inputs, lacking))
      out.append(np.asarray(logits)[: len(inputs)])
    return np.concatenate(out)


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
  it hasn't seen."""
  return max(1, round(fraction * len(task.train))) if fraction else 0


@dataclasses.dataclass(frozen=True)
class Wanted:
  """A teacher that a study needs.

  Attributes:
    section: the config's.
    task: what it is to solve.
    folder: the study's teacher/, or a replicate's.
  """

  section: Mapping[str, Any]
  task: Task
  folder: str


def obtain(
  wanted: Sequence[Wanted],
  *,
  batch: int,
  on_log: Callable[[loop.Log], None],
  on_resume: Callable[[int], None],
  room_mib: float = 1024.0,
) -> list[Teacher]:
  """Trains the teachers, continues to, or loads them.

  Those of several replicates are trained side by side in one program, as many
  as there is room for the data of.

  Args:
    wanted: one for each replicate, which differ in seeds and data alone.
    batch: examples in one forward pass of the validation split.
    on_log: told of each interval of the training.
    on_resume: told the step from which the training goes on.
    room_mib: of a device, for the data of those that train side by side.

  Raises:
    UserError: the teacher at `teacher.path` doesn't fit the task, or one's
      training diverged.
  """
  compiled, made = None, []
  size = min(_together(wanted[0].task, room_mib), len(wanted))
  for first in range(0, len(wanted), size):
    wave = wanted[first : first + size]
    found = [_found(w) for w in wave]
    if None in found:
      own = size > 1  # and so in the last wave, however short: one program
      weights, compiled = _train(wave, own, batch, on_log, on_resume, compiled)
      # One that is there stays: it would lack its weights while they are
      # written again.
      found = [
        there or _keep(one, jax.tree.map(lambda x, i=i: x[i], weights))
        for i, (there, one) in enumerate(zip(found, wave, strict=True))
      ]
    made += found
  return made


def _together(task: Task, room_mib: float) -> int:
  """Returns how many teachers are trained side by side."""
  each = (len(task.train) + len(task.validation)) * task.train.form.bytes
  return max(int(room_mib * 2**20 // each), 1) if task.resident else 1


def _found(wanted: Wanted) -> Teacher | None:
  """Returns a teacher that need not be trained, or None."""
  section, task, folder = wanted.section, wanted.task, wanted.folder
  if section["path"] or os.path.exists(_json(folder)):
    return _load(section["path"] or folder, task)
  if not section["pretrained"]:
    return None
  model = options(section)
  weights = _published(model, task)
  teacher = Teacher(model, weights, _fingerprint(model, weights), 0.0)
  os.makedirs(folder, exist_ok=True)
  _describe(folder, teacher, task, pretrained=True)
  return teacher


def _train(
  wave: Sequence[Wanted], own: bool, batch: int, on_log, on_resume, compiled
) -> tuple[Any, loop.Programs]:
  """Trains teachers side by side.

  Args:
    wave: the teachers.
    own: whether each has a validation split of its own in the program.
    batch, on_log, on_resume: of `obtain`.
    compiled: the programs of an earlier wave, or None.

  Returns:
    (the teachers' weights, with an axis of teachers before them; the programs).
  """
  section, task = wave[0].section, wave[0].task
  arm = {
    "objective": "hard",
    "target": "truth",
    "student": options(section),
    "train": section["train"],
    "signal": {"labelled": True, "pool": "teacher"},
  }
  count, size = first_unseen(section["fraction"], task), len(task.train)
  inputs = joined([w.task.train for w in wave])
  starts = np.arange(len(wave), dtype=np.int32)[:, None] * size
  transfer = Transfer(
    inputs=inputs,
    signal=signals.of_labels(inputs.labels()),
    rows=starts + np.arange(count, dtype=np.int32),
    jitter=section["train"]["jitter"],
  )
  transfers = {transfer_of(arm["signal"]): transfer}
  groups = arms.group({ARM: arm}, task.num_classes)
  groups = coverage.bind(groups, [transfers], task.num_classes)
  setup = Setup(
    task=task,
    transfers=transfers,
    seeds=[w.section["seed"] for w in wave],
    train=section["train"],
    eval_batch=batch,
    validations=[w.task.validation for w in wave] if own else (),
  )
  os.makedirs(wave[0].folder, exist_ok=True)
  checkpoints = Checkpoints(os.path.join(wave[0].folder, "checkpoints"))
  compiled = compiled or loop.programs(groups, setup)
  state = loop.fit(groups, setup, checkpoints, on_log, on_resume, compiled)[ARM]
  checkpoints.close()
  if np.any(state.diverged):
    lost = int(np.argmax(state.diverged > 0))
    raise UserError(
      f"teacher.train: the loss or the weights of {wave[lost].folder} were "
      f"not finite at step {int(state.diverged[lost])}: lower "
      f"teacher.train.learning_rate = {section['train']['learning_rate']}"
    )
  chosen = state.best if section["select"] == "best" else state.weights
  return chosen, compiled


def _keep(wanted: Wanted, weights: Mapping[str, Any]) -> Teacher:
  """Writes a trained teacher into its folder, whole or not at all."""
  section, folder = wanted.section, wanted.folder
  # Without a teacher.json, weights here are those of a run that was killed.
  shutil.rmtree(os.path.join(folder, "weights"), ignore_errors=True)
  os.makedirs(folder, exist_ok=True)
  final = Checkpoints(os.path.join(folder, "weights"), keep=1)
  final.save(section["train"]["steps"], weights)
  final.close()
  model = options(section)
  fingerprint = _fingerprint(model, weights)
  teacher = Teacher(model, weights, fingerprint, section["fraction"])
  _describe(folder, teacher, wanted.task, pretrained=False)
  return teacher


def _describe(
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


def _published(model: Mapping[str, Any], task: Task) -> dict[str, Any]:
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


def _load(folder: str, task: Task) -> Teacher:
  found = _description(folder)
  _check_fit(folder, found, task)
  other = not found.get("pretrained") and found["task"] != task.fingerprint
  model = config.tuples(found["model"])
  if found.get("pretrained"):
    weights = _published(model, task)
    if _fingerprint(model, weights) != found["fingerprint"]:
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
  if _fingerprint(model, weights) != found["fingerprint"]:
    raise UserError(
      f"{folder}: the weights are not those that teacher.json tells of: "
      f"expected the fingerprint {found['fingerprint']}"
    )
  return Teacher(model, weights, found["fingerprint"], found["fraction"], other)


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


def _fingerprint(model: Mapping, weights: Any) -> str:
  digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode())
  for leaf in jax.tree.leaves(weights):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()[:16]
