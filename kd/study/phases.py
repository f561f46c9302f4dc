"""A study from its config to its report, phase after phase.

    teacher -> label -> train -> evaluate -> report

Each phase reads what the one before left in the workdir and leaves something
itself, whole or not at all; so a study that was stopped anywhere continues
with the same command, and ends with the same numbers.
"""

import dataclasses
import errno
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from kd import files, interrupts
from kd.data.registry import load
from kd.data.task import Task
from kd.errors import UserError, out_of_memory, why
from kd.evaluate import cost, scores, verdict
from kd.report import page
from kd.study import check, outcome, replicates, transfer_sets, workdir
from kd.study.check import PHASES
from kd.study.replicates import Replicate
from kd.teachers import answers, black_box, model
from kd.train import arms, checkpoint, coverage, loop, program
from kd.train.batches import Setup, Transfer
from kd.train.checkpoint import Checkpoints
from kd.train.logs import Metrics
from kd.train.step import TrainState


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
      for of in replicates.of(settings, folder):
        made.append(_One(of, load(of.settings["task"])))
        check.with_the_task(of, groups, made[-1].task)
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


def _sizes(task: Mapping[str, Any]) -> dict[str, int]:
  """Returns the keys that make inputs large."""
  return {f"task.{k}": task[k] for k in ("text_features", "image_size")}


def _report(folder: str) -> dict[str, Any]:
  interrupts.say(lambda: f"report of {folder}; the same command goes on there")
  logging.info("report: %s", page.write(folder))
  return files.read_json(os.path.join(folder, "results.json"), "results")


@dataclasses.dataclass
class _One:
  """A replicate, and what the phases have made of it.

  Of a black box, `task` is replaced by the task that its answers make.
  """

  of: Replicate
  task: Task
  teacher: model.Teacher | None = None
  box: black_box.BlackBox | None = None
  pools: transfer_sets.Pools | None = None
  transfers: Mapping[str, Transfer] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Study:
  """One run of a study: what its phases share."""

  settings: Mapping[str, Any]
  groups: Sequence[arms.Group]
  folder: str
  replicates: Sequence[_One]

  def __post_init__(self):
    self.clock = workdir.Clock(
      self.folder, [one.of.folder for one in self.replicates]
    )
    self.batch = self.settings["evaluate"]["batch_size"]
    self.compiled: loop.Programs | None = None

  def run(self, last: int) -> dict[str, Any] | None:
    with self.clock.phase("teacher"):
      self._teachers()
    if last < PHASES.index("label"):
      return None
    with self.clock.phase("label"), self._memory("labelling"):
      for one in self.replicates:
        one.pools = transfer_sets.Pools(one.of, one.task, one.teacher, one.box)
        one.transfers = one.pools.transfers(self.groups)
      every = [one.transfers for one in self.replicates]
      classes = self.replicates[0].task.num_classes
      self.groups = coverage.bind(self.groups, every, classes)
    if last < PHASES.index("train"):
      return None
    scored, cost_of = [], {}
    for one in self.replicates:
      with self.clock.phase("train"):
        states = self._train(one)
      if last >= PHASES.index("evaluate"):
        logging.info("evaluating %d arms", len(self.settings["arms"]))
        with self.clock.phase("evaluate"), self._memory("evaluating"):
          scored.append(self._evaluate(one, states))
          cost_of = cost_of or self._cost(one, states)
    if last < PHASES.index("evaluate"):
      return None
    with self.clock.phase("evaluate"):
      results = outcome.results(self.settings, scored, self._facts())
    results["models"] = cost_of["models"]
    if warnings := [*self.warnings, *verdict.warnings(results)]:
      results["warnings"] = warnings
    results["provenance"] = self._provenance() | {
      "latency_seconds": cost_of["seconds"]
    }
    files.write_json(os.path.join(self.folder, "results.json"), results)
    if last < PHASES.index("report"):
      return files.read_json(os.path.join(self.folder, "results.json"), "")
    return _report(self.folder)

  def _memory(self, doing: str, lower: Mapping[str, int] | None = None):
    """Says what to lower where memory runs out."""
    batch = {"evaluate.batch_size": self.batch}
    return out_of_memory(doing, {**(lower or {}), **batch})

  def _teachers(self) -> None:
    """Trains or loads each replicate's teacher, and asks a black box."""
    settings, warnings = self.settings, []
    if not model.has_answers(settings["teacher"]):
      made = self._obtain()
      for one, teacher in zip(self.replicates, made, strict=True):
        one.teacher = teacher
    for one in self.replicates:
      warnings += check.with_the_teacher(settings, one.teacher)
      if answers.is_black_box(settings["teacher"]):
        with self._memory("asking the teacher"):
          one.box = black_box.obtain(
            one.of.settings, one.task, one.of.folder, one.teacher
          )
        one.task = one.box.task
    self.warnings = list(dict.fromkeys(warnings))

  def _obtain(self) -> list[model.Teacher]:
    train = self.settings["teacher"]["train"]
    log = Metrics(self.folder, [], train["steps"], "teacher", write=False)
    lower = {"teacher.train.batch_size": train["batch_size"]}
    wanted = [
      model.Wanted(
        one.of.settings["teacher"],
        one.task,
        os.path.join(one.of.folder, "teacher"),
      )
      for one in self.replicates
    ]
    try:
      with self._memory("training the teacher", lower):
        return model.obtain(
          wanted,
          batch=self.batch,
          on_log=log,
          on_resume=log.resume,
          room_mib=self.settings["task"]["resident_mib"],
        )
    finally:
      log.close()

  def _train(self, one: _One) -> dict[str, TrainState]:
    settings = self.settings
    setup = Setup(
      task=one.task,
      transfers=one.transfers,
      seeds=one.of.seeds,
      train=settings["train"],
      eval_batch=self.batch,
      devices=settings["mesh"]["seeds"],
    )
    checkpoints = Checkpoints(
      os.path.join(one.of.folder, "checkpoints"), settings["train"]["keep"]
    )
    name, board = "train", ""
    if len(self.replicates) > 1:
      board = f"replicate {one.of.number}"
      name = f"train, {board} of {len(self.replicates)}"
    log = Metrics(
      self.folder, one.of.seeds, settings["train"]["steps"], name, board=board
    )
    lower = {"train.batch_size": settings["train"]["batch_size"]}
    try:
      with self._memory("training", {**lower, "seeds": len(one.of.seeds)}):
        self.compiled = self.compiled or loop.programs(self.groups, setup)
        return loop.fit(
          self.groups, setup, checkpoints, log, log.resume, self.compiled
        )
    finally:
      log.close()
      checkpoints.close()

  def _evaluate(
    self, one: _One, states: Mapping[str, TrainState]
  ) -> outcome.Scored:
    options = self.settings["evaluate"]
    said, teacher_scores, teacher_bins = self._judge_teacher(one)
    values, bins_of = {}, {}
    for group in self.groups:
      for name in group.names:
        values[name], bins_of[name] = scores.arm(
          group,
          states[name],
          one.task,
          said,
          batch=self.batch,
          bins=options["bins"],
          shift_classes=options["shift_classes"],
        )
    arms = self.settings["arms"]
    assert one.pools is not None  # the phase before made them
    return outcome.Scored(
      seeds=one.of.seeds,
      teacher=teacher_scores,
      teacher_reliability=teacher_bins,
      values={name: values[name] for name in arms},
      reliability=bins_of,
      diverged={name: np.asarray(states[name].diverged) for name in arms},
      funnels=one.pools.funnels,
    )

  def _judge_teacher(self, one: _One):
    """Returns what the teacher says of the test split, and how good it is."""
    labels = one.task.test.labels()
    if one.box:
      said = one.box.test
      scored = scores.black_box(said, labels)
      return said if np.any(said >= 0) else None, scored, None
    assert one.teacher is not None
    rows = np.arange(len(labels))
    said = one.teacher.logits(one.task.test, rows, one.task, self.batch)
    bins, classes = self.settings["evaluate"]["bins"], one.task.num_classes
    return said, *scores.teacher(said, labels, bins=bins, num_classes=classes)

  def _cost(self, one: _One, states) -> dict[str, Any]:
    """Returns the models' sizes and latencies."""
    student, arms = self.settings["student"], list(self.settings["arms"])
    asked = {}
    if one.teacher is not None:
      asked["teacher"] = (one.teacher.model, one.teacher.weights)
    asked |= cost.distinct(self.groups, states, student, arms)
    return {
      "models": {
        name: {"name": kind["name"], "parameters": cost.parameters(weights)}
        for name, (kind, weights) in asked.items()
      },
      "seconds": {
        name: cost.measure(kind, weights, one.task, self.batch)
        for name, (kind, weights) in asked.items()
      },
    }

  def _facts(self) -> dict[str, Any]:
    """Returns what results.json says of replicates and transfer sets."""
    first, settings = self.replicates[0], self.settings
    sizes = sorted({t.rows.shape[1] for t in first.transfers.values()})
    boxes = [one.box.fingerprint for one in self.replicates if one.box]
    signal = {
      **({"answers": boxes[0] if len(boxes) == 1 else boxes} if boxes else {}),
      "pool": len(first.task.train),
      "examples": sizes[0] if len(sizes) == 1 else sizes,
      "validation": len(first.task.validation),
      "test": len(first.task.test),
      "samples": settings["signal"]["samples"],
      "labelled": settings["signal"]["labelled"],
    }
    tasks = [one.task for one in self.replicates]
    return {
      "signal": signal,
      "replicates": replicates.describe(settings, tasks),
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
