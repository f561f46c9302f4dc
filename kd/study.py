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
import msgspec
import numpy as np
from absl import logging

from kd import (
  answers,
  arms,
  blackbox,
  config,
  data,
  evaluate,
  files,
  filters,
  ingest,
  label,
  latency,
  program,
  report,
  schema,
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
# What draws an arm's rows from a pool, what filters and ranks a pool's signal,
# and what is done with them in a step; the rest of an arm's `signal` section
# says what the teacher is asked.
DRAW = ("size", "omit_classes", "only_classes")
FILTER = ("filter", "rank_by", "rubric")
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
  black_box = schema.is_black_box(settings["teacher"])
  teacher.check(settings["teacher"])
  arms.group(settings["arms"], MANY_CLASSES, black_box)
  task = data.load(settings["task"])
  groups = arms.group(settings["arms"], task.num_classes, black_box)
  teacher.check(settings["teacher"], task)
  for name, arm in settings["arms"].items():
    path = f"arms.{name}.signal.jitter"
    teacher.check_jitter(path, arm["signal"]["jitter"], task)
    label.check(f"arms.{name}.signal", arm["signal"], task.num_classes)
  if black_box:
    blackbox.check(task)
  _check_evaluate(settings, task, black_box)
  seeds = [settings["seed"] + s for s in range(settings["seeds"])]
  start = _pool_start(settings, task)
  if not black_box:  # or else what there is to draw from isn't known yet
    for group in groups:
      _draw(group.signal, task, seeds, start[group.signal["pool"]])
    _check_stores(groups, task, start)
  folder = folder or workdir.default(settings)
  need = _bytes_needed(groups, settings, task)
  try:
    with workdir.claim(folder, settings, need):
      logging.info("study %s in %s", settings["study"], folder)
      study = _Study(settings, task, groups, seeds, start, folder)
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

  `start` maps each kind of pool to its first row. Of a black box, `task` is
  replaced by the task that its answers make.
  """

  settings: Mapping[str, Any]
  task: data.Task
  groups: Sequence[arms.Group]
  seeds: Sequence[int]
  start: Mapping[str, int]
  folder: str

  def __post_init__(self):
    self.clock = workdir.Clock(self.folder)
    self.batch = self.settings["evaluate"]["batch_size"]
    self.box: blackbox.BlackBox | None = None
    self.funnels: dict[str, list[dict[str, Any]]] = {}

  def run(self, first: int, last: int) -> dict[str, Any] | None:
    self._require(first)
    results = None
    with self.clock.phase("teacher"):
      if not teacher.has_answers(self.settings["teacher"]):
        self.teacher = self._teacher()
      if schema.is_black_box(self.settings["teacher"]):
        self.box = self._black_box()
        self.task = self.box.task
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
    pools: dict[str, tuple[signals.Signal, np.ndarray | None]] = {}
    transfers = {}
    for group in self.groups:
      section = group.signal
      pool = {k: v for k, v in section.items() if k not in DRAW + STEP}
      key = transfer_of(pool | {"live": section["live"]})
      start = 0 if self.box else self.start[section["pool"]]
      if key not in pools:
        pools[key] = self._pool(pool, start, section["live"])
      signal, kept = pools[key]
      if self.box:
        blackbox.check_reads(group, signal)
      transfers[transfer_of(section)] = Transfer(
        inputs=self.task.train,
        signal=signal,
        rows=_draw(section, self.task, self.seeds, start, kept),
        first=start,
        jitter=section["jitter"],
        live=self._live(section) if section["live"] else None,
      )
    return transfers

  def _black_box(self) -> blackbox.BlackBox:
    """Reads what the teacher answered, or asks the one that was trained."""
    section = self.settings["teacher"]
    path, store = section["path"], section["path"]
    if not teacher.has_answers(section):
      path = os.path.join(self.folder, "teacher", "answers.jsonl")
      if not os.path.exists(path):
        files.write_text(path, self._spoken())
    if not answers.is_store(path):
      store = os.path.join(self.folder, "signals", "answers")
      if not os.path.exists(store):
        ingest.ingest([path], store, section["max_bad"])
      ingest.check_source(store, path)
    return blackbox.load(store, self.task, section["extract"])

  def _spoken(self) -> str:
    """Returns the trained teacher's sampled answers, as JSONL."""
    signal, lines = self.settings["signal"], []
    for name in ("train", "validation", "test"):
      split = getattr(self.task, name)
      start = self.start[signal["pool"]] if name == "train" else 0
      rows = np.arange(start, len(split))
      made = signals.make(
        self.teacher.logits(split, rows, self.task, self.batch),
        None,
        samples=signal["samples"],
        temperature=signal["temperature"],
        seed=signal["seed"] + data.PARTS.index(name),
      )
      ids, texts = np.asarray(made.samples.ids), split.texts()[start:]
      names = self.task.class_names
      lines += blackbox.spoken(texts, ids, names, name)
    return "".join(msgspec.json.encode(a).decode() + "\n" for a in lines)

  def _live(self, section: Mapping[str, Any]) -> Live:
    return Live(
      self.teacher.model,
      self.teacher.weights,
      samples=section["samples"],
      temperature=section["temperature"],
    )

  def _pool(
    self, pool: Mapping[str, Any], start: int, live: bool
  ) -> tuple[signals.Signal, np.ndarray | None]:
    """Returns a pool's signal, and which rows its filter kept (None: all)."""
    chain = self.settings["filters"].get(pool["filter"], ())
    if self.box:
      made, kept, funnel = blackbox.signal(self.box, chain, pool)
      self.funnels[pool["filter"] or "none"] = funnel
      return made, kept
    if live:
      return self._truth(pool, start), None
    made = self._stored(pool, start)
    if not chain:
      return made, None
    assert isinstance(made.dense, signals.Dense)  # kd.config sees to it
    probs = np.asarray(jax.nn.softmax(made.dense.logits))
    truth = np.asarray(made.truth.ids)
    kept, funnel = filters.keep(probs, truth, self.task.class_names, chain)
    self.funnels[pool["filter"]] = funnel
    return made, kept

  def _truth(self, pool: Mapping[str, Any], start: int) -> signals.Signal:
    """Returns what is known of a pool before a live teacher is asked."""
    labels = self.task.train.labels()[start:]
    return signals.of_labels(labels if pool["labelled"] else 0 * labels - 1)

  def _stored(self, pool: Mapping[str, Any], start: int) -> signals.Signal:
    """Returns a pool's signal, labelled now, or read."""
    # What a filter keeps of a signal is no part of it.
    pool = {k: v for k, v in pool.items() if k not in FILTER}
    split = self.task.train

    def logits(rows):
      return self.teacher.logits(split, start + rows, self.task, self.batch)

    plan = label.Plan(
      section=pool,
      count=len(split) - start,
      num_classes=self.task.num_classes,
      inputs=lambda rows: split.read(start + rows),
      logits=logits,
      truth=split.labels()[start:] if pool["labelled"] else None,
      facts=_facts(self.task, start)
      | {
        "teacher": self.teacher.fingerprint,
        "teacher_model": dict(self.teacher.model),
      },
      batch=self.batch,
    )
    folder = pool["path"] or os.path.join(
      self.folder, "signals", workdir.digest(plan.kept["signal"])
    )
    if not pool["path"]:
      label.label(folder, plan)
    return store.read(folder, plan.kept, _keys(self.task, start))

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
    said, teacher_scores, teacher_bins = self._judge_teacher()
    values, bins_of = {}, {}
    for group in self.groups:
      for name in group.names:
        values[name], bins_of[name] = evaluate.arm(
          group,
          states[name],
          task,
          said,
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

  def _judge_teacher(self):
    """Returns what the teacher says of the test split, and how good it is."""
    labels = self.task.test.labels()
    if self.box:
      said = self.box.test
      scored = evaluate.black_box(said, labels)
      return said if np.any(said >= 0) else None, scored, None
    rows = np.arange(len(labels))
    said = self.teacher.logits(self.task.test, rows, self.task, self.batch)
    bins, classes = self.settings["evaluate"]["bins"], self.task.num_classes
    return said, *evaluate.teacher(said, labels, bins=bins, num_classes=classes)

  def _latency(self, results, states) -> dict[str, Any]:
    """Adds the models' sizes to the results, and returns their latencies."""
    student, arms = self.settings["student"], list(self.settings["arms"])
    asked = {}
    if not self.box:  # whose model nobody sees
      asked["teacher"] = (self.teacher.model, self.teacher.weights)
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
    funnels = {"funnels": self.funnels} if self.funnels else {}
    return {
      **funnels,
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


def _pool_start(settings, task) -> dict[str, int]:
  """Returns the first row of each kind of pool that some arm draws from."""
  kinds = {arm["signal"]["pool"] for arm in settings["arms"].values()}
  kinds.add(settings["signal"]["pool"])
  unseen = teacher.first_unseen(settings["teacher"], task)
  if "rest" in kinds and unseen >= len(task.train):
    raise UserError(
      f"signal.pool = 'rest': the teacher sees all {len(task.train)} "
      "training examples; expected teacher.fraction < 1, or signal.pool = "
      "'train'"
    )
  return {"train": 0, "rest": unseen}


def _draw(section, task, seeds, start, kept=None) -> np.ndarray:
  """Draws a transfer set for each seed, rows [S, n] of the train split."""
  labels = task.train.labels()[start:]
  options = {key: section[key] for key in DRAW}
  drawn = [data.subset(labels, seed=s, kept=kept, **options) for s in seeds]
  return start + np.stack(drawn)


def _facts(task: data.Task, start: int) -> dict[str, Any]:
  """Returns what a store says of the data that it is of."""
  return {
    "task": task.fingerprint,
    "slices": list(task.slices),
    "rows": [start, len(task.train)],
  }


def _keys(task: data.Task, start: int) -> store.Keys:
  """Returns the keys of a pool's examples: of all, or where reading them all
  takes long, of some that are evenly spaced."""
  count = len(task.train) - start
  most = count if task.resident else data.SAMPLE
  rows = np.unique(np.linspace(0, count - 1, min(count, most), dtype=int))
  return store.Keys(rows, store.keys(task.train.read(start + rows)))


def _check_stores(groups, task, starts) -> None:
  """Checks the stores that arms name, less what only the teacher can say."""
  for group in groups:
    section = group.signal
    if section["path"]:
      start = starts[section["pool"]]
      pool = {k: v for k, v in section.items() if k not in DRAW + STEP + FILTER}
      facts = {"num_classes": task.num_classes, **_facts(task, start)}
      signal = {k: v for k, v in pool.items() if k not in label.PLACE}
      store.check(section["path"], facts | {"signal": signal})


def _check_evaluate(
  settings: Mapping[str, Any], task: data.Task, black_box: bool
) -> None:
  """Checks the keys that need the number of classes or of devices."""
  options = settings["evaluate"]
  shift = options["shift_classes"]
  accepted = evaluate.metric_names(task.num_classes, bool(shift), black_box)
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
  pools = {
    transfer_of(
      {k: v for k, v in g.signal.items() if k not in DRAW + STEP + FILTER}
    ): (store.row_bytes(g.signal, task.num_classes))
    for g in groups
    if not g.signal["live"] and not g.signal["path"]
  }
  row = sum(pools.values())
  # One checkpoint more than are kept is there while the next is written.
  kept = settings["train"]["keep"] + 1
  return kept * size + len(task.train) * row + 2**25
