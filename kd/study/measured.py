"""What a replicate's models ask of a device: sizes, memory and seconds."""

from collections.abc import Mapping, Sequence
from typing import Any

from kd import compress
from kd.data.task import Task
from kd.evaluate import cost
from kd.evaluate.meter import Meter
from kd.study import compression, students
from kd.teachers import prompted
from kd.teachers.teacher import Teacher
from kd.train.arms import Group
from kd.train.step import TrainState


def arms(
  settings: Mapping[str, Any],
  kept: compression.Kept,
  task: Task,
  groups: Sequence[Group],
  states: Mapping[str, TrainState],
  meter: Meter,
) -> dict[str, dict[str, Any]]:
  """Returns {arm: {metric: a value for each run}}, but for cascades, which have
  no model of their own.

  Args:
    settings: the resolved config.
    kept: where models of compressed arms are, and the others' are left.
    task: the replicate's.
    groups, states: of every arm.
    meter: of the study.
  """
  every = settings["arms"]
  own = [g for g in groups if every[g.names[0]]["objective"] != "cascade"]
  places = {}
  for group, name in ((g, n) for g in own for n in g.names):
    if "compress" not in every[name]:
      _write(kept, name, group, states[name], task)
    places[name] = [kept.place(name, seed) for seed in kept.seeds]
  return meter(own, states, places)


def _write(
  kept: compression.Kept, name: str, group: Group, state: TrainState, task: Task
) -> None:
  """Writes the models of an arm that is not compressed, for their size."""
  weights = state.best if kept.selection == "best" else state.weights
  models = compression.models_of(group.student, weights, task)
  for seed, model in zip(kept.seeds, models, strict=True):
    compress.save(model, kept.place(name, seed))


def models(
  settings: Mapping[str, Any],
  task: Task,
  teacher: Teacher | None,
  groups: Sequence[Group],
  states: Mapping[str, TrainState],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns sizes and latencies of the models that differ, the teacher's first.

  Args:
    settings, task, teacher: the replicate's.
    groups, states: of every arm.
  """
  asked: dict[str, Any] = {}
  if teacher is not None:
    asked["teacher"] = (teacher.model, teacher.weights)
  names, batch = list(settings["arms"]), settings["evaluate"]["batch_size"]
  own, _ = students.resolve("student", settings["student"], settings, task)
  asked |= cost.distinct(groups, states, own, names)
  sizes = {
    name: {"name": kind["name"], "parameters": cost.parameters(weights)}
    for name, (kind, weights) in asked.items()
  }
  times = {}
  if teacher is not None and teacher.reader is not None:
    del asked["teacher"]
    rows = range(min(len(task.test), prompted.AT_ONCE))
    texts = prompted.texts(task, "test", rows)
    times["teacher"] = cost.timed(teacher.reader.logits, texts)
  new = settings["evaluate"]["generate"]
  new = new["max_new_tokens"] if new["prompts"] else 0
  return sizes, times | {
    name: cost.measure(kind, weights, task, batch, new)
    for name, (kind, weights) in asked.items()
  }
