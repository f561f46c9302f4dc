"""The test examples where teacher and students disagree most.

    d_n = mean over arms of TV_n,    TV = 1/2 sum_v |p_v - q_v|

the total variation between the teacher's distribution p and a student's q:
the largest difference of the probabilities that they give to any set of
classes. Of a black box p is its answer alone, so that TV = 1 - q(answer). An
arm's q is that of its first run that finished, by the weights that the primary
metric scores.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kd.data import shown
from kd.data.task import Task
from kd.evaluate.scores import Each, Said, Scored
from kd.signals import TopK


def find(
  scored: Mapping[str, Scored],
  said: Said | None,
  task: Task,
  places: np.ndarray,
  most: int,
) -> dict[str, Any] | None:
  """Returns `disagreements` of results.json, the largest distance first.

  None where nothing is known of them.

  Args:
    scored: arm -> its scores.
    said: what the teacher says of all labels of the test split.
    task: the examples, of which one of a row of tokens is shown at most.
    places: of the N labels among those of the test split.
    most: examples.
  """
  runs = {
    arm: own.first for arm, own in scored.items() if "distance" in own.first
  }
  if said is None or not runs or not most:
    return None
  distances = np.stack([run["distance"] for run in runs.values()])
  known = np.isfinite(distances).any(0)
  mean = np.full(len(known), -1.0)
  mean[known] = np.nanmean(distances[:, known], 0)
  teacher = of_teacher(said, places)
  labels = task.test.labels()[places]
  examples, rows = [], set()
  for n in np.argsort(-mean, kind="stable").tolist():
    row = int(places[n]) // task.positions
    if mean[n] <= 0 or len(examples) == most:
      break
    if row in rows:
      continue
    rows.add(row)
    examples.append(
      {
        "label": int(places[n]),
        "distance": _short(mean[n]),
        "input": shown.shown(task, int(places[n])),
        "truth": shown.name(task, int(labels[n])),
        "teacher": _said(task, teacher, n),
        "arms": {
          arm: {**_said(task, run, n), "distance": _short(run["distance"][n])}
          for arm, run in runs.items()
          if np.isfinite(run["distance"][n])
        },
      }
    )
  return {"measure": "total variation", "examples": examples}


def of_teacher(said: Said, places: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the teacher's `answer` and, but of a black box, its `confidence`
  [N], of the labels at `places`."""
  if isinstance(said, TopK):
    top = np.exp(np.asarray(said.log_probs)[places].max(-1))
    return {"answer": np.asarray(said.answer)[places], "confidence": top}
  said = np.asarray(said)[places]
  if said.ndim == 1:
    return {"answer": said}
  z = said.astype(np.float32)
  top = 1 / np.exp(z - z.max(-1, keepdims=True)).sum(-1)
  return {"answer": z.argmax(-1), "confidence": top}


def _said(task: Task, run: Each, n: int) -> dict[str, Any]:
  said = {"answer": shown.name(task, int(run["answer"][n]))}
  if "confidence" in run:
    said["confidence"] = _short(run["confidence"][n])
  return said


def _short(value: float) -> float:
  return float(f"{value:.4g}")
