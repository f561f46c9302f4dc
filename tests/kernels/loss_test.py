"""distill_loss against float64 autodiff of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kernels import Logits, TopK, distill_loss
from tests.kernels import oracle
from tests.kernels.problems import (
  CAPPED,
  PLANS,
  dense,
  head,
  problem,
  top_k,
  value_and_grad,
)


class LossTest(parameterized.TestCase):
  @parameterized.product(
    divergence=tuple(oracle.DIVERGENCES),
    implementation=tuple(PLANS),
  )
  def test_agrees_with_float64(self, divergence, implementation):
    # Chunks of 16 rows end ragged at N = 37, blocks of 300 columns at V = 1003.
    shape = (37, 1003) if implementation == "chunked" else (37, 257)
    student, teacher, labels, weights = problem(*shape)
    kw = dict(
      divergence=oracle.DIVERGENCES[divergence],
      temperature=2.0,
      weights=weights,
      labels=labels,
      hard_weight=0.3,
      soft_weight=0.7,
    )
    want = oracle.loss(student, teacher, **kw)
    kw.update(weights=jnp.asarray(weights), labels=jnp.asarray(labels))
    got = value_and_grad(
      head(student), head(teacher), implementation=PLANS[implementation], **kw
    )
    oracle.assert_close(got, want)

  @parameterized.product(
    divergence=("forward_kl", "jsd", "log_ratio"),
    teacher_is=("head", "bucket", "renormalize"),
    implementation=tuple(PLANS),
  )
  def test_capped_and_scaled(self, divergence, teacher_is, implementation):
    student, teacher, labels, weights = problem(37, 1003)
    kw = dict(divergence=oracle.DIVERGENCES[divergence], temperature=2.0)
    kw.update(weights=weights, labels=labels, hard_weight=0.3, soft_weight=0.7)
    t, arrays_t = head(teacher, **CAPPED[1]), teacher
    if teacher_is != "head":
      ids, lp = top_k(teacher, 7, 2.0)
      t, arrays_t = TopK(ids, lp, teacher_is), (ids, lp, teacher_is)
    want = oracle.loss(student, arrays_t, heads=CAPPED, **kw)
    kw.update(weights=jnp.asarray(weights), labels=jnp.asarray(labels))
    s = head(student, **CAPPED[0])
    got = value_and_grad(s, t, implementation=PLANS[implementation], **kw)
    oracle.assert_close(got, want)

  @parameterized.parameters((130, 4999), (37, 1003), (1, 257))
  def test_larger_shapes_and_logits(self, n, v):
    student, teacher, _, _ = problem(n, v, seed=1)
    for s, t in ((student, teacher), (dense(student), dense(teacher))):
      want = oracle.loss(s, t, oracle.reverse_kl)
      wrap = head if len(s) > 1 else lambda a: Logits(jnp.asarray(a[0]))
      for name, plan in PLANS.items():
        with self.subTest(name):
          kw = dict(divergence=oracle.reverse_kl, implementation=plan)
          oracle.assert_close(value_and_grad(wrap(s), wrap(t), **kw), want)

  @parameterized.product(
    tail=("bucket", "renormalize"),
    implementation=tuple(PLANS),
    divergence=("forward_kl", "jsd"),
  )
  def test_top_k(self, tail, implementation, divergence):
    student, teacher, labels, _ = problem(37, 257, scale=2.0)
    ids, lp = top_k(teacher, 7, 1.5)
    kw = dict(divergence=oracle.DIVERGENCES[divergence], temperature=1.5)
    kw.update(labels=labels, hard_weight=0.5)
    want = oracle.loss(student, (ids, lp, tail), **kw)
    kw.update(labels=jnp.asarray(labels))
    got = value_and_grad(
      head(student),
      TopK(jnp.asarray(ids, jnp.int32), jnp.asarray(lp), tail),
      implementation=PLANS[implementation],
      **kw,
    )
    oracle.assert_close(got, want)

  @parameterized.parameters(*PLANS)
  def test_top_k_of_everything_is_the_dense_loss(self, name):
    student, teacher, _, _ = problem(5, 9)
    ids, lp = top_k(teacher, 9, 1.0)
    want = oracle.loss(student, teacher, oracle.forward_kl)
    for tail in ("bucket", "renormalize"):
      topk = TopK(jnp.asarray(ids, jnp.int32), jnp.asarray(lp), tail)
      kw = dict(divergence=oracle.forward_kl, implementation=PLANS[name])
      oracle.assert_close(value_and_grad(head(student), topk, **kw), want)

  def test_a_concentrated_top_k_keeps_its_digits(self):
    student, _, _, _ = problem(4, 300)
    student = (student[0], student[1], student[2].copy())
    student[2][:3] += 18  # q_rest of about 1e-6
    lp = np.log(np.array([[0.9999985, 1e-6, 2e-7]] * 4, np.float32))
    ids = np.array([[0, 1, 2]] * 4)
    want = oracle.loss(student, (ids, lp, "bucket"), oracle.forward_kl)
    for name, plan in PLANS.items():
      with self.subTest(name):
        topk = TopK(jnp.asarray(ids), jnp.asarray(lp))
        kw = dict(divergence=oracle.forward_kl, implementation=plan)
        oracle.assert_close(value_and_grad(head(student), topk, **kw), want)

  @parameterized.product(
    divergence=("forward_kl", "reverse_kl", "jsd"),
    implementation=("xla", "online"),
    cap=(None, 4.0),
  )
  def test_bfloat16_is_no_worse_than_naive(
    self, divergence, implementation, cap
  ):
    student, teacher, _, _ = problem(37, 1003)
    phi = oracle.DIVERGENCES[divergence]
    narrow = lambda x: jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), x)
    student, teacher = narrow(student), narrow(teacher)

    def log_probs(s):
      z = s[0] @ s[1] + s[2]
      z = z if cap is None else cap * jnp.tanh(z / cap)
      return jax.nn.log_softmax(z.astype(jnp.float32))

    def naive(s):
      return phi(log_probs(s), log_probs(teacher)).sum(1).mean()

    heads = [dict(soft_cap=cap)] * 2
    value, _, _, want = oracle.loss(student, teacher, phi, heads=heads)
    plain = jax.value_and_grad(naive)(student)
    plan = PLANS[implementation]
    s, t = (head(x, soft_cap=cap) for x in (student, teacher))
    kw = dict(divergence=phi, implementation=plan)
    loss, _, _, grads = value_and_grad(s, t, **kw)
    norm = lambda a, b: np.linalg.norm(np.asarray(a, np.float64) - b)
    for ours, theirs, true in zip(grads, plain[1], want, strict=True):
      self.assertEqual(ours.dtype, jnp.bfloat16)
      self.assertLess(norm(ours, true), 1.5 * norm(theirs, true))
    if implementation == "xla":  # float32 logits: better than naive
      self.assertLess(abs(loss - value), 1.5 * abs(plain[0] - value) + 1e-6)
    self.assertLess(abs(loss - value) / value, 5e-3)

  def test_high_temperature_keeps_its_digits(self):
    # Not for "online": this CPU runs its variadic reduce as one running sum.
    student, teacher, _, _ = problem(37, 4999)
    kw = dict(divergence=oracle.forward_kl, temperature=20.0)
    want = oracle.loss(student, teacher, **kw)
    got = value_and_grad(head(student), head(teacher), **kw)
    oracle.assert_close(got, want, rtol=3e-5)

  def test_invariants(self):
    student, teacher, _, _ = problem(9, 257)
    z = dense(student)[0]
    for name, phi in oracle.DIVERGENCES.items():
      with self.subTest(name):
        loss, _, _, (dz,) = value_and_grad(
          Logits(z), Logits(z), divergence=phi, temperature=1.7
        )
        self.assertLess(abs(loss), 1e-6)
        self.assertLess(np.abs(dz).max(), 1e-7)
        fn = lambda s, t, phi=phi: distill_loss(s, t, divergence=phi)[0]
        step = jax.jit(jax.value_and_grad(fn))
        t = dense(teacher)[0]
        loss, dz = step(Logits(z), Logits(t))
        np.testing.assert_allclose(dz.values.sum(1), 0, atol=1e-6)
        shifted, _ = step(Logits(z + 3), Logits(t))
        np.testing.assert_allclose(shifted, loss, rtol=1e-5)
        order = np.random.default_rng(0).permutation(257)
        permuted, _ = step(Logits(z[:, order]), Logits(t[:, order]))
        np.testing.assert_allclose(permuted, loss, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
