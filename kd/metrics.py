"""Evaluation metrics: float32 scalars from jax or numpy arrays, jit-able.

Leading axes [...] are all averaged over, each example alike. Probabilities are
normalised over the last axis; nothing here normalises them again. Logarithms
are natural. Ties between the highest entries go to the lowest class.

What is not finite is never passed over: a metric is NaN where a score is NaN,
where an example's highest score is infinite (so that no answer can be told), or
where a label is no class, in [0, V).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from kd import objectives
from kd.signals import TopK


def accuracy(
  scores: Float[ArrayLike, "... V"], labels: Int[ArrayLike, "..."]
) -> Float[Array, ""]:
  """Returns the fraction whose highest score (logit, probability) is the label.

  >>> print(accuracy(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0])))
  0.5
  """
  return jnp.mean(_right(scores, labels))


def agreement(
  student: Float[ArrayLike, "... V"],
  teacher: Float[ArrayLike, "... V"] | Int[ArrayLike, "..."] | TopK,
) -> Float[Array, ""]:
  """Returns the fraction where student and teacher give the same answer.

  Args:
    student: logits or probabilities.
    teacher: logits or probabilities [..., V], or its likeliest classes, or its
      answers [...] as integers; an answer below 0 is none, and that example is
      left out.

  Returns:
    A fraction; NaN where the teacher gave no answer at all.

  Source: "top-1 agreement" of Stanton et al. (2021), 2106.05945.

  >>> print(agreement(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0])))
  0.5
  """
  teacher = teacher.answer if isinstance(teacher, TopK) else teacher
  teacher = jnp.asarray(teacher)
  if teacher.ndim == jnp.ndim(student):
    same = _right(student, jnp.argmax(teacher, axis=-1))
    return jnp.mean(jnp.where(_is_told(teacher), same, jnp.nan))
  given = teacher >= 0
  return jnp.mean(_right(student, jnp.maximum(teacher, 0)), where=given)


def nll(
  probs: Float[ArrayLike, "... V"], labels: Int[ArrayLike, "..."]
) -> Float[Array, ""]:
  """Returns the mean of -log p[y], in nats.

  Probabilities below float32's smallest normal number, 1.2e-38, count as that
  number, so one example costs at most 87.3 nats. Where there are logits,
  `nll_from_logits` has no such limit.

  >>> print(f"{nll(np.array([[0.5, 0.5]]), np.array([1])):.4f}")
  0.6931
  """
  probs, labels = _float32(probs), _like_answers(probs, labels)
  p = jnp.take_along_axis(probs, labels[..., None], axis=-1)
  loss = -jnp.mean(jnp.log(jnp.maximum(p, np.finfo(np.float32).tiny)))
  return _where(_are_probs(probs) & _is_class(probs, labels), loss)


def nll_from_logits(
  logits: Float[ArrayLike, "... V"], labels: Int[ArrayLike, "..."]
) -> Float[Array, ""]:
  """Returns the mean of -log softmax(z)[y], in nats.

  >>> print(f"{nll_from_logits(np.array([[1e4, 0.0]]), np.array([1])):.0f}")
  10000
  """
  logits, labels = jnp.asarray(logits), _like_answers(logits, labels)
  loss = jnp.mean(objectives.hard(logits, labels))
  return _where(_is_class(logits, labels), loss)


def brier(
  probs: Float[ArrayLike, "... V"], labels: Int[ArrayLike, "..."]
) -> Float[Array, ""]:
  """Returns the mean of sum_v (p_v - [v = y])^2, in [0, 2].

  This is Brier's own sum over classes. With two classes it is twice the score
  of the positive class alone. Source: Brier (1950).

  >>> print(brier(np.array([[0.5, 0.5]]), np.array([1])))
  0.5
  """
  p, labels = _float32(probs), _like_answers(probs, labels)
  target = jax.nn.one_hot(labels, p.shape[-1])
  loss = jnp.mean(jnp.sum((p - target) ** 2, axis=-1))
  return _where(_is_class(p, labels), loss)


def ece(
  probs: Float[ArrayLike, "... V"],
  labels: Int[ArrayLike, "..."],
  bins: int = 15,
  equal_mass: bool = False,
) -> Float[Array, ""]:
  """Returns the expected calibration error of the highest probability.

  sum_b n_b / N |accuracy_b - confidence_b|, in [0, 1]

  Args:
    probs: probabilities; the confidence is their largest.
    labels: y.
    bins: their number.
    equal_mass: False for bins of equal width, those of `bin_of`. True for bins
      of equal size: the n-th smallest of N confidences, from 0, goes to bin
      floor(n bins / N). Equal confidences are then given their mean accuracy,
      so the order of the data has no influence.

  Returns:
    A fraction.

  Raises:
    ValueError: bins is less than 1.

  Source: Guo et al. (2017), 1706.04599; equal mass: Nixon et al. (2019),
  1904.01685.

  >>> print(f"{ece(np.array([[0.7, 0.3], [0.3, 0.7]]), np.array([0, 0])):.4f}")
  0.2000
  """
  p = _float32(probs)
  error = calibration_error(
    jnp.max(p, axis=-1).ravel(), _right(p, labels).ravel(), bins, equal_mass
  )
  return _where(_are_probs(p), error)


@functools.partial(jax.jit, static_argnames=("bins", "equal_mass"))
def calibration_error(
  confidence: Float[ArrayLike, " N"],
  correct: Float[ArrayLike, " N"],
  bins: int = 15,
  equal_mass: bool = False,
) -> Float[Array, ""]:
  """Returns `ece` from confidences, and whether each answer is right (0, 1)."""
  if bins < 1:
    raise ValueError(f"ece: bins is {bins}; accepted: 1 or more")
  confidence, correct = _float32(confidence), _float32(correct)
  size = confidence.size
  if equal_mass:
    order = jnp.argsort(confidence)
    confidence, correct = confidence[order], correct[order]
    tied = jnp.searchsorted(confidence, confidence)  # first of the equal ones
    total = jnp.bincount(tied, correct, length=size)
    correct = (total / jnp.maximum(jnp.bincount(tied, length=size), 1))[tied]
    which = np.arange(size) * bins // max(size, 1)
  else:
    which = bin_of(confidence, bins)
  gaps = jnp.bincount(which, correct - confidence, length=bins)
  return _where(jnp.isfinite(confidence), jnp.sum(jnp.abs(gaps)) / size)


def bin_of(confidence: Float[ArrayLike, "..."], bins: int) -> Int[Array, "..."]:
  """Returns the bin of equal width, from 0, that holds each confidence.

  Bin b is (b / bins, (b + 1) / bins], and 0 is in the first. Confidences and
  edges are compared as float32, in which a confidence of k / bins is the edge
  k / bins: in float64, that of 0.6 is above it.

  >>> print(bin_of(np.float32([0.0, 0.2, 0.6, 1.0]), 5))
  [0 0 2 4]
  """
  edges = np.float32(np.arange(1, bins) / bins)
  return jnp.searchsorted(edges, _float32(confidence), side="left")


def auroc(
  scores: Float[ArrayLike, " N"], positives: Bool[ArrayLike, " N"]
) -> Float[Array, ""]:
  """Returns the area under the ROC curve.

  P(score of a positive > score of a negative) + P(equal) / 2

  Args:
    scores: higher means positive; compared as float32.
    positives: bool, or 0 and 1.

  Returns:
    A fraction; NaN where a class is absent. Infinite scores are compared as
    any others are.

  >>> print(auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1])))
  0.875
  """
  scores, positives = _float32(scores).ravel(), _bool(positives)
  at_most, below, total = _counts(scores, ~positives)
  wins = 0.5 * (at_most + below) / total
  return _where(~jnp.isnan(scores), jnp.mean(wins, where=positives))


def fpr_at_tpr(
  scores: Float[ArrayLike, " N"],
  positives: Bool[ArrayLike, " N"],
  tpr: float = 0.95,
) -> Float[Array, ""]:
  """Returns the smallest false positive rate at which the TPR is at least tpr.

  Thresholds are the scores themselves, "positive" is score >= threshold, and
  there is no interpolation between them.

  Args:
    scores: higher means positive; compared as float32.
    positives: bool, or 0 and 1.
    tpr: wanted true positive rate, in [0, 1].

  Returns:
    A fraction; NaN where a class is absent, or tpr is outside of [0, 1].
    Infinite scores are compared as any others are.

  >>> s, y = np.array([0.1, 0.4, 0.5, 0.8]), np.array([0, 1, 0, 1])
  >>> print(fpr_at_tpr(s, y))
  0.5
  """
  scores, positives = _float32(scores).ravel(), _bool(positives)
  _, true_below, p = _counts(scores, positives)
  _, false_below, n = _counts(scores, ~positives)
  reached = (p - true_below) / p >= tpr
  fpr = jnp.where(reached, (n - false_below) / n, 1.0)
  best = jnp.where(jnp.asarray(tpr) > 0, jnp.min(fpr, initial=1.0), 0.0)
  possible = (jnp.asarray(tpr) >= 0) & (jnp.asarray(tpr) <= 1)
  return _where((p > 0) & (n > 0) & possible & ~jnp.isnan(scores), best)


def recall_per_class(
  probs: Float[ArrayLike, "... V"],
  labels: Int[ArrayLike, "..."],
  num_classes: int,
) -> Float[Array, " C"]:
  """Returns each class's share of its examples that are answered rightly.

  Args:
    probs: probabilities or logits.
    labels: y.
    num_classes: C.

  Returns:
    Fractions; NaN for a class without examples, or with one that has no
    answer. A label that is no class counts in none.

  >>> print(recall_per_class(np.eye(3)[[0, 1, 1]], np.array([0, 0, 1]), 3))
  [0.5 1.  nan]
  """
  correct = _right(probs, labels).ravel()
  classes = jax.nn.one_hot(jnp.ravel(labels), num_classes, dtype=bool)
  hits = jnp.sum(jnp.where(classes, correct[:, None], 0.0), axis=0)
  return hits / jnp.sum(classes, axis=0)


def kl_to_teacher(
  student_logits: Float[ArrayLike, "... V"],
  teacher_logits: Float[ArrayLike, "... V"] | TopK,
) -> Float[Array, ""]:
  """Returns the mean KL(teacher || student) at T = 1, in nats.

  It is infinite where the student rules out (a logit of -inf) what the teacher
  does not. Of a teacher whose K likeliest classes are known alone (TopK, kept
  at T = 1), the others are one class on both sides, and the KL a lower bound.

  >>> print(f"{kl_to_teacher(np.log([[0.25, 0.75]]), np.zeros((1, 2))):.4f}")
  0.1438
  """
  student = jnp.asarray(student_logits)
  if isinstance(teacher_logits, TopK):
    top = teacher_logits
    return jnp.mean(objectives.top_k(student, top.ids, top.log_probs, 1.0))
  teacher = jnp.asarray(teacher_logits)
  loss = jnp.mean(objectives.soft(student, teacher, 1.0))
  # There the divergence's own value is a number of the order of 1e30.
  absent = jnp.isneginf(student) & (jax.nn.softmax(teacher) > 0)
  return _where(~absent, loss, jnp.inf)


def total_variation(
  student_logits: Float[ArrayLike, "... V"],
  teacher: Float[ArrayLike, "... V"] | Int[ArrayLike, "..."] | TopK,
) -> Float[Array, ""]:
  """Returns the mean of 1/2 sum_v |p_v - q_v|, from 0 (alike) to 1.

  Args:
    student_logits: of q.
    teacher: logits of p; or its likeliest classes at T = 1, of which the others
      are one class on both sides, and the value a lower bound; or its answers
      as integers, p being 1 there, so that the value is 1 - q(answer), and NaN
      where one is below 0.

  >>> print(f"{total_variation(np.log([[0.25, 0.75]]), np.zeros((1, 2))):.2f}")
  0.25
  >>> print(f"{total_variation(np.log([[0.25, 0.75]]), np.array([0])):.2f}")
  0.75
  """
  q = jax.nn.softmax(_float32(student_logits))
  if isinstance(teacher, TopK):
    p = jnp.exp(_float32(teacher.log_probs))
    own = jnp.take_along_axis(q, jnp.asarray(teacher.ids), axis=-1)
    rest = jnp.abs(jnp.sum(p, -1) - jnp.sum(own, -1))
    return jnp.mean((jnp.sum(jnp.abs(p - own), -1) + rest) / 2)
  teacher = jnp.asarray(teacher)
  if teacher.ndim == q.ndim:
    p = jax.nn.softmax(_float32(teacher))
    return jnp.mean(jnp.sum(jnp.abs(p - q), -1) / 2)
  at = jnp.maximum(teacher, 0)[..., None]
  own = jnp.take_along_axis(q, at, axis=-1)[..., 0]
  return jnp.mean(jnp.where(teacher >= 0, 1 - own, jnp.nan))


_F32 = jnp.float32


def _float32(x):
  return jnp.asarray(x).astype(_F32)


def _bool(positives):
  return jnp.asarray(positives).astype(bool).ravel()


def _right(scores, labels):
  """Returns 1 where the answer is the label, else 0; NaN where unknown."""
  labels = _like_answers(scores, labels)
  right = jnp.argmax(jnp.asarray(scores), axis=-1) == labels
  known = _is_told(scores) & _is_class(scores, labels)
  return jnp.where(known, right.astype(_F32), jnp.nan)


def _is_told(scores):
  """Tells where the scores name an answer; a NaN among them is the highest."""
  return jnp.isfinite(jnp.max(jnp.asarray(scores), axis=-1))


def _is_class(scores, labels):
  return (labels >= 0) & (labels < jnp.shape(scores)[-1])


def _are_probs(probs):
  return jnp.all(jnp.isfinite(probs), axis=-1)


def _where(known, value, otherwise=jnp.nan):
  """Returns a scalar where all is known, by a select that is applied last, so
  that no sum is taken in another order."""
  return jnp.where(jnp.all(known), value, otherwise)


def _like_answers(scores, labels):
  """Returns int32 labels, refusing those that would broadcast silently."""
  labels, wanted = jnp.asarray(labels), jnp.shape(scores)[:-1]
  if labels.shape != wanted or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"labels are {labels.dtype} {labels.shape}; accepted: integers {wanted}"
    )
  return labels.astype(jnp.int32)


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
