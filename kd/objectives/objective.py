"""What a config may name as a loss: the form of an entry."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Bool, Float

from kd.config.rules import Check

Keys = Mapping[str, Check]
Loss = Float[Array, "B"]
Rows = Bool[Array, "B"]


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss for each position, and how a config names it.

  Attributes:
    loss: (student, signal, **keys) -> [B].
    keys: those that a config gives, with their rules. With `divergence` come
      the parameters of the one that is named.
    reads: what of the signal, as parts of kd.objectives.reads with a space
      between them. "{target}" is the part that the key `target` names.
    words: for a report. "{k}" are the words of a key's value; keys that are not
      in it follow in brackets.
    rows: (signal, V, **keys without the traced ones) -> [B], the rows that have
      what the loss learns from. Others get weight 0. None: all have.
    needs: what such a row has, in words.
    fused: (signal, weight, **keys) -> the arguments with which
      kernels.distill_loss computes the weighted loss, if it can.
    limit: (keys) -> "", or which keys do not go together.
    classes: the fewest for which it is defined.
    couples: whether an example's loss depends on the others of its batch.
    sequences: whether it has a loss for each prompt, of its completions, and
      not for each position. `rows` then is of prompts.
  """

  loss: Callable[..., Loss]
  keys: Keys
  reads: str
  words: str
  rows: Callable[..., Rows] | None = None
  needs: str = ""
  fused: Callable[..., dict[str, Any]] | None = None
  limit: Callable[[Mapping[str, Any]], str] = lambda keys: ""
  classes: int = 1
  couples: bool = False
  sequences: bool = False
