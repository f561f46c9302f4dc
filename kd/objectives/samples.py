"""Per-example losses [B] from a teacher's sampled answers, in nats.

Answers are classes, `ids` [B, K]; a row with fewer ends in -1. What is absent
counts for nothing: a row without any answer has loss 0, and the functions named
`has_` say which rows have what a loss learns from, so that a mean can leave the
others out. `student` is what a model returns, of which a large vocabulary's
logits are never all made.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd.models.outputs import Outputs
from kd.objectives.logits import Scalar
from kd.signals import Samples, present

Ids = Int[Array, "B K"]
Rows = Bool[Array, "B"]


def frequencies(
  student: Outputs, ids: Ids, temperature: Scalar
) -> Float[Array, "B"]:
  """Computes T^2 sum_v f_v (log f_v - log q_v), f_v = counts of v / K.

  Soft targets estimated by the answers' frequencies: the forward KL over those
  that were sampled, q = softmax(z / T). Other classes have no frequency.

  >>> half = Outputs(jnp.zeros((1, 1)), jnp.zeros((1, 2)), jnp.zeros(2))
  >>> print(f"{frequencies(half, jnp.array([[1, 1]]), 1.0)[0]:.4f}")  # log 2
  0.6931
  """
  counts = jnp.where(_first(ids), _same(ids, ids).sum(axis=-1), 0)
  target = counts / jnp.maximum(counts.sum(axis=-1, keepdims=True), 1)
  return _cross_entropy(student, ids, target, temperature)


def acceptable(
  student: Outputs,
  ids: Ids,
  rejected: Int[Array, "B R"] | None,
  temperature: Scalar,
) -> Float[Array, "B"]:
  """Computes `frequencies`' loss of equal shares: one for each distinct answer
  that is not among the rejected (-1 is none)."""
  good = _good(ids, rejected)
  target = good / jnp.maximum(good.sum(axis=-1, keepdims=True), 1)
  return _cross_entropy(student, ids, target, temperature)


def preference(
  student: Outputs, ids: Ids, rejected: Int[Array, "B R"]
) -> Float[Array, "B"]:
  """Computes the mean of log(1 + exp(-(z_a - z_b))) over pairs of a distinct
  answer a and another, distinct rejected alternative b.

  Source: the pairwise loss of Burges et al. (2005), on a black box's pairs.
  """
  pairs = _pairs(ids, rejected)
  better, worse = (
    student.logits_at(jnp.maximum(x, 0)) for x in (ids, rejected)
  )
  losses = jax.nn.softplus(worse[:, None, :] - better[:, :, None])
  total = jnp.where(pairs, losses, 0.0).sum(axis=(-2, -1))
  return total / jnp.maximum(pairs.sum(axis=(-2, -1)), 1)


def candidates(
  student: Outputs, drawn: Samples, scores: str, among: str
) -> tuple[Float[Array, "B C"], Float[Array, "B C"], Bool[Array, "B C"]]:
  """Returns the list that is ranked: student scores, teacher scores, mask.

  Args:
    student: what a model returns.
    drawn: the answers.
    scores: "votes", or "log_probs" or "scores" of the samples.
    among: "sampled" for the distinct answers, of which each has the mean of its
      samples' values, and one without a value is not ranked; "all" for every
      class by its votes, those never sampled having none; "rest" for the
      distinct answers and, below them, all that were never sampled as one
      entry: its score is the log of their summed exp, so that in Plackett-Luce
      it is the first of them, in whatever order.
  """
  if among == "all":
    votes = jax.nn.one_hot(drawn.ids, student.num_classes).sum(axis=-2)
    return student.logits, votes, jnp.ones(votes.shape, bool)
  values, where = _ranked(drawn, scores)
  listed = student.logits_at(jnp.maximum(drawn.ids, 0))
  if among == "sampled":
    return listed, values, where
  seen = jax.nn.one_hot(drawn.ids, student.num_classes, dtype=bool).any(axis=-2)
  rest = jnp.where(seen, -1e30, student.logits)
  rest = jax.nn.logsumexp(rest, axis=-1, keepdims=True)
  some = ~seen.all(axis=-1, keepdims=True)
  entries = (listed, rest), (values, jnp.zeros_like(rest)), (where, some)
  listed, values, where = (jnp.concatenate(x, axis=-1) for x in entries)
  return listed, values, where


def has_answer(ids: Ids) -> Rows:
  """Which rows have an answer at all."""
  return (ids >= 0).any(axis=-1)


def has_acceptable(ids: Ids, rejected: Int[Array, "B R"] | None) -> Rows:
  """Which rows have an answer that is not rejected."""
  return _good(ids, rejected).any(axis=-1)


def has_pair(ids: Ids, rejected: Int[Array, "B R"]) -> Rows:
  """Which rows have an answer and another, rejected alternative."""
  return _pairs(ids, rejected).any(axis=(-2, -1))


def has_score(drawn: Samples, scores: str) -> Rows:
  """Which rows have an answer with such a score."""
  if scores == "votes":
    return has_answer(drawn.ids)
  return ((drawn.ids >= 0) & ~jnp.isnan(_values(drawn, scores))).any(axis=-1)


def has_order(
  drawn: Samples, scores: str, among: str, num_classes: int
) -> Rows:
  """Which rows have two candidates that their scores tell apart."""
  values, where = _ranked(drawn, scores)
  above = values[:, :, None] > values[:, None, :]
  ordered = (above & where[:, :, None] & where[:, None, :]).any(axis=(-2, -1))
  if among == "sampled":
    return ordered
  distinct = where.sum(axis=-1)  # and above every class, if any, without a vote
  return ordered | ((distinct > 0) & (distinct < num_classes))


def _same(ids, others):
  """Returns [..., K, L] bool: which answers are the same, -1 being none."""
  return (ids[:, :, None] == others[:, None, :]) & (ids[:, :, None] >= 0)


def _first(ids):
  """Returns [..., K] bool: the first of each answer's samples."""
  earlier = jnp.tril(jnp.ones((ids.shape[-1],) * 2, bool), -1)
  return (ids >= 0) & ~(_same(ids, ids) & earlier).any(axis=-1)


def _good(ids, rejected):
  good = _first(ids)
  if rejected is not None:
    good = good & ~_same(ids, rejected).any(axis=-1)
  return good


def _pairs(ids, rejected):
  pairs = _first(ids)[:, :, None] & _first(rejected)[:, None, :]
  return pairs & (ids[:, :, None] != rejected[:, None, :])


def _values(drawn: Samples, scores: str):
  """Returns each sample's log-probability or score [B, K]."""
  each = drawn.log_probs if scores == "log_probs" else drawn.scores
  return present(each, scores)


def _ranked(drawn: Samples, scores: str):
  """Returns (values, where): each distinct answer's, at its first sample."""
  ids = drawn.ids
  same = _same(ids, ids)
  if scores == "votes":
    return same.sum(axis=-1).astype(jnp.float32), _first(ids)
  each = _values(drawn, scores)
  same = same & ~jnp.isnan(each)[:, None, :]
  number = same.sum(axis=-1)
  each = jnp.nan_to_num(each.astype(jnp.float32))
  total = jnp.where(same, each[:, None, :], 0.0).sum(axis=-1)
  return total / jnp.maximum(number, 1), _first(ids) & (number > 0)


def _cross_entropy(student: Outputs, ids, target, temperature):
  """T^2 sum_k target_k (log target_k - log q_k), the forward KL of a target
  that is split over some ids; those with target 0 may be anything."""
  log_q = student.log_probs_at(jnp.maximum(ids, 0), temperature)
  log_p = jnp.log(jnp.where(target > 0, target, 1.0))
  split = jnp.where(target > 0, target * (log_p - log_q), 0.0)
  return temperature**2 * split.sum(axis=-1)
