"""Compressed arms of a study: each run's model made smaller, once, and kept.

    REPLICATE/models/ARM/seed_S    of kd.compress.save

A chain of steps (kd.config.compression) is applied to what each run trained, or
to the teacher. What a run may see of the task beforehand, to scale its inputs
or to weigh its units, is the first examples of its transfer set. `recover` goes
on with the arm's own objective, transfer set and optimiser from what is left:
weights that are 0 stay so. A teacher's arm learns the distribution of the
teacher as it was, at T = 1.

Models are read from their folders in any case, so that a study that was stopped
ends with the same bits: a chain that was not finished is done again from the
checkpoint of the training.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array

from kd import compress
from kd.compress import anew, folder, structured
from kd.config import compression
from kd.data.task import Task
from kd.errors import UserError
from kd.models import functional
from kd.train import arms, loop
from kd.train.arms import Group
from kd.train.batches import Setup, transfer_of
from kd.train.step import TrainState

# What a teacher's arm minimises while it recovers.
LIKE_THE_TEACHER = dict(
  objective="soft", temperature=1.0, divergence="forward_kl"
)


def check(
  path: str, chain: Sequence[Mapping], student: Mapping[str, Any], task: Task
) -> None:
  """Checks that a model has what the steps of a chain take out.

  Args:
    path: of the chain.
    chain: of kd.config.compression.
    student: the model's name and options.
    task: that it is of.

  Raises:
    UserError: naming the step.
  """
  if student.get("lora"):
    raise UserError(
      f"{path}: the student has adapters ({dict(student['lora'])}); expected "
      "student.lora = None"
    )
  own = {k: v for k, v in student.items() if k not in ("freeze", "lora")}
  of = anew.Origin(own, task.input_shape, task.num_classes)
  for i, step in enumerate(chain):
    if step["step"] == "prune" and step["what"] in compression.STRUCTURES:
      of = structured.shrunk(
        of, step["what"], step["sparsity"], step["importance"], f"{path}[{i}]"
      )


def recovery(
  name: str, arm: Mapping[str, Any], student: Mapping[str, Any]
) -> Group:
  """Returns what the arm of a teacher trains while it recovers.

  Args:
    name, arm: the arm's, of the resolved config.
    student: the teacher's name and options.
  """
  own = {k: v for k, v in arm.items() if k != "objective"}
  (group,) = arms.group({name: {**own, **LIKE_THE_TEACHER, "student": student}})
  return group


def place(replicate: str, arm: str, seed: int, selection: str) -> str:
  """Returns the folder that keeps a run's model; `selection` says whose weights
  it was made of, the "last" or the "best"."""
  kept = "models" if selection == "last" else "models-best"
  safe = re.sub(r"[^\w.+=,()\[\]-]", "_", arm)
  return os.path.join(replicate, kept, safe, f"seed_{seed}")


@dataclasses.dataclass(frozen=True)
class Kept:
  """Reads the models of a replicate's compressed arms.

  Attributes:
    folder: the replicate's.
    seeds: of its runs.
    selection: whose weights they were made of.
  """

  folder: str
  seeds: Sequence[int]
  selection: str

  def __call__(
    self,
    name: str,
    leader: str | None,
    student: Mapping[str, Any],
    state: TrainState,
  ) -> tuple[Mapping[str, Any], TrainState]:
    """Returns (options, state) of an arm.

    Args:
      name: the arm's.
      leader: the one whose training it has; None of a teacher's.
      student, state: options and runs of what it was made of.

    Raises:
      UserError: a folder is missing or damaged.
    """
    del leader, student
    places = [self.place(name, seed) for seed in self.seeds]
    models = [compress.load(place) for place in places]
    weights = stacked(models)
    state = dataclasses.replace(
      state,
      params=weights["params"],
      rest=weights["rest"],
      best=weights,
      opt=(),
      frozen=None,
    )
    return anew.origin(models[0]).student, state

  def place(self, name: str, seed: int) -> str:
    return place(self.folder, name, seed, self.selection)


@dataclasses.dataclass(frozen=True)
class Maker:
  """Makes the models that are not there yet.

  Attributes:
    kept: where they are read.
    chains: {arm: steps}.
    groups: the arms that train, and teachers' that recover, at the numbers
      that a search chose.
    setup: what their runs share.
    programs: of each arm that recovers, compiled, for all replicates.
  """

  kept: Kept
  chains: Mapping[str, Sequence[Mapping[str, Any]]]
  groups: Sequence[Group]
  setup: Setup
  programs: dict[str, loop.Programs]

  def __call__(
    self,
    name: str,
    leader: str | None,
    student: Mapping[str, Any],
    state: TrainState,
  ) -> tuple[Mapping[str, Any], TrainState]:
    """Returns (options, state) of an arm; see `Kept`."""
    places = [self.kept.place(name, seed) for seed in self.kept.seeds]
    there = [os.path.exists(os.path.join(p, folder.MODEL)) for p in places]
    if not all(there):
      logging.info("compressing %s", name)
      best = self.kept.selection == "best"
      weights = state.best if best else state.weights
      models = models_of(student, weights, self.setup.task)
      models = self._made(name, leader or name, models)
      for model, at in zip(models, places, strict=True):
        compress.save(model, at)
    return self.kept(name, leader, student, state)

  def _made(self, name: str, trains: str, models: list) -> list:
    """Returns the models after the steps of an arm; `trains` is the one that
    says how it recovers."""
    for number, step in enumerate(self.chains[name]):
      seen = [self._examples(trains, run) for run in range(len(models))]
      models = [
        _step(model, step, x) for model, x in zip(models, seen, strict=True)
      ]
      if step.get("recover"):
        own = self._group(trains)
        key = f"{name}[{number}]"
        models = self._recovered(key, own, step["recover"], models)
    return models

  def _examples(self, name: str, run: int) -> Array:
    """Returns what a run may see beforehand, as its model takes it: of its
    arm's transfer set, or of the first of the study's."""
    own = [transfer_of(g.signal) for g in self.groups if name in g.names]
    transfer = self.setup.transfers[(own or [*self.setup.transfers])[0]]
    rows = np.sort(np.asarray(transfer.rows)[run][: compression.EXAMPLES])
    task = self.setup.task
    inputs = transfer.inputs.read(rows).reshape(-1, *task.input_shape)
    return functional.scaled(
      jnp.asarray(inputs[: compression.EXAMPLES]), task.signature
    )

  def _group(self, name: str) -> Group:
    """Returns one arm's own group."""
    every = [g for some in self.groups for g in loop.split(some)]
    return next(g for g in every if g.names == (name,))

  def _recovered(
    self, key: str, group: Group, steps: int, models: list
  ) -> list[nnx.Module]:
    """Returns the models after so many steps of a group's training."""
    student, (name,) = anew.origin(models[0]).student, group.names
    group = dataclasses.replace(group, student=student, start=None, sparse=True)
    train = self.setup.train
    log_every = min(train["log_every"], steps)
    plan = {"steps": steps, "log_every": log_every, "warmup_steps": 0}
    setup = dataclasses.replace(self.setup, start=None, train={**train, **plan})
    if key not in self.programs:
      self.programs[key] = loop.programs([group], setup)
    states = loop.fit(
      [group],
      setup,
      compiled=self.programs[key],
      weights={name: stacked(models)},
    )
    return models_of(student, states[name].weights, setup.task)


def _step(model: nnx.Module, step: Mapping[str, Any], examples: Array):
  keys = {
    k: v for k, v in step.items() if k not in ("step", "recover", "aware")
  }
  if step["step"] == "prune":
    return compress.prune(model, examples=examples, **keys)
  return compress.quantize(model, examples=examples, **keys)


def models_of(
  student: Mapping[str, Any], weights: Mapping[str, Any], task: Task
) -> list[nnx.Module]:
  """Returns each run's model, of weights [S, ...]."""
  graphdef, _ = functional.define(student, task.signature)
  runs = len(jax.tree.leaves(weights["params"])[0])
  made = []
  for run in range(runs):
    own = jax.tree.map(jnp.asarray, functional.of_run(weights, run))
    model = nnx.merge(graphdef, *own.values(), copy=True)
    if "frozen" in own:  # which its runs share no more
      model = anew.filled(anew.origin(model), anew.arrays(model))
    made.append(model)
  return made


def stacked(models: Sequence[nnx.Module]) -> dict[str, Any]:
  """Returns the weights [S, ...] of models of the same options."""
  every = [functional.split(model)[1] for model in models]
  return jax.tree.map(lambda *x: np.stack([np.asarray(a) for a in x]), *every)
