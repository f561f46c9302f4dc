"""How good answers and probabilities are, each example alike."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from kd import objectives
from kd.metrics import told
from kd.signals import TopK


def accuracy(
  scores: Float[ArrayLike, "... V"], labels: Int[ArrayLike, "..."]
) -> Float[Array, ""]:
  """Returns the fraction whose highest score (logit, probability) is the label.

  >>> print(accuracy(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0])))
  0.5
  """
  return jnp.mean(told.right(scores, labels))


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
    same = told.right(student, jnp.argmax(teacher, axis=-1))
    return jnp.mean(jnp.where(told.is_told(teacher), same, jnp.nan))
  given = teacher >= 0
  return jnp.mean(told.right(student, jnp.maximum(teacher, 0)), where=given)


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
  probs, labels = told.float32(probs), told.like_answers(probs, labels)
  p = jnp.take_along_axis(probs, labels[..., None], axis=-1)
  loss = -jnp.mean(jnp.log(jnp.maximum(p, np.finfo(np.float32).tiny)))
  return told.where(told.are_probs(probs) & told.is_class(probs, labels), loss)


def nll_from_logits(
  logits: Float[ArrayLike, "... V"], labels: Int[ArrayLike, "..."]
) -> Float[Array, ""]:
  """Returns the mean of -log softmax(z)[y], in nats.

  >>> print(f"{nll_from_logits(np.array([[1e4, 0.0]]), np.array([1])):.0f}")
  10000
  """
  logits, labels = jnp.asarray(logits), told.like_answers(logits, labels)
  loss = jnp.mean(objectives.hard(logits, labels))
  return told.where(told.is_class(logits, labels), loss)


def brier(
  probs: Float[ArrayLike, "... V"], labels: Int[ArrayLike, "..."]
) -> Float[Array, ""]:
  """Returns the mean of sum_v (p_v - [v = y])^2, in [0, 2].

  This is Brier's own sum over classes. With two classes it is twice the score
  of the positive class alone. Source: Brier (1950).

  >>> print(brier(np.array([[0.5, 0.5]]), np.array([1])))
  0.5
  """
  p, labels = told.float32(probs), told.like_answers(probs, labels)
  target = jax.nn.one_hot(labels, p.shape[-1])
  loss = jnp.mean(jnp.sum((p - target) ** 2, axis=-1))
  return told.where(told.is_class(p, labels), loss)


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
  correct = told.right(probs, labels).ravel()
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
  return told.where(~absent, loss, jnp.inf)


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
  q = jax.nn.softmax(told.float32(student_logits))
  if isinstance(teacher, TopK):
    p = jnp.exp(told.float32(teacher.log_probs))
    own = jnp.take_along_axis(q, jnp.asarray(teacher.ids), axis=-1)
    rest = jnp.abs(jnp.sum(p, -1) - jnp.sum(own, -1))
    return jnp.mean((jnp.sum(jnp.abs(p - own), -1) + rest) / 2)
  teacher = jnp.asarray(teacher)
  if teacher.ndim == q.ndim:
    p = jax.nn.softmax(told.float32(teacher))
    return jnp.mean(jnp.sum(jnp.abs(p - q), -1) / 2)
  at = jnp.maximum(teacher, 0)[..., None]
  own = jnp.take_along_axis(q, at, axis=-1)[..., 0]
  return jnp.mean(jnp.where(teacher >= 0, 1 - own, jnp.nan))
