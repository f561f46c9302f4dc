r"""Can a student learn a class that it has never seen, from soft targets alone?

A teacher (two hidden layers with dropout) labels handwritten digits. The
transfer set has no true labels and no example of the digit 3. Arms differ in
what they take from the teacher: its answer (hard), its distribution (soft),
the frequencies of K = 16 sampled answers, or a ranking of those samples.

Source: Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), section 3, on MNIST.
Command: python main.py [--config=configs/digits.py:ARG]; ARG is `omit3` (the
default), `small` (110 unlabelled examples, all digits) or `smoke`.
"""

import ml_collections

from kd import config as kd


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = kd.defaults()
  config.study = "digits"
  config.question = (
    "Can a student learn a digit that it never saw, from soft targets alone?"
  )
  config.seeds = 10
  config.baseline = "hard"
  config.task.train = "train[:70%]"
  config.task.validation = "train[70%:80%]"
  config.task.test = "train[80%:]"
  config.student = dict(name="mlp", hidden=(128, 128), dropout=0.0)
  config.teacher.update(dict(name="mlp", hidden=(256, 256), dropout=0.5))
  config.teacher.fraction = 0.5
  config.signal.pool = "rest"
  config.signal.omit_classes = (3,)
  config.signal.temperature = 4.0
  ranked = dict(samples=16, candidates="sampled")
  config.arms = dict(
    hard=dict(objective="hard", target="answer"),
    soft=dict(objective="soft", temperature=4.0, divergence="forward_kl"),
    frequencies=dict(objective="frequencies", samples=16, temperature=4.0),
    rank=dict(
      objective="list_net", samples=16, scores="log_probs", temperature=4.0
    ),
    rank_order=dict(
      objective="plackett_luce", scores="votes", ties="average", **ranked
    ),
    rank_pairs=dict(
      objective="pairwise_logistic",
      scores="votes",
      weights="difference",
      **ranked,
    ),
    rank_naive=dict(
      objective="plackett_luce",
      scores="votes",
      ties="index",
      samples=16,
      candidates="all",
    ),
  )
  if arg == "smoke":
    config.seeds = 2
    config.train.steps = 40
    config.teacher.train.steps = 40
  elif arg:
    raise ValueError(f"unknown argument {arg!r}: expected smoke or none")
  return config.lock()
