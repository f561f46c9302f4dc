"""Texts that a decoder writes after prompts: a teacher's, or a student's."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from kd.data.task import Task
from kd.models import functional, sampler
from kd.models.decoder import Decoder

OTHER = "\ufffd"  # what is written for an id that a student does not know


@dataclasses.dataclass(frozen=True)
class Written:
  """A completion.

  Attributes:
    text: without special tokens.
    logprob: of its tokens, the one that ended it among them, in nats, at T = 1.
    truncated: whether it was cut off before it had ended.
  """

  text: str
  logprob: float
  truncated: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
  """A model of a task of tokens that writes.

  Attributes:
    kind: the model's name and options; one made of a checkpoint has all ids of
      the tokenizer, any other those that students know.
    weights: as kd.models.functional.split has them.
    task: of tokens.
  """

  kind: Mapping[str, Any]
  weights: Mapping[str, Any]
  task: Task

  @functools.cached_property
  def model(self) -> Decoder:
    graphdef, _ = functional.define(self.kind, self.task.signature)
    weights = jax.tree.map(jnp.asarray, self.weights)
    made = nnx.merge(graphdef, *weights.values())
    assert isinstance(made, Decoder)
    return made

  @property
  def _subset(self):
    assert self.task.tokens is not None
    of_all = self.kind["name"] == "checkpoint"
    return None if of_all else self.task.tokens.subset

  def ids(self, prompt: np.ndarray) -> np.ndarray:
    """Returns the tokenizer's ids as the model numbers them."""
    if self._subset is None:
      return prompt
    return self._subset.to_student(prompt, self.task.num_classes - 1)

  def text(self, ids: np.ndarray) -> str:
    """Returns the text of the model's ids."""
    assert self.task.tokens is not None
    decode = self.task.tokens.tokenizer.decode
    if self._subset is None:
      return decode(ids)
    known = ids < len(self._subset)
    pieces = np.split(ids, np.flatnonzero(~known))
    first = decode(self._subset.to_teacher(pieces[0]))
    rest = (decode(self._subset.to_teacher(p[1:])) for p in pieces[1:])
    return OTHER.join([first, *rest])

  def write(
    self,
    prompts: Sequence[np.ndarray],
    *,
    length: int,
    batch: int,
    max_new_tokens: int,
    samples: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    keys: Array | None = None,
  ) -> list[list[Written]]:
    """Writes `samples` completions of each prompt.

    Every batch has the same shape, so that one program serves them all and what
    is written depends on a prompt and its key alone.

    Args:
      prompts: the tokenizer's ids of each.
      length: tokens that the longest prompt may have.
      batch: prompts at once.
      max_new_tokens, samples, temperature, top_k, top_p: of
        kd.models.generate.
      keys: for a temperature above 0, a key for each prompt.
    """
    assert self.task.tokens is not None
    tokenizer = self.task.tokens.tokenizer
    stops = tuple(self.ids(np.array(tokenizer.stops)).tolist())
    found = []
    for start in range(0, len(prompts), batch):
      own = np.minimum(np.arange(start, start + batch), len(prompts) - 1)
      rows = np.zeros((batch, length), np.int32)
      for row, i in zip(rows, own, strict=True):
        row[: len(prompts[i])] = self.ids(prompts[i])
      ids, log_probs = sampler.generate(
        self.model,
        rows,
        np.array([len(prompts[i]) for i in own]),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_ids=stops,
        samples=samples,
        rngs=None if keys is None else keys[own],
      )
      lengths = np.asarray(sampler.completion_lengths(ids, stops))
      sums = np.asarray(log_probs).sum(-1)
      ids = np.asarray(ids)
      for b in range(min(batch, len(prompts) - start)):
        each = zip(ids[b], lengths[b], sums[b], strict=True)
        found.append([self._written(*one, stops) for one in each])
    return found

  def _written(self, ids, length, log_prob, stops) -> Written:
    stopped = bool(np.isin(ids[length - 1], stops))
    own = ids[: length - 1] if stopped else ids[:length]
    return Written(self.text(own), min(float(log_prob), 0.0), not stopped)
