"""Ranking losses [...] from scores [..., K]: K items a list, scored by both.

Every loss is one number a list, in nats, and finite with its gradient for
scores of +-1e4. Gradients flow to the student's `scores` only. Entries where
`where` is False count for nothing, whatever they hold (NaN included); a list
with no entry left gives 0.

rax has these losses for labels given by people; where its version cannot be
used, the comment at the loss says why.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import rax
from jaxtyping import Array, Bool, Float, Int

Scalar = float | Float[Array, ""]

LONGEST = 10  # entries of a list whose 2^K subsets are all taken

_MASKED = -1e30  # always set by `where`; finite, so that 0 times it is 0


def plackett_luce(
  scores: Float[Array, "... K"],
  teacher_scores: Float[Array, "... K"],
  where: Bool[Array, "... K"] | None = None,
  *,
  ties: Literal["average", "mean", "any", "index"] = "average",
) -> Float[Array, "..."]:
  """Computes -log P(the teacher's order) / n under Plackett-Luce (ListMLE).

  l = 1/n sum_i [log sum_(j not before i) exp(s_j) - s_i],  best first

  n counts the valid entries: nats per ranked item, so that long and short lists
  weigh alike. With one valid entry l = 0. The margins between teacher scores
  play no part. All rules of ties are this likelihood where there are none.

  Ties. A block of b tied items has b! orders.

    "any"      -log sum_orders P(order) / n: the order is unknown. It says that
               the block comes before what is below, and nothing within it.
    "mean"     the mean of l over the orders. Never below "any", and least
               where the block's scores are equal.
    "average"  Efron's approximation of "mean": for the i-th pick out of a block
               B with R below, the mean of the possible denominators,
               log(sum_R + (1 - i / b) sum_B). It is never below "mean"
               (Jensen), and equals it, with its gradient, where the block's
               scores are equal. Breslow's, sum_R + sum_B, is further above.
    "index"    tied items as they come, as a plain sort does: it teaches the
               arbitrary order of the list, and is here so that a study can show
               what that does.

  "mean" and "average" pull the scores of tied items together, and a teacher's
  votes do not mean that: equal counts of few samples say that the order is
  unknown, not that the items are equal. "any" does not, nor does
  `pairwise_logistic`. The exact two take 2^K terms a list, the others K^2.

  Source: Xia et al., ListMLE (2008); Efron, JASA 72 (1977); "any" is the exact
  partial likelihood of Kalbfleisch and Prentice, Biometrika 60 (1973).

  Args:
    scores: s, the student's.
    teacher_scores: the higher the better; compared as float32.
    where: valid entries; None means all.
    ties: "average", "mean", "any" or "index".

  Returns:
    Nats per ranked item, one for each list.

  Raises:
    ValueError: `ties` is none of them, or is "mean" or "any" and K is above 10;
      or shapes differ.

  >>> s = jnp.array([2.0, 1.0, 0.0])
  >>> print(f"{plackett_luce(s, jnp.array([3.0, 2.0, 1.0])):.4f}")
  0.2403
  >>> for ties in ("average", "mean", "any"):  # all three items are tied
  ...   loss = lambda s: plackett_luce(s, jnp.zeros(3), ties=ties)
  ...   value, pull = jax.value_and_grad(loss)(s)
  ...   print(f"{ties} {abs(value):.4f} {abs(pull[0]):.2f}")
  average 0.9062 0.33
  mean 0.7751 0.18
  any 0.0000 0.00
  """
  if ties not in ("average", "mean", "any", "index"):
    raise ValueError(
      f"ties is {ties!r}; accepted: 'average', 'mean', 'any', 'index'"
    )
  if ties in ("mean", "any") and scores.shape[-1] > LONGEST:
    raise ValueError(
      f"ties is {ties!r} for lists of {scores.shape[-1]} entries; accepted: "
      f"up to {LONGEST}, or 'average'"
    )
  # Not rax.listmle_loss: it takes ties by index, or at random given a key.
  s, t, where = _prepare(scores, teacher_scores, where)
  if ties in ("mean", "any"):
    total = _over_orders(s, t, where, ties)
    return total / jnp.maximum(jnp.sum(where, axis=-1), 1)
  tied = t[..., :, None] == t[..., None, :]  # [..., picked, other]
  below = t[..., :, None] > t[..., None, :]
  earlier = tied & _is_earlier(s) & where[..., None, :]
  if ties == "index":
    denominators = _logsumexp_of(s, below | (tied & ~earlier), where)
  else:
    size = jnp.sum(tied & where[..., None, :], axis=-1)
    left = 1 - jnp.sum(earlier, axis=-1) / jnp.maximum(size, 1)
    left = jnp.where(where, left, 1.0)
    denominators = jnp.logaddexp(
      _logsumexp_of(s, below, where),
      _logsumexp_of(s, tied, where) + jnp.log(left),
    )
  return _mean(denominators - s, where)


def list_net(
  scores: Float[Array, "... K"],
  teacher_scores: Float[Array, "... K"],
  temperature: Scalar = 1.0,
  where: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
  """Computes ListNet's top-one cross-entropy, between softmaxes over the list.

  l = -sum_i softmax(t / T)_i log softmax(s / T)_i

  There is no T^2 inside: multiply by it to keep gradients alike across T. The
  teacher's entropy is not subtracted: l at s = t is that entropy, not 0.

  Source: Cao et al. (2007), Learning to rank: from pairwise to listwise.

  Args:
    scores: s, the student's.
    teacher_scores: t, on the scale of logits (counts make it a hard label).
    temperature: T > 0, for both.
    where: valid entries; None means all.

  Returns:
    Nats, one number for each list.

  Raises:
    ValueError: shapes differ.

  >>> print(f"{list_net(jnp.array([2.0, 0.0]), jnp.array([0.0, 0.0])):.4f}")
  1.1269
  """
  s, t, where = _prepare(scores, teacher_scores, where)
  # rax masks with -inf, of which a list without entries makes NaN.
  empty = ~jnp.any(where, axis=-1, keepdims=True)
  full = where | empty
  target = jax.nn.softmax(jnp.where(full, t / temperature, _MASKED))
  loss = rax.softmax_loss(s / temperature, target, where=full, reduce_fn=None)
  return jnp.where(empty.squeeze(-1), 0.0, loss)


def pairwise_logistic(
  scores: Float[Array, "... K"],
  teacher_scores: Float[Array, "... K"],
  where: Bool[Array, "... K"] | None = None,
  *,
  weights: Literal["difference"] | None = None,
) -> Float[Array, "..."]:
  """Computes RankNet's loss, averaged over the list's ordered pairs.

  l = sum_(t_i > t_j) w_ij log(1 + exp(-(s_i - s_j))) / sum_(t_i > t_j) w_ij

  A tie makes no pair, and a list without pairs gives 0. Memory is K^2 a list.

  Source: Burges et al. (2005), Learning to rank using gradient descent.

  Args:
    scores: s, the student's.
    teacher_scores: t, the higher the better.
    where: valid entries; None means all.
    weights: None for w = 1, "difference" for w_ij = t_i - t_j.

  Returns:
    Nats per pair, one number for each list.

  Raises:
    ValueError: `weights` is neither; or shapes differ.

  >>> s, t = jnp.array([1.0, 0.0, 0.0]), jnp.array([2.0, 1.0, 1.0])
  >>> print(f"{pairwise_logistic(s, t):.4f}")
  0.3133
  """
  if weights not in (None, "difference"):
    raise ValueError(f"weights is {weights!r}; accepted: None, 'difference'")
  # Not rax.pairwise_logistic_loss: its mean is over all lists' pairs together.
  s, t, where = _prepare(scores, teacher_scores, where)

  def pairs(x, function):
    return function(x[..., :, None], x[..., None, :])

  ordered = pairs(where, jnp.logical_and) & pairs(t, jnp.greater)
  losses = jax.nn.softplus(-pairs(s, jnp.subtract))
  w = jnp.ones_like(losses)
  if weights == "difference":
    # In units of the largest score: differences of +-1e30 must not overflow.
    t = t / jnp.maximum(jnp.max(jnp.abs(t), axis=-1, keepdims=True), 1e-30)
    w = pairs(t, jnp.subtract)
  w = jnp.where(ordered, w, 0.0)
  total = jnp.sum(w, axis=(-2, -1))
  loss = jnp.sum(w * losses, axis=(-2, -1))
  return jnp.where(total > 0, loss / jnp.where(total > 0, total, 1.0), 0.0)


def partial_plackett_luce(
  logits: Float[Array, "... V"],
  ids: Int[Array, "... K"],
  where: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
  """Computes -log P(the top K, in this order, out of V classes) / K.

  l = 1/K sum_k [log sum_(v not in ids[:k]) exp(z_v) - z_(ids[k])]

  Each denominator holds every class not yet picked, the V - K never ranked ones
  among them, and is never formed as log(exp(a) - exp(b)). Memory is V + K^2 a
  list.

  Source: Plackett (1975); Cao et al. (2007) for the top-k probability.

  Args:
    logits: z, the student's.
    ids: the teacher's top K, best first; distinct where valid.
    where: valid ids (the first of duplicates, say); K is then their number.

  Returns:
    Nats per ranked item, one number for each list.

  Raises:
    ValueError: K > V; or shapes do not fit.

  >>> print(f"{partial_plackett_luce(jnp.zeros(4), jnp.array([2, 0])):.4f}")
  1.2425
  """
  if ids.shape[:-1] != logits.shape[:-1] or ids.shape[-1] > logits.shape[-1]:
    raise ValueError(
      f"ids have shape {ids.shape}, logits {logits.shape}; accepted:"
      " [..., K] and [..., V] with K <= V"
    )
  if where is None:
    where = jnp.ones(ids.shape, bool)
  where = jnp.broadcast_to(where, ids.shape)
  z = jnp.asarray(logits).astype(jnp.float32)
  z = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
  ids, classes = jnp.where(where, ids, 0), z.shape[-1]
  ranked = jnp.put_along_axis(
    jnp.zeros(z.shape, bool),
    jnp.where(where, ids, classes),  # out of range, hence dropped
    jnp.ones(ids.shape, bool),
    axis=-1,
    inplace=False,
    mode="drop",
  )
  rest = jax.nn.logsumexp(jnp.where(ranked, _MASKED, z), axis=-1, keepdims=True)
  s = jnp.take_along_axis(z, ids, axis=-1)
  left = _logsumexp_of(s, ~_is_earlier(s), where)
  denominators = jnp.logaddexp(left, rest)
  return _mean(denominators - s, where)


def _prepare(scores, teacher_scores, where):
  """Returns float32 scores, their mask, and zeros where they do not count."""
  if scores.shape != teacher_scores.shape:
    raise ValueError(
      f"scores have shape {scores.shape}, teacher_scores"
      f" {teacher_scores.shape}; accepted: the same"
    )
  if where is None:
    where = jnp.ones(scores.shape, bool)
  where = jnp.broadcast_to(jnp.asarray(where, bool), scores.shape)
  s, t = (
    jnp.where(where, jnp.asarray(x).astype(jnp.float32), 0.0)
    for x in (scores, teacher_scores)
  )
  # Only differences matter: an offset of the scores must cost no accuracy.
  top = jnp.max(s, axis=-1, keepdims=True, where=where, initial=_MASKED)
  s = jnp.where(where, s - jax.lax.stop_gradient(top), 0.0)
  return s, jax.lax.stop_gradient(t), where


@functools.partial(jax.jit, static_argnames="ties")
def _over_orders(s, t, where, ties):
  """Returns n l of the exact rules, from the subsets S of each tied block.

  With d(S) = log(sum_below + sum_S), m items in S and b in the block,

    mean: sum_S mean_(i in S) (d(S) - s_i) / C(b, m), as S is what is left to
          pick from in 1 / C(b, m) of the orders;
    any:  log P(S) = log sum_(i in S) exp(s_i - d(S) + log P(S without i)).

  All subsets of m items are made from those of m - 1, and are rows, so that a
  gather copies whole ones: of 640 lists of 9, "any" and its gradient took 20 ms
  rather than 50.
  """
  pairs = where[..., :, None] & where[..., None, :]
  tied = (t[..., :, None] == t[..., None, :]) & pairs
  below = _logsumexp_of(s, t[..., :, None] > t[..., None, :], where)
  size = jnp.moveaxis(jnp.sum(tied, axis=-1), -1, 0)
  tied = jnp.moveaxis(tied, (-2, -1), (0, 1))
  s, where, below = (jnp.moveaxis(x, -1, 0) for x in (s, where, below))
  k = len(s)
  sets = np.arange(1 << k)
  has = (sets[:, None] >> np.arange(k)) & 1 > 0
  row = np.zeros(len(sets), int)  # of a subset, among those of its size
  total = jnp.zeros(s.shape[1:])
  left, whole, log_p = below, where, jnp.zeros_like(s)
  for m in range(1, k + 1):
    of = np.flatnonzero(has.sum(axis=-1) == m)
    items = np.stack([np.flatnonzero(x) for x in has[of]], axis=1)  # [m, S]
    before = row[of - (1 << items)] if m > 1 else items
    row[of] = np.arange(len(of))
    left = jnp.logaddexp(left[before[0]], s[items[0]])
    whole = whole[before[0]] & tied[items[0], items[-1]]
    picked = s[items] - left[None]
    if ties == "mean":
      orders = jnp.array([max(math.comb(b, m), 1.0) for b in range(k + 1)])
      each = -jnp.mean(picked, axis=0) / orders[size[items[0]]]
      counts = whole
    else:
      log_p = jax.nn.logsumexp(picked + log_p[before], axis=0)
      each, counts = -log_p, whole & (size[items[0]] == m)
    total += jnp.sum(jnp.where(counts, each, 0.0), axis=0)
  return total


def _is_earlier(s):
  """Returns [..., K, K] bool: j < i, of full rank for rank promotion's sake."""
  shape = (*s.shape, s.shape[-1])
  i, j = (
    jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    for axis in (s.ndim - 1, s.ndim)
  )
  return j < i


def _mean(losses, where):
  """Returns the mean over valid entries; 0 where there is none."""
  total = jnp.sum(jnp.where(where, losses, 0.0), axis=-1)
  return total / jnp.maximum(jnp.sum(where, axis=-1), 1)


def _logsumexp_of(s, chosen, where):
  """Returns log sum_j exp(s_j) for each i, over valid j with chosen[i, j].

  A K x K mask, rather than a sort and a scan: lists are short, and the scan
  with its gradient took 10 s to compile on two cores, this 2 s.
  """
  chosen = chosen & where[..., None, :]
  return jax.nn.logsumexp(jnp.where(chosen, s[..., None, :], _MASKED), axis=-1)
