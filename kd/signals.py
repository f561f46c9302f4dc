"""What a teacher leaves on a transfer set: answers, distributions, samples.

Each kind is a pytree whose arrays have the transfer set's rows as their first
axis, so that a batch of the signal is the same pytree with fewer rows.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from kd.models import Outputs


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

  @property
  def answer(self) -> Int[Array, "N"]:
    """The likeliest class."""
    return jnp.argmax(self.logits, -1).astype(jnp.int32)


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
  """K answers drawn with replacement, and what the teacher said of each.

  A row with fewer answers ends in ids of -1. `log_probs` are at the temperature
  at which the samples were drawn. `scores` are a black box's own, the higher
  the better. Either is NaN where the teacher gave none.
  """

  ids: Int[Array, "N K"]
  log_probs: Float[Array, "N K"]
  scores: Float[Array, "N K"] | None = None

  def at_most(self, k: int) -> "Samples":
    """Returns the first k answers of each row."""
    return jax.tree.map(lambda x: x[:, :k], self)

  @property
  def best(self) -> Int[Array, "N"]:
    """The answer with the highest score, or else log-probability (best of K);
    -1 where no answer has one."""
    values = self.log_probs if self.scores is None else self.scores
    values = jnp.where((self.ids < 0) | jnp.isnan(values), -jnp.inf, values)
    top = jnp.argmax(values, -1, keepdims=True)
    chosen = jnp.take_along_axis(self.ids, top, -1)
    scored = jnp.max(values, -1, keepdims=True) > -jnp.inf
    return jnp.where(scored, chosen, -1)[:, 0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signal(_Rows):
  """All that the arms of a study may read of a transfer set.

  `truth` is -1 where the transfer set is unlabelled. `dense` has the teacher's
  `logits`: stored ones, or those of a live teacher's outputs; a black box has
  none. Its `rejected` are alternatives known to be worse than any sample, -1
  where there are fewer than R.
  """

  truth: Labels
  answer: Labels
  dense: Dense | Outputs | None
  samples: Samples
  rejected: Int[Array, "N R"] | None = None


def of_labels(ids: ArrayLike) -> Signal:
  """Returns what a teacher in training learns from: true labels alone."""
  ids = jnp.asarray(ids, jnp.int32)
  none = jnp.zeros((len(ids), 0))
  labels = Labels(ids)
  empty = Samples(none.astype(jnp.int32), none)
  return Signal(truth=labels, answer=labels, dense=Dense(none), samples=empty)


def top_k(dense: Dense | Outputs, k: int) -> TopK:
  """Keeps the k likeliest classes of each row, exactly."""
  log_probs, ids = jax.lax.top_k(
    jax.nn.log_softmax(dense.logits.astype(jnp.float32)), k
  )
  return TopK(ids, log_probs)


def sample(
  key: Array, dense: Dense | Outputs, *, k: int, temperature: float
) -> Samples:
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


def of_teacher(
  teacher: Dense | Outputs,
  truth: ArrayLike | None,
  *,
  samples: int,
  temperature: float,
  key: Array,
) -> Signal:
  """Makes the signal of N examples from what the teacher makes of them.

  Args:
    teacher: its logits, or outputs that have them.
    truth: the true labels [N], or None where there are none.
    samples: K, the answers drawn a row.
    temperature: at which they are drawn.
    key: of the draws.
  """
  answer = Labels(teacher.answer)
  if truth is None:
    truth = jnp.full(answer.ids.shape, -1)
  return Signal(
    truth=Labels(jnp.asarray(truth, jnp.int32)),
    answer=answer,
    dense=teacher,
    samples=sample(key, teacher, k=samples, temperature=temperature),
  )


def make(
  logits: ArrayLike, truth: ArrayLike | None, *, seed: int, **drawn
) -> Signal:
  """Makes the signal of a transfer set from the teacher's logits [N, V] on it;
  `seed` is that of the draws, the rest as in `of_teacher`."""
  dense = Dense(jnp.asarray(logits, jnp.float32))
  return of_teacher(dense, truth, key=jax.random.key(seed), **drawn)
