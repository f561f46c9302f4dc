"""A study of decoders on random tokens, in memory, for programs that measure.

One arm: the teacher's distribution, from a teacher inside the step ("live"), or
its likeliest tokens, stored ("top_k").
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd import config, signals
from kd.models import functional
from kd.signals import Signal
from kd.train import arms, batches, coverage, loop
from kd.train.batches import Live, Setup, Transfer, transfer_of

SIGNALS = ("live", "top_k")
K = 64  # of a stored signal
# SmolLM2-135M (Allal et al. 2025, 2502.02737), and a student of 15.7 million
# parameters, 12.6 of which are its embeddings.
SMOLLM2: Mapping[str, Any] = dict(
  name="decoder", layers=30, width=576, heads=9, kv_heads=3, mlp=1536,
  tie=True, rope_theta=100_000.0,
)  # fmt: skip
STUDENT: Mapping[str, Any] = dict(
  name="decoder", layers=4, width=256, heads=4, tie=True
)


@dataclasses.dataclass(frozen=True)
class Size:
  """What is trained: on how many rows of how many tokens, over how many ids.

  Attributes:
    teacher, student: names and options.
    vocab_size: V.
    rows: of a batch.
    length: L.
    steps: of the interval that is compiled.
    train: what else the section says.
  """

  teacher: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: SMOLLM2
  )
  student: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: STUDENT
  )
  vocab_size: int = 49_152
  rows: int = 8
  length: int = 512
  steps: int = 2
  train: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def positions(self) -> int:
    """Of a batch."""
    return self.rows * self.length

  @property
  def signature(self) -> functional.Signature:
    return functional.Signature((2, self.length), self.vocab_size, None)


class _Split:
  """Rows of one text each; the last token of each predicts nothing."""

  def __init__(self, size: Size, seed: int, rows: int):
    shape = rows, size.length
    ids = np.random.default_rng(seed).integers(0, size.vocab_size, shape)
    labels = np.roll(ids, -1, axis=1)
    labels[:, -1] = -1
    x = np.stack([ids, np.ones_like(ids)], axis=1)
    self._arrays = x.astype(np.int32), labels.ravel().astype(np.int32)

  def __len__(self):
    return len(self._arrays[0])

  def labels(self):
    return self._arrays[1]

  def counts(self):
    return self._arrays[1] >= 0

  def arrays(self):
    return self._arrays

  def read(self, rows):
    return self._arrays[0][rows]


class RandomTokens:
  """What training needs of a task of tokens."""

  name = "random tokens"
  scale = None
  resident = True

  def __init__(self, size: Size):
    self.num_classes, self.positions = size.vocab_size, size.length
    self.input_shape = size.signature.input_shape
    self.signature = size.signature
    self.train = _Split(size, 0, size.rows)
    self.validation = _Split(size, 1, 1)

  def score(self, accuracy, nll):
    del accuracy
    return -nll


def abstract(model: Mapping[str, Any], size: Size) -> dict[str, Any]:
  """Returns the shapes of a model's weights, {"params", "rest"}."""
  init = functional.define(model, size.signature)[1]
  params, rest = jax.eval_shape(init, jax.random.key(0))
  return {"params": params, "rest": rest}


def top_k(size: Size, k: int = K) -> signals.TopK:
  """Returns random likeliest tokens of a batch's positions."""
  rng, n = np.random.default_rng(2), size.positions
  first = rng.integers(0, size.vocab_size - k, (n, 1))
  logits = -np.sort(rng.exponential(2.0, (n, k)), axis=-1)
  return signals.TopK(
    jnp.asarray(first + np.arange(k), jnp.int32),
    jnp.asarray(logits - logits[:, :1], jnp.float32),
    lse=jnp.full((n, 1), 2.0),
    tail=jnp.full((n, 1), 0.1),
  )


def study(
  size: Size, signal: str, arm: Mapping[str, Any] | None = None, weights=None
) -> tuple[list[arms.Group], Setup]:
  """Returns (groups, setup) of the study.

  Args:
    size: of it.
    signal: of SIGNALS.
    arm: what the arm's config says of its loss; None is forward KL.
    weights: of a live teacher.
  """
  if arm is None:
    kind = {"objective": "soft"}
    if signal == "top_k":
      kind = {"objective": "top_k", "k": K, "tail": "bucket"}
    arm = {**kind, "temperature": 1.0, "divergence": "forward_kl"}
  options = config.defaults().to_dict()
  options["student"] = dict(size.student)
  options["train"] |= {
    "steps": size.steps,
    "log_every": size.steps,
    "batch_size": size.rows,
    "optimizer": "adamw",
    "runs": "vmap",  # as on what it is compiled for
    **size.train,
  }
  options["signal"] |= {"live": signal == "live", "labelled": True}
  options |= {"baseline": "arm", "arms": {"arm": dict(arm)}}
  settings = config.resolve(options)
  groups = arms.group(settings["arms"], size.vocab_size)
  task: Any = RandomTokens(size)
  left: Signal = signals.of_labels(task.train.labels(), task.train.counts())
  section = groups[0].signal
  if signal == "top_k":
    left = dataclasses.replace(left, dense=top_k(size))
  transfer = Transfer(
    inputs=task.train,
    signal=left,
    rows=np.arange(size.rows)[None],
    positions=size.length,
    live=Live(size.teacher, weights, section["samples"], 1.0)
    if signal == "live"
    else None,
  )
  transfers = {transfer_of(section): transfer}
  groups = coverage.bind(groups, [transfers], size.vocab_size)
  setup = Setup(
    task=task,
    transfers=transfers,
    seeds=[0],
    train=settings["train"],
    eval_batch=size.rows,
  )
  return groups, setup


def program(size: Size, signal: str, arm: Mapping[str, Any] | None = None):
  """Returns (program, arguments): an interval of steps as a study compiles it,
  and shapes for a live teacher's weights and the state."""
  groups, setup = study(size, signal, arm)
  programs = loop.programs(groups, setup)
  seeds, numbers = np.zeros(1, np.uint32), arms.numbers_of(groups)
  state = jax.eval_shape(programs.init, seeds, numbers)
  _, xs = next(batches.intervals(setup, 0))
  placed = batches.resident(setup)
  if signal == "live":
    (name,) = setup.transfers
    placed[name] |= {"teacher": abstract(size.teacher, size)}
  return programs.interval, (state, seeds, xs, numbers, np.int32(0), placed)


def largest(text: str) -> tuple[int, str]:
  """Returns the numbers of a compiled program's largest array, and its shape.

  >>> largest("ROOT %x = f32[2,300]{1,0} add(bf16[7] %a, f32[] %b)")
  (600, 'f32[2,300]')
  """
  found = re.findall(r"\b((?:pred|[a-z]+\d+\w*)\[([\d,]+)\])", text)
  return max(
    (math.prod(map(int, sizes.split(","))), name) for name, sizes in found
  )
