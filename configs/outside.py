r"""How much sooner, and how much more surely, does a student fail outside?

A teacher learns digits without any 9. Students learn other digits of the same
split without any 3: from the teacher's answers (hard, the baseline), its
distribution (soft), rankings of 16 sampled answers (rank), and people's labels
(truth). All are then asked, beside the test split, about

  corrupted  its images under 15 common corruptions at five severities
             (Hendrycks and Dietterich 2019, arXiv:1903.12261)
  mnist      MNIST's digits, shrunk to 8 x 8 pixels: the same classes
  patches    patches of two photographs: no digit
  omitted    the 3s, which the teacher knows and students never saw
  unknown    the 9s, which nobody saw

With `:texts` the task is 20 Newsgroups (an optional install): typos and cut
texts, reviews of films, an omitted and an unknown group.

Command: python main.py --config=configs/outside.py[:texts][:smoke]
A verdict is on what is lost from inside to outside and on answers that are
wrong with a confidence above 0.9, each beside the teacher of the same replicate
and beside `hard`. Record and time: experiments/outside.
"""

import ml_collections

from kd.config import defaults

CORRUPTIONS = (
  *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
  *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
  *("snow", "fog", "brightness", "contrast"),
  *("elastic_transform", "pixelate", "jpeg_compression"),
)

MOST = 500  # examples of a shift


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  words = [word for word in arg.split(",") if word]
  if set(words) - {"smoke", "texts"}:
    raise ValueError(f"unknown argument {arg!r}: expected texts, smoke or none")
  config = defaults()
  config.study = "_".join(["outside", *(w for w in words if w != "smoke")])
  config.question = __doc__.splitlines()[0]
  small = "smoke" in words
  severities = (1, 5) if small else (1, 2, 3, 4, 5)
  shift = dict(
    kind="shift", severities=severities, examples=40 if small else MOST
  )
  config.replicates = dict(count=8, vary=("split", "teacher", "signal"))
  config.seeds = 2
  config.baseline = "hard"
  config.signal.pool = "rest"
  config.signal.labelled = True  # of the arm truth alone
  config.teacher.fraction = 0.5
  if "texts" in words:
    config.task.name = "newsgroups20"
    config.task.train = "train[:70%]"
    config.task.validation = "train[70%:80%]"
    config.task.test = "train[80%:]"
    config.task.held_out = (19,)
    config.signal.omit_classes = (10,)
    config.teacher.update(dict(name="mlp", hidden=(128,), dropout=0.5))
    config.teacher.train.update(dict(steps=600, learning_rate=3e-3))
    config.student = dict(name="mlp", hidden=(32,), dropout=0.0)
    config.train.update(dict(steps=400, learning_rate=3e-3))
    temperature = 2.0
    config.evaluate.outside = dict(
      typos=dict(shift, of=("typos",)),
      cut=dict(shift, of=("truncation",)),
      films=dict(kind="data", name="snippets", slice="train[:500]"),
      omitted=dict(kind="classes", classes=(10,)),
      unknown=dict(kind="classes", classes=(19,)),
    )
  else:
    config.task.train = "train[:70%]"
    config.task.validation = "train[70%:80%]"
    config.task.test = "train[80%:]"
    config.task.held_out = (9,)
    config.signal.omit_classes = (3,)
    config.teacher.update(dict(name="mlp", hidden=(256, 256), dropout=0.5))
    config.student = dict(name="mlp", hidden=(128, 128), dropout=0.0)
    temperature = 4.0
    config.evaluate.outside = dict(
      corrupted=dict(shift, of=CORRUPTIONS),
      mnist=dict(kind="data", name="mnist_subset", slice="train[:500]"),
      patches=dict(kind="data", name="photo_patches", slice="train[:500]"),
      omitted=dict(kind="classes", classes=(3,)),
      unknown=dict(kind="classes", classes=(9,)),
    )
  config.signal.temperature = temperature
  config.arms = dict(
    hard=dict(objective="hard", target="answer"),
    soft=dict(
      objective="soft", temperature=temperature, divergence="forward_kl"
    ),
    rank=dict(
      objective="list_net",
      samples=16,
      scores="log_probs",
      temperature=temperature,
    ),
    truth=dict(objective="hard", target="truth"),
  )
  config.contrasts = ("soft - rank", "soft - truth")
  if small:
    config.replicates.count = 2
    config.seeds = 1
    config.train.update(dict(steps=40, log_every=10, checkpoint_every=20))
    config.teacher.train.update(dict(steps=40, log_every=20))
  return config.lock()
