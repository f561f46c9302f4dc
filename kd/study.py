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

from kd import (
  arms,
  config,
  data,
  evaluate,
  files,
  latency,
  program,
  report,
  signals,
  stats,
  store,
  teacher,
  train,
  workdir,
)
from kd.checkpoint import Checkpoints
from kd.errors import UserError, brief, why
from kd.feed import Live, Setup, Transfer, transfer_of
from kd.logs import Metrics

PHASES = ("teacher", "label", "train", "evaluate", "report")
MANY_CLASSES = 2**31 - 1  # where the task isn't known yet
# What draws an arm's rows from a pool, and what is done with them in a step;
# the rest of an arm's `signal` section is the pool's.
DRAW = ("size", "omit_classes", "only_classes")
STEP = ("jitter", "live")


def log_devices() -> None:
  """Logs what the study runs on."""
  devices = ", ".join(sorted({d.device_kind for d in jax.devices()}))
  logging.info("%d device(s): %s", jax.device_count(), devices)


def run(
  study_config: Mapping[str, Any],
  folder: str | None = None,
  phase: str = "",
) -> dict[str, Any] | None:
  """Runs a study, or continues it.

  Args:
    study_config: a config (kd.config).
    folder: the workdir; None is runs/STUDY-HASH.
    phase: "P" runs up to phase P, "P:" from it on, "P:Q" from P to Q; "" runs
      all. Phases before the first must have been run.

  Returns:
    The results (DESIGN.md), or None where the phases end before "evaluate".

  Raises:
    UserError: a mistake in the config, the workdir or a file; before any
      compute where that is possible.
  """
  settings = config.resolve(study_config)
  first, last = _range(phase)
  teacher.check(settings["teacher"])
  arms.group(settings["arms"], MANY_CLASSES)
  task = data.load(settings["task"])
  groups = arms.group(settings["arms"], task.num_classes)
  teacher.check(settings["teacher"], task)
  for name, arm in settings["arms"].items():
    path = f"arms.{name}.signal.jitter"
    teacher.check_jitter(path, arm["signal"]["jitter"], task)
  _check_evaluate(settings, task)
  seeds = [settings["seed"] + s for s in range(settings["seeds"])]
  drawn = _draw(groups, settings, task, seeds)
  folder = folder or workdir.default(settings)
  need = _bytes_needed(groups, settings, task)
  try:
    with workdir.claim(folder, settings, need):
      logging.info("study %s in %s", settings["study"], folder)
      study = _Study(settings, task, groups, seeds, drawn, folder)
      return study.run(first, last)
  # Orbax and TFDS wrap the system's error in kinds of their own.
  except Exception as error:
    if os.strerror(errno.ENOSPC) not in str(error):
      raise
    raise UserError(
      f"workdir = {folder!r}: {os.strerror(errno.ENOSPC)} ({why(error)}); "
      "what is there is kept, and the same command goes on from it"
    ) from error


@dataclasses.dataclass
class _Study:
  """One run of a study: what its phases share.

  `drawn` maps each transfer set to its pool's first row, and each seed's rows.
  """

  settings: Mapping[str, Any]
  task: data.Task
  groups: Sequence[arms.Group]
  seeds: Sequence[int]
  drawn: Mapping[str, tuple[int, np.ndarray]]
  folder: str

  def __post_init__(self):
    self.clock = workdir.Clock(self.folder)
    self.batch = self.settings["evaluate"]["batch_size"]

  def run(self, first: int, last: int) -> dict[str, Any] | None:
    self._require(first)
    results = None
    with self.clock.phase("teacher"):
      self.teacher = self._teacher()
    if last >= PHASES.index("label"):
      with self.clock.phase("label"):
        transfers = self._label()
    if last >= PHASES.index("train"):
      with self.clock.phase("train"):
        states = self._train(transfers)
    if last >= PHASES.index("evaluate"):
      with self.clock.phase("evaluate"):
        results = self._evaluate(states, transfers)
        times = self._latency(results, states)
      results["provenance"] = self._provenance() | {"latency_seconds": times}
      files.write_json(os.path.join(self.folder, "results.json"), results)
    if last >= PHASES.index("report"):
      logging.info("report: %s", report.write(self.folder))
    return results

  def _require(self, first: int) -> None:
    """Raises UserError unless the phases before `first` have been run."""
    left = {
      "teacher": "teacher/teacher.json",
      "label": "signals",
      "train": "checkpoints",
      "evaluate": "results.json",
    }
    if self.settings["teacher"]["path"]:
      del left["teacher"]
    for name in PHASES[:first]:
      if name not in left:
        continue
      path = os.path.join(self.folder, left[name])
      if not os.path.exists(path):
        raise UserError(
          f"--phase={PHASES[first]}: needs {path}, which phase {name!r} "
          f"leaves; expected --phase={name}:{PHASES[first]}"
        )

  def _teacher(self) -> teacher.Teacher:
    steps = self.settings["teacher"]["train"]["steps"]
    seeds = [self.settings["teacher"]["seed"]]
    log = Metrics(self.folder, seeds, steps, "teacher", write=False)
    try:
      return teacher.obtain(
        self.settings["teacher"],
        self.task,
        os.path.join(self.folder, "teacher"),
        batch=self.batch,
        on_log=log,
        on_resume=log.resume,
      )
    finally:
      log.close()

  def _label(self) -> dict[str, Transfer]:
    """Labels each pool once, and gives each transfer set its rows of it."""
    os.makedirs(os.path.join(self.folder, "signals"), exist_ok=True)
    pools: dict[str, signals.Signal] = {}
    transfers = {}
    for group in self.groups:
      section = group.signal
      name = transfer_of(section)
      start, rows = self.drawn[name]
      pool = {k: v for k, v in section.items() if k not in DRAW + STEP}
      key = transfer_of(pool | {"live": section["live"]})
      if key not in pools:
        ask = self._truth if section["live"] else self._pool
        pools[key] = ask(pool, start)
      transfers[name] = Transfer(
        inputs=self.task.train,
        signal=pools[key],
        rows=rows,
        first=start,
        jitter=section["jitter"],
        live=self._live(section) if section["live"] else None,
      )
    return transfers

  def _live(self, section: Mapping[str, Any]) -> Live:
    return Live(
      self.teacher.model,
      self.teacher.weights,
      samples=section["samples"],
      temperature=section["temperature"],
    )

  def _truth(self, pool: Mapping[str, Any], start: int) -> signals.Signal:
    """Returns what is known of a pool before a live teacher is asked."""
    labels = self.task.train.labels()[start:]
    return signals.of_labels(labels if pool["labelled"] else 0 * labels - 1)

  def _pool(self, pool: Mapping[str, Any], start: int) -> signals.Signal:
    """Returns a pool's signal, labelled now, or read."""
    split = self.task.train
    expected = {
      "signal": dict(pool),
      "rows": [start, len(split)],
      "teacher": self.teacher.fingerprint,
      "task": self.task.fingerprint,
      "num_classes": self.task.num_classes,
    }
    folder = os.path.join(self.folder, "signals", workdir.digest(pool))
    if not store.exists(folder):
      rows = np.arange(start, len(split))
      made = signals.make(
        self.teacher.logits(split, rows, self.task, self.batch),
        split.labels()[start:] if pool["labelled"] else None,
        samples=pool["samples"],
        temperature=pool["temperature"],
        seed=pool["seed"],
      )
      store.write(folder, made, expected)
    return store.read(folder, expected)

  def _train(self, transfers: Mapping[str, Transfer]) -> dict[str, Any]:
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
    try:
      return train.fit(self.groups, setup, checkpoints, log, log.resume)
    finally:
      log.close()
      checkpoints.close()

  def _evaluate(self, states, transfers) -> dict[str, Any]:
    settings, task = self.settings, self.task
    options = settings["evaluate"]
    bins = options["bins"]
    labels = task.test.labels()
    logits = self.teacher.logits(
      task.test, np.arange(len(labels)), task, self.batch
    )
    teacher_scores, teacher_bins = evaluate.teacher(
      logits, labels, bins=bins, num_classes=task.num_classes
    )
    values, bins_of = {}, {}
    for group in self.groups:
      for name in group.names:
        values[name], bins_of[name] = evaluate.arm(
          group,
          states[name],
          task,
          logits,
          batch=self.batch,
          bins=bins,
          shift_classes=options["shift_classes"],
        )
    summary = stats.summarise(
      {name: values[name] for name in settings["arms"]},
      {name: arm["baseline"] for name, arm in settings["arms"].items()},
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
              self.seeds, states[name]["diverged"], strict=True
            )
            if step
          },
          "reliability": bins_of[name],
          "metrics": summary[name],
        }
        for name, arm in settings["arms"].items()
      },
    }

  def _latency(self, results, states) -> dict[str, Any]:
    """Adds the models' sizes to the results, and returns their latencies."""
    teacher, arms = self.teacher, list(self.settings["arms"])
    asked = {"teacher": (teacher.model, teacher.weights)}
    student = self.settings["student"]
    asked |= latency.distinct(self.groups, states, student, arms)
    results["models"] = {
      name: {"name": model["name"], "parameters": latency.parameters(weights)}
      for name, (model, weights) in asked.items()
    }
    return {
      name: latency.measure(model, weights, self.task, self.batch)
      for name, (model, weights) in asked.items()
    }

  def _counts(self, transfers: Mapping[str, Transfer]) -> dict[str, Any]:
    """Returns how many examples the arms' transfer sets have."""
    sizes = sorted({t.rows.shape[1] for t in transfers.values()})
    return {
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
      **{k: v for k, v in made.items() if k != "config"},
      "seconds": self.clock.seconds,
    }


def _range(phase: str) -> tuple[int, int]:
  """Returns the first and the last phase that `--phase` asks for."""
  first, colon, last = phase.partition(":")
  if not colon:
    first, last = "", phase
  for name in (first, last):
    if name and name not in PHASES:
      raise UserError(
        f"--phase={phase}: unknown phase {name!r}, expected one of "
        f"{', '.join(PHASES)}; P runs up to P, P: from P on, P:Q from P to Q"
      )
  start = PHASES.index(first or PHASES[0])
  stop = PHASES.index(last or PHASES[-1])
  if start > stop:
    raise UserError(f"--phase={phase}: {first!r} comes after {last!r}")
  return start, stop


def _draw(groups, settings, task, seeds) -> dict[str, tuple[int, np.ndarray]]:
  """Draws every transfer set: {name: (its pool's first row, rows [S, n])}."""
  drawn = {}
  for group in groups:
    section = group.signal
    start = 0
    if section["pool"] == "rest":
      start = teacher.first_unseen(settings["teacher"], task)
    labels = task.train.labels()[start:]
    if not len(labels):
      raise UserError(
        f"signal.pool = 'rest': the teacher sees all {len(task.train)} "
        "training examples; expected teacher.fraction < 1, or signal.pool = "
        "'train'"
      )
    options = {key: section[key] for key in DRAW}
    rows = [start + data.subset(labels, seed=s, **options) for s in seeds]
    drawn[transfer_of(section)] = start, np.stack(rows)
  return drawn


def _check_evaluate(settings: Mapping[str, Any], task: data.Task) -> None:
  """Checks the keys that need the number of classes or of devices."""
  options = settings["evaluate"]
  shift = options["shift_classes"]
  accepted = evaluate.metric_names(task.num_classes, bool(shift))
  if options["metric"] not in accepted:
    raise UserError(
      f"evaluate.metric = {options['metric']!r}: expected one of "
      f"{brief(accepted, 40)}"
    )
  for key, classes in {
    "evaluate.shift_classes": shift,
    "signal.omit_classes": settings["signal"]["omit_classes"],
    "signal.only_classes": settings["signal"]["only_classes"],
  }.items():
    if any(c >= task.num_classes for c in classes):
      raise UserError(
        f"{key} = {list(classes)}: expected classes below {task.num_classes}"
      )
  devices = settings["mesh"]["seeds"]
  if devices > jax.device_count() or settings["seeds"] % devices:
    raise UserError(
      f"mesh.seeds = {devices}: expected a divisor of seeds = "
      f"{settings['seeds']} up to the {jax.device_count()} devices here"
    )


def _bytes_needed(groups, settings, task) -> int:
  """Bounds what a study writes: checkpoints, signals, and 32 MiB of reports."""
  setup = Setup(task=task, transfers={}, seeds=[0], train=settings["train"])
  seeds = jax.ShapeDtypeStruct((1,), np.uint32)
  state = jax.eval_shape(program.make_init(groups, setup), seeds)
  size = settings["seeds"] * sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(state)
  )
  signal = settings["signal"]
  row = 4 * (2 + task.num_classes + 2 * signal["samples"])
  # One checkpoint more than are kept is there while the next is written.
  kept = settings["train"]["keep"] + 1
  return kept * size + len(task.train) * row + 2**25
