"""What is no id shows as NaN in its row alone; weight 0 hides what a row holds.

In every implementation; with a sharded V in vocab_parallel.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kernels import Head, Logits, TopK, distill_loss, token_log_probs
from kernels.arguments import ArgumentError
from tests.kernels import oracle
from tests.kernels.problems import (
  FUSED,
  PLANS,
  dense,
  head,
  problem,
  top_k,
)

N, V, K, ROW = 5, 256, 4, 2
FAULTS = {
  "negative": -1,
  "too_large": V,
  "largest": 2**31 - 1,
  "twice": None,
}


def step(student, **kw):
  """Returns (loss, soft, hard, dz) with labels and teacher traced."""

  def fn(z, teacher, labels):
    return distill_loss(
      Logits(z), teacher, labels=labels, divergence=oracle.forward_kl, **kw
    )

  grad = jax.jit(jax.value_and_grad(fn, has_aux=True))

  def run(teacher, labels):
    (loss, rows), dz = grad(student, teacher, labels)
    return loss, rows.soft, rows.hard, dz

  return run


class InvalidTest(parameterized.TestCase):
  def check(self, got, clean, soft, hard):
    """Asserts NaN in ROW of what is asked for, and no change elsewhere."""
    self.assertTrue(np.isnan(got[0]))
    for x, base, nan in zip(
      got[1:], clean[1:], (soft, hard, True), strict=True
    ):
      x, base = np.array(x), np.array(base)
      if nan:
        self.assertTrue(np.isnan(x[ROW]).all())
        x[ROW] = base[ROW] = 0
      np.testing.assert_allclose(x, base, rtol=1e-6, atol=1e-9)

  @parameterized.product(
    implementation=tuple(PLANS | FUSED), tail=("bucket", "renormalize")
  )
  def test_ids_of_a_teacher(self, implementation, tail):
    student, teacher, labels, _ = problem(N, V)
    ids, lp = top_k(teacher, K, 1.0)
    run = step(
      dense(student)[0],
      hard_weight=0.5,
      implementation=(PLANS | FUSED)[implementation],
    )
    clean = run(TopK(ids, lp, tail), labels)
    for name, value in FAULTS.items():
      with self.subTest(name):
        bad = ids.copy()
        bad[ROW, 1] = bad[ROW, 3] if value is None else value
        self.check(run(TopK(bad, lp, tail), labels), clean, True, False)

  @parameterized.product(implementation=tuple(PLANS | FUSED))
  def test_labels(self, implementation):
    student, teacher, labels, _ = problem(N, V)
    run = step(
      dense(student)[0],
      hard_weight=0.5,
      implementation=(PLANS | FUSED)[implementation],
    )
    teacher = Logits(dense(teacher)[0])
    clean = run(teacher, labels)
    for value in filter(None, FAULTS.values()):
      bad = labels.copy()
      bad[ROW] = value
      self.check(run(teacher, bad), clean, False, True)

  @parameterized.product(implementation=tuple(PLANS | FUSED))
  def test_token_log_probs(self, implementation):
    student, _, ids, _ = problem(N, V)
    fn = lambda z, ids: token_log_probs(
      Logits(z), ids, implementation=(PLANS | FUSED)[implementation]
    )
    run = jax.jit(
      jax.value_and_grad(lambda *x: fn(*x)[jnp.array([0, 4])].sum())
    )
    z = dense(student)[0]
    clean, out = run(z, ids), jax.jit(fn)
    for value in filter(None, FAULTS.values()):
      bad = ids.copy()
      bad[ROW] = value
      at = np.isnan(out(z, bad))
      np.testing.assert_array_equal(at, np.arange(N) == ROW)
      for got, want in zip(run(z, bad), clean, strict=True):
        np.testing.assert_array_equal(got, want)

  @parameterized.product(implementation=tuple(PLANS))
  def test_a_padding_column_is_no_id(self, implementation):
    student, teacher, labels, _ = problem(N, V)
    ids, lp = top_k((teacher[0], teacher[1][:, :250], teacher[2][:250]), K, 1.0)
    kw = dict(divergence=oracle.forward_kl, hard_weight=0.5)
    kw["implementation"] = PLANS[implementation]
    fn = jax.jit(
      lambda ids, labels: distill_loss(
        Logits(dense(student)[0], 250), TopK(ids, lp), labels=labels, **kw
      )[1]
    )
    labels = np.minimum(labels, 249)
    rows = fn(ids, labels)
    self.assertTrue(np.isfinite(rows.soft).all() & np.isfinite(rows.hard).all())
    ids[ROW, 0] = labels[ROW] = 250
    for x in fn(ids, labels):
      np.testing.assert_array_equal(np.isnan(x), np.arange(N) == ROW)

  def test_concrete_ids_raise_where_the_row_counts(self):
    student, teacher, _, _ = problem(N, V)
    ids, lp = top_k(teacher, K, 1.0)
    ids[ROW] = [7, 3, 9, 3]
    weights = np.ones(N, np.float32)
    call = lambda: distill_loss(
      Logits(dense(student)[0]),
      TopK(ids, lp),
      divergence=oracle.forward_kl,
      weights=weights,
    )
    with self.assertRaisesRegex(ArgumentError, r"ids\[2\].*3 twice.*different"):
      call()
    weights[ROW] = 0
    self.assertTrue(np.isfinite(call()[0]))

  def test_ids_of_64_bits_do_not_wrap(self):
    student, teacher, labels, weights = problem(N, V)
    ids, lp = top_k(teacher, K, 1.0)
    wide = labels.astype(np.int64)
    wide[ROW] = 2**32 + 1
    ids = ids.astype(np.int64)
    ids[ROW, 0] = 2**32 + 1
    z = Logits(dense(student)[0])

    def fn(weights, ids, labels):
      return distill_loss(
        z, TopK(ids, lp), divergence=oracle.forward_kl, weights=weights,
        labels=labels, hard_weight=0.5,
      )[1]  # fmt: skip

    # Concrete ids beside traced weights, which may mask them.
    out = [*jax.jit(lambda w: fn(w, ids, wide))(weights)]
    with jax.enable_x64(True):
      out += jax.jit(fn)(weights, ids, wide)
      out.append(jax.jit(lambda y: token_log_probs(z, y))(wide))
    for x in out:
      np.testing.assert_array_equal(np.isnan(x), np.arange(N) == ROW)


def _topk(tail):
  def wrap(arrays):
    ids, lp = top_k(arrays, K, 1.0)
    return TopK(ids.astype(np.int32), lp, tail)

  return wrap


def _logits(arrays):
  return Logits(dense(arrays)[0])


KINDS = {
  "head": (head, head),
  "logits": (_logits, _logits),
  "bucket": (_logits, _topk("bucket")),
  "renormalize": (head, _topk("renormalize")),
}


class WeightZeroTest(parameterized.TestCase):
  @parameterized.product(implementation=tuple(PLANS | FUSED), kind=tuple(KINDS))
  def test_a_row_may_hold_anything(self, implementation, kind):
    if kind in ("bucket", "renormalize") and implementation in FUSED:
      self.skipTest("XLA's: see PLANS")
    student, teacher, labels, weights = problem(N, V)
    weights[ROW] = 0
    wrap, wrap_teacher = KINDS[kind]
    s, t = wrap(student), wrap_teacher(teacher)

    def spoil(x, poison):
      if isinstance(x, Head):
        return Head(x.hidden.at[ROW].set(poison), x.kernel, x.bias)
      if isinstance(x, Logits):
        return Logits(jnp.asarray(x.values).at[ROW].set(poison))
      ids = x.ids.copy()
      ids[ROW] = [-1, V, 2**31 - 1, -1]
      return TopK(ids, jnp.asarray(x.log_probs).at[ROW].set(poison), x.tail)

    def fn(student, teacher, labels):
      loss, rows = distill_loss(
        *(student, teacher),
        divergence=oracle.DIVERGENCES["jsd"],
        temperature=2.0,
        weights=jnp.asarray(weights),
        labels=labels,
        hard_weight=0.5,
        implementation=(PLANS | FUSED)[implementation],
      )
      return loss, rows

    value = jax.jit(fn)
    grad = jax.jit(jax.value_and_grad(fn, has_aux=True))
    clean = grad(s, t, labels)
    labels[ROW] = -7
    for poison in (np.nan, np.inf, -np.inf):
      with self.subTest(str(poison)):
        bad = spoil(s, poison), spoil(t, poison), labels
        (loss, rows), grads = grad(*bad)
        for x in (*rows, jax.tree.leaves(grads)[0]):
          np.testing.assert_array_equal(np.asarray(x)[ROW], 0)
        oracle.assert_close(((loss, rows), grads), clean, 1e-6)
        oracle.assert_close(value(*bad), clean[0], 1e-6)


if __name__ == "__main__":
  absltest.main()
