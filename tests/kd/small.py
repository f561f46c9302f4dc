"""A small study in memory, for tests of training."""

import numpy as np

from kd import arms, config, data, signals
from kd.feed import Setup, Transfer, transfer_of


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


def study(resolved, *, seeds=(0, 1), logits=None):
  """Returns (groups, setup) with a teacher's logits made up from the labels."""
  task = data.load(resolved["task"])
  groups = arms.group(resolved["arms"], task.num_classes)
  labels = task.train.labels()
  if logits is None:
    noise = np.random.default_rng(0).normal(size=(len(labels), 10))
    logits = (4 * np.eye(10)[labels] + noise).astype(np.float32)
  transfers = {}
  for group in groups:
    section = group.signal
    signal = signals.make(
      logits,
      labels if section["labelled"] else None,
      samples=section["samples"],
      temperature=section["temperature"],
      seed=section["seed"],
    )
    rows = np.stack(
      [data.subset(labels, size=section["size"], seed=s) for s in seeds]
    )
    transfers[transfer_of(section)] = Transfer(task.train, signal, rows)
  setup = Setup(
    task=task, transfers=transfers, seeds=list(seeds), train=resolved["train"]
  )
  return groups, setup


HARD = {"objective": "hard", "target": "answer"}
SOFT = {"objective": "soft", "temperature": 4.0, "divergence": "forward_kl"}
RANK = {
  "objective": "list_net",
  "samples": 8,
  "scores": "log_probs",
  "temperature": 1.0,
}
