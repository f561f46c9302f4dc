r"""Which divergence distils an instruction-tuned model into a smaller one?

For a teacher and a student of your own: Hugging Face folders with one
tokenizer, and JSONL lines of `prompt` and `completion`, or of `messages` (add
--config.task.tokens.chat=True). The student begins with its folder's weights
and is fine-tuned on

  hard      the completions of the data (SFT)
  forward   the teacher's distribution at each of their tokens, by forward KL
  reverse   by reverse KL, MiniLLM's objective on given completions
  skew      by skew KL, and skew_reverse by skew reverse KL, alpha = 0.1
            (DistiLLM)
  jsd       by the Jensen-Shannon divergence (GKD)

at equal steps, on the same batches, with the teacher inside the step, asked
once for all arms. The metric is the NLL of held-out completions. Not here: the
completions that a student writes, which MiniLLM, GKD and DistiLLM add.

Sources: MiniLLM, Gu et al. 2023 (2306.08543); DistiLLM, Ko et al. 2024
(2402.03898); GKD, Agarwal et al. 2023 (2306.13649). Rows of 512 tokens and
batches of 64, as theirs; learning rate and steps want a search on validation.
Command: python main.py --config=configs/instruct.py
  --config.task.path=DATA.jsonl --config.teacher.path=FOLDER
  --config.student.folder=FOLDER --workdir=DIR
Numerics: bfloat16, with float32 weights and moments of the student; a layer's
activations are computed again in the backward pass, and a batch is looked at in
8 parts. All arms' weights and moments lie on the device: 16 bytes for each
weight of each arm, of which fewer can be kept in the config.
Evidence: run on a CPU, on small random checkpoints that a test writes; steps of
this kind and of one layer are compiled for a v5e and an H100 (tests/compiled).
Not run on real models, nor on a TPU or GPU.
`:smoke` needs no folder: both models are decoders from scratch, on docstrings.
"""

import ml_collections

from kd.config import defaults


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if arg not in ("", "smoke"):
    raise ValueError(f"unknown argument {arg!r}: expected smoke or none")
  config = defaults()
  config.study = "instruct"
  config.question = (
    "Which divergence distils an instruction-tuned model into a smaller one?"
  )
  config.seeds = 3
  config.baseline = "hard"
  config.task.name = "texts"
  config.task.path = "DATA.jsonl"
  config.task.train = "train[:90%]"
  config.task.validation = "train[90%:95%]"
  config.task.test = "train[95%:]"
  config.teacher.update(
    dict(path="TEACHER", dtype="bfloat16", param_dtype="bfloat16")
  )
  config.task.tokens.tokenizer = config.teacher.get_ref("path")
  config.task.tokens.length = 512
  config.student = dict(
    name="checkpoint", folder="STUDENT", dtype="bfloat16", remat="layer"
  )
  config.signal.update(dict(live=True, labelled=True, samples=0))
  config.train.update(
    dict(
      steps=2000,
      batch_size=64,
      accumulate=8,
      optimizer="adamw",
      learning_rate=2e-5,
      weight_decay=0.01,
      schedule="cosine",
      warmup_steps=100,
      log_every=100,
      checkpoint_every=500,
    )
  )
  config.evaluate.metric = "nll"
  config.evaluate.batch_size = 8
  if arg == "smoke":
    tiny = dict(name="decoder", layers=1, width=32, dtype="bfloat16")
    config.seeds = 1
    config.task.update(dict(name="docstrings", path="", train="train[:1%]"))
    config.task.update(
      dict(validation="train[98%:98.2%]", test="train[99%:99.2%]")
    )
    config.task.tokens.update(dict(tokenizer="bytes", length=64))
    config.teacher = dict(defaults().teacher, **tiny)
    config.teacher.train.update(dict(steps=2, log_every=2))
    config.student = dict(tiny, remat="layer")
    config.train.update(
      dict(steps=4, batch_size=4, accumulate=2, log_every=2, warmup_steps=1)
    )

  soft = dict(objective="soft", temperature=1.0)
  config.arms = dict(
    hard=dict(objective="hard", target="truth"),
    forward=dict(soft, divergence="forward_kl"),
    reverse=dict(soft, divergence="reverse_kl"),
    skew=dict(soft, divergence="skew_kl", alpha=0.1),
    skew_reverse=dict(soft, divergence="skew_reverse_kl", alpha=0.1),
    jsd=dict(soft, divergence="jsd", beta=0.5),
  )
  config.contrasts = ("reverse - forward", "skew - forward", "skew - reverse")
  return config.lock()
