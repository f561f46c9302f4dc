"""A labelling in miniature, for tests; run as a script, to be killed.

    python -m tests.kd.labelling [SECONDS between batches]

For each folder in a line of its input it starts a process that labels into it,
a fork of what has imported all that it needs. It says which, then "batch"
before each batch, and "end" when the process is done or killed.
"""

import functools
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from kd import config, signals
from kd.signals import label

COUNT, WIDTH, BATCH = 700, 6, 64
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


def logits(rows, *, count=COUNT, classes=40):
  """Asks a linear teacher about random inputs."""
  x, w = inputs(rows, count), weights(classes)
  lacking = -len(x) % BATCH
  return np.asarray(forward(np.pad(x, ((0, lacking), (0, 0))), w))[: len(x)]


def truth_of(count=COUNT, classes=40):
  return np.random.default_rng(2).integers(0, classes, count)


def asks(section, logits, truth=None):
  """Returns a plan's `ask` of a teacher whose logits are a function of rows."""
  make = jax.jit(label.Asked.of(section))

  def ask(rows):
    found = []
    for i in range(0, len(rows), BATCH):  # of one shape
      own = rows[i : i + BATCH]
      lacking = BATCH - len(own)
      y = np.full(len(own), -1) if truth is None else truth[own]
      signal = make(
        signals.Dense(jnp.pad(logits(own), ((0, lacking), (0, 0)), "edge")),
        np.pad(y, (0, lacking)),
        np.pad(own, (0, lacking)),
        np.full(BATCH, section["seed"], np.uint32),
      )
      found.append(jax.tree.map(np.asarray, signal).at(np.arange(len(own))))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *found)

  return ask


def plan(
  *,
  classes=40,
  count=COUNT,
  facts=None,
  truth=True,
  pause=0.0,
  positions=1,
  logits=logits,
  **section,
):
  """Returns a plan of a linear teacher on random inputs, `count` of them, of
  which so many positions are an example's."""
  options = config.defaults().signal.to_dict()
  options |= {"shard_size": 128 // positions, "samples": 4, "k": 8, **section}
  labels = truth_of(count, classes) if truth else None
  of_teacher = functools.partial(logits, count=count, classes=classes)
  made = asks(options, of_teacher, labels)

  def ask(rows):
    if pause:
      print("batch", flush=True)
      time.sleep(pause)
    return made(signals.rows_of(rows, positions))

  return label.Plan(
    section=options,
    count=count // positions,
    num_classes=classes,
    inputs=lambda rows: inputs(rows * positions, count),
    ask=ask,
    facts=FACTS if facts is None else facts,
    batch=BATCH // positions,
    positions=positions,
  )


KILLED = {
  "keep": "top_k",
  "dtype": "int8",
  "temperatures": (1.0, 2.0),
  "positions": 4,
}

if __name__ == "__main__":
  for line in sys.stdin:
    if child := os.fork():
      print(child, flush=True)
      os.waitpid(child, 0)
      print("end", flush=True)
    else:  # before which jax has started no device, and so no thread
      label.label(line.strip(), plan(pause=float(sys.argv[1]), **KILLED))
      os._exit(0)
