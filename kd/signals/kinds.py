"""What a teacher leaves on a transfer set: answers, distributions, samples.

Each kind is a pytree whose arrays have the transfer set's rows as their first
axis, so that a batch of the signal is the same pytree with fewer rows.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kd.models.outputs import Outputs
from kd.signals.completions import Completions
from kernels import Head, Logits


def present[T](part: T | None, what: str) -> T:
  """Returns a part of a signal.

  Raises:
    ValueError: it is None, which says that the teacher left none; names it.
  """
  if part is None:
    raise ValueError(f"this signal has no {what}")
  return part


class _Rows:
  """A pytree of arrays [N, ...]; `at(rows)` selects along N."""

  def at(self, rows: Int[Array, "..."], count: int | None = None):
    """Returns some rows; of `count` examples, all rows of some examples.

    An example has len(x) / count rows of an array x, one after another.
    """

    def take(x):
      each = 1 if count is None else len(x) // count
      return jnp.take(x, rows_of(rows, each), axis=0)

    return jax.tree.map(take, self)


def rows_of(examples, each: int):
  """Returns the rows [..., n each] of examples [..., n] that have `each`."""
  if each == 1:
    return examples
  rows = examples[..., None] * each + np.arange(each)
  return rows.reshape(*examples.shape[:-1], -1)


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

  @property
  def head(self) -> Logits:
    """What the kernels take for the logits, as of a model's outputs."""
    return Logits(self.logits)

  def each[T](self, fn: Callable[..., T], *arrays: Any) -> T:
    """Maps fn over the rows, as Outputs does."""
    return jax.vmap(fn)(self.logits, *arrays)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK(_Rows):
  """The K likeliest classes, in any order, and how much the others hold.

  With z the logits less the row's largest, at each of M temperatures

      lse_T = log sum_v exp(z_v / T),  tail_T = 1 - sum_k exp(z_k / T - lse_T)

  over all V classes, so that the K log-probabilities at T are those of the
  whole distribution: log p_T(v) = z_v / T - lse_T.

  Attributes:
    ids: the classes.
    logits: z of each; the row's largest is 0.
    lse: log-sum-exp at each temperature.
    tail: the mass of the other V - K classes at each temperature.
    temperatures: the M of them.
  """

  ids: Int[Array, "N K"]
  logits: Float[Array, "N K"]
  lse: Float[Array, "N M"]
  tail: Float[Array, "N M"]
  temperatures: tuple[float, ...] = dataclasses.field(
    default=(1.0,), metadata={"static": True}
  )

  @property
  def answer(self) -> Int[Array, "N"]:
    """The likeliest class."""
    best = jnp.argmax(self.logits, -1, keepdims=True)
    return jnp.take_along_axis(self.ids, best, -1)[..., 0]

  @property
  def log_probs(self) -> Float[Array, "N K"]:
    """The log-probabilities at T = 1, which must be among the temperatures."""
    if 1.0 not in self.temperatures:
      raise ValueError(f"kept at T = {self.temperatures}, not at 1.0")
    return self.log_probs_at(1.0)

  def log_probs_at(self, temperature) -> Float[Array, "N K"]:
    """Returns log p_T of the K classes; T is one of `temperatures`.

    They are made to sum to 1 - tail_T, which is exact, so that what rounding
    did to the logits moves no mass between these classes and the others.
    """
    kept = jnp.asarray(self.temperatures)
    tail = jnp.take(self.tail, jnp.argmin(jnp.abs(kept - temperature)), -1)
    log_probs = jax.nn.log_softmax(self.logits / temperature)
    return log_probs + jnp.log1p(-tail)[..., None]

  def narrow(self, k: int) -> "TopK":
    """Returns the k likeliest of these, best first."""
    logits, order = jax.lax.top_k(self.logits, k)
    ids = jnp.take_along_axis(self.ids, order, -1)
    tail = [
      -jnp.expm1(
        jax.nn.logsumexp(
          jnp.take_along_axis(self.log_probs_at(t), order, -1), -1
        )
      )
      for t in self.temperatures
    ]
    tail = jnp.clip(jnp.stack(tail, -1), 0.0, 1.0)
    return TopK(ids, logits, self.lse, tail, self.temperatures)


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

  What a teacher did not leave is None; `present` and the properties below raise
  a ValueError that names it, where kd.train.arms has not refused the arm.

  Attributes:
    truth: the true labels, -1 where there is none.
    answer: the teacher's, -1 where there is none.
    dense: the teacher's logits, stored ones of all classes or of the likeliest,
      or a live teacher's outputs. A black box leaves none.
    samples: K answers.
    entropy: the teacher's over all classes, at T = 1, in nats.
    rejected: alternatives that a black box's user knows to be worse than any
      sample, -1 where there are fewer than R.
    counts: which rows a loss is a mean over; None is all. Those of a text that
      predict nothing, as a prompt's or padding, don't count.
    completions: of prompts, of a teacher that wrote them. Then an example has
      C L rows, and an answer is a token of a sample.
  """

  truth: Labels
  answer: Labels
  dense: Dense | TopK | Outputs | None
  samples: Samples
  entropy: Float[Array, "N"] | None = None
  rejected: Int[Array, "N R"] | None = None
  counts: Bool[Array, "N"] | None = None
  completions: Completions | None = None

  @property
  def whole(self) -> Dense | Outputs:
    """What has the logits of all V classes."""
    top = isinstance(self.dense, TopK)
    return present(None if top else self.dense, "logits of all classes")

  @property
  def logits(self) -> Float[Array, "N V"]:
    """The teacher's logits of all classes."""
    return self.whole.logits

  @property
  def head(self) -> Head | Logits:
    """The teacher of all classes, as kernels.distill_loss takes it."""
    return self.whole.head

  def top_k(self, k: int) -> TopK:
    """Returns the k likeliest classes, best first."""
    return top_k(present(self.dense, "logits"), k)

  def top_k_at(
    self, k: int, temperature
  ) -> tuple[Int[Array, "N K"], Float[Array, "N K"]]:
    """Returns the k likeliest classes, in any order, and log p_T of each.

    Stored ones are known at the temperatures that they were kept at alone.
    """
    if isinstance(self.dense, TopK):
      kept = self.dense.ids.shape[-1] == k
      top = self.dense if kept else self.dense.narrow(k)
      return top.ids, top.log_probs_at(temperature)

    def likeliest(logits):
      z = _from_the_largest(logits)
      top, ids = jax.lax.top_k(z, k)
      return ids, top / temperature - jax.nn.logsumexp(z / temperature)

    return self.whole.each(likeliest)


def _from_the_largest(logits: Float[Array, "V"]) -> Float[Array, "V"]:
  z = logits.astype(jnp.float32)
  return z - jnp.max(z)


def apart(signal: Signal) -> tuple[Any, Callable[[Any], Signal]]:
  """Returns (arrays, join): a batch's signal as arrays with its rows alone, and
  what makes a signal of some of their rows.

  Of a live teacher that is the hidden states: its head belongs to all rows.
  """
  live = signal.dense
  if not isinstance(live, Outputs):
    return signal, lambda arrays: arrays

  def join(arrays):
    own = dataclasses.replace(live, hidden=arrays.dense)
    return dataclasses.replace(arrays, dense=own)

  return dataclasses.replace(signal, dense=live.hidden), join


def part(signal: Signal, i: Array, parts: int) -> Signal:
  """Returns the i-th of equal parts of a batch's rows."""
  arrays, join = apart(signal)

  def cut(x):
    size = len(x) // parts
    return jax.lax.dynamic_slice_in_dim(x, i * size, size)

  return join(jax.tree.map(cut, arrays))


def top_k(
  dense: Dense | TopK | Outputs,
  k: int,
  temperatures: Sequence[float] = (1.0,),
) -> TopK:
  """Keeps the k likeliest classes of each row, exactly; of equals the first.

  Args:
    dense: the logits; of a TopK, its own temperatures stay.
    k: how many.
    temperatures: at which log-sum-exp and tail are kept.
  """
  if isinstance(dense, TopK):
    return dense.narrow(k)
  kept = tuple(temperatures)
  return TopK(*dense.each(lambda z: likeliest(z, k, kept)), kept)


def likeliest(logits: Float[Array, "V"], k: int, temperatures):
  """Returns a row of a TopK: ids, logits, lse and tail."""
  return kept(logits, *best_first(logits, k), temperatures)


def best_first(
  logits: Float[Array, "V"], k: int
) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
  """Returns the k largest logits and their ids; of equals the first."""
  # Where a part of the result is cut out, XLA would sort all V for it.
  top, ids = jax.lax.optimization_barrier(jax.lax.top_k(logits, k))
  return top, ids.astype(jnp.int32)


def kept(logits: Float[Array, "V"], top, ids, temperatures):
  """Is `likeliest`, given what `best_first` found.

  The tail adds up what the other classes have, and is no difference of two
  sums: those below the least that is kept, and its equals beyond.
  """
  z = logits.astype(jnp.float32)
  top = top.astype(jnp.float32)
  largest, least = top[0], top[-1]
  equals = jnp.sum(z == least) - jnp.sum(top == least)

  def at(t):
    e = jnp.exp((z - largest) / t)
    total, below = jnp.sum(e), jnp.sum(jnp.where(z < least, e, 0.0))
    rest = below + equals * jnp.exp((least - largest) / t)
    return jnp.log(total), rest / total

  lse, tail = map(jnp.stack, zip(*map(at, temperatures), strict=True))
  return ids, top - largest, lse, tail
