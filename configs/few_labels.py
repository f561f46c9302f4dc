r"""How much is each objective worth when the transfer set is small?

A convolutional teacher is trained on half of the 5,000-image MNIST subset; its
signal on 90, 300 or 900 other images, without true labels, teaches an MLP.
Every objective sees the same images; ranking and frequencies see K = 16
sampled answers of each. Arms are compared with `hard` (the teacher's answer)
at the same size.

Source: exploratory figures say that soft targets gain most where the transfer
set is smallest, and nothing where it is largest.
Command: python main.py --config=configs/few_labels.py[:smoke]
Expected: frequencies far below ListNet over the same samples by the last
weights; between the others no difference that five replicates tell. Record and
time: experiments/few_labels.
"""

import ml_collections

from kd.config import defaults, sweep


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in ("", "smoke"):
    raise ValueError(f"unknown argument {arg!r}: expected smoke or none")
  config = defaults()
  config.study = "few_labels"
  config.question = (
    "How much is each objective worth when the transfer set is small?"
  )
  config.replicates = dict(count=5, vary=("split", "teacher", "signal"))
  config.seeds = 1
  config.baseline = "hard"
  config.task.name = "mnist_subset"
  config.task.train = "train[:70%]"
  config.task.validation = "train[70%:80%]"
  config.task.test = "train[80%:]"
  config.student = dict(name="mlp", hidden=(128, 128), dropout=0.0)
  config.teacher.update(
    dict(name="cnn", channels=(16, 32), hidden=128, dropout=0.5)
  )
  config.teacher.fraction = 0.5
  config.teacher.train.steps = 400
  config.teacher.train.jitter = 2
  config.signal.pool = "rest"
  config.signal.temperature = 4.0
  config.train.steps = 400
  sizes = (90, 300, 900)
  if arg == "smoke":
    config.replicates = dict(count=1, vary=())
    config.seeds = 2
    config.train.steps = 20
    config.teacher.train.steps = 20
    config.teacher.channels = (4, 8)
    sizes = (90, 300)

  def arm(**keys):
    return dict(keys, signal=dict(size=sweep(*sizes)))

  config.arms = dict(
    hard=arm(objective="hard", target="answer"),
    soft=arm(objective="soft", temperature=4.0, divergence="forward_kl"),
    reverse=arm(objective="soft", temperature=4.0, divergence="reverse_kl"),
    jsd=arm(objective="soft", temperature=4.0, divergence="jsd", beta=0.5),
    frequencies=arm(objective="frequencies", samples=16, temperature=4.0),
    rank=arm(
      objective="list_net", samples=16, scores="log_probs", temperature=4.0
    ),
    top=arm(objective="partial_plackett_luce", k=3),
    dkd=arm(
      objective="hard + dkd",
      hard=dict(weight=1.0, target="answer"),
      dkd=dict(
        weight=1.0, alpha=1.0, beta=2.0, temperature=4.0, target="answer"
      ),
    ),
    both=arm(
      objective="hard + soft",
      hard=dict(weight=1.0, target="answer"),
      soft=dict(weight=1.0, temperature=4.0, divergence="forward_kl"),
    ),
    dist=arm(
      objective="hard + dist",
      hard=dict(weight=1.0, target="answer"),
      dist=dict(weight=1.0, beta=1.0, gamma=1.0, temperature=4.0),
    ),
  )
  config.contrasts = tuple(
    f"{one}[signal.size={size}] - {other}[signal.size={size}]"
    for size in sizes
    for one, other in (
      ("both", "soft"),
      ("dist", "both"),
      ("dkd", "both"),
      ("rank", "frequencies"),
    )
  )
  return config.lock()
