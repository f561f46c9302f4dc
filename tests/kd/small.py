"""A small study in memory, for tests of training."""

import math
import re

import jax
import numpy as np

from kd import config, signals
from kd.bench import ways
from kd.data.order import subset
from kd.data.registry import load
from kd.models import functional
from kd.train import arms, batches, coverage, program
from kd.train.batches import Setup, Transfer, transfer_of


def settings(arm_configs, *, steps=40, hidden=(16,), **sections):
  """Resolves a config of the given arms on the digits."""
  options = config.defaults().to_dict()
  options |= {
    "study": "small",
    "baseline": next(iter(arm_configs)),
    "student": {"name": "mlp", "hidden": hidden, "dropout": 0.0},
    "seeds": 2,
    "arms": {k: dict(v) for k, v in arm_configs.items()},
  }
  options["teacher"] |= {"name": "mlp", "hidden": (32,), "dropout": 0.1}
  options["teacher"]["train"]["steps"] = 40
  options["train"] |= {"steps": steps, "log_every": 10, "checkpoint_every": 20}
  for section, values in sections.items():
    if isinstance(values, dict) and "name" not in values:
      options[section] |= values
    else:
      options[section] = values
  return config.resolve(options)


def study(
  resolved,
  *,
  seeds=(0, 1),
  logits=None,
  live=None,
  task=None,
  fused_from=arms.FUSED_FROM,
):
  """Returns (groups, setup) with a teacher's logits made up from the labels.

  Args:
    resolved: of `settings`.
    seeds: of the runs.
    logits: the teacher's, instead.
    live: a feed.Live, the teacher of the arms that say signal.live.
    task: instead of the config's.
    fused_from: of kd.train.arms.group.
  """
  task = task or load(resolved["task"])
  groups = arms.group(resolved["arms"], task.num_classes, fused_from=fused_from)
  labels = task.train.labels()
  stored = any(not group.signal["live"] for group in groups)
  if logits is None and stored:
    classes = task.num_classes
    noise = np.random.default_rng(0).normal(size=(len(labels), classes))
    logits = (4 * np.eye(classes)[labels] + noise).astype(np.float32)
  transfers = {}
  for group in groups:
    section = group.signal
    if section["live"]:
      signal = signals.of_labels(labels)
    else:
      signal = signals.make(
        logits,
        labels if section["labelled"] else None,
        samples=section["samples"],
        temperature=section["temperature"],
        seed=section["seed"],
      )
    transfers[transfer_of(section)] = Transfer(
      inputs=task.train,
      signal=signal,
      rows=np.stack(
        [subset(labels, size=section["size"], seed=s) for s in seeds]
      ),
      jitter=section["jitter"],
      live=live if section["live"] else None,
    )
  groups = coverage.bind(groups, [transfers], task.num_classes)
  setup = Setup(
    task=task, transfers=transfers, seeds=list(seeds), train=resolved["train"]
  )
  return groups, setup


def wide_program():
  """Returns (program, arguments): three arms, a live teacher, many classes.

  Soft targets at two temperatures, and hard labels beside another divergence.
  """
  live = {"signal": {"live": True}}
  sum_of = {
    "hard": {"target": "answer", "weight": 0.1},
    "soft": {"temperature": 4.0, "divergence": "tvd", "weight": 0.9},
  }
  resolved = settings(
    {
      "soft": {**SOFT, **live},
      "warm": {**SOFT, **live, "temperature": 2.0},
      "both": {"objective": "hard + soft", **sum_of, **live},
    },
    steps=10,
  )
  resolved["train"]["batch_size"] = BATCH
  task = ways.RandomImages(CLASSES, (4, 4, 1), BATCH)
  init = functional.define(TEACHER, task.signature)[1]
  params, rest = jax.eval_shape(init, jax.random.key(0))
  weights = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), {"params": params, "rest": rest}
  )
  teacher = batches.Live(TEACHER, weights, samples=8, temperature=1.0)
  groups, setup = study(resolved, seeds=(0,), live=teacher, task=task)
  seeds = np.zeros(1, np.uint32)
  numbers = arms.numbers_of(groups)
  state = jax.eval_shape(program.make_init(groups, setup), seeds, numbers)
  _, xs = next(batches.intervals(setup, 0))
  run = program.make_interval(groups, setup, one_by_one=False)
  return run, (
    state,
    seeds,
    xs,
    numbers,
    np.int32(0),
    batches.resident(setup),
  )


def widest(text):
  """Returns the numbers in a compiled program's largest array of CLASSES."""
  shapes = [d.split(",") for d in re.findall(r"f32\[([\d,]+)\]", text)]
  wide = [tuple(map(int, s)) for s in shapes if str(CLASSES) in s]
  return max(map(math.prod, wide))


BATCH, CLASSES = 1024, 65536
TEACHER = {"name": "mlp", "hidden": (16,), "dropout": 0.0}
HARD = {"objective": "hard", "target": "answer"}
SOFT = {"objective": "soft", "temperature": 4.0, "divergence": "forward_kl"}
RANK = {
  "objective": "list_net",
  "samples": 8,
  "scores": "log_probs",
  "temperature": 1.0,
}
