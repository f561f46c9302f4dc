r"""From which traffic on does a router pay that a black box taught?

The task of configs/routing.py: a teacher that gives text alone sorts posts of
20 Newsgroups, and students learn from K = 1, 2, 4 or 8 sampled answers to each
prompt. Beside their quality the study reports their price: of a request and of
the making, with the traffic from which a student pays for itself, and what one
more sample of a prompt costs and brings. The cascades ask the teacher where the
student is unsure, so often as validation says is needed to lose no more than
`margin` of the teacher's accuracy.

Prices are examples, in the units of docs/cost.md, and anybody's own are flags
(--config.cost.people=20000): an API at 0.15 and 0.60 a million tokens of
prompts and of completions, a machine of 0.10 an hour that works a fifth of the
time, 40 hours of work at 80 to make the student and two hours a month to own
it. The teacher is a network that is trained here and answers through JSONL; its
price stands for that of a model behind an API, whose accuracy would be another.

Command: python main.py --config=configs/breakeven.py[:smoke]
Needs requirements-data.txt (`make run STUDY=breakeven` installs it). Record and
time: experiments/breakeven.
"""

import ml_collections

from kd.config import defaults, sweep

K = 8


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in ("", "smoke"):
    raise ValueError(f"unknown argument {arg!r}: expected smoke or none")
  config = defaults()
  config.study = "breakeven"
  config.question = (
    "From which traffic on does a router pay that a black box taught, and what "
    "does one more sampled answer bring?"
  )
  config.replicates = dict(count=5, vary=("split", "teacher", "signal"))
  config.seeds = 1
  config.seed = 300  # configs/routing.py has 0 to 4
  config.baseline = "frequencies[samples=1]"
  config.task.name = "newsgroups20"
  config.task.train = "train[:90%]"
  config.task.validation = "train[90%:]"
  config.task.test = "test"
  config.teacher.update(
    dict(name="mlp", hidden=(256,), dropout=0.5, input_dropout=0.2)
  )
  config.teacher.black_box = True
  config.teacher.fraction = 0.5
  config.teacher.select = "best"
  config.teacher.train.update(dict(steps=600, batch_size=128))
  config.student = dict(name="mlp", hidden=(64,), dropout=0.5)
  config.signal.pool = "rest"
  config.signal.samples = K
  config.train.update(dict(steps=400, batch_size=128, log_every=50))
  config.evaluate.measure = True
  config.cost.update(
    dict(requests=2e7, months=12.0, prompt_tokens=300.0, completion_tokens=5.0)
  )
  config.cost.teacher.update(dict(in_1k=0.00015, out_1k=0.0006))
  config.cost.student.update(dict(hour=0.10, utilization=0.2))
  config.cost.update(
    dict(training=0.10, evaluation=0.10, people=3200.0, yearly=1920.0)
  )
  first = f"frequencies[samples={K}]"
  config.arms = dict(
    frequencies=dict(
      objective="frequencies", samples=sweep(1, 2, 4, K), temperature=1.0
    ),
    cascade=dict(objective="cascade", of=first, margin=sweep(0.0, 0.02, 0.05)),
  )
  config.contrasts = (
    "frequencies[samples=2] - frequencies[samples=1]",
    "frequencies[samples=4] - frequencies[samples=2]",
    "frequencies[samples=8] - frequencies[samples=4]",
    f"cascade[margin=0.02] - {first}",
  )
  if arg == "smoke":
    config.replicates.count = 2
    config.task.text_features = 512
    config.task.test = "test[:10%]"
    config.teacher.train.steps = 100
    config.train.update(dict(steps=40, log_every=20))
  return config.lock()
