"""What a teacher leaves on a transfer set: answers, distributions, samples.

Each kind is a pytree whose arrays have the transfer set's rows as their first
axis, so that a batch of the signal is the same pytree with fewer rows.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int


class _Rows:
  """A pytree of arrays [N, ...]; `at(rows)` selects along N."""

  def at(self, rows: Int[Array, "..."]):
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels(_Rows):
  """One class for each example: the true label, or the teacher's answer."""

  ids: Int[Array, "N"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(_Rows):
  """The teacher's logits over all V classes."""

  logits: Float[Array, "N V"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK(_Rows):
  """The K likeliest classes, best first, with their log-probabilities (T = 1).

  The log-probabilities are those of the whole distribution: they sum to less
  than one, and what is missing is the tail's mass.
  """

  ids: Int[Array, "N K"]
  log_probs: Float[Array, "N K"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples(_Rows):
  """K answers drawn with replacement, and how likely the teacher held each.

  `log_probs` are at the temperature at which the samples were drawn.
  """

  ids: Int[Array, "N K"]
  log_probs: Float[Array, "N K"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signal(_Rows):
  """All that the arms of a study may read of a transfer set.

  `truth` is -1 where the transfer set is unlabelled.
  """

  truth: Labels
  answer: Labels
  dense: Dense
  samples: Samples


def of_labels(ids: ArrayLike) -> Signal:
  """Returns what a teacher in training learns from: true labels alone."""
  ids = jnp.asarray(ids, jnp.int32)
  none = jnp.zeros((len(ids), 0))
  labels = Labels(ids)
  empty = Samples(none.astype(jnp.int32), none)
  return Signal(truth=labels, answer=labels, dense=Dense(none), samples=empty)


def top_k(dense: Dense, k: int) -> TopK:
  """Keeps the k likeliest classes of each row, exactly."""
  log_probs, ids = jax.lax.top_k(
    jax.nn.log_softmax(dense.logits.astype(jnp.float32)), k
  )
  return TopK(ids, log_probs)


def sample(key: Array, dense: Dense, *, k: int, temperature: float) -> Samples:
  """Draws k answers a row from softmax(logits / temperature).

  Row n's draws depend on the key and on n alone, so that a larger transfer
  set keeps the draws of a smaller one.
  """
  log_probs = jax.nn.log_softmax(dense.logits.astype(jnp.float32) / temperature)
  keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(
    jnp.arange(len(log_probs))
  )
  ids = jax.vmap(lambda key, lp: jax.random.categorical(key, lp, shape=(k,)))(
    keys, log_probs
  )
  return Samples(
    ids.astype(jnp.int32), jnp.take_along_axis(log_probs, ids, axis=-1)
  )


def make(
  logits: ArrayLike,
  truth: ArrayLike | None,
  *,
  samples: int,
  temperature: float,
  seed: int,
) -> Signal:
  """Makes the signal of a transfer set from the teacher's logits on it.

  Args:
    logits: the teacher's [N, V].
    truth: the true labels [N], or None where the transfer set has none.
    samples: K, the answers drawn a row.
    temperature: at which they are drawn.
    seed: of the draws.
  """
  dense = Dense(jnp.asarray(logits, jnp.float32))
  answer = Labels(jnp.argmax(dense.logits, -1).astype(jnp.int32))
  if truth is None:
    truth = jnp.full(len(dense.logits), -1)
  return Signal(
    truth=Labels(jnp.asarray(truth, jnp.int32)),
    answer=answer,
    dense=dense,
    samples=sample(
      jax.random.key(seed), dense, k=samples, temperature=temperature
    ),
  )
