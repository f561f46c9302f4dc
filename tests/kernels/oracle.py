"""The losses in float64 numpy-sized JAX, straight from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np


def forward_kl(lq, lp):
  return jnp.exp(lp) * (lp - lq)


def reverse_kl(lq, lp):
  return jnp.exp(lq) * (lq - lp)


def tvd(lq, lp):
  return 0.5 * jnp.abs(jnp.exp(lp) - jnp.exp(lq))


def jsd(beta):
  def phi(lq, lp):
    p, q = jnp.exp(lp), jnp.exp(lq)
    lm = jnp.log(beta * p + (1 - beta) * q)
    return beta * p * (lp - lm) + (1 - beta) * q * (lq - lm)

  return phi


def skew_kl(alpha):
  def phi(lq, lp):
    p, q = jnp.exp(lp), jnp.exp(lq)
    return p * (lp - jnp.log(alpha * p + (1 - alpha) * q))

  return phi


def skew_reverse_kl(alpha):
  return lambda lq, lp: skew_kl(alpha)(lp, lq)


def alpha_divergence(alpha):
  def phi(lq, lp):
    mixed = jnp.exp(alpha * lp + (1 - alpha) * lq)
    return (mixed - alpha * jnp.exp(lp) - (1 - alpha) * jnp.exp(lq)) / (
      alpha * (alpha - 1)
    )

  return phi


# The last three are none of the library's.
def hellinger(lq, lp):
  return 0.5 * (jnp.exp(0.5 * lp) - jnp.exp(0.5 * lq)) ** 2


def chi_square(lq, lp):
  p, q = jnp.exp(lp), jnp.exp(lq)
  return (p - q) ** 2 / (p + q)


def log_ratio(lq, lp):  # not homogeneous in (q, p), not an f-divergence
  return 1e-3 * (lq - lp) ** 2


DIVERGENCES = {
  "forward_kl": forward_kl,
  "reverse_kl": reverse_kl,
  "tvd": tvd,
  "jsd": jsd(0.3),
  "skew_kl": skew_kl(0.1),
  "skew_reverse_kl": skew_reverse_kl(0.1),
  "alpha": alpha_divergence(0.5),
  "hellinger": hellinger,
  "chi_square": chi_square,
  "log_ratio": log_ratio,
}


def _scores(s, soft_cap=None, scale=1.0):
  if len(s) == 1:
    return s[0]
  z = s[0] @ s[1]
  z = scale * (z if s[2] is None else z + s[2])
  return z if soft_cap is None else soft_cap * jnp.tanh(z / soft_cap)


def _topk(x, ids, lp, tail):
  x_k = jnp.take_along_axis(x, ids, 1)
  if tail == "renormalize":
    return jax.nn.log_softmax(x_k), jax.nn.log_softmax(lp)
  rows = jnp.arange(len(x))[:, None]
  rest = x.at[rows, ids].set(-jnp.inf)
  x_k = jnp.concatenate(
    [x_k, jax.nn.logsumexp(rest, axis=1, keepdims=True)], axis=1
  )
  p_rest = 1 - jnp.exp(lp).sum(1, keepdims=True)
  return jax.nn.log_softmax(x_k), jnp.concatenate([lp, jnp.log(p_rest)], 1)


def loss(
  student, teacher, divergence, temperature=1.0, weights=None, labels=None,
  hard_weight=0.0, soft_weight=1.0, heads=({}, {}),
):  # fmt: skip
  """Returns (loss, soft, hard, gradients) in float64.

  Args:
    student: tuple, (logits,) or (hidden, kernel, bias or None).
    teacher: the same, or (ids, log_probs, tail).
    divergence, ...: as in kernels.distill_loss.
    heads: soft_cap and scale of the student, and of the teacher.
  """
  wide = lambda x: jax.tree.map(
    lambda a: np.asarray(a, np.float64) if np.ndim(a) and _inexact(a) else a, x
  )
  student, teacher = wide(tuple(student)), wide(tuple(teacher))
  n = len(student[0])
  weights = np.full(n, 1 / n) if weights is None else wide(weights)
  temperature = float(temperature)

  def fn(student):
    z = _scores(student, **heads[0])
    if isinstance(teacher[-1], str):
      lq, lp = _topk(z / temperature, *teacher)
    else:
      lq = jax.nn.log_softmax(z / temperature)
      lp = jax.nn.log_softmax(_scores(teacher, **heads[1]) / temperature)
    soft = temperature**2 * divergence(lq, lp).sum(1)
    hard = jnp.zeros(n)
    if labels is not None:
      picked = jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1)
      hard = -picked[:, 0]
    return (weights * (soft_weight * soft + hard_weight * hard)).sum(), (
      soft,
      hard,
    )

  with jax.enable_x64(True):
    student = jax.tree.map(jnp.asarray, student)
    teacher = jax.tree.map(
      lambda a: a if isinstance(a, str) else jnp.asarray(a), teacher
    )
    labels = None if labels is None else jnp.asarray(labels)
    (value, (soft, hard)), grads = jax.value_and_grad(fn, has_aux=True)(student)
    return jax.tree.map(np.asarray, (value, soft, hard, grads))


def token_log_probs(scores, ids, temperature, cotangent, **head):
  """Returns (log-probabilities, gradients of cotangent . them) in float64."""
  with jax.enable_x64(True):
    scores = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tuple(scores))

    def fn(scores):
      z = _scores(scores, **head)
      x = jax.nn.log_softmax(z / float(temperature))
      out = jnp.take_along_axis(x, jnp.asarray(ids)[:, None], 1)[:, 0]
      return (jnp.asarray(cotangent, jnp.float64) * out).sum(), out

    grads, out = jax.grad(fn, has_aux=True)(scores)
    return jax.tree.map(np.asarray, (out, grads))


def _inexact(a):
  return np.asarray(a).dtype.kind not in "iub"


def assert_close(got, want, rtol=1e-4):
  """Asserts leaf by leaf: largest error over the leaf's largest magnitude."""
  got, want = jax.tree.leaves(got), jax.tree.leaves(want)
  assert len(got) == len(want), (len(got), len(want))
  for i, (a, b) in enumerate(zip(got, want, strict=True)):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    error = np.abs(a - b)
    bound = rtol * max(np.abs(b).max(), 1e-12)
    where = np.unravel_index(np.argmax(error), error.shape)
    assert np.isfinite(a).all(), f"leaf {i}: not finite"
    assert error.max() <= bound, (
      f"leaf {i} {a.shape}: error {error.max():.3e}, relative"
      f" {error.max() / np.abs(b).max():.3e}, at {where}:"
      f" got {a[where]}, want {b[where]}"
    )
