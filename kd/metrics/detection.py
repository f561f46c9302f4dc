"""How well a score tells what is inside of a task from what is outside."""

import jax
import jax.numpy as jnp
import numpy as np  # noqa: F401  of the doctests
from jaxtyping import Array, ArrayLike, Bool, Float

from kd.metrics import told


def auroc(
  scores: Float[ArrayLike, " N"],
  positives: Bool[ArrayLike, " N"],
  where: Bool[ArrayLike, " N"] | None = None,
) -> Float[Array, ""]:
  """Returns the area under the ROC curve.

  P(score of a positive > score of a negative) + P(equal) / 2

  Args:
    scores: higher means positive; compared as float32.
    positives: bool, or 0 and 1.
    where: which examples count; None is all.

  Returns:
    A fraction; NaN where a class is absent. Infinite scores are compared as
    any others are.

  >>> print(auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1])))
  0.875
  """
  scores, positives, negatives = _sides(scores, positives, where)
  at_most, below, total = _counts(scores, negatives)
  wins = 0.5 * (at_most + below) / total
  return told.where(~jnp.isnan(scores), jnp.mean(wins, where=positives))


def fpr_at_tpr(
  scores: Float[ArrayLike, " N"],
  positives: Bool[ArrayLike, " N"],
  tpr: float = 0.95,
  where: Bool[ArrayLike, " N"] | None = None,
) -> Float[Array, ""]:
  """Returns the smallest false positive rate at which the TPR is at least tpr.

  Thresholds are the scores themselves, "positive" is score >= threshold, and
  there is no interpolation between them.

  Args:
    scores: higher means positive; compared as float32.
    positives: bool, or 0 and 1.
    tpr: wanted true positive rate, in [0, 1].
    where: which examples count; None is all.

  Returns:
    A fraction; NaN where a class is absent, or tpr is outside of [0, 1].
    Infinite scores are compared as any others are.

  >>> s, y = np.array([0.1, 0.4, 0.5, 0.8]), np.array([0, 1, 0, 1])
  >>> print(fpr_at_tpr(s, y))
  0.5
  """
  scores, positives, negatives = _sides(scores, positives, where)
  _, true_below, p = _counts(scores, positives)
  _, false_below, n = _counts(scores, negatives)
  reached = (p - true_below) / p >= tpr
  fpr = jnp.where(reached, (n - false_below) / n, 1.0)
  best = jnp.where(jnp.asarray(tpr) > 0, jnp.min(fpr, initial=1.0), 0.0)
  possible = (jnp.asarray(tpr) >= 0) & (jnp.asarray(tpr) <= 1)
  return told.where((p > 0) & (n > 0) & possible & ~jnp.isnan(scores), best)


def energy(logits: Float[ArrayLike, "... V"]) -> Float[Array, "..."]:
  """Returns log sum_v exp z_v, the negative energy: higher means inside.

  Source: Liu et al. (2020), 2010.03759, at T = 1.

  >>> print(f"{energy(np.array([0.0, 0.0])):.4f}")
  0.6931
  """
  return jax.nn.logsumexp(told.float32(logits), axis=-1)


@jax.jit
def selective_accuracy(
  confidence: Float[ArrayLike, " N"],
  correct: Float[ArrayLike, " N"],
  where: Bool[ArrayLike, " N"] | None = None,
) -> Float[Array, " N"]:
  """Returns the accuracy over the k most confident examples, k = 1..N.

  Entry k - 1 is at coverage k / N; the risk there is one less the accuracy.
  Equal confidences are given their mean accuracy, which is the expectation over
  their orders.

  Args:
    confidence: the higher, the sooner an example is answered.
    correct: whether each answer is right (0, 1).
    where: which n examples count; None is all. Entries beyond n are those at n.

  Returns:
    Fractions; NaN where a confidence or an answer is not told.

  Source: the risk-coverage curve of El-Yaniv and Wiener (2010), JMLR 11, and
  Geifman and El-Yaniv (2017), 1705.08500.

  >>> print(selective_accuracy(np.array([0.5, 0.9]), np.array([0, 1])))
  [1.  0.5]
  """
  low, correct = -told.float32(confidence), told.float32(correct)
  kept = told.kept(low, where)
  count = jnp.sum(kept)
  ranked, correct, kept = told.ranked(low, correct, kept)
  mean = told.among_equals(ranked, correct, kept)
  answered = jnp.minimum(jnp.arange(1, low.size + 1), count)
  shares = jnp.cumsum(jnp.where(kept, mean, 0.0)) / answered
  known = (jnp.isfinite(ranked) & jnp.isfinite(correct)) | ~kept
  return jnp.where(jnp.all(known), shares, jnp.nan)


def aurc(
  confidence: Float[ArrayLike, " N"],
  correct: Float[ArrayLike, " N"],
  where: Bool[ArrayLike, " N"] | None = None,
) -> Float[Array, ""]:
  """Returns the area under the risk-coverage curve, of `selective_accuracy`.

      1 / N sum_k (1 - selective_accuracy_k)

  It is 0 where all answers are right, 1 where none is.

  Source: Geifman, Uziel and El-Yaniv (2019), 1805.08206.

  >>> print(aurc(np.array([0.5, 0.9]), np.array([0, 1])))
  0.25
  """
  risk = 1.0 - selective_accuracy(confidence, correct, where)
  count = jnp.sum(told.kept(confidence, where))
  return jnp.mean(risk, where=jnp.arange(risk.size) < count)


def _sides(scores, positives, where):
  """Returns scores, and which examples are positives and negatives; those that
  do not count are neither, and their scores are no numbers that matter."""
  scores = told.float32(scores).ravel()
  positives = jnp.asarray(positives).astype(bool).ravel()
  if where is None:
    return scores, positives, ~positives
  where = jnp.asarray(where).astype(bool).ravel()
  return jnp.where(where, scores, 0.0), positives & where, ~positives & where


def _counts(scores, chosen):
  """Returns how many chosen scores are <= and < each score, and how many."""
  order = jnp.argsort(scores)
  seen = jnp.cumsum(chosen[order])
  seen = jnp.concatenate([jnp.zeros((1,), seen.dtype), seen])
  at_most, below = (
    seen[jnp.searchsorted(scores[order], scores, side=side)]
    for side in ("right", "left")
  )
  return at_most, below, seen[-1]
