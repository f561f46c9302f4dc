"""What the arms' transfer sets hold of what the arms read.

Known once the signal is there, after what the config alone tells
(kd.objectives.terms): an arm that has nothing to learn from is refused, and one
that has something in every row needs no weights.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

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
    every = [term for part in group.parts for term in part.terms]
    found = [iter(_has(t, every, num_classes)) for t in own]
    parts = [
      dataclasses.replace(
        part,
        partial=tuple(
          any(
            [
              _lacks(t, next(has), part.names[0], *term)
              for t, has in zip(own, found, strict=True)
            ]
          )
          for term in part.terms
        ),
      )
      for part in group.parts
    ]
    bound.append(dataclasses.replace(group, parts=tuple(parts)))
  return bound


def _lacks(
  transfer: Transfer, has: np.ndarray, arm: str, name: str, static
) -> bool:
  """Returns whether some example that is drawn lacks what a term reads."""
  counts = transfer.signal.counts
  each, asked = transfer.positions, np.ones(len(has), bool)
  if OBJECTIVES[name].sequences:
    each = 1
  elif counts is not None:
    asked = np.asarray(counts)
  # [S, n, L]: of each seed, example and position; of a prompt, L is 1.
  drawn, asked = (
    x.reshape(-1, each)[transfer.rows - transfer.first]
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


def _has(
  transfer: Transfer, every: Sequence[tuple[str, Mapping]], num_classes: int
) -> list[np.ndarray]:
  """Returns for each term which rows have what it learns from, bool [N]."""
  needs = [OBJECTIVES[name].rows for name, _ in every]
  if not any(needs):
    return [np.ones(_count(transfer.signal), bool)] * len(every)
  found: list[list[np.ndarray]] = [[] for _ in every]
  for few in _chunks(transfer):  # read once for all terms
    n = _count(few)
    for rows, (name, static), own in zip(needs, every, found, strict=True):
      if OBJECTIVES[name].sequences:
        continue
      has = (
        np.ones(n, bool) if rows is None else rows(few, num_classes, **static)
      )
      own.append(np.asarray(has))
  for rows, (name, static), own in zip(needs, every, found, strict=True):
    if OBJECTIVES[name].sequences:  # of a prompt's completions together
      own.append(
        np.asarray(
          present(rows, "rows")(transfer.signal, num_classes, **static)
        )
      )
  return [np.concatenate(own) for own in found]


def _count(signal: Signal | Streamed) -> int:
  """Returns N."""
  if isinstance(signal, Streamed):
    return len(signal)
  return len(signal.truth.ids)


def _chunks(transfer: Transfer) -> Iterator[Signal]:
  """Yields what decides which rows count, as numpy; of a live teacher, who
  answers every row, an answer that has no order."""
  signal, n = transfer.signal, _count(transfer.signal)
  starts = range(0, n, AT_A_TIME)
  if isinstance(signal, Streamed):
    for i in starts:
      few = signal.at(np.arange(i, min(i + AT_A_TIME, n)))
      yield dataclasses.replace(few, dense=None, entropy=None)
    return
  signal = dataclasses.replace(
    signal, dense=None, entropy=None, completions=None
  )
  if transfer.live:
    none = jnp.zeros((n, 1), jnp.int32)
    drawn = Samples(none, none.astype(jnp.float32))
    answer = Labels(none[:, 0])
    signal = dataclasses.replace(signal, answer=answer, samples=drawn)
  whole = jax.tree.map(np.asarray, signal)
  for i in starts:
    yield jax.tree.map(lambda x, i=i: x[i : i + AT_A_TIME], whole)
