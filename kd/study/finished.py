"""A run that has ended, read from its study's workdir."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from kd.config import made
from kd.data.registry import load
from kd.data.task import Task
from kd.errors import UserError
from kd.models import functional
from kd.study import compression, replicates, students, untrained
from kd.teachers import answers, model
from kd.train import arms, checkpoint, loop
from kd.train.batches import Setup


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
  """A run that did not diverge.

  Attributes:
    arm, seed: which.
    settings: the resolved config, with the replicate's own seeds.
    task: the replicate's.
    student: the model's name and options.
    weights: as kd.models.functional takes them.
  """

  arm: str
  seed: int
  settings: Mapping[str, Any]
  task: Task
  student: Mapping[str, Any]
  weights: Mapping[str, Any]


def read(
  workdir: str,
  settings: Mapping[str, Any],
  arm: str,
  seed: int | None = None,
  best: bool = False,
) -> Finished:
  """Reads a run's model.

  Args:
    workdir: of a study whose training has ended.
    settings: its resolved config.
    arm: its name.
    seed: the run's; None is the study's first.
    best: the weights that were best on validation, not the last.

  Raises:
    UserError: no such run, one that diverged, or checkpoints that are gone.
  """
  if arm not in settings["arms"]:
    raise UserError(
      f"--arm={arm}: expected one of {', '.join(settings['arms'])}"
    )
  own = settings["arms"][arm]
  if own["objective"] == "cascade":
    raise UserError(
      f"--arm={arm}: two models, of which the teacher is the second; expected "
      f"one, such as {own['of']}"
    )
  planned = replicates.of(settings, workdir)
  seed = planned[0].seeds[0] if seed is None else seed
  of = next((one for one in planned if seed in one.seeds), None)
  if of is None:
    raise UserError(
      f"--seed={seed}: expected {planned[0].seeds[0]} to "
      f"{planned[-1].seeds[-1]}"
    )
  folder = os.path.join(of.folder, "checkpoints")
  steps, done = settings["train"]["steps"], checkpoint.newest(folder)
  if done < steps:
    where = f"the newest is of step {done}" if done else "there is none"
    raise UserError(
      f"{folder}: expected the checkpoint of step {steps}, {where}; "
      "--phase=train: makes it"
    )
  task = load(of.settings["task"])
  every = settings["arms"]
  trained = made.trained(every)
  leader = made.leaders(every)[arm] or next(iter(trained))
  asks = answers.is_black_box(settings["teacher"])
  writes = answers.writes(settings)
  groups = arms.group(trained, black_box=asks, writes=writes)
  groups = students.bind(groups, of.settings, task)
  (group,) = (g for g in groups if leader in g.names)
  teacher = None
  if made.is_made(own) or (group.start and "folder" not in group.start):
    kept = os.path.join(of.folder, "teacher")
    teacher = model.obtained(of.settings["teacher"], kept, task)
  setup = Setup(
    task=task,
    transfers={},
    seeds=of.seeds,
    train=settings["train"],
    start=students.Starts(workdir, of.number, task, teacher),
  )
  states = {leader: loop.read(groups, setup, folder, leader)}
  asked = {leader: every[leader], arm: own}
  groups, states = untrained.extended(
    {**of.settings, "arms": asked},
    [group],
    states,
    teacher,
    compression.Kept(of.folder, of.seeds, "best" if best else "last"),
  )
  (group,) = (g for g in groups if arm in g.names)
  state, run = states[arm], list(of.seeds).index(seed)
  if state.diverged[run]:
    good = [s for i, s in enumerate(of.seeds) if not state.diverged[i]]
    raise UserError(
      f"--seed={seed}: diverged at step {state.diverged[run]} in arm {arm}; "
      f"expected {' or '.join(map(str, good)) or 'another arm'}"
    )
  weights = functional.of_run(state.best if best else state.weights, run)
  return Finished(arm, seed, of.settings, task, group.student, weights)
