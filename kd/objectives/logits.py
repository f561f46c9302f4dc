"""Per-example distillation losses [...] from logits [..., V], in nats.

Logits of any float dtype are cast to float32 before the softmax. Gradients flow
to the student only. Nothing is averaged: the caller weighs examples, so padding
gets weight 0 there. Temperatures and weights may be traced scalars. Values and
gradients are finite for logits of +-1e4, and for columns at -inf that pad a
vocabulary on both sides.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd import divergences
from kernels import TopK, reference

Scalar = float | Float[Array, ""]

_MASKED = -1e30  # always set by `where`; finite, so that 0 times it is 0


def hard(
  logits: Float[Array, "... V"], labels: Int[Array, "..."]
) -> Float[Array, "..."]:
  """Computes cross-entropy with labels: -log softmax(z)[y], at T = 1.

  Args:
    logits: the student's z.
    labels: y, of any integer type. A label outside [0, V), as -1 or -100 for
      padding, matches no class: its loss and its gradient are 0.

  Returns:
    Nats per example.

  Raises:
    ValueError: the labels' shape is not the logits' without its last axis.

  >>> print(f"{hard(jnp.zeros((1, 4)), jnp.array([2]))[0]:.4f}")  # log 4
  1.3863
  """
  target = _one_hot(logits, labels)
  return -jnp.sum(jnp.where(target, _log_softmax(logits), 0.0), axis=-1)


def soft(
  student: Float[Array, "... V"],
  teacher: Float[Array, "... V"],
  temperature: Scalar,
  divergence: divergences.Divergence = divergences.forward_kl,
) -> Float[Array, "..."]:
  """Computes T^2 D(p_T || q_T), with p_T, q_T = softmax of logits over T.

  T^2 keeps the gradient's size about the same at every T. Source: Hinton,
  Vinyals, Dean (2015), 1503.02531.

  Args:
    student: the student's logits.
    teacher: the teacher's logits.
    temperature: T > 0.
    divergence: an elementwise phi(lq, lp), of `kd.divergences` or your own.

  Returns:
    Nats per example, times T^2.

  Raises:
    ValueError: the two have different shapes.

  >>> z = jnp.log(jnp.array([[0.25, 0.75]]))
  >>> print(f"{soft(z, jnp.zeros((1, 2)), 1.0)[0]:.4f}")
  0.1438
  """
  _same_shape(student, teacher)
  lq, lp = _log_probs(student, teacher, temperature)
  return temperature**2 * _divergence(lq, lp, divergence)


def top_k(
  student: Float[Array, "... V"],
  ids: Int[Array, "... K"],
  log_probs: Float[Array, "... K"],
  temperature: Scalar,
  divergence: divergences.Divergence = divergences.forward_kl,
  tail: str = "bucket",
) -> Float[Array, "..."]:
  """Computes T^2 D(p_T || q_T) where the teacher gave K classes alone.

  With "bucket" the V - K others are one class on both sides. With "zero" the
  teacher's K are normalised and the others get 0, so that the student learns
  to leave them out. With "renormalize" both sides are normalised over the K,
  so that the student's mass on the others is free.

  Args:
    student: the student's logits.
    ids: the K classes, distinct.
    log_probs: the teacher's log p_T of each, normalised over all V.
    temperature: T > 0.
    divergence: as in `soft`.
    tail: "bucket", "zero" or "renormalize".

  Returns:
    Nats per example, times T^2.

  >>> z = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  >>> p = jnp.log(jnp.array([[0.7]]))
  >>> print(f"{top_k(z, jnp.array([[0]]), p, 1.0)[0]:.4f}")  # of 0.7 and 0.3
  0.0823
  """
  lead, v = student.shape[:-1], student.shape[-1]
  teacher = top_k_teacher(
    ids.reshape(-1, ids.shape[-1]),
    jax.lax.stop_gradient(log_probs).reshape(-1, ids.shape[-1]),
    tail,
  )
  z = jnp.asarray(student).astype(jnp.float32).reshape(-1, v)
  z = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
  alive = jnp.ones(len(z), bool)
  lq, lp = reference.topk_pair(z / temperature, teacher, alive)
  return temperature**2 * _divergence(lq, lp, divergence).reshape(lead)


def top_k_teacher(
  ids: Int[Array, "N K"], log_probs: Float[Array, "N K"], tail: str
) -> TopK:
  """Returns what the kernels take for one of the tails of `top_k`."""
  if tail == "zero":  # a bucket that the teacher gives nothing
    return TopK(ids, jax.nn.log_softmax(log_probs), "bucket")
  return TopK(ids, log_probs, tail)


def dkd(
  student: Float[Array, "... V"],
  teacher: Float[Array, "... V"],
  labels: Int[Array, "..."],
  alpha: Scalar,
  beta: Scalar,
  temperature: Scalar,
) -> Float[Array, "..."]:
  """Computes decoupled distillation: T^2 (alpha TCKD + beta NCKD).

  TCKD = KL(b_p || b_q), b = [p_y, 1 - p_y], of the target against the rest;
  NCKD = KL(p^ || q^), p^ = softmax of the logits other than the target's. KL =
  TCKD + (1 - p_y) NCKD, so alpha = 1, beta = 1 - p_y would be `soft`. The
  target is masked with `where`. Source: Zhao et al. (2022), 2203.08679.

  Args:
    student: the student's logits.
    teacher: the teacher's logits.
    labels: y, of any integer type. A label outside [0, V) gives 0.
    alpha: weight of TCKD (1 in the paper).
    beta: weight of NCKD (8 for CIFAR-100's resnet32x4 -> resnet8x4).
    temperature: T > 0 (4 in the paper).

  Returns:
    Nats per example, times T^2.

  Raises:
    ValueError: V is 2 or less (NCKD has nothing to compare), or shapes differ.

  >>> z, t = jnp.zeros((1, 3)), jnp.array([[2.0, 1.0, 0.0]])
  >>> print(f"{dkd(z, t, jnp.array([0]), 1.0, 8.0, 4.0)[0]:.3f}")
  1.248
  """
  _same_shape(student, teacher)
  if student.shape[-1] <= 2:
    raise ValueError(
      f"dkd: logits of {student.shape[-1]} classes; accepted: 3 or more"
    )
  target = _one_hot(student, labels)
  lq, lp = _log_probs(student, teacher, temperature)
  tckd = _divergence(
    _target_against_rest(lq, target), _target_against_rest(lp, target)
  )
  # From the logits, not from lq: those of the rest may be 1e4 below the target.
  rest = [jnp.where(target, _MASKED, z) for z in (student, teacher)]
  nckd = _divergence(*_log_probs(*rest, temperature))
  loss = temperature**2 * (alpha * tckd + beta * nckd)
  return jnp.where(jnp.any(target, axis=-1), loss, 0.0)


def dist(
  student: Float[Array, "*lead B V"],
  teacher: Float[Array, "*lead B V"],
  beta: Scalar,
  gamma: Scalar,
  temperature: Scalar,
  where: Bool[Array, "*lead B"] | None = None,
) -> Float[Array, "*lead B"]:
  """Computes DIST: T^2 (beta inter + gamma intra), from Pearson correlations r.

  inter_n = 1 - r_v(p[n, v], q[n, v])            one for each example
  intra = mean_v [1 - r_n(p[n, v], q[n, v])]     one for the batch

  Axis -2 is the batch. Every example gets the same intra, so the *mean* over
  valid examples is the paper's loss; with other weights that sum to 1, inter is
  a weighted mean and intra still counts once. intra couples the examples: it
  depends on the batch size, and differs between a batch and its shards.

  A row or column without variance has no correlation: r = 0 there, which costs
  1 and has a gradient of about 0. So intra needs B >= 2 (and is coarse below
  about 16), and inter V >= 3: with 2 classes its r is +1 or -1, whatever the
  probabilities. r is exact, without the eps = 1e-8 of the authors' code, which
  at T = 4 or more and hundreds of classes is no longer small.

  Source: Huang et al. (2022), 2205.10536; T^2 as in the authors' code.

  Args:
    student: the student's logits.
    teacher: the teacher's logits.
    beta: weight of inter (1 for CIFAR-100 and ImageNet).
    gamma: weight of intra (1).
    temperature: T > 0 (4 for CIFAR-100, 1 for ImageNet).
    where: valid examples; the others stay out of intra and get 0.

  Returns:
    Per-example losses; no unit.

  Raises:
    ValueError: shapes differ, or there is no batch axis.

  >>> z = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
  >>> print(jnp.abs(dist(z, z, 1.0, 1.0, 1.0)).max() < 1e-6)
  True
  """
  _same_shape(student, teacher)
  if student.ndim < 2:
    raise ValueError(
      f"dist: logits of shape {student.shape}; accepted: [..., batch, classes]"
    )
  if where is None:
    where = jnp.ones(student.shape[:-1], bool)
  valid = jnp.broadcast_to(where[..., None], student.shape)
  # Before the softmax: a row that does not count may hold anything.
  student, teacher = (jnp.where(valid, z, 0.0) for z in (student, teacher))
  q, p = map(jnp.exp, _log_probs(student, teacher, temperature))
  q, p = jnp.where(valid, q, 0.0), jnp.where(valid, p, 0.0)
  inter = _one_minus_pearson(q, p, jnp.ones_like(valid), axis=-1)
  intra = _one_minus_pearson(q, p, valid, axis=-2).mean(-1, keepdims=True)
  loss = temperature**2 * (beta * inter + gamma * intra)
  return jnp.where(where, loss, 0.0)


def _log_softmax(logits, temperature=1.0):
  z = jnp.asarray(logits).astype(jnp.float32)
  # Before the division: then an offset of the logits costs no accuracy.
  z = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
  return jax.nn.log_softmax(z / temperature)


def _log_probs(student, teacher, temperature):
  return (
    _log_softmax(student, temperature),
    jax.lax.stop_gradient(_log_softmax(teacher, temperature)),
  )


def _divergence(lq, lp, divergence=divergences.forward_kl):
  """Returns D [...]; p and q are normalised here, so its terms are centred."""
  return jnp.sum(divergences.centred(divergence)(lq, lp), axis=-1)


def _one_hot(logits, labels):
  """Returns [..., V] bool; all False where a label is no class."""
  labels = jnp.asarray(labels)
  if labels.shape != logits.shape[:-1]:
    raise ValueError(
      f"labels have shape {labels.shape}; accepted: {logits.shape[:-1]}, for"
      f" logits of shape {logits.shape}"
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"labels are {labels.dtype}; accepted: an integer type")
  classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  return labels.astype(jnp.int32)[..., None] == classes


def _target_against_rest(log_probs, target):
  """Returns [log p_y, log(1 - p_y)] [..., 2], without forming 1 - p_y."""
  of_target = jnp.sum(jnp.where(target, log_probs, 0.0), axis=-1)
  rest = jax.nn.logsumexp(jnp.where(target, _MASKED, log_probs), axis=-1)
  return jax.nn.log_softmax(jnp.stack([of_target, rest], axis=-1))


def _one_minus_pearson(a, b, valid, axis):
  """Returns 1 - r along an axis, as half the distance of standardised values.

  With mean(x^2) = 1 - n for standardised x (n is 0, or 1 without variance),
  1 - r = mean((x - y)^2) / 2 + (n_x + n_y) / 2: 0 at a = b, without cancelling.
  """
  count = jnp.maximum(jnp.sum(valid, axis=axis, keepdims=True), 1)

  def mean(x):
    return jnp.sum(jnp.where(valid, x, 0.0), axis=axis, keepdims=True) / count

  def standardise(x):
    # r does not depend on the scale, float32's squares do.
    scale = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    x = x / jnp.where(scale > 0, scale, 1.0)
    x = x - mean(x)
    variance, noise = mean(x**2), 1e-12  # noise: float32's rounding of the mean
    x = x / jnp.sqrt(variance + noise)
    return x, (noise / (variance + noise)).squeeze(axis)

  (x, none_x), (y, none_y) = standardise(a), standardise(b)
  return 0.5 * (mean((x - y) ** 2).squeeze(axis) + none_x + none_y)


def _same_shape(student, teacher):
  if student.shape != teacher.shape:
    raise ValueError(
      f"student's logits have shape {student.shape}, teacher's"
      f" {teacher.shape}; accepted: the same (cut padded classes off)"
    )
