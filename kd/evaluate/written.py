"""Evaluation by generation: what models write after the test prompts.

A value of each prompt, of which metrics are means: a prompt is the unit of
their intervals. Of each model greedy words are judged, so that nothing is
drawn.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd import files
from kd.data import documents
from kd.data.task import Task
from kd.evaluate import registry, text
from kd.evaluate.scores import Scored
from kd.models import functional
from kd.teachers.writing import Writer
from kd.train.arms import Group
from kd.train.step import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """What models are asked.

  Attributes:
    task: of tokens.
    options: the config's section `evaluate.generate`.
    batch: prompts at once.
    texts: of the N prompts.
    ids: of the same, as the tokenizer has them.
    truth: the task's own completions.
    teacher: the teacher's words; None where it was not asked.
  """

  task: Task
  options: Mapping[str, Any]
  batch: int
  texts: Sequence[str]
  ids: Sequence[np.ndarray]
  truth: Sequence[str]
  teacher: Sequence[str | None]

  @classmethod
  def of(cls, task: Task, options: Mapping[str, Any], batch: int) -> "Prompts":
    """Returns the first prompts of a test split."""
    assert task.tokens is not None
    view, count = task.tokens, options["prompts"]
    records = view.records["test"][:count]
    return cls(
      task=task,
      options=options,
      batch=min(batch, len(records)),
      texts=[documents.prompt_of(r, view.template) for r in records],
      ids=documents.encode_prompts(records, view.tokenizer, view.template),
      truth=[documents.completion_of(r) or "" for r in records],
      teacher=[None] * len(records),
    )

  def write(self, kind: Mapping[str, Any], weights: Any) -> list[str]:
    """Returns what a model writes after each."""
    written = Writer(kind, weights, self.task).write(
      self.ids,
      length=max(map(len, self.ids)),
      batch=self.batch,
      max_new_tokens=self.options["max_new_tokens"],
    )
    return [each[0].text for each in written]

  def judge(self, written: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns each metric's values [N]; NaN where it can't be told."""
    schema = self.options["schema"] or None
    if schema:
      schema = files.read_json(schema, "JSON Schema")
    words = registry.Words(written, self.truth, self.teacher, schema)
    return {
      name: of(text, words)
      for name, metric in registry.METRICS.items()
      if name in self.options["metrics"] and (of := metric.text)
    }


def teacher(
  prompts: Prompts, said: Sequence[str | None]
) -> tuple[Prompts, dict[str, float | None]]:
  """Returns the prompts with the teacher's words, and its scores over those
  that it was asked."""
  prompts = dataclasses.replace(prompts, teacher=said)
  known = np.array([x is not None for x in said])
  each = prompts.judge([x or "" for x in said])
  return prompts, {
    name: _mean(np.where(known, x, np.nan))
    for name, x in each.items()
    if name != "text_agreement"
  }


def arms(
  groups: Sequence[Group],
  states: Mapping[str, TrainState],
  scored: Mapping[str, Scored],
  prompts: Prompts,
  metric: str,
) -> tuple[dict[str, Scored], list[dict[str, Any]]]:
  """Adds to the arms' scores those of what they write.

  Args:
    groups, states: the arms, and where their training ended.
    scored: by arm.
    prompts: with the teacher's words.
    metric: the study's primary one.

  Returns:
    The scores; and of a few prompts everybody's words, an arm's being those of
    its first run that finished.
  """
  found, words = dict(scored), {}
  for group in groups:
    for name in group.names:
      state = states[name]
      each: list[dict[str, np.ndarray] | None] = []
      for s, stopped in enumerate(np.asarray(state.diverged)):
        if stopped:
          each.append(None)
          continue
        own = functional.of_run(state.weights, s)
        written = prompts.write(group.student, own)
        words.setdefault(name, written)
        each.append(prompts.judge(written))
      found[name] = _with(scored[name], each, prompts, metric)
  shown = range(min(prompts.options["shown"], len(prompts.texts)))
  return found, [
    {
      "prompt": prompts.texts[i],
      "truth": prompts.truth[i],
      "teacher": prompts.teacher[i],
      "arms": {name: own[i] for name, own in words.items()},
    }
    for i in shown
  ]


def _with(
  scored: Scored,
  each: Sequence[Mapping[str, np.ndarray] | None],
  prompts: Prompts,
  metric: str,
) -> Scored:
  values = {
    name: [None if run is None else _mean(run[name]) for run in each]
    for name in registry.METRICS
    if name in prompts.options["metrics"]
  }
  scored = dataclasses.replace(scored, values={**scored.values, **values})
  if metric not in values:
    return scored
  own = [None if run is None else run[metric] for run in each]
  return dataclasses.replace(scored, each=own)


def _mean(values: np.ndarray) -> float | None:
  known = values[~np.isnan(values)]
  return float(known.mean()) if len(known) else None
