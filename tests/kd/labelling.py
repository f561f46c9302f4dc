"""A labelling in miniature, for tests; run as a script, to be killed.

    python -m tests.kd.labelling [SECONDS between batches]

For each folder in a line of its input it starts a process that labels into it,
a fork of what has imported all that it needs. It says which, then "batch"
before each batch, and "end" when the process is done or killed.
"""

import os
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
  for line in sys.stdin:
    if child := os.fork():
      print(child, flush=True)
      os.waitpid(child, 0)
      print("end", flush=True)
    else:  # before which jax has started no device, and so no thread
      label.label(line.strip(), plan(pause=float(sys.argv[1]), **KILLED))
      os._exit(0)
