"""The specification: dense, float32, differentiated by jax.grad.

Arguments are those of `kernels.api`, validated, with weights filled in and
the true V; there is no `vocab_axis`.
"""

import jax
import jax.numpy as jnp

from kernels import tile
from kernels.types import Head, Rows, TopK

f32 = jnp.float32


def logits(scores, vocab_size, alive=None):
  """Returns z [N, vocab_size], of masked rows that of 0."""
  rows = lambda x: x if alive is None else jnp.where(alive[:, None], x, 0)
  if isinstance(scores, Head):
    kernel = scores.kernel[:, :vocab_size].astype(f32)
    y = rows(scores.hidden).astype(f32) @ kernel
    if scores.bias is not None:
      y = y + scores.bias[:vocab_size].astype(f32)
    z = tile.finished(y, scores.scale, scores.soft_cap)
  else:
    z = rows(scores.values)[:, :vocab_size].astype(f32)
  return jnp.maximum(z, tile.FLOOR)


def poison(invalid):
  """Returns [N] factors: NaN, also of the gradient, where invalid, else 1."""
  return jnp.where(invalid, jnp.nan, 1.0).astype(f32)


def log_probs(z, temperature):
  return jax.nn.log_softmax(jnp.maximum(z / temperature, tile.FLOOR))


def topk_pair(x, teacher, alive):
  """Returns (lq, lp) over the K ids and, if the tail is a bucket, the rest.

  lq, and its gradient, are NaN in rows with ids out of range or twice.

  Args:
    x: [N, V] z / T.
    teacher: TopK.
    alive: [N] bool; other rows may hold anything.
  """
  invalid = alive & teacher.invalid(x.shape[1])
  x, known = x * poison(invalid)[:, None], (alive & ~invalid)[:, None]
  ids = jnp.where(known, teacher.ids, jnp.arange(teacher.ids.shape[1]))
  lp = jnp.where(alive[:, None], teacher.log_probs.astype(f32), 0)
  lp = jnp.maximum(lp, tile.FLOOR)
  x_k = jnp.take_along_axis(x, ids, 1)
  if teacher.tail == "renormalize":
    return jax.nn.log_softmax(x_k), jax.nn.log_softmax(lp)
  in_k = jnp.zeros(x.shape, bool).at[jnp.arange(len(x))[:, None], ids].set(True)
  lse_rest = jax.nn.logsumexp(jnp.where(in_k, tile.FLOOR, x), axis=1)
  x_k = jnp.concatenate([x_k, lse_rest[:, None]], 1)
  rest = tile.log_rest(lp)[:, 0]
  rest = jnp.where((lse_rest < tile.DEAD) & (rest < -13.8), tile.FLOOR, rest)
  return jax.nn.log_softmax(x_k), jnp.concatenate([lp, rest[:, None]], 1)


def distill_loss(
  student, teacher, labels, *, divergence, temperature, weights, hard_weight,
  soft_weight, vocab_size,
):  # fmt: skip
  alive = weights != 0
  z = logits(student, vocab_size, alive)
  soft = hard = jnp.zeros(len(z), f32)
  if teacher is not None:
    teacher = jax.lax.stop_gradient(teacher)
    if isinstance(teacher, TopK):
      x = jnp.maximum(z / temperature, tile.FLOOR)
      lq, lp = topk_pair(x, teacher, alive)
    else:
      lq = log_probs(z, temperature)
      lp = log_probs(logits(teacher, vocab_size, alive), temperature)
    dead = jnp.maximum(lq, lp) < tile.DEAD  # see Phi.terms
    lq, lp = jnp.where(dead, -1.0, lq), jnp.where(dead, -1.0, lp)
    soft = temperature**2 * jnp.where(dead, 0, divergence(lq, lp)).sum(1)
  if labels is not None:
    invalid = alive & ((labels < 0) | (labels >= vocab_size))
    labels = jnp.where(alive & ~invalid, labels, 0)
    hard = -token_log_probs(z * poison(invalid)[:, None], labels, 1.0)
  soft, hard = (jnp.where(alive, x, 0) for x in (soft, hard))
  total = jnp.where(
    alive, weights * (soft_weight * soft + hard_weight * hard), 0
  )
  return total.sum(), Rows(*jax.lax.stop_gradient((soft, hard)))


def token_log_probs(z, ids, temperature):
  lq = log_probs(z, temperature)
  return jnp.take_along_axis(lq, ids[:, None], 1)[:, 0]
