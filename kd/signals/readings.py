"""What is read off a teacher's logits: answers, top-k, samples, entropies."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from kd.models.outputs import Outputs
from kd.signals.kinds import (
  Dense,
  Labels,
  Samples,
  Signal,
  TopK,
  best_first,
  kept,
)

# The classes from which on a draw inverts the distribution function, which
# takes one random number in place of V.
INVERTED_FROM = 256


def of_labels(ids: ArrayLike, counts: ArrayLike | None = None) -> Signal:
  """Returns what a teacher in training learns from: true labels alone."""
  labels = Labels(jnp.asarray(ids, jnp.int32))
  none = _no_samples(len(labels.ids))
  return Signal(labels, labels, None, none, counts=_bools(counts))


def _no_samples(rows: int) -> Samples:
  none = jnp.zeros((rows, 0))
  return Samples(none.astype(jnp.int32), none)


def _bools(counts: ArrayLike | None) -> Bool[Array, "N"] | None:
  return None if counts is None else jnp.asarray(counts, bool)


def sample(
  key: Array,
  dense: Dense | Outputs,
  *,
  k: int,
  temperature: float,
  numbers: Int[Array, "N"],
) -> Samples:
  """Draws k answers a row from softmax(logits / temperature).

  The draws of a row depend on the key and its number alone, so that a larger
  transfer set keeps those of a smaller one, a part of it those of the whole.
  """
  draw = lambda z, n: _draw(jax.random.fold_in(key, n), z, k, temperature)
  return Samples(*dense.each(draw, numbers))


def _draw(key: Array, logits: Float[Array, "V"], k: int, temperature: float):
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
  many = log_probs.shape[-1] >= INVERTED_FROM
  how = _invert if many else jax.random.categorical
  ids = how(key, log_probs, shape=(k,))
  return ids.astype(jnp.int32), log_probs[ids]


def _invert(key: Array, log_probs: Float[Array, "V"], shape) -> Array:
  """Draws by inverting the distribution function, one number a draw.

  The function has float32's rounding: a class's probability is kept to 2e-7.
  """
  summed = jnp.cumsum(jnp.exp(log_probs))
  drawn = jax.random.uniform(key, shape) * summed[-1]
  ids = jnp.searchsorted(summed, drawn, side="right")
  return jnp.minimum(ids, len(summed) - 1)


def of_teacher(
  teacher: Dense | Outputs,
  truth: ArrayLike | None,
  *,
  samples: int,
  temperature: float,
  key: Array,
  numbers: ArrayLike | None = None,
  counts: ArrayLike | None = None,
  k: int = 0,
  temperatures: Sequence[float] = (1.0,),
) -> Signal:
  """Makes the signal of N positions from what the teacher makes of them.

  All is read off a row's logits while they are there, once.

  Args:
    teacher: its logits, or outputs that have them.
    truth: the true labels [N], or None where there are none.
    samples: K, the answers drawn a row.
    temperature: at which they are drawn.
    key: of the draws.
    numbers: the positions' numbers in the transfer set [N]; None: from 0.
    counts: as of a Signal.
    k: the likeliest classes that are kept; 0 keeps the teacher as it is.
    temperatures: of top_k.
  """

  def look(logits, n):
    top, ids = best_first(logits, max(k, 1))
    z = logits.astype(jnp.float32) - top[0]
    e = jnp.exp(z)
    total = jnp.sum(e)
    mean = jnp.sum(jnp.where(e > 0, z * e, 0.0)) / total
    own = jax.random.fold_in(key, n)
    return (
      ids[0],
      jnp.log(total) - mean,  # the entropy
      # Not arrays without numbers, which lax.map cannot put together.
      _draw(own, logits, samples, temperature) if samples else (),
      kept(logits, top, ids, temperatures) if k else (),
    )

  rows = len(teacher.hidden if isinstance(teacher, Outputs) else teacher.logits)
  numbers = jnp.arange(rows) if numbers is None else jnp.asarray(numbers)
  answer, entropy, drawn, top = teacher.each(look, numbers)
  if truth is None:
    truth = jnp.full(rows, -1)
  return Signal(
    truth=Labels(jnp.asarray(truth, jnp.int32)),
    answer=Labels(answer),
    dense=TopK(*top, tuple(temperatures)) if k else teacher,
    samples=Samples(*drawn) if samples else _no_samples(rows),
    entropy=entropy,
    counts=_bools(counts),
  )


def make(
  logits: ArrayLike, truth: ArrayLike | None, *, seed: int, **drawn
) -> Signal:
  """Makes the signal of a transfer set from the teacher's logits [N, V] on it;
  `seed` is that of the draws, the rest as in `of_teacher`."""
  dense = Dense(jnp.asarray(logits, jnp.float32))
  return of_teacher(dense, truth, key=jax.random.key(seed), **drawn)
