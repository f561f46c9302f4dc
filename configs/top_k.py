r"""What do the k likeliest classes, or k samples, cost against all of them?

The task has 1,000 classes: three noisy digits side by side. A teacher's
distribution is kept whole (`soft`), as K = k draws (`sampled`), an unbiased
estimate of the whole, or as its top k, the rest being one class (`bucket`), of
no probability (`zero`, the usual way) or of no concern (`renormalize`). k and K
are 8, 32 and 128, so that a row's stored entries are equally many; T = 1
throughout. Top-k arms read a stored top-128 signal with 8-bit logits. The
students see images that the teacher did not see, without labels, and are
compared by their KL to the teacher.

Source: Anshumann et al. (2025), arXiv:2503.16870: top-k targets are biased and
ill calibrated, sampled ones are neither.
Command: python main.py --config=configs/top_k.py[:smoke]
Record and time: experiments/top_k. The targets' own bias: docs/top_k.md.
"""

import ml_collections

from kd.config import defaults, sweep


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in ("", "smoke"):
    raise ValueError(f"unknown argument {arg!r}: expected smoke or none")
  config = defaults()
  config.study = "top_k"
  config.question = (
    "What do the k likeliest classes, or k samples, cost against all of them?"
  )
  config.replicates = dict(count=5, vary=("teacher", "signal"))
  config.seeds = 1
  config.baseline = "soft"
  config.task.name = "digit_triples"
  config.task.train = "train"
  config.task.validation = "validation"
  config.task.test = "test"
  config.teacher.update(dict(name="mlp", hidden=(512,), dropout=0.2))
  config.teacher.fraction = 0.5
  config.teacher.train.update(dict(steps=800, batch_size=128))
  config.student = dict(name="mlp", hidden=(64,), dropout=0.0)
  config.signal.update(dict(pool="rest", samples=128))
  config.train.update(
    dict(steps=800, batch_size=64, schedule="cosine", log_every=50)
  )
  config.train.checkpoint_every = 400
  config.evaluate.metric = "kl_to_teacher"
  config.evaluate.batch_size = 512
  if arg == "smoke":
    config.replicates = dict(count=1, vary=())
    config.seeds = 2
    config.train.steps = 20
    config.train.log_every = 10
    config.teacher.train.steps = 20
    config.teacher.hidden = (32,)

  top = dict(
    objective="top_k",
    k=sweep(8, 32, 128),
    temperature=1.0,
    divergence="forward_kl",
    signal=dict(keep="top_k", k=128, dtype="int8", samples=0),
  )
  config.arms = dict(
    hard=dict(objective="hard", target="answer"),
    soft=dict(objective="soft", temperature=1.0, divergence="forward_kl"),
    bucket=dict(top, tail="bucket"),
    zero=dict(top, tail="zero"),
    renormalize=dict(top, tail="renormalize"),
    sampled=dict(
      objective="frequencies", samples=sweep(8, 32, 128), temperature=1.0
    ),
  )
  # K draws hold fewer distinct classes than K: 32 of them about as many as the
  # top 8 (experiments/LOG.md), which are to be set beside each other.
  config.contrasts = (
    "sampled[samples=32] - bucket[k=8]",
    "sampled[samples=32] - zero[k=8]",
    "sampled[samples=8] - bucket[k=8]",
    "sampled[samples=128] - soft within 0.05",
    "bucket[k=32] - soft within 0.05",
    "zero[k=32] - soft within 0.05",
  )
  return config.lock()
