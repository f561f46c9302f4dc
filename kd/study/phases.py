"""A study from its config to its report, phase after phase.

    teacher -> label -> train -> evaluate -> report

Each phase reads what the one before left in the workdir and leaves something
itself, whole or not at all; so a study that was stopped anywhere continues
with the same command, and ends with the same numbers.
"""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from kd import files, interrupts
from kd.config import made
from kd.data import held_out, token_task
from kd.data.registry import load
from kd.data.task import Task
from kd.errors import UserError, out_of_memory, why
from kd.evaluate import prices, verdict
from kd.evaluate.meter import Meter
from kd.report import page
from kd.study import (
  check,
  outcome,
  replicates,
  runs,
  students,
  transfer_sets,
  tune,
  workdir,
)
from kd.study.check import PHASES
from kd.study.runs import Runs
from kd.teachers import model, training
from kd.train import arms, checkpoint, coverage, loop, program
from kd.train.batches import Setup
from kd.train.logs import Metrics


def run(
  settings: Mapping[str, Any],
  groups: Sequence[arms.Group],
  folder: str | None,
  first: int,
  last: int,
) -> dict[str, Any] | None:
  """Runs the phases from number `first` to `last` of check.PHASES.

  Args:
    settings: the resolved config.
    groups: its arms, of check.config_alone.
    folder: the workdir; None is runs/STUDY-HASH.
    first, last: of the phases.

  Returns:
    What is in results.json, or None where the phases end before "evaluate".
  """
  devices = ", ".join(sorted({d.device_kind for d in jax.devices()}))
  logging.info("%d device(s): %s", jax.device_count(), devices)
  folder = folder or workdir.default(settings)
  _require(settings, folder, first)
  try:
    if PHASES[first] == "report":
      with workdir.claim(folder, settings, 0):
        return _report(folder)
    made = []
    with out_of_memory("reading the task", _sizes(settings["task"])):
      planned = replicates.of(settings, folder)
      tasks: dict[int, Task] = {}  # those of one split share it
      for of in planned:
        section = of.settings["task"]
        if section["seed"] not in tasks:
          tasks[section["seed"]] = load(section)
      tasks = held_out.of_one_size(token_task.of_one_size(tasks))
      for of in planned:
        task = tasks[of.settings["task"]["seed"]]
        made.append(Runs(of, task, folder, len(planned)))
        check.with_the_task(of, groups, task)
    groups = students.bind(groups, made[0].of.settings, made[0].task)
    need = len(made) * _bytes_needed(groups, settings, made[0].task)
    again = PHASES[first] == "evaluate"
    with workdir.claim(folder, settings, need, again):
      logging.info("study %s in %s", settings["study"], folder)
      return _Study(settings, groups, folder, made).run(last)
  except (FileExistsError, NotADirectoryError, PermissionError) as error:
    raise UserError(
      f"{error.filename}: {error.strerror}; expected a folder of a study's own"
    ) from error
  # Orbax and TFDS wrap the system's error in kinds of their own.
  except Exception as error:
    if os.strerror(errno.ENOSPC) not in str(error):
      raise
    raise UserError(
      f"workdir = {folder!r}: {os.strerror(errno.ENOSPC)} ({why(error)}); "
      "what is there is kept, and the same command goes on from it"
    ) from error


def _require(settings: Mapping[str, Any], folder: str, first: int) -> None:
  """Raises UserError unless the phases before `first` have been run."""
  left = {
    "teacher": "teacher/teacher.json",
    "label": "signals",
    "train": "checkpoints",
    "evaluate": "results.json",
  }
  if settings["teacher"]["path"]:
    del left["teacher"]
  if PHASES[first] == "report":  # reads that alone
    left = {"evaluate": left["evaluate"]}
  every = [folder]
  if PHASES[first] != "report":
    every = [one.folder for one in replicates.of(settings, folder)]
  for name in PHASES[:first]:
    places = [folder] if name == "evaluate" else every
    for place in places if name in left else ():
      path = os.path.join(place, left[name])
      if not os.path.exists(path):
        raise UserError(
          f"--phase={PHASES[first]}: needs {path}, which phase {name!r} "
          f"leaves; expected --phase={name}:{PHASES[first]}"
        )
  for place in every if PHASES[first] == "evaluate" else ():
    steps = settings["train"]["steps"]
    done = checkpoint.newest(os.path.join(place, left["train"]))
    if done < steps:
      raise UserError(
        f"--phase=evaluate: the training in {place} is at step {done} of "
        f"{steps}; expected --phase=train:"
      )
    if settings["tune"]["budget"]:
      path = os.path.join(place, workdir.TRIALS)
      tune.read(path, made.of_training(settings))


def _sizes(task: Mapping[str, Any]) -> dict[str, int]:
  """Returns the keys that make inputs large."""
  return {f"task.{k}": task[k] for k in ("text_features", "image_size")}


def _report(folder: str) -> dict[str, Any]:
  interrupts.say(lambda: f"report of {folder}; the same command goes on there")
  logging.info("report: %s", page.write(folder))
  return files.read_json(os.path.join(folder, "results.json"), "results")


class _Study:
  """One run of a study: what its phases share."""

  def __init__(
    self,
    settings: Mapping[str, Any],
    groups: Sequence[arms.Group],
    folder: str,
    every: Sequence[Runs],
  ):
    self.settings, self.groups, self.folder = settings, groups, folder
    self.every = every  # replicate
    self.clock = workdir.Clock(folder, [one.of.folder for one in every])

  def run(self, last: int) -> dict[str, Any] | None:
    clock = self.clock
    with clock.phase("teacher"):
      warnings = self._teachers()
    if last < PHASES.index("label"):
      return None
    with clock.phase("label"), runs.memory(self.settings, "labelling"):
      for one in self.every:
        one.label(self.groups)
      found = [one.transfers for one in self.every]
      classes = self.every[0].task.num_classes
      self.groups = coverage.bind(self.groups, found, classes)
    if last < PHASES.index("train"):
      return None
    scored, sizes, times = [], {}, {}
    compiled: loop.Programs | None = None
    recovering: dict[str, loop.Programs] = {}
    meter = None
    if self.settings["evaluate"]["measure"]:
      batch = self.settings["evaluate"]["batch_size"]
      meter = Meter(self.every[0].task, batch)
    for one in self.every:
      with clock.phase("train"):
        compiled = compiled or loop.programs(
          self.groups, one.setup(one.of.seeds)
        )
        states = one.train(self.groups, compiled)
        groups, states = one.extended(self.groups, states, recovering)
      if last < PHASES.index("evaluate"):
        continue
      logging.info("evaluating %d arms", len(states))
      with (
        clock.phase("evaluate"),
        runs.memory(self.settings, "evaluating"),
      ):
        scored.append(one.evaluate(groups, states, meter))
        if not sizes:
          sizes, times = one.cost(groups, states)
    if last < PHASES.index("evaluate"):
      return None
    with clock.phase("evaluate"):
      results = outcome.results(self.settings, scored, self._facts())
    for name, text in meter.arithmetic.items() if meter else ():
      results["arms"][name]["arithmetic"] = text
    results["models"] = sizes
    if warnings := [*warnings, *verdict.warnings(results)]:
      results["warnings"] = warnings
    results["provenance"] = self._provenance() | {"latency_seconds": times}
    if (cost := self.settings["cost"])["requests"]:
      spent = prices.of(results, cost, self.clock.seconds)
      results["provenance"]["cost"] = spent
    files.write_json(os.path.join(self.folder, "results.json"), results)
    if last < PHASES.index("report"):
      return files.read_json(os.path.join(self.folder, "results.json"), "")
    return _report(self.folder)

  def _teachers(self) -> list[str]:
    """Trains or loads each replicate's teacher, and asks a black box; returns
    what the study warns of."""
    warnings = []
    if not model.has_answers(self.settings["teacher"]):
      for one, teacher in zip(self.every, self._obtain(), strict=True):
        one.teacher = teacher
    for one in self.every:
      warnings += check.with_the_teacher(one.of.settings, one.teacher)
      one.ask()
    return list(dict.fromkeys(warnings))

  def _obtain(self) -> list[model.Teacher]:
    settings, train = self.settings, self.settings["teacher"]["train"]
    log = Metrics(self.folder, [], train["steps"], "teacher", write=False)
    lower = {"teacher.train.batch_size": train["batch_size"]}
    try:
      with runs.memory(settings, "training the teacher", lower):
        return training.obtain(
          [one.wanted() for one in self.every],
          batch=settings["evaluate"]["batch_size"],
          on_log=log,
          on_resume=log.resume,
          room_mib=settings["task"]["resident_mib"],
        )
    finally:
      log.close()

  def _facts(self) -> dict[str, Any]:
    """Returns what results.json says of replicates, search and signal."""
    first, settings = self.every[0], self.settings
    sizes = sorted({t.rows.shape[1] for t in first.transfers.values()})
    boxes = [one.box.fingerprint for one in self.every if one.box]
    signal = {
      **({"answers": boxes[0] if len(boxes) == 1 else boxes} if boxes else {}),
      "pool": len(first.task.train),
      "examples": sizes[0] if len(sizes) == 1 else sizes,
      "validation": len(first.task.validation),
      "test": len(first.task.test),
      "samples": settings["signal"]["samples"],
      "labelled": settings["signal"]["labelled"],
      **first.task.facts,
      **(first.teacher.padding(first.task) if first.teacher else {}),
      **({"completions_cut": first.cut} if first.cut else {}),
    }
    tasks = [one.task for one in self.every]
    searched = [one.search for one in self.every if one.search]
    by = first.task.criterion
    return {
      "signal": signal,
      "replicates": replicates.describe(settings, tasks),
      **({"tune": tune.describe(settings, searched, by)} if searched else {}),
    }

  def _provenance(self) -> dict[str, Any]:
    with open(os.path.join(self.folder, "config.json")) as f:
      made = json.load(f)
    return {
      "evidence": "run",
      **{k: v for k, v in made.items() if k not in ("config", "words")},
      "seconds": self.clock.seconds,
    }


def _bytes_needed(groups, settings, task) -> int:
  """Bounds what a study writes: checkpoints, signals, and 32 MiB of reports."""
  setup = Setup(task=task, transfers={}, seeds=[0], train=settings["train"])
  seeds = jax.ShapeDtypeStruct((1,), np.uint32)
  state = jax.eval_shape(
    program.make_init(groups, setup), seeds, arms.numbers_of(groups)
  )
  size = settings["seeds"] * sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(state)
  )
  check.memory(
    2 * size // settings["mesh"]["seeds"],
    "the state of all runs and its copy for a checkpoint",
    ("seeds", "the arms", "the size of student"),
  )
  row = transfer_sets.row_bytes(groups, task)
  # One checkpoint more than are kept is there while the next is written.
  kept = settings["train"]["keep"] + 1
  return kept * size + len(task.train) * row + 2**25
