"""Small problems, in numpy, and the implementations that tests compare."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kernels import Head, Logits, distill_loss, xla

H_S, H_T = 12, 20
# A student's and a teacher's head; caps that bite at the logits of `problem`.
CAPPED = dict(soft_cap=3.0, scale=0.7), dict(soft_cap=5.0, scale=1.5)
PLANS = {
  "reference": "reference",
  "xla": "xla",
  "chunked": dataclasses.replace(xla.CPU, chunk=16, width=lambda h, v: 300),
  "online": dataclasses.replace(xla.ACCELERATOR, chunk=16, logits_dtype=None),
}
FUSED = {"tpu": "tpu", "gpu": "gpu"}  # Pallas, interpreted


def problem(n, v, seed=0, bias=True, scale=1.0):
  """Returns (student, teacher, labels, weights) as float32 numpy."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  student = (normal(n, H_S), scale * normal(H_S, v) / 2, None)
  teacher = (normal(n, H_T), scale * normal(H_T, v) / 2, None)
  if bias:
    student, teacher = (*student[:2], normal(v)), (*teacher[:2], normal(v))
  weights = rng.uniform(0.1, 1, n).astype(np.float32)
  return student, teacher, rng.integers(0, v, n), weights


def head(arrays, **kw):
  return Head(*jax.tree.map(jnp.asarray, arrays), **kw)


def arrays(student):
  """Returns gradients in the oracle's order, as a tuple."""
  if isinstance(student, Logits):
    return (student.values,)
  return (student.hidden, student.kernel, student.bias)


def value_and_grad(student, teacher, **kw):
  # The teacher is an argument: XLA would fold a constant one in other ways.
  fn = lambda s, t: distill_loss(s, t, **kw)
  step = jax.jit(jax.value_and_grad(fn, has_aux=True))
  (loss, rows), grads = step(student, teacher)
  return loss, rows.soft, rows.hard, arrays(grads)


def dense(z):
  return (np.asarray(z[0] @ z[1] + z[2], np.float32),)


def top_k(teacher, k, temperature):
  z = np.asarray(dense(teacher)[0], np.float64) / temperature
  lp = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
  ids = np.argsort(-lp, 1)[:, :k]
  return ids, np.take_along_axis(lp, ids, 1).astype(np.float32)
