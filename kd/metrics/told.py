"""What scores and labels tell, for all metrics; NaN where it is nothing."""

import jax.numpy as jnp


def float32(x):
  return jnp.asarray(x).astype(jnp.float32)


def right(scores, labels):
  """Returns 1 where the answer is the label, else 0; NaN where unknown."""
  labels = like_answers(scores, labels)
  right = jnp.argmax(jnp.asarray(scores), axis=-1) == labels
  known = is_told(scores) & is_class(scores, labels)
  return jnp.where(known, right.astype(jnp.float32), jnp.nan)


def is_told(scores):
  """Tells where the scores name an answer; a NaN among them is the highest."""
  return jnp.isfinite(jnp.max(jnp.asarray(scores), axis=-1))


def is_class(scores, labels):
  return (labels >= 0) & (labels < jnp.shape(scores)[-1])


def are_probs(probs):
  return jnp.all(jnp.isfinite(probs), axis=-1)


def where(known, value, otherwise=jnp.nan):
  """Returns a scalar where all is known, by a select that is applied last, so
  that no sum is taken in another order."""
  return jnp.where(jnp.all(known), value, otherwise)


def like_answers(scores, labels):
  """Returns int32 labels, refusing those that would broadcast silently."""
  labels, wanted = jnp.asarray(labels), jnp.shape(scores)[:-1]
  if labels.shape != wanted or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"labels are {labels.dtype} {labels.shape}; accepted: integers {wanted}"
    )
  return labels.astype(jnp.int32)


def kept(x, where):
  """Returns which of x count: `where`, or all."""
  if where is None:
    return jnp.ones(jnp.shape(x), bool)
  return jnp.asarray(where).astype(bool)


def ranked(confidence, correct, kept):
  """Returns all three in the order of confidence, the lowest first, and what
  is not kept last."""
  confidence = jnp.where(kept, confidence, jnp.inf)
  order = jnp.lexsort((confidence, ~kept))
  return confidence[order], correct[order], kept[order]


def among_equals(confidence, correct, kept):
  """Returns, of what `ranked` returns, the mean of those of equal confidence:
  what is right in expectation over their orders."""
  size = confidence.size
  tied = jnp.searchsorted(confidence, confidence)  # first of the equal ones
  total = jnp.bincount(tied, jnp.where(kept, correct, 0.0), length=size)
  count = jnp.bincount(tied, float32(kept), length=size)
  return (total / jnp.maximum(count, 1))[tied]
