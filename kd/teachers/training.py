"""Teachers that a study trains: side by side, one for each replicate.

A teacher that is there already, in its folder or at `teacher.path`, is loaded;
one with published weights is only described.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kd import signals
from kd.data.task import Task, joined
from kd.errors import UserError
from kd.teachers import model
from kd.train import arms, coverage, loop
from kd.train.batches import Setup, Transfer, transfer_of
from kd.train.checkpoint import Checkpoints

ARM = "teacher"


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
) -> list[model.Teacher]:
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


def _found(wanted: Wanted) -> model.Teacher | None:
  """Returns a teacher that need not be trained, or None."""
  section, task, folder = wanted.section, wanted.task, wanted.folder
  if section["path"] or model.is_there(folder):
    return model.obtained(section, folder, task)
  if not section["pretrained"]:
    return None
  options = model.options(section)
  weights = model.published(options, task)
  teacher = model.Teacher(
    options, weights, model.fingerprint_of(options, weights), 0.0
  )
  os.makedirs(folder, exist_ok=True)
  model.describe(folder, teacher, task, pretrained=True)
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
    "student": model.options(section),
    "train": section["train"],
    "signal": {"labelled": True, "pool": "teacher"},
  }
  count = min(
    min(model.first_unseen(section["fraction"], w.task), w.task.train.filled)
    for w in wave
  )
  inputs = joined([w.task.train for w in wave])
  starts = np.arange(len(wave), dtype=np.int32)[:, None] * len(task.train)
  transfer = Transfer(
    inputs=inputs,
    signal=signals.of_labels(inputs.labels(), inputs.counts()),
    rows=starts + np.arange(count, dtype=np.int32),
    jitter=section["train"]["jitter"],
    positions=task.positions,
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


def _keep(wanted: Wanted, weights: Mapping[str, Any]) -> model.Teacher:
  """Writes a trained teacher into its folder, whole or not at all."""
  section, folder = wanted.section, wanted.folder
  # Without a teacher.json, weights here are those of a run that was killed.
  shutil.rmtree(os.path.join(folder, "weights"), ignore_errors=True)
  os.makedirs(folder, exist_ok=True)
  final = Checkpoints(os.path.join(folder, "weights"), keep=1)
  final.save(section["train"]["steps"], weights)
  final.close()
  options = model.options(section)
  fingerprint = model.fingerprint_of(options, weights)
  teacher = model.Teacher(options, weights, fingerprint, section["fraction"])
  model.describe(folder, teacher, wanted.task, pretrained=False)
  return teacher
