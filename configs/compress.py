r"""Is it better to distil a small student, or to compress a large model?

A teacher, an MLP with two layers of 512 units, learns the digits; students have
two of 64. Both, and what they learned, are made smaller in ten ways and more:

  hard, soft      the student, from the teacher's answers or its distribution
  *_int8          weights and inputs of 8 bits: products of whole numbers
  *_int4          weights of 4 bits, rounded afterwards; *_aware: known to
                  training, which rounds them as they will be
  *_half          half of each layer's units go, 200 steps to recover, int8
  soft_24_int4    two of every four weights go, 200 steps to recover, int4
  soft_sparse     nine of ten weights of all layers go, 200 steps to recover
  tiny            a student of 32 units, distilled as it is, int8
  teacher         the teacher itself, and teacher_*: made smaller likewise;
                  teacher_eighth has as many units as the student

`:filetype` asks the same of Magika (arXiv:2409.13768) and students of it over
bytes, with the optional install; Magika's own units cannot be taken out.

Source: the question is ours; the steps' sources stand in kd/compress.
Command: python main.py --config=configs/compress.py[:filetype][,smoke]
Expected: int8 costs nothing, a distilled student is better than the teacher cut
to its size, and 4 bits are better known to training. Record and time:
experiments/compress.
"""

import ml_collections

from kd.config import defaults


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  words = [word for word in arg.split(",") if word]
  if set(words) - {"smoke", "filetype"}:
    raise ValueError(
      f"unknown argument {arg!r}: expected filetype, smoke or none"
    )
  config = defaults()
  config.question = __doc__.splitlines()[0]
  config.seeds = 5
  config.seed = 500
  config.evaluate.measure = True
  config.baseline = "hard"
  if "filetype" in words:
    _filetype(config)
  else:
    _digits(config)
  if "smoke" in words:
    config.seeds = 2
    config.train.update(dict(steps=20, log_every=10, checkpoint_every=20))
    config.teacher.train.update(dict(steps=40, log_every=20))
    _smaller(config)
  return config.lock()


def _round(weights: str, **keys) -> dict:
  return dict(step="quantize", weights=weights, **keys)


def _prune(what: str, **keys) -> dict:
  return dict(step="prune", what=what, **keys)


INT8 = _round("int8", activations="int8")
INT4 = _round("int4")
HARD = dict(objective="hard", target="answer")
SOFT = dict(objective="soft", temperature=4.0, divergence="forward_kl")
TEACHER = dict(objective="teacher")


def _arms(student: dict, tiny: dict, recover: int) -> dict:
  """Returns the arms of students, and of the teacher as it is and rounded."""

  def half(first: dict) -> tuple[dict, ...]:
    return (_prune("units", sparsity=0.5, recover=recover), first)

  def of(arm: dict, *chain: dict) -> dict:
    return dict(arm, compress=chain)

  aware = _round("int4", aware=True)
  sparse = _prune("weights", sparsity=0.9, scope="global", recover=recover)
  return dict(
    hard=HARD,
    soft=SOFT,
    hard_int8=of(HARD, INT8),
    hard_int4=of(HARD, INT4),
    soft_int8=of(SOFT, INT8),
    soft_fp8=of(SOFT, _round("fp8")),
    soft_int4=of(SOFT, INT4),
    soft_int4_blocks=of(SOFT, _round("int4", block=32)),
    soft_int4_aware=of(SOFT, aware),
    soft_half=of(SOFT, *half(INT8)),
    soft_half_int4=of(SOFT, *half(INT4)),
    soft_24_int4=of(SOFT, _prune("2:4", recover=recover), INT4),
    soft_sparse=of(SOFT, sparse),
    tiny=dict(SOFT, student=tiny, compress=(INT8,)),
    teacher=TEACHER,
    teacher_int8=of(TEACHER, INT8),
    teacher_int4=of(TEACHER, INT4),
  )


def _digits(config: ml_collections.ConfigDict) -> None:
  config.study = "compress"
  config.task.train = "train[:70%]"
  config.task.validation = "train[70%:80%]"
  config.task.test = "train[80%:]"
  config.replicates = dict(count=5, vary=("split", "teacher", "signal"))
  config.seeds = 1
  config.teacher.update(dict(name="mlp", hidden=(512, 512), dropout=0.5))
  config.student = dict(name="mlp", hidden=(64, 64), dropout=0.0)
  config.train.steps = 800
  arms = _arms({}, dict(hidden=(32, 32)), 200)
  eighth = _prune("units", sparsity=0.875, recover=200)
  arms["teacher_eighth"] = dict(TEACHER, compress=(eighth, INT8))
  arms["teacher_24_int4"] = dict(
    TEACHER, compress=(_prune("2:4", recover=200), INT4)
  )
  config.arms = arms
  config.contrasts = (
    "soft_int8 - soft within 0.01",
    "soft_int8 - teacher_eighth",  # of equal bytes
    "soft_int4_aware - soft_int4",
    "tiny - soft_half",  # of equal bytes
    "teacher_int4 - teacher within 0.01",
  )


def _filetype(config: ml_collections.ConfigDict) -> None:
  config.study = "compress_filetype"
  config.task.name = "file_types"
  config.task.train = "train"
  config.task.validation = "validation"
  config.task.test = "test"
  config.task.group = "package"  # whose files resemble each other
  config.teacher.update(dict(name="magika", pretrained=True))
  config.student = dict(
    name="byte_cnn",
    embed=4,
    channels=0,
    block=4,
    first=4,
    hidden=96,
    dropout=0.5,
  )
  config.train.update(
    dict(steps=400, batch_size=64, learning_rate=1e-2, schedule="cosine")
  )
  config.train.update(dict(log_every=50, checkpoint_every=200, runs="map"))
  config.evaluate.batch_size = 128  # the teacher's activations: 0.25 GB
  config.arms = _arms({}, dict(hidden=48), 100)
  config.contrasts = (
    "soft_int8 - soft within 0.02",
    "soft_int4_aware - soft_int4",
    "tiny - soft_half",  # of equal bytes
    "teacher_int4 - teacher within 0.02",
    "soft - teacher_int4",
  )


def _smaller(config: ml_collections.ConfigDict) -> None:
  """Keeps an arm of each kind, and of the files a tenth."""
  kept = "hard", "soft", "soft_int8", "soft_int4_aware", "soft_half"
  kept += "teacher", "teacher_int4", "soft_int4"
  config.arms = {name: config.arms[name].to_dict() for name in kept}
  for arm in config.arms.values():
    for step in arm.get("compress", ()):
      if step.get("recover"):
        step["recover"] = 10
  config.contrasts = ("soft_int4_aware - soft_int4",)
  if config.task.name == "file_types":
    config.task.train = "train[:5%]"
    config.task.validation = "validation[:10%]"
    config.task.test = "test[:10%]"
  else:
    config.replicates.count = 2
    config.seeds = 1
