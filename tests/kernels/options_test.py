"""Masks, extremes, vmap, what is differentiated, what compiles, what raises."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kernels import Head, Logits, TopK, distill_loss, token_log_probs, xla
from kernels.arguments import ArgumentError
from tests.kernels import oracle
from tests.kernels.loss_test import (
  PLANS,
  arrays,
  dense,
  head,
  problem,
  top_k,
  value_and_grad,
)

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


class MaskTest(parameterized.TestCase):
  @parameterized.product(implementation=tuple(PLANS), poison=(np.nan, np.inf))
  def test_weight_zero_masks_whatever_a_row_holds(self, implementation, poison):
    student, teacher, labels, weights = problem(N, V)
    dead = np.arange(N) % 4 == 1
    weights[dead] = 0
    keep = ~dead
    kw = dict(divergence=oracle.DIVERGENCES["jsd"], temperature=2.0)
    rest = lambda t: (t[0][keep], *t[1:])
    value, soft, hard, grads = oracle.loss(
      rest(student), rest(teacher), weights=weights[keep], labels=labels[keep],
      hard_weight=0.5, **kw,
    )  # fmt: skip
    for t in (student, teacher):
      t[0][dead] = poison
    labels[dead] = 10**6
    kw.update(weights=jnp.asarray(weights), labels=jnp.asarray(labels))
    kw.update(hard_weight=0.5, implementation=PLANS[implementation])
    got = value_and_grad(head(student), head(teacher), **kw)
    for x in (got[1], got[2], got[3][0]):
      np.testing.assert_array_equal(np.asarray(x)[dead], 0)
    got = (got[0], *(x[keep] for x in got[1:3]), got[3][0][keep], *got[3][1:])
    oracle.assert_close(got, (value, soft, hard, *grads))

  @parameterized.parameters(*PLANS)
  def test_weight_zero_masks_logits_and_top_k(self, name):
    student, teacher, _, weights = problem(N, V)
    weights[3] = 0
    z = dense(student)[0]
    ids, lp = top_k(teacher, 5, 1.0)
    kw = dict(divergence=oracle.forward_kl, weights=jnp.asarray(weights))
    kw.update(implementation=PLANS[name])
    clean = value_and_grad(Logits(z), TopK(jnp.asarray(ids), lp), **kw)
    z, ids, lp = z.copy(), ids.copy(), lp.copy()
    z[3], ids[3], lp[3] = np.nan, -5, np.nan
    got = value_and_grad(Logits(z), TopK(jnp.asarray(ids), lp), **kw)
    oracle.assert_close(got, clean, rtol=1e-6)

  @parameterized.product(
    implementation=("reference", "xla", "online"),
    divergence=tuple(oracle.DIVERGENCES),
  )
  def test_extreme_logits_have_finite_gradients(
    self, implementation, divergence
  ):
    if implementation == "reference" and divergence not in (
      "forward_kl", "reverse_kl", "alpha", "hellinger", "log_ratio",
    ):  # fmt: skip
      self.skipTest("a naive phi of 0 / 0: the fused kernels floor q and p")
    z_s, z_t = np.zeros((4, 9), np.float32), np.zeros((4, 9), np.float32)
    z_s[0, 0], z_t[0, 1] = 1e4, 1e4
    z_s[1, 0], z_t[1, 0] = -1e4, 1e4
    z_s[2, :4], z_t[2, 4:] = -1e4, -1e4
    z_t[3, 5:] = -np.inf
    z_s[3, 5:] = -1e30
    phi = oracle.DIVERGENCES[divergence]
    loss, soft, _, (dz,) = value_and_grad(
      Logits(z_s), Logits(z_t), divergence=phi, temperature=0.5,
      implementation=PLANS[implementation],
    )  # fmt: skip
    self.assertTrue(np.isfinite(dz).all())
    self.assertTrue(np.isfinite(loss))
    self.assertAlmostEqual(float(soft[3]), 0.0, places=5)  # p = q there
    np.testing.assert_allclose(dz[3], 0, atol=1e-6)

  @parameterized.parameters(*PLANS)
  def test_padding_columns_count_for_nothing(self, name):
    student, teacher, labels, _ = problem(N, V)
    kw = dict(divergence=oracle.DIVERGENCES["log_ratio"], temperature=3.0)
    kw.update(labels=jnp.asarray(labels), hard_weight=0.5)
    want = oracle.loss(student, teacher, **kw)
    pad = lambda x, value: np.concatenate(
      [x, np.full((*x.shape[:-1], 4), value, np.float32)], -1
    )
    wide = lambda t, bias: (t[0], pad(t[1], 0), pad(t[2], bias))
    cases = {
      "masked": (head(wide(student, -1e30)), head(wide(teacher, -np.inf))),
      "counted": (
        dataclasses.replace(head(wide(student, 7)), vocab_size=V),
        head(wide(teacher, 5)),
      ),
    }
    for case, (s, t) in cases.items():
      if case == "counted" and name == "reference":
        t = dataclasses.replace(t, vocab_size=V)
      with self.subTest(case):
        got = value_and_grad(s, t, implementation=PLANS[name], **kw)
        for g in got[3][1:]:
          np.testing.assert_array_equal(g[..., V:], 0)
        got = (*got[:3], got[3][0], *(g[..., :V] for g in got[3][1:]))
        oracle.assert_close(got, want)


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

  def test_no_array_of_all_logits_is_compiled(self):
    n = 64
    student, teacher, labels, _ = problem(n, V)
    for plan in (dataclasses.replace(p, chunk=16) for p in
                 (xla.CPU, xla.ACCELERATOR)):  # fmt: skip
      kw = dict(divergence=oracle.jsd(0.5), implementation=plan)
      kw.update(labels=jnp.asarray(labels), hard_weight=1.0)
      fn = lambda s, kw=kw: distill_loss(s, head(teacher), **kw)[0]
      compiled = jax.jit(jax.value_and_grad(fn)).lower(head(student)).compile()
      self.assertNotRegex(compiled.as_text(), rf"\[{n},{V}\]")
      ids = jnp.asarray(labels)
      fn = lambda s, plan=plan, ids=ids: token_log_probs(
        s, ids, implementation=plan
      ).sum()
      compiled = jax.jit(jax.value_and_grad(fn)).lower(head(student)).compile()
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


class ErrorTest(parameterized.TestCase):
  def call(self, student=None, teacher=None, **kw):
    z = np.zeros((3, 5), np.float32)
    kw = dict(divergence=oracle.forward_kl) | kw
    student = Logits(z) if student is None else student
    return distill_loss(
      student, Logits(z) if teacher is None else teacher, **kw
    )

  @parameterized.named_parameters(
    ("rank", dict(student=Logits(np.zeros((3, 5, 1), np.float32))), "student"),
    ("raw", dict(student=np.zeros((3, 5), np.float32)), "student.*ndarray"),
    ("int", dict(student=Logits(np.zeros((3, 5), int))), "values.*dtype int"),
    ("n", dict(teacher=Logits(np.zeros((4, 5), np.float32))), "N = 4.*N = 3"),
    ("v", dict(teacher=Logits(np.zeros((3, 6), np.float32))), "V = 6.*V = 5"),
    ("h", dict(student=Head(np.zeros((3, 2), np.float32),
                            np.zeros((4, 5), np.float32))), "H = 2"),
    ("bias", dict(student=Head(np.zeros((3, 2), np.float32),
                               np.zeros((2, 5), np.float32),
                               np.zeros(4, np.float32))), r"bias.*\(5,\)"),
    ("label", dict(labels=np.array([0, 5, 1])), r"labels\[1\].*5.*0 to 4"),
    ("label_n", dict(labels=np.array([0, 1])), "labels"),
    ("label_dtype", dict(labels=np.zeros(3, np.float32)), "labels.*dtype"),
    ("no_labels", dict(hard_weight=0.5), "labels.*None"),
    ("weights", dict(weights=np.ones(4, np.float32)), "weights"),
    ("temperature", dict(temperature=0.0), "temperature.*> 0"),
    ("temperatures", dict(temperature=np.ones(2)), "temperature.*scalar"),
    ("divergence", dict(divergence="kl"), "divergence.*'kl'"),
    ("reduced", dict(divergence=lambda a, b: (a * b).sum()), "divergence"),
    ("name", dict(implementation="cuda"), "implementation.*'cuda'.*'xla'"),
    ("axis", dict(vocab_axis="model"), "vocab_axis.*model.*shard_map"),
    ("size", dict(student=Logits(np.ones((3, 5), np.float32), 6)), "6.*1 to 5"),
  )  # fmt: skip
  def test_distill_loss(self, kw, message):
    with self.assertRaisesRegex(ArgumentError, message):
      self.call(**kw)

  def test_both_kinds_of_exception_catch_it(self):
    for kind in (ValueError, TypeError):
      with self.assertRaises(kind):
        self.call(divergence=None)

  def test_top_k(self):
    lp = np.full((3, 2), -1.0, np.float32)
    ids = np.zeros((3, 2), np.int32)
    for topk, message in (
      (TopK(ids + 5, lp), r"ids\[0, 0\].*5.*0 to 4"),
      (TopK(ids - 1, lp), "-1"),
      (TopK(ids, lp, "uniform"), "tail.*'uniform'.*'bucket'"),
      (TopK(ids[:2], lp[:2]), "N = 2.*N = 3"),
      (TopK(ids, lp[:, :1]), "log_probs.*shape"),
      (TopK(lp, lp), "ids.*dtype"),
      (TopK(np.zeros((3, 6), int), np.zeros((3, 6), np.float32)), "K = 6"),
    ):
      with self.assertRaisesRegex(ArgumentError, message):
        self.call(teacher=topk)

  def test_token_log_probs(self):
    z = Logits(np.zeros((3, 5), np.float32))
    for args, message in (
      ((z, np.array([0, 1, 5])), r"ids\[2\].*5.*0 to 4"),
      ((z, np.array([0, 1])), "ids.*shape"),
      ((z, np.zeros(3, np.float32)), "ids.*dtype"),
      ((z.values, np.zeros(3, int)), "head_or_logits"),
    ):
      with self.assertRaisesRegex(ArgumentError, message):
        token_log_probs(*args)

  def test_traced_labels_out_of_range_show(self):
    loss = jax.jit(lambda y: self.call(labels=y, hard_weight=1.0)[0])
    self.assertTrue(np.isnan(loss(np.array([0, 1, 5]))))
    score = jax.jit(lambda y: token_log_probs(Logits(np.zeros((2, 3))), y))
    np.testing.assert_array_equal(np.isnan(score(np.array([2, -1]))), [0, 1])


class ScoreTest(parameterized.TestCase):
  @parameterized.product(
    implementation=tuple(PLANS), shape=((1, 257), (37, 1003), (130, 300))
  )
  def test_agrees_with_float64(self, implementation, shape):
    student, _, ids, g = problem(*shape)
    g = g - 0.5
    for s in (student, dense(student)):
      wrap = head if len(s) > 1 else lambda a: Logits(jnp.asarray(a[0]))

      def fn(x):
        out = token_log_probs(
          x, jnp.asarray(ids), temperature=1.5,
          implementation=PLANS[implementation],
        )  # fmt: skip
        return (jnp.asarray(g) * out).sum(), out

      grads, out = jax.jit(jax.grad(fn, has_aux=True))(wrap(s))
      want = oracle.token_log_probs(s, ids, 1.5, g)
      oracle.assert_close((out, arrays(grads)), want)

  def test_a_row_without_cotangent_may_hold_anything(self):
    student, _, ids, g = problem(N, V)
    student[0][2] = np.nan
    g[2] = 0
    fn = lambda s: jnp.where(
      g == 0, 0, g * token_log_probs(s, jnp.asarray(ids))
    ).sum()
    for x in jax.tree.leaves(jax.grad(fn)(head(student))):
      self.assertTrue(np.isfinite(x).all())

  def test_vmapped_temperature(self):
    student, _, ids, g = problem(N, V)
    fn = lambda t: jax.grad(
      lambda s: (g * token_log_probs(s, ids, temperature=t)).sum()
    )(head(student))
    got = jax.jit(jax.vmap(fn))(jnp.array([1.0, 3.0]))
    for i, t in enumerate((1.0, 3.0)):
      want = oracle.token_log_probs(student, ids, t, g)[1]
      oracle.assert_close(jax.tree.map(lambda x, i=i: x[i], arrays(got)), want)


if __name__ == "__main__":
  absltest.main()
