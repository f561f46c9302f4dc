r"""Must the teacher see the same shifted image as the student?

"Knowledge distillation: a good teacher is patient and consistent" (Beyer et
al. 2022, arXiv:2106.05237, section 3) finds that a student gains from an
augmented transfer set only if the teacher answers for the very image that the
student sees, and that such function matching then profits from training far
longer. Here both are asked of an MLP and few images of MNIST, shifted by up to
two pixels:

  plain       the stored signal, images as they are
  fixed       the stored signal of the unshifted image, images shifted
  consistent  the teacher answers inside the step, for the shifted image

each with soft targets, and the last two with the teacher's answer alone as
well. `consistent` is compared with `fixed`, and `fixed` with `plain`.

Command: python main.py --config=configs/consistent.py[:long][,smoke]
`long` trains eight times as many steps. Record, time and expected numbers:
experiments/consistent.
"""

import ml_collections

from kd.config import defaults


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  words = [word for word in arg.split(",") if word]
  if set(words) - {"smoke", "long"}:
    raise ValueError(f"unknown argument {arg!r}: expected long, smoke or none")
  config = defaults()
  config.study = "consistent_long" if "long" in words else "consistent"
  config.question = __doc__.splitlines()[0]
  config.replicates = dict(count=5, vary=("split", "teacher", "signal"))
  config.seeds = 1
  config.baseline = "plain"
  config.task.name = "mnist_subset"
  config.task.train = "train[:70%]"
  config.task.validation = "train[70%:80%]"
  config.task.test = "train[80%:]"
  config.teacher.update(
    dict(name="cnn", channels=(16, 32), hidden=128, dropout=0.5)
  )
  config.teacher.train.update(dict(steps=400, jitter=2))
  config.signal.size = 500
  config.student = dict(name="mlp", hidden=(128, 128), dropout=0.0)
  config.train.update(dict(steps=800, batch_size=64, learning_rate=1e-3))
  config.train.update(dict(log_every=50, checkpoint_every=400))
  if "long" in words:
    config.train.update(dict(steps=6400, log_every=200, checkpoint_every=1600))
  if "smoke" in words:
    config.replicates = dict(count=1, vary=())
    config.seeds = 2
    config.teacher.channels = (4, 8)
    config.teacher.train.update(dict(steps=20, log_every=20))
    config.train.update(dict(steps=20, log_every=10, checkpoint_every=20))

  soft = dict(objective="soft", temperature=4.0, divergence="forward_kl")
  hard = dict(objective="hard", target="answer")
  fixed = dict(signal=dict(jitter=2))
  consistent = dict(signal=dict(jitter=2, live=True))
  config.arms = dict(
    plain=soft,
    fixed={**soft, **fixed},
    consistent={**soft, **consistent, "baseline": "fixed"},
    fixed_hard={**hard, **fixed},
    consistent_hard={**hard, **consistent, "baseline": "fixed_hard"},
  )
  config.contrasts = (
    "consistent - consistent_hard",
    "fixed - fixed_hard",
  )
  return config.lock()
