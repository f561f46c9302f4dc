"""Which example comes when: orders that are functions of their seed.

`positions` is the order of batches, `subset` draws a transfer set, and
`stream` reads ahead where the data does not fit on the device.

Every order here sorts the raw words of a PCG64 keyed by a NumPy
`SeedSequence`. NumPy keeps both streams fixed across versions (NEP 19), which
it does not promise of `Generator.permutation`, so an order is a function of
its seed alone: of no process, machine or release.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int32

from kd.errors import UserError, brief

# What a seed is for: the same seed gives unrelated draws to each.
SPLIT, ORDER, SUBSET = range(3)


@functools.lru_cache(maxsize=32)
def permutation(purpose: int, seed: int, key: int, n: int) -> np.ndarray:
  """Returns a uniform permutation of `range(n)`, int32, read-only."""
  source = np.random.SeedSequence(seed, spawn_key=(purpose, key))
  words = np.random.PCG64(source).random_raw(n)
  # The low bits of each word give way to its index, so that sorting the words
  # (half the time of an argsort) leaves no tie to the sorting algorithm.
  bits = np.uint64(n.bit_length())
  words = np.sort(words << bits | np.arange(n, dtype=np.uint64))
  order = (words & (np.uint64(1) << bits) - np.uint64(1)).astype(np.int32)
  order.flags.writeable = False
  return order


def positions(
  seed: int, n: int, batch_size: int, start: int, stop: int
) -> Int32[np.ndarray, "steps batch"]:
  """Returns which of `n` examples make up the batches of steps start..stop-1.

  The order of all training here: example `j` of step `t` is number
  `p = t * batch_size + j` of the stream, and the stream is one permutation of
  the `n` examples after another, `permutation(seed, p // n)[p % n]`. Batches
  run over the end of an epoch, so every batch is full and every epoch holds
  every example once. A pure function of (seed, step): resuming needs no state.

  Args:
    seed: non-negative; a run's own.
    n: examples, at least 1.
    batch_size: examples in a batch, at least 1; may exceed `n`.
    start: first step.
    stop: step after the last.

  Returns:
    int32 [stop - start, batch_size] of positions in 0..n-1.

  Raises:
    ValueError: if an argument is out of range.

  >>> positions(0, n=5, batch_size=2, start=0, stop=5).shape
  (5, 2)
  """
  if n < 1 or batch_size < 1 or not 0 <= start <= stop:
    raise ValueError(
      f"positions of {n} examples in batches of {batch_size}, steps "
      f"{start}..{stop}: expected n, batch_size >= 1 and 0 <= start <= stop"
    )
  begin, end = start * batch_size, stop * batch_size
  first, last = begin // n, -(-end // n)  # the epochs touched
  orders = [permutation(ORDER, seed, e, n) for e in range(first, last)]
  order = np.concatenate([*orders, np.empty(0, np.int32)])
  return order[begin - first * n : end - first * n].reshape(-1, batch_size)


def subset(
  labels: Int32[np.ndarray, " N"],
  *,
  size: int | None = None,
  omit_classes: Sequence[int] = (),
  only_classes: Sequence[int] = (),
  seed: int = 0,
  kept: np.ndarray | None = None,
) -> Int32[np.ndarray, " M"]:
  """Draws the rows of a pool that make up a transfer set.

  Keeps `only_classes` (all when empty), drops `omit_classes`, then draws
  `size` of the remaining rows uniformly without replacement. The draw isn't
  stratified: class counts vary as in any sample. With one seed a smaller set
  is part of a larger one. Source: Hinton, Vinyals and Dean (2015),
  arXiv:1503.02531, section 3, who omit the digit 3, or keep only 7 and 8.

  Args:
    labels: int [N], the pool's true classes.
    size: rows to draw; None takes all that remain.
    omit_classes: classes that leave no row.
    only_classes: classes that leave rows; empty means every class.
    seed: non-negative, of the draw.
    kept: bool [N], rows that a filter left; None is all.

  Returns:
    int32 [M], the chosen rows in ascending order.

  Raises:
    UserError: if a class isn't in the pool, or too few rows remain.

  >>> subset(np.array([3, 7, 3, 8]), omit_classes=[3])
  array([1, 3], dtype=int32)
  """
  labels = np.asarray(labels)
  present = np.unique(labels)
  for key, classes in (
    ("signal.omit_classes", omit_classes),
    ("signal.only_classes", only_classes),
  ):
    if absent := [c for c in classes if c not in present]:
      raise UserError(
        f"{key} = {list(classes)}: the pool has no example of class "
        f"{absent[0]}; accepted: {brief(present.tolist())}"
      )
  keep = ~np.isin(labels, list(omit_classes))
  if len(only_classes):
    keep &= np.isin(labels, list(only_classes))
  if kept is not None:
    keep &= kept
  rows = np.flatnonzero(keep).astype(np.int32)
  if not len(rows):
    left = len(labels) if kept is None else int(kept.sum())
    raise UserError(
      f"signal.omit_classes = {list(omit_classes)} and signal.only_classes = "
      f"{list(only_classes)} leave none of the pool's {len(labels)} examples, "
      f"of which signal.filter kept {left}"
    )
  if size is None:
    return rows
  if not 1 <= size <= len(rows):
    raise UserError(
      f"signal.size = {size}: the pool has {len(rows)} examples after "
      f"signal.omit_classes = {list(omit_classes)} and signal.only_classes = "
      f"{list(only_classes)}; accepted: 1..{len(rows)}, or None for all"
    )
  # Permuting the pool, not what is left of it, keeps sets nested over classes
  # too: omitting a class only swaps in rows from further down the order.
  order = permutation(SUBSET, seed, 0, len(labels))
  return np.sort(order[keep[order]][:size])


def stream[T](
  read: Callable[[np.ndarray], T],
  intervals: Sequence[np.ndarray] | Callable[[int], np.ndarray],
  *,
  start: int = 0,
  stop: int | None = None,
  prefetch: int = 2,
  threads: int = 2,
) -> Iterator[T]:
  """Yields `read(intervals[k])` for k = start..stop-1, in order, read ahead.

  For data that doesn't fit on the device: with `Split.read` and positions
  int [steps, seeds, B] it yields inputs [steps, seeds, B, ...]. Grain reads in
  background threads, which end with the generator, however it ends. An error
  in `read` is raised where its interval would have been yielded.

  Args:
    read: called in a background thread, once for each interval.
    intervals: the argument of `read` for interval k, by index or by call
      (also in the background, so that orders are made lazily).
    start: first interval, for resuming.
    stop: interval after the last; may be left out of a sequence.
    prefetch: intervals held ready; bounds the memory.
    threads: intervals read at the same time.
  """
  import grain  # 1 s, since it brings JAX's and Orbax's modules along

  rows_of: Callable[[int], np.ndarray]
  if isinstance(intervals, Sequence):
    rows_of = intervals.__getitem__
    stop = len(intervals) if stop is None else stop
  else:
    rows_of = intervals
    if stop is None:
      raise ValueError("stop is needed where intervals is a function")
  if start >= stop:
    return
  ahead = iter(
    grain.MapDataset.range(start, stop)
    .map(lambda k: read(rows_of(int(k))))
    .to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    )
  )
  try:
    yield from ahead
  finally:
    ahead.close()
