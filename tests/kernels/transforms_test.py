"""vmap, what is differentiated, what compiles, platforms and dtypes."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kernels import distill_loss, token_log_probs, xla
from tests.kernels import oracle
from tests.kernels.problems import (
  PLANS,
  arrays,
  head,
  problem,
  value_and_grad,
)

ROOT = pathlib.Path(__file__).parents[2]
N, V = 21, 300


def count(jaxpr, name: str) -> int:
  """Returns how often a primitive occurs, inner jaxprs included."""
  total = 0
  for eqn in jaxpr.eqns:
    total += eqn.primitive.name == name
    for value in jax.tree.leaves(eqn.params):
      if hasattr(value, "eqns"):
        total += count(value, name)
  return total


class TransformTest(parameterized.TestCase):
  @parameterized.parameters("reference", "xla", "chunked")
  def test_vmapped_scalars_weights_and_beta(self, name):
    student, teacher, labels, weights = problem(N, V)
    temperatures, betas = np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.5, 0.8])
    hard, soft = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.1])
    many = np.stack([weights, weights**2, np.roll(weights, 1)])

    def one(temperature, beta, hard_weight, soft_weight, weights):
      fn = lambda s: distill_loss(
        s, head(teacher), divergence=oracle.jsd(beta), temperature=temperature,
        weights=weights, labels=jnp.asarray(labels), hard_weight=hard_weight,
        soft_weight=soft_weight, implementation=PLANS[name],
      )  # fmt: skip
      (loss, rows), grads = jax.value_and_grad(fn, has_aux=True)(head(student))
      return loss, rows.soft, rows.hard, arrays(grads)

    args = [np.float32(a) for a in (temperatures, betas, hard, soft, many)]
    got = jax.jit(jax.vmap(one))(*args)
    for i in range(3):
      want = oracle.loss(
        student, teacher, oracle.jsd(betas[i]), temperatures[i], many[i],
        labels, hard[i], soft[i],
      )  # fmt: skip
      oracle.assert_close(jax.tree.map(lambda x, i=i: x[i], got), want)

  @parameterized.parameters("xla", "chunked")
  def test_grad_of_a_vmapped_sum(self, name):
    student, teacher, _, weights = problem(N, V)
    many = jnp.stack([weights, weights**2])
    kw = dict(divergence=oracle.forward_kl, implementation=PLANS[name])

    def total(s):
      one = lambda w: distill_loss(s, head(teacher), weights=w, **kw)
      loss, rows = jax.vmap(one)(many)
      return loss.sum(), rows

    got = jax.jit(jax.grad(total, has_aux=True))(head(student))[0]
    want = oracle.loss(
      student, teacher, oracle.forward_kl, weights=weights + weights**2
    )
    oracle.assert_close(arrays(got), want[3])

  @parameterized.parameters("xla", "reference")
  def test_only_the_student_is_differentiated(self, name):
    student, teacher, labels, weights = problem(N, V)

    def fn(teacher, weights, temperature, hard_weight, beta):
      loss, rows = distill_loss(
        head(student), teacher, divergence=oracle.jsd(beta), weights=weights,
        temperature=temperature, labels=jnp.asarray(labels),
        hard_weight=hard_weight, implementation=name,
      )  # fmt: skip
      return loss + rows.soft.sum()

    args = (head(teacher), jnp.asarray(weights), 2.0, 0.5)
    grads = jax.grad(fn, range(4))(*args, jnp.float32(0.5))
    if name == "reference":
      grads = grads[0]
    for g in jax.tree.leaves(grads):
      np.testing.assert_array_equal(g, 0)

  def test_rows_have_no_gradient_and_the_cotangent_scales(self):
    student, teacher, _, _ = problem(N, V)
    kw = dict(divergence=oracle.forward_kl)
    loss = lambda s: distill_loss(s, head(teacher), **kw)
    rows = lambda s: loss(s)[1].soft.sum() + loss(s)[1].hard.sum()
    for g in jax.tree.leaves(jax.grad(rows)(head(student))):
      np.testing.assert_array_equal(g, 0)
    g1 = jax.grad(lambda s: loss(s)[0])(head(student))
    g3 = jax.grad(lambda s: -3 * loss(s)[0] ** 2)(head(student))
    scale = -6 * loss(head(student))[0]
    oracle.assert_close(g3, jax.tree.map(lambda g: scale * g, g1), 1e-6)

  def test_bfloat16_gradients_in_halves_and_scaled(self):
    """dW as two 16-bit halves is exact; a cotangent of 2^k costs nothing."""
    student, teacher, _, _ = problem(N, V)
    narrow = lambda x: jax.tree.map(lambda a: a.astype(jnp.bfloat16), x)
    s, t = narrow(head(student)), narrow(head(teacher))
    whole = dataclasses.replace(xla.ACCELERATOR, chunk=8)
    halves = dataclasses.replace(whole, halves=True, width=lambda h, v: 128)

    def dw(plan, scale):
      fn = lambda s: distill_loss(
        s, t, divergence=oracle.forward_kl, implementation=plan
      )[0]
      grads = jax.jit(jax.grad(lambda s: scale * fn(s)))(s)
      self.assertEqual(grads.kernel.dtype, jnp.bfloat16)
      return np.asarray(grads.kernel, np.float32)

    want = dw(whole, 1.0)
    np.testing.assert_array_equal(dw(halves, 1.0), want)
    for plan in (whole, halves):
      for scale in (2.0**-20, 2.0**7):
        np.testing.assert_array_equal(dw(plan, scale), scale * want)
      np.testing.assert_allclose(dw(plan, 1.7), 1.7 * want, rtol=2.0**-8)

  def test_value_alone_computes_no_gradients(self):
    student, teacher, labels, _ = problem(N, V)
    kw = dict(divergence=oracle.forward_kl, implementation=PLANS["chunked"])
    kw.update(labels=jnp.asarray(labels), hard_weight=1.0)
    fn = lambda s: distill_loss(s, head(teacher), **kw)[0]
    value = jax.make_jaxpr(fn)(head(student))
    both = jax.make_jaxpr(jax.value_and_grad(fn))(head(student))
    text = jax.jit(fn).lower(head(student)).as_text()
    self.assertEqual(text.count("dot_general"), 2)  # the two heads
    self.assertEqual(count(value, "dot_general"), 2)
    self.assertGreaterEqual(count(both, "dot_general"), 4)

  @parameterized.parameters({}, dict(soft_cap=3.0, scale=0.5))
  def test_no_array_of_all_logits_is_compiled(self, **kw):
    n = 64
    student, teacher, labels, _ = problem(n, V)
    student, teacher = head(student, **kw), head(teacher, **kw)
    for plan in (dataclasses.replace(p, chunk=16) for p in
                 (xla.CPU, xla.ACCELERATOR)):  # fmt: skip
      kw = dict(divergence=oracle.jsd(0.5), implementation=plan)
      kw.update(labels=jnp.asarray(labels), hard_weight=1.0)
      fn = lambda s, kw=kw: distill_loss(s, teacher, **kw)[0]
      compiled = jax.jit(jax.value_and_grad(fn)).lower(student).compile()
      self.assertNotRegex(compiled.as_text(), rf"\[{n},{V}\]")
      ids = jnp.asarray(labels)
      fn = lambda s, plan=plan, ids=ids: token_log_probs(
        s, ids, implementation=plan
      ).sum()
      compiled = jax.jit(jax.value_and_grad(fn)).lower(student).compile()
      self.assertNotRegex(compiled.as_text(), rf"\[{n},{V}\]")

  @parameterized.parameters("tpu", "cuda")
  def test_xla_follows_the_platform_lowered_for(self, platform):
    student, teacher, _, _ = problem(N, V)
    kw = dict(divergence=oracle.forward_kl, implementation="xla")
    fn = lambda s: distill_loss(s, head(teacher), **kw)[0]
    traced = jax.jit(jax.grad(fn)).trace(head(student))
    # One reduce with four results stands for two maxima and two sums.
    online = lambda text: bool(re.search(r"%\d+:4 = stablehlo.reduce\(", text))
    self.assertFalse(online(traced.lower().as_text()))
    there = traced.lower(lowering_platforms=(platform,)).as_text()
    self.assertTrue(online(there))

  def test_a_first_call_is_traced_once(self):
    """In a process of its own, where a trace would be what imports Pallas."""
    code = """
import jax, jax.numpy as jnp, kernels
traces = 0
@jax.jit
def step(x):
  global traces
  traces += 1
  loss = lambda x: kernels.distill_loss(
    kernels.Head(x, x.T), kernels.Logits(x), divergence=lambda lq, lp: lp - lq
  )[0]
  return x - jax.grad(loss)(x)
x = step(step(jnp.eye(8)))
print(traces)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
      [sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    self.assertEqual((done.stdout, done.returncode), ("1\n", 0), done.stderr)

  def test_x64_mode_changes_nothing(self):
    student, teacher, labels, _ = problem(N, V)
    kw = dict(divergence=oracle.jsd(0.5), labels=labels, hard_weight=0.5)
    want = oracle.loss(student, teacher, **kw)
    with jax.enable_x64(True):
      loss, _, _, grads = value_and_grad(head(student), head(teacher), **kw)
      self.assertEqual((loss.dtype, grads[1].dtype), (np.float32, np.float32))
      oracle.assert_close((loss, grads), (want[0], want[3]))

  def test_without_a_teacher(self):
    student, _, labels, _ = problem(N, V)
    kw = dict(labels=labels, hard_weight=2.0, soft_weight=0.0)
    want = oracle.loss(student, student, oracle.forward_kl, **kw)
    kw.update(divergence=oracle.forward_kl)
    for plan in PLANS.values():
      got = value_and_grad(head(student), None, implementation=plan, **kw)
      oracle.assert_close((got[0], got[2], got[3]), (want[0], *want[2:]))


if __name__ == "__main__":
  absltest.main()
