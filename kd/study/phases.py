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
from kd.evaluate import cost, registry, scores, stats, verdict
from kd.report import page
from kd.study import check, transfer_sets, workdir
from kd.study.check import PHASES
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
    with out_of_memory("reading the task", _sizes(settings["task"])):
      task = load(settings["task"])
      check.with_the_task(settings, groups, task)
    need = _bytes_needed(groups, settings, task)
    again = PHASES[first] == "evaluate"
    with workdir.claim(folder, settings, need, again):
      logging.info("study %s in %s", settings["study"], folder)
      return _Study(settings, task, groups, folder).run(last)
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
  for name in PHASES[:first]:
    path = os.path.join(folder, left.get(name, ""))
    if name in left and not os.path.exists(path):
      raise UserError(
        f"--phase={PHASES[first]}: needs {path}, which phase {name!r} "
        f"leaves; expected --phase={name}:{PHASES[first]}"
      )
  if PHASES[first] == "evaluate":
    steps = settings["train"]["steps"]
    done = checkpoint.newest(os.path.join(folder, left["train"]))
    if done < steps:
      raise UserError(
        f"--phase=evaluate: the training in {folder} is at step {done} of "
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
class _Study:
  """One run of a study: what its phases share.

  Of a black box, `task` is replaced by the task that its answers make.
  """

  settings: Mapping[str, Any]
  task: Task
  groups: Sequence[arms.Group]
  folder: str

  def __post_init__(self):
    self.clock = workdir.Clock(self.folder)
    self.seeds = check.seeds_of(self.settings)
    self.batch = self.settings["evaluate"]["batch_size"]
    self.teacher: model.Teacher | None = None
    self.box: black_box.BlackBox | None = None

  def run(self, last: int) -> dict[str, Any] | None:
    with self.clock.phase("teacher"):
      if not model.has_answers(self.settings["teacher"]):
        self.teacher = self._teacher()
      self.warnings = check.with_the_teacher(self.settings, self.teacher)
      if answers.is_black_box(self.settings["teacher"]):
        with self._memory("asking the teacher"):
          self.box = black_box.obtain(
            self.settings, self.task, self.folder, self.teacher
          )
        self.task = self.box.task
    self.pools = transfer_sets.Pools(
      self.settings, self.task, self.seeds, self.folder, self.teacher, self.box
    )
    if last < PHASES.index("label"):
      return None
    with self.clock.phase("label"), self._memory("labelling"):
      transfers = self.pools.transfers(self.groups)
      self.groups = coverage.bind(self.groups, transfers, self.task.num_classes)
    if last < PHASES.index("train"):
      return None
    with self.clock.phase("train"):
      states = self._train(transfers)
    if last < PHASES.index("evaluate"):
      return None
    logging.info("evaluating %d arms; compiling", len(self.settings["arms"]))
    with self.clock.phase("evaluate"), self._memory("evaluating"):
      results = self._evaluate(states, transfers)
      times = self._latency(results, states)
    if warnings := [*self.warnings, *verdict.warnings(results)]:
      results["warnings"] = warnings
    results["provenance"] = self._provenance() | {"latency_seconds": times}
    files.write_json(os.path.join(self.folder, "results.json"), results)
    if last < PHASES.index("report"):
      return files.read_json(os.path.join(self.folder, "results.json"), "")
    return _report(self.folder)

  def _memory(self, doing: str, lower: Mapping[str, int] | None = None):
    """Says what to lower where memory runs out."""
    batch = {"evaluate.batch_size": self.batch}
    return out_of_memory(doing, {**(lower or {}), **batch})

  def _teacher(self) -> model.Teacher:
    train = self.settings["teacher"]["train"]
    seeds = [self.settings["teacher"]["seed"]]
    log = Metrics(self.folder, seeds, train["steps"], "teacher", write=False)
    lower = {"teacher.train.batch_size": train["batch_size"]}
    try:
      with self._memory("training the teacher", lower):
        return model.obtain(
          self.settings["teacher"],
          self.task,
          os.path.join(self.folder, "teacher"),
          batch=self.batch,
          on_log=log,
          on_resume=log.resume,
        )
    finally:
      log.close()

  def _train(self, transfers: Mapping[str, Transfer]) -> dict[str, TrainState]:
    settings = self.settings
    setup = Setup(
      task=self.task,
      transfers=transfers,
      seeds=self.seeds,
      train=settings["train"],
      eval_batch=self.batch,
      devices=settings["mesh"]["seeds"],
    )
    checkpoints = Checkpoints(
      os.path.join(self.folder, "checkpoints"), settings["train"]["keep"]
    )
    log = Metrics(self.folder, self.seeds, settings["train"]["steps"], "train")
    lower = {"train.batch_size": settings["train"]["batch_size"]}
    try:
      with self._memory("training", {**lower, "seeds": len(self.seeds)}):
        return loop.fit(self.groups, setup, checkpoints, log, log.resume)
    finally:
      log.close()
      checkpoints.close()

  def _evaluate(self, states, transfers) -> dict[str, Any]:
    settings, task = self.settings, self.task
    options = settings["evaluate"]
    bins = options["bins"]
    said, teacher_scores, teacher_bins = self._judge_teacher()
    scored = {}
    for group in self.groups:
      for name in group.names:
        scored[name] = scores.arm(
          group,
          states[name],
          task,
          said,
          batch=self.batch,
          bins=bins,
          shift_classes=options["shift_classes"],
          metric=options["metric"],
        )
    scored = {name: scored[name] for name in settings["arms"]}
    values = {name: s.values for name, s in scored.items()}
    answers = self.box.test if self.box else None
    summary, _ = stats.summarise(
      values,
      {name: arm["baseline"] for name, arm in settings["arms"].items()},
      metric=options["metric"],
      worth=registry.worths(
        {m for v in values.values() for m in v}, [task.test.labels()], answers
      ),
      each={name: s.each for name, s in scored.items()},
    )
    return {
      "study": settings["study"],
      "metric": options["metric"],
      "selection": "best" if options["metric"].endswith("_best") else "last",
      "teacher": teacher_scores,
      "teacher_reliability": teacher_bins,
      "signal": self._counts(transfers),
      "baseline": settings["baseline"],
      "seeds": self.seeds,
      "arms": {
        name: {
          "config": arm,
          "baseline": arm["baseline"],
          "diverged": {
            str(seed): int(step)
            for seed, step in zip(
              self.seeds, states[name].diverged, strict=True
            )
            if step
          },
          "reliability": scored[name].reliability,
          "metrics": summary[name],
        }
        for name, arm in settings["arms"].items()
      },
    }

  def _judge_teacher(self):
    """Returns what the teacher says of the test split, and how good it is."""
    labels = self.task.test.labels()
    if self.box:
      said = self.box.test
      scored = scores.black_box(said, labels)
      return said if np.any(said >= 0) else None, scored, None
    assert self.teacher is not None
    rows = np.arange(len(labels))
    said = self.teacher.logits(self.task.test, rows, self.task, self.batch)
    bins, classes = self.settings["evaluate"]["bins"], self.task.num_classes
    return said, *scores.teacher(said, labels, bins=bins, num_classes=classes)

  def _latency(self, results, states) -> dict[str, Any]:
    """Adds the models' sizes to the results, and returns their latencies."""
    student, arms = self.settings["student"], list(self.settings["arms"])
    asked = {}
    if self.teacher is not None:
      asked["teacher"] = (self.teacher.model, self.teacher.weights)
    asked |= cost.distinct(self.groups, states, student, arms)
    results["models"] = {
      name: {"name": kind["name"], "parameters": cost.parameters(weights)}
      for name, (kind, weights) in asked.items()
    }
    return {
      name: cost.measure(kind, weights, self.task, self.batch)
      for name, (kind, weights) in asked.items()
    }

  def _counts(self, transfers: Mapping[str, Transfer]) -> dict[str, Any]:
    """Returns how many examples the arms' transfer sets have."""
    sizes = sorted({t.rows.shape[1] for t in transfers.values()})
    funnels = self.pools.funnels
    return {
      **({"funnels": funnels} if funnels else {}),
      **({"answers": self.box.fingerprint} if self.box else {}),
      "pool": len(self.task.train),
      "examples": sizes[0] if len(sizes) == 1 else sizes,
      "validation": len(self.task.validation),
      "test": len(self.task.test),
      "samples": self.settings["signal"]["samples"],
      "labelled": self.settings["signal"]["labelled"],
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
  state = jax.eval_shape(program.make_init(groups, setup), seeds)
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
