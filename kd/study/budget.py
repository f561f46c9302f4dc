"""How many tokens of the teacher each arm costs, in a task of tokens.

Arms that learn from equally many are compared at an equal price. Tokens that a
teacher reads count as those that it writes; a seed's draw is what its runs
cost, and the number is a mean over seeds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kd.data.task import Task
from kd.objectives import terms
from kd.train.arms import Group, Part


def reads(group: Group) -> list[str]:
  """Returns the parts of a signal that a group's arms read."""
  return [r for part in group.parts for r in _reads(part)]


def _reads(part: Part) -> list[str]:
  return [r for term in part.terms for r in terms.reads(*term)]


def of_completions(
  group: Group, bought: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
  """Returns each arm's: those of the prompts that it draws.

  Args:
    group: the arms.
    bought: tokens of each prompt and its completions [N].
    rows: of the prompts that each seed draws [S, n].
  """
  return _each(group, float(bought[rows].sum(-1).mean()))


def of_rows(
  group: Group, task: Task, rows: np.ndarray, train: Mapping[str, Any]
) -> dict[str, float]:
  """Returns each arm's: those of the rows that the teacher reads, once, or
  where it is live at each step.

  Args:
    group: the arms.
    task: of tokens.
    rows: of the train split, that each seed draws [S, n].
    train: the config's section.
  """
  used, where = np.unique(rows, return_inverse=True)
  counts = np.concatenate(
    [(x[:, 1] > 0).sum(-1) for x in task.train.read_in_chunks(used)]
  )
  each = counts[where.reshape(rows.shape)]
  if group.signal["live"]:
    return _each(
      group, float(each.mean() * train["steps"] * train["batch_size"])
    )
  return _each(group, float(each.sum(-1).mean()))


def _each(group: Group, tokens: float) -> dict[str, float]:
  """Returns {arm: tokens}; an arm that reads the truth alone costs none."""
  return {
    name: tokens if set(_reads(part)) - {"truth"} else 0.0
    for part in group.parts
    for name in part.names
  }
