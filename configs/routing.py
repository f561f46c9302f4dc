r"""Which router does a black box teach best, from a few sampled answers?

A teacher that gives text and no probabilities has answered K = 8 times each
prompt of 20 Newsgroups: which newsgroup is this post for? Its answers are all
that the students (hashed words and pairs of words, one hidden layer) ever see;
human labels serve the test alone. Objectives stand on the same samples, with
and without filters. Votes of eight samples tie: the arms `order` rank what was
sampled above all the rest, and differ in what a tie means.

Without `teacher.path` the study makes such a teacher first: a larger network
trained on the human labels of half of the train split answers for the other
half, as JSONL (WORKDIR/teacher/answers.jsonl). The answers of any other teacher
do as well:

Command: python main.py --config=configs/routing.py[:smoke]
     or: python main.py --config=configs/routing.py:answers \
             --config.teacher.path=answers.jsonl
Needs requirements-data.txt (`make run STUDY=routing` installs it). Record, time
and expected numbers: experiments/routing.
"""

import ml_collections

from kd.config import defaults, sweep

K = 8


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  words = [word for word in arg.split(",") if word]
  if set(words) - {"answers", "smoke"}:
    raise ValueError(
      f"unknown argument {arg!r}: expected answers, smoke or none"
    )
  config = defaults()
  config.study = "routing"
  config.question = (
    "Which router does a black box teach best, from a few sampled answers?"
  )
  config.replicates = dict(count=5, vary=("split", "teacher", "signal"))
  config.seeds = 1
  config.baseline = "hard[signal.filter=none]"
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
  config.filters = dict(
    agree=(dict(name="agreement", low=0.6),),
    strict=(dict(name="agreement", low=0.9),),
  )
  if words:  # answers are one draw of one teacher
    config.replicates = dict(count=1, vary=())
    config.seeds = 5
  if "smoke" in words:
    config.seeds = 2
    config.task.text_features = 512
    config.task.test = "test[:10%]"
    config.teacher.train.steps = 100
    config.train.update(dict(steps=40, log_every=20))
    config.filters.agree[0]["low"] = 0.2  # its teacher is seldom sure
    config.filters.strict[0]["low"] = 0.3

  def arm(**keys):
    return dict(keys, signal=dict(filter=sweep("", "agree", "strict")))

  ranked = dict(samples=K, scores="votes")
  config.arms = dict(
    hard=arm(objective="hard", target="answer"),
    frequencies=arm(objective="frequencies", samples=K, temperature=1.0),
    rank=arm(
      objective="pairwise_logistic",
      candidates="all",
      weights="difference",
      **ranked,
    ),
    plackett_luce=arm(
      objective="plackett_luce", candidates="all", ties="average", **ranked
    ),
    order=dict(
      objective="plackett_luce",
      candidates="rest",
      ties=sweep("average", "mean", "any"),
      **ranked,
    ),
  )
  config.contrasts = tuple(
    f"{name}[signal.filter=agree] - {name}[signal.filter=none]"
    for name in ("frequencies", "rank", "plackett_luce")
  ) + tuple(
    f"frequencies[signal.filter={kept}] - {name}[signal.filter={kept}]"
    for kept in ("none", "agree")
    for name in ("rank", "plackett_luce")
  )
  config.contrasts += (
    "order[ties=mean] - order[ties=average]",
    "order[ties=any] - order[ties=average]",
  )
  return config.lock()
