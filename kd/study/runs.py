"""A replicate at work: its teacher, its transfer sets, its arms' runs."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from kd.config import made
from kd.data.task import Task
from kd.errors import out_of_memory
from kd.evaluate import (
  cascade,
  disagreements,
  outside,
  registry,
  scores,
  written,
)
from kd.evaluate.meter import Meter
from kd.study import (
  compression,
  measured,
  students,
  transfer_sets,
  tune,
  untrained,
  workdir,
)
from kd.study.outcome import Outcome
from kd.study.replicates import Replicate
from kd.teachers import (
  answers,
  black_box,
  completions,
  model,
  prompted,
  training,
)
from kd.teachers.completion_rows import Completed
from kd.train import arms, loop
from kd.train.batches import Setup, Transfer
from kd.train.checkpoint import Checkpoints
from kd.train.logs import Metrics
from kd.train.step import TrainState

# Of a teacher on the test split; of more, the likeliest alone are kept.
MOST_LOGITS = 2**28

METRICS = ("accuracy", "nll")  # of Task.score
LOST = {"accuracy": -1.0, "nll": -1e9}  # the score of a run that diverged

States = Mapping[str, TrainState]


@dataclasses.dataclass
class Runs:
  """What the phases make of a replicate.

  Attributes:
    of: which one it is.
    task: its own; of a black box, replaced by the one that its answers make.
    workdir: the study's.
    total: of all replicates.
    teacher: None where only answers are known.
    box: the black box, if the teacher is one.
    transfers: what the arms train on, filled by `label`.
    funnels: {filter: what its steps kept}, likewise.
    bought: {arm: the teacher's tokens that it costs}, likewise, of tokens.
    cut: the completions that a row had no room for, likewise.
    search: of `tune.search`, where the arms are tuned, filled by `train`.
    trained: the arms that train, at what it chose, likewise.
  """

  of: Replicate
  task: Task
  workdir: str
  total: int
  teacher: model.Teacher | None = None
  box: black_box.BlackBox | Completed | None = None
  transfers: Mapping[str, Transfer] = dataclasses.field(default_factory=dict)
  funnels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  bought: Mapping[str, float] = dataclasses.field(default_factory=dict)
  cut: int = 0
  search: Mapping[str, Any] | None = None
  trained: Sequence[arms.Group] = ()

  @property
  def _batch(self) -> int:
    return self.of.settings["evaluate"]["batch_size"]

  def wanted(self) -> training.Wanted:
    """Returns what is asked of kd.teachers.training."""
    folder = os.path.join(self.of.folder, "teacher")
    return training.Wanted(self.of.settings["teacher"], self.task, folder)

  def ask(self) -> None:
    """Asks a black box, where the teacher is one."""
    settings = self.of.settings
    if answers.is_black_box(settings["teacher"]):
      of = completions if answers.writes(settings) else black_box
      with memory(settings, "asking the teacher"):
        self.box = of.obtain(settings, self.task, self.of.folder, self.teacher)
      self.task = self.box.task

  def label(self, groups: Sequence[arms.Group]) -> None:
    """Makes the transfer sets."""
    pools = transfer_sets.Pools(self.of, self.task, self.teacher, self.box)
    groups = [*groups, *untrained.recovering(self.of.settings)]
    self.transfers = pools.transfers(groups)
    self.funnels = pools.funnels
    self.cut = pools.cut
    if bought := pools.bought:
      of = made.leaders(self.of.settings["arms"])
      self.bought = {a: bought.get(b or a, 0.0) for a, b in of.items()}

  def setup(self, seeds: Sequence[int]) -> Setup:
    """Returns what the runs of these seeds share."""
    return Setup(
      task=self.task,
      transfers=self.transfers,
      seeds=seeds,
      train=self.of.settings["train"],
      eval_batch=self._batch,
      devices=self.of.settings["mesh"]["seeds"],
      start=students.Starts(
        self.workdir, self.of.number, self.task, self.teacher
      ),
    )

  def train(
    self, groups: Sequence[arms.Group], compiled: loop.Programs
  ) -> States:
    """Trains the arms, at what a search of their numbers chose."""
    section, seeds = self.of.settings["train"], self.of.seeds
    if self.of.settings["tune"]["budget"]:
      groups = self._tune(groups, compiled)
    self.trained = groups
    name, board = "train", ""
    if self.total > 1:
      board = f"replicate {self.of.number}"
      name = f"train, {board} of {self.total}"
    checkpoints = Checkpoints(
      os.path.join(self.of.folder, "checkpoints"), section["keep"]
    )
    log = Metrics(self.workdir, seeds, section["steps"], name, board=board)
    lower = {"train.batch_size": section["batch_size"], "seeds": len(seeds)}
    try:
      with memory(self.of.settings, "training", lower):
        return loop.fit(
          groups, self.setup(seeds), checkpoints, log, log.resume, compiled
        )
    finally:
      log.close()
      checkpoints.close()

  def _tune(
    self, groups: Sequence[arms.Group], compiled: loop.Programs
  ) -> Sequence[arms.Group]:
    """Returns the arms as their search chose them."""
    settings = made.of_training(self.of.settings)
    setup = self.setup(self.of.trials)
    best = registry.selection(settings["evaluate"]["metric"]) == "best"
    at = functools.partial(
      tune.at,
      settings,
      groups,
      black_box=answers.is_black_box(settings["teacher"]),
    )

    def trial(which: Mapping[str, int]) -> dict[str, float]:
      last: dict[str, loop.Log] = {}
      keep = lambda log: last.update(log=log)
      states = loop.fit(at(which), setup, on_log=keep, compiled=compiled)
      seen = {
        name: state.best_score
        if best
        else self.task.score(
          *(last["log"].arms[name][f"validation_{m}"] for m in METRICS)
        )
        for name, state in states.items()
      }
      lost = LOST[self.task.criterion]
      return {
        name: lost if np.any(states[name].diverged) else float(np.mean(x))
        for name, x in seen.items()
      }

    logging.info("%d trials of each arm", settings["tune"]["budget"])
    path = os.path.join(self.of.folder, workdir.TRIALS)
    self.search = tune.search(path, settings, trial)
    return at(self.search["choice"])

  def extended(
    self,
    groups: Sequence[arms.Group],
    states: States,
    programs: dict[str, loop.Programs],
  ) -> tuple[list[arms.Group], States]:
    """Returns groups and states of every arm, of those that trained.

    `programs` are of arms that recover from pruning, for all replicates.
    """
    settings = self.of.settings
    made = compression.Maker(
      self._kept,
      {n: a.get("compress", ()) for n, a in settings["arms"].items()},
      [*self.trained, *untrained.recovering(settings)],
      self.setup(self.of.seeds),
      programs,
    )
    with memory(settings, "compressing"):
      return untrained.extended(settings, groups, states, self.teacher, made)

  @property
  def _kept(self) -> compression.Kept:
    """Where the models of the runs are."""
    selection = registry.selection(self.of.settings["evaluate"]["metric"])
    return compression.Kept(self.of.folder, self.of.seeds, selection)

  def evaluate(
    self,
    groups: Sequence[arms.Group],
    states: States,
    meter: Meter | None = None,
  ) -> Outcome:
    """Scores the arms and the teacher on the test split.

    Args:
      groups, states: of every arm.
      meter: measures what they ask of a device.
    """
    options = self.of.settings["evaluate"]
    said, teacher_scores, teacher_bins = self._judge_teacher()
    scored: dict[str, scores.Scored] = {}
    curves: dict[str, list[cascade.Curve | None]] = {}
    test = scores.Test.of(self.task.test, said)
    keys: dict[str, Any] = {k: options[k] for k in ("bins", "metric")}
    keys["batch"] = self._batch
    for name, group in ((n, g) for g in groups for n in g.names):
      of = group, states[name], self.task, test
      arm = self.of.settings["arms"][name]
      if arm["objective"] == "cascade":
        scored[name], curves[name] = cascade.arm(
          *of, self._of_teacher, margin=arm["margin"], **keys
        )
        continue
      scored[name] = scores.arm(
        *of, shift_classes=options["shift_classes"], **keys
      )
    if meter is not None:
      asked = groups, states, meter
      of_arms = measured.arms(self.of.settings, self._kept, self.task, *asked)
      for name, own in of_arms.items():
        scored[name].values.update(own)
    shown: list[dict[str, Any]] = []
    groups_of_test = self.task.test_groups
    if options["generate"]["prompts"]:
      scored, shown, of_teacher = self._generate(groups, states, scored)
      teacher_scores |= of_teacher
      if registry.lookup(options["metric"]).text:
        groups_of_test = None  # a prompt stands for itself
    return Outcome(
      seeds=self.of.seeds,
      teacher=teacher_scores,
      teacher_reliability=teacher_bins,
      arms=scored,
      diverged={name: np.asarray(s.diverged) for name, s in states.items()},
      funnels=self.funnels,
      labels=self._labels,
      answers=self._answers,
      groups=groups_of_test,
      bought=self.bought,
      written=shown,
      cascades=curves,
      disagreements=disagreements.find(
        scored, said, self.task, test.places, options["disagreements"]
      )
      if self.of.number == 0
      else None,
      outside=outside.find(
        self.of.settings,
        self.task,
        None if self.box else self.teacher,
        groups,
        states,
        curves,
      ),
    )

  def _generate(
    self,
    groups: Sequence[arms.Group],
    states: States,
    scored: Mapping[str, scores.Scored],
  ):
    """Returns the arms' scores with those of what they write, some words side
    by side, and the teacher's scores."""
    options = self.of.settings["evaluate"]
    prompts = written.Prompts.of(self.task, options["generate"], self._batch)
    if self.teacher is not None and self.teacher.reader is not None:
      rows = range(len(prompts.texts))
      biases = self.box.biases if isinstance(self.box, Completed) else None
      said = prompted.likeliest(self.teacher.reader, self.task, rows, biases)
    elif self.teacher is not None:
      said = prompts.write(self.teacher.model, self.teacher.weights)
    elif isinstance(self.box, Completed):
      said = self.box.test[: len(prompts.texts)]
    else:
      said = prompts.teacher
    prompts, of_teacher = written.teacher(prompts, said)
    scored, shown = written.arms(
      groups, states, scored, prompts, options["metric"]
    )
    return scored, shown, of_teacher

  @property
  def _answers(self) -> np.ndarray | None:
    """A black box's classes of the test split, where it gives classes."""
    if isinstance(self.box, black_box.BlackBox):
      return self.box.test
    return None

  @property
  def _labels(self) -> np.ndarray:
    """Those of the test split that count."""
    return self.task.test.labels()[scores.places(self.task.test)]

  def _judge_teacher(self):
    """Returns what the teacher says of the test split, and how good it is."""
    if isinstance(self.box, Completed):
      return None, {}, None
    if self.box:
      said = self.box.test
      scored = scores.black_box(said, self._labels)
      return said if np.any(said >= 0) else None, scored, None
    assert self.teacher is not None
    test, k = self.task.test, self.of.settings["signal"]["k"]
    few = len(test.labels()) * self.task.num_classes <= MOST_LOGITS
    look = scores.Teacher(0 if few else min(k, self.task.num_classes))
    each, said = self.teacher.ask(
      test,
      np.arange(len(test)),
      self.task,
      self._batch,
      look,
      [test.labels()],
    )
    places = scores.places(test)
    each = {name: x[places] for name, x in each.items()}
    bins, classes = self.of.settings["evaluate"]["bins"], self.task.num_classes
    found = scores.teacher(each, self._labels, bins=bins, num_classes=classes)
    return said, *found

  @functools.cached_property
  def _of_teacher(self) -> dict[str, scores.Each]:
    """How the teacher's own answers are judged, of validation and test."""
    if isinstance(self.box, black_box.BlackBox):
      answers_of = self.box.test
      right = np.where(answers_of >= 0, answers_of == self._labels, np.nan)
      # The labels of validation are its own answers.
      held = np.ones(len(self.task.validation))
      return {"validation": {"accuracy": held}, "test": {"accuracy": right}}
    assert self.teacher is not None
    return {
      name: self.teacher.ask(
        split,
        np.arange(len(split)),
        self.task,
        self._batch,
        scores.judge,
        [split.labels()],
      )
      for name, split in (
        ("validation", self.task.validation),
        ("test", self.task.test),
      )
    }

  def cost(
    self, groups: Sequence[arms.Group], states: States
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the models' sizes and their latencies."""
    settings = self.of.settings
    return measured.models(settings, self.task, self.teacher, groups, states)


def memory(
  settings: Mapping[str, Any],
  doing: str,
  lower: Mapping[str, int] | None = None,
):
  """Says what to lower where memory runs out."""
  batch = {"evaluate.batch_size": settings["evaluate"]["batch_size"]}
  return out_of_memory(doing, {**(lower or {}), **batch})
