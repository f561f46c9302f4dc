"""Whether confidence is accuracy, and a temperature that makes it so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from kd.metrics import told

CONFIDENT = 0.9
HOTTEST = 32.0  # temperature that is fitted; the coldest is 1 / HOTTEST
_HALVINGS = 40  # of the interval in which the temperature is looked for


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
  p = told.float32(probs)
  error = calibration_error(
    jnp.max(p, axis=-1).ravel(), told.right(p, labels).ravel(), bins, equal_mass
  )
  return told.where(told.are_probs(p), error)


@functools.partial(jax.jit, static_argnames=("bins", "equal_mass"))
def calibration_error(
  confidence: Float[ArrayLike, " N"],
  correct: Float[ArrayLike, " N"],
  bins: int = 15,
  equal_mass: bool = False,
  where: Bool[ArrayLike, " N"] | None = None,
) -> Float[Array, ""]:
  """Returns `ece` from confidences, and whether each answer is right (0, 1).

  Of the examples of `where` alone; None is all.
  """
  if bins < 1:
    raise ValueError(f"ece: bins is {bins}; accepted: 1 or more")
  confidence, correct = told.float32(confidence), told.float32(correct)
  kept = told.kept(confidence, where)
  count = jnp.sum(kept)
  if equal_mass:
    confidence, correct, kept = told.ranked(confidence, correct, kept)
    correct = told.among_equals(confidence, correct, kept)
    which = np.arange(confidence.size) * bins // jnp.maximum(count, 1)
  else:
    which = bin_of(confidence, bins)
  gaps = jnp.where(kept, correct - confidence, 0.0)
  gaps = jnp.bincount(which, gaps, length=bins)
  known = jnp.isfinite(confidence) | ~kept
  return told.where(known, jnp.sum(jnp.abs(gaps)) / count)


def bin_of(confidence: Float[ArrayLike, "..."], bins: int) -> Int[Array, "..."]:
  """Returns the bin of equal width, from 0, that holds each confidence.

  Bin b is (b / bins, (b + 1) / bins], and 0 is in the first. Confidences and
  edges are compared as float32, in which a confidence of k / bins is the edge
  k / bins: in float64, that of 0.6 is above it.

  >>> print(bin_of(np.float32([0.0, 0.2, 0.6, 1.0]), 5))
  [0 0 2 4]
  """
  edges = np.float32(np.arange(1, bins) / bins)
  return jnp.searchsorted(edges, told.float32(confidence), side="left")


def wrong_confident(
  probs: Float[ArrayLike, "... V"],
  labels: Int[ArrayLike, "..."],
  above: float = CONFIDENT,
) -> Float[Array, ""]:
  """Returns the fraction answered wrongly with a confidence above a limit.

  >>> p = np.array([[0.95, 0.05], [0.2, 0.8], [0.01, 0.99]])
  >>> print(f"{wrong_confident(p, np.array([1, 0, 1])):.4f}")
  0.3333
  """
  p = told.float32(probs)
  sure = jnp.max(p, axis=-1) > above
  share = jnp.mean(sure * (1.0 - told.right(p, labels)))
  return told.where(told.are_probs(p), share)


@jax.jit
def fit_temperature(
  logits: Float[ArrayLike, "N V"], labels: Int[ArrayLike, " N"]
) -> Float[Array, ""]:
  r"""Returns the T whose softmax(z / T) has the least NLL of the labels.

      f(b) = sum_n CE(y_n, q_b,n) + mean_n CE(q_1,n, q_b,n),  q_b = softmax(b z)

  with b = 1 / T is convex, so that its slope, sums of E_q_b[z] less
  E_target[z], changes sign once; the change is found by bisection in log b. The
  second term counts as one more example, as sure as the model is: without it a
  split that has no error would be fitted best by T = 0, and one example wrong
  elsewhere cost any number of nats.

  Returns:
    T in [1 / HOTTEST, HOTTEST]; NaN where a row's highest logit is not finite,
    or a label is no class.

  Source: "temperature scaling" of Guo et al. (2017), 1706.04599; a prior that
  counts as an example is as of Platt (1999), Probabilistic Outputs.

  >>> z = np.array([[4.0, 0.0]] * 4000)
  >>> labels = np.arange(4000) % 4 == 3
  >>> print(f"{fit_temperature(z, labels.astype(int)):.2f}")  # 4 / log 3
  3.64
  """
  z, labels = told.float32(logits), told.like_answers(logits, labels)
  known = told.is_told(z) & told.is_class(z, labels)
  z = z - jnp.max(z, axis=-1, keepdims=True)
  own = jnp.take_along_axis(z, labels[..., None], axis=-1)[..., 0]

  def expected(beta):
    q = jax.nn.softmax(beta * z)
    return jnp.sum(jnp.where(q > 0, q * z, 0.0), axis=-1)

  surest = jnp.mean(expected(1.0))

  def slope(beta):
    each = expected(beta)
    return jnp.sum(each - own) + jnp.mean(each) - surest

  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    rises = slope(jnp.exp(middle)) > 0
    return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

  end = jnp.float32(np.log(HOTTEST))
  low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (-end, end))
  return told.where(known, jnp.exp(-(low + high) / 2))
