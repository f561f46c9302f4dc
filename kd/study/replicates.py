"""Replicates: a study again, with other splits, teachers and draws.

The runs of a replicate differ in initialisation and order (and, where the
signal is not varied, in the draw of their transfer set). What `replicates.vary`
names changes from one replicate to the next; with a `count` for each name they
are nested, the first outermost: so many splits, each with so many teachers.

A replicate is the study with other seeds: its numbers are added to those of
the config. Replicate 0 is the study without replicates, but for the draws. Its
teacher is an earlier study's of the same number where `teacher.path` names
that: `runs/OTHER/replicates/{replicate}/teacher`.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kd.config import sections
from kd.errors import UserError
from kd.teachers import answers

if TYPE_CHECKING:  # this takes seconds to import
  from kd.data.task import Task

# How far apart the seeds of two replicates are: a black box's draws take one
# for each of the task's three parts.
STRIDE = {"split": 1, "teacher": 1, "signal": 3}
SEED = {"split": "task", "teacher": "teacher", "signal": "signal"}
NUMBER = "{replicate}"  # in teacher.path


@dataclasses.dataclass(frozen=True)
class Replicate:
  """One of a study's.

  Attributes:
    number: from 0.
    settings: the resolved config, with its own seeds of split and teacher.
    seeds: of its runs; no other replicate has them.
    trials: of its trials' runs, likewise.
    draws: the seed that draws each run's transfer set.
    shift: what is added to the seed of a signal.
    folder: holds its teacher/, signals/ and checkpoints/.
  """

  number: int
  settings: Mapping[str, Any]
  seeds: Sequence[int]
  trials: Sequence[int]
  draws: Sequence[int]
  shift: int
  folder: str


def of(settings: Mapping[str, Any], folder: str) -> list[Replicate]:
  """Returns a study's replicates; one, in the workdir itself, without any."""
  each, levels, total = settings["seeds"], _levels(settings), count(settings)
  made = []
  for r in range(total):
    first = settings["seed"] + r * each
    seeds = [first + s for s in range(each)]
    trials = [total * each + seed for seed in seeds]
    own = {n: STRIDE[n] * int(of[r]) for names, of in levels for n in names}
    changed = {
      name: {**settings[name], "seed": settings[name]["seed"] + own[n]}
      for n, name in SEED.items()
      if n in own
    }
    draws, shift = seeds, own.get("signal", 0)
    if "signal" in own:
      draws = [settings["seed"] + shift] * each
    place = os.path.join(folder, "replicates", f"{r:03d}") if levels else folder
    teacher = changed.get("teacher", settings["teacher"])
    path = teacher["path"].replace(NUMBER, f"{r:03d}")
    changed["teacher"] = {**teacher, "path": path}
    made.append(
      Replicate(r, {**settings, **changed}, seeds, trials, draws, shift, place)
    )
  return made


def count(settings: Mapping[str, Any]) -> int:
  """Returns how many replicates a study has."""
  counts = settings["replicates"]["count"]
  return math.prod(counts) if isinstance(counts, tuple | list) else counts


def splits(settings: Mapping[str, Any]) -> int:
  """Returns how many splits of the data they have between them."""
  return max(
    [1] + [of[-1] + 1 for names, of in _levels(settings) if "split" in names]
  )


def _levels(
  settings: Mapping[str, Any],
) -> list[tuple[tuple[str, ...], np.ndarray]]:
  """Returns (what changes, group of each replicate [R]), outermost first."""
  vary, counts = (settings["replicates"][k] for k in ("vary", "count"))
  if not vary:
    return []
  numbers = np.arange(count(settings))
  if isinstance(counts, int):
    return [(tuple(vary), numbers)]
  inner = [math.prod(counts[i + 1 :]) for i in range(len(counts))]
  return [((v,), numbers // n) for v, n in zip(vary, inner, strict=True)]


def check(settings: Mapping[str, Any]) -> None:
  """Checks the section against the rest of the config.

  Raises:
    UserError: naming the key.
  """
  section, total = settings["replicates"], count(settings)
  vary, counts = section["vary"], section["count"]
  if not sections.COUNT.accepts(total):
    raise UserError(
      f"replicates.count = {counts!r}: {total} replicates, expected "
      f"{sections.COUNT.words} in all"
    )
  if len(set(vary)) < len(vary) or bool(vary) != (total > 1):
    raise UserError(
      f"replicates.vary = {vary!r}: expected what replicates.count = "
      f"{counts!r} replicates differ in, each name once; () for one alone"
    )
  if not isinstance(counts, int) and len(counts) != len(vary):
    raise UserError(
      f"replicates.count = {counts!r}: expected a whole number, or one for "
      f"each of replicates.vary = {vary!r}"
    )
  teacher = settings["teacher"]
  if vary and answers.is_answers(teacher["path"]) and _is_given(teacher):
    raise UserError(
      f"replicates.vary = {vary!r}: the answers of teacher.path are one draw "
      f"of one teacher; expected replicates.count = 1, or a path with {NUMBER}"
    )
  if "teacher" in vary and _is_given(teacher):
    key = "path" if teacher["path"] else "pretrained"
    raise UserError(
      f"replicates.vary = {vary!r}: the teacher of teacher.{key} is the same "
      f"always; expected replicates without 'teacher', or a path with {NUMBER}"
    )
  for name, arm in settings["arms"].items():
    if vary and arm["signal"]["path"]:
      raise UserError(
        f"arms.{name}.signal.path = {arm['signal']['path']!r}: a store is of "
        "one replicate; expected '', or replicates.count = 1"
      )
  last = of(settings, "")[-1]
  runs = last.trials if settings["tune"]["budget"] else last.seeds
  ends = {"seed": (runs[-1], sections.SEED)}
  for key in ("task", "teacher"):
    ends[f"{key}.seed"] = last.settings[key]["seed"], sections.SEED
  for name, arm in settings["arms"].items():
    seed = arm["signal"]["seed"] + last.shift
    ends[f"arms.{name}.signal.seed"] = seed, sections.SIGNAL_SEED
  for key, (seed, most) in ends.items():
    if not most.accepts(seed):
      raise UserError(
        f"{key}: with seeds = {settings['seeds']} and replicates.count = "
        f"{counts!r} the last is {seed}, expected {most.words}"
      )


def _is_given(teacher: Mapping[str, Any]) -> bool:
  """Whether all replicates have one teacher, which is not the study's own."""
  return teacher["pretrained"] or (
    bool(teacher["path"]) and NUMBER not in teacher["path"]
  )


def describe(
  settings: Mapping[str, Any], tasks: Sequence["Task"]
) -> dict[str, Any]:
  """Returns what results.json says of them.

  `levels` says of each level, outermost first, which runs belong together, and
  `fixed` what was the same in all: "split", "test set", "teacher", "signal".

  Args:
    settings: the resolved config.
    tasks: of each replicate.
  """
  section, levels = settings["replicates"], _levels(settings)
  vary, given = section["vary"], _is_given(settings["teacher"])
  is_fixed = {
    "split": "split" not in vary,
    "test set": "split" in vary and _one_test(tasks),
    "teacher": given or not {"split", "teacher"} & set(vary),
  }
  return {
    "count": section["count"],
    "vary": list(vary),
    "levels": [
      {
        "name": " + ".join(names),
        "of": np.repeat(groups, settings["seeds"]).tolist(),
      }
      for names, groups in levels
    ],
    "fixed": [name for name, fixed in is_fixed.items() if fixed],
    "seed": "initialisation and order"
    if "signal" in vary
    else "initialisation, order and draws",
  }


def _one_test(tasks: Sequence["Task"]) -> bool:
  """Whether replicates of two splits test on the same examples."""
  from kd.signals import store

  first, second = (
    sorted(store.keys(t.test.arrays()[0])) for t in (tasks[0], tasks[-1])
  )
  return first == second
