"""A labelling in miniature, for tests; run as a script, to be killed.

python -m tests.kd.labelling FOLDER [SECONDS between batches]

It says "ready", and "batch" before each batch.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from kd import config
from kd.signals import label

COUNT, WIDTH = 700, 6
FACTS = {"teacher": "abc", "task": "def", "rows": [0, COUNT]}


def inputs(rows, count=COUNT):
  made = np.random.default_rng(0).normal(size=(count, WIDTH))
  return made.astype(np.float32)[rows]


def weights(num_classes):
  made = np.random.default_rng(1).normal(size=(WIDTH, num_classes))
  return jnp.asarray(made, jnp.float32)


@jax.jit
def forward(x, w):
  return x @ w


def plan(
  *, classes=40, count=COUNT, facts=None, truth=True, pause=0.0, **section
):
  """Returns a plan of a linear teacher on random inputs."""
  w = weights(classes)

  def logits(rows):
    if pause:
      print("batch", flush=True)
      time.sleep(pause)
    x = inputs(rows, count)
    lacking = -len(x) % 64
    return np.asarray(forward(np.pad(x, ((0, lacking), (0, 0))), w))[: len(x)]

  options = config.defaults().signal.to_dict()
  options |= {"shard_size": 128, "samples": 4, "k": 8}
  labels = np.random.default_rng(2).integers(0, classes, count)
  return label.Plan(
    section={**options, **section},
    count=count,
    num_classes=classes,
    inputs=lambda rows: inputs(rows, count),
    logits=logits,
    truth=labels if truth else None,
    facts=FACTS if facts is None else facts,
    batch=64,
  )


KILLED = {"keep": "top_k", "dtype": "int8", "temperatures": (1.0, 2.0)}

if __name__ == "__main__":
  print("ready", flush=True)
  pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
  label.label(sys.argv[1], plan(pause=pause, **KILLED))
