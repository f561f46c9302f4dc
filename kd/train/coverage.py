"""What the arms' transfer sets hold of what the arms read.

Known once the signal is there, after what the config alone tells
(kd.objectives.terms): an arm that has nothing to learn from is refused, and one
that has something in every row needs no weights.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kd.errors import UserError
from kd.objectives import terms
from kd.objectives.registry import OBJECTIVES
from kd.signals import Labels, Samples, Signal, present
from kd.signals.store import Streamed
from kd.train.arms import Group
from kd.train.batches import Transfer, transfer_of

AT_A_TIME = 4096  # rows of a signal, since some compare K samples with another


def bind(
  groups: Sequence[Group],
  transfers: Sequence[Mapping[str, Transfer]],
  num_classes: int,
) -> list[Group]:
  """Looks at what the groups' transfer sets hold, once they are there.

  Args:
    groups: of `group`.
    transfers: of each replicate, by the name that `transfer_of` gives a
      group's section; one program serves them all.
    num_classes: V of the task.

  Returns:
    The groups, whose parts know of which of their terms every row counts.

  Raises:
    UserError: for some seed, no example has what a term of an arm reads.
  """
  bound = []
  for group in groups:
    own = [of[transfer_of(group.signal)] for of in transfers]
    looks = [
      functools.partial(_lacks, t, _on_host(t), num_classes) for t in own
    ]
    parts = [
      dataclasses.replace(
        part,
        partial=tuple(
          any([look(part.names[0], *term) for look in looks])
          for term in part.terms
        ),
      )
      for part in group.parts
    ]
    bound.append(dataclasses.replace(group, parts=tuple(parts)))
  return bound


def _lacks(transfer, signal, num_classes, arm: str, name: str, static) -> bool:
  """Returns whether some example that is drawn lacks what a term reads."""
  has = _counts(name, static, signal, num_classes)
  asked = np.ones(len(has), bool)
  if signal.counts is not None and not OBJECTIVES[name].sequences:
    asked = signal.counts
  # [S, n, L]: of each seed, example and position; L of completions is 1.
  drawn, asked = (
    x.reshape(len(transfer.inputs) - transfer.first, -1)[
      transfer.rows - transfer.first
    ]
    for x in (has & asked, asked)
  )
  reads = terms.reads(name, static)
  known = not transfer.live or "truth" in reads  # a live teacher answers later
  if known and not drawn.any(axis=(-2, -1)).all():
    raise UserError(
      f"arms.{arm}: {name!r} reads {', '.join(reads)}, and none of the "
      f"{drawn.shape[-2]} examples of its transfer set has "
      f"{OBJECTIVES[name].needs}"
    )
  return not drawn[asked].all()


def _on_host(transfer: Transfer) -> Signal:
  """Returns what decides which rows count, as numpy; of a live teacher, who
  answers every row, an answer that has no order."""
  if isinstance(transfer.signal, Streamed):
    n = len(transfer.signal)
    parts = [
      dataclasses.replace(
        transfer.signal.at(np.arange(i, min(i + AT_A_TIME, n))),
        dense=None,
        entropy=None,
      )
      for i in range(0, n, AT_A_TIME)
    ]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
  signal = dataclasses.replace(transfer.signal, dense=None, entropy=None)
  if transfer.live:
    none = jnp.zeros((len(signal.truth.ids), 1), jnp.int32)
    drawn = Samples(none, none.astype(jnp.float32))
    answer = Labels(none[:, 0])
    signal = dataclasses.replace(signal, answer=answer, samples=drawn)
  return jax.tree.map(np.asarray, signal)


def _counts(name, static, signal: Signal, num_classes: int) -> np.ndarray:
  """Returns which rows of a signal have what a term learns from, bool [N]."""
  rows = OBJECTIVES[name].rows
  if OBJECTIVES[name].sequences:
    return np.asarray(present(rows, "rows")(signal, num_classes, **static))
  n = len(signal.truth.ids)
  if rows is None:
    return np.ones(n, bool)
  signal = dataclasses.replace(signal, completions=None)

  def some(first):
    few = jax.tree.map(lambda x: x[first : first + AT_A_TIME], signal)
    return np.asarray(rows(few, num_classes, **static))

  return np.concatenate([some(i) for i in range(0, n, AT_A_TIME)])
