"""Rows and columns that do not count, extremes, and ids that are invalid."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kernels import Logits, TopK, token_log_probs
from tests.kernels import oracle
from tests.kernels.problems import (
  CAPPED,
  FUSED,
  PLANS,
  dense,
  head,
  problem,
  top_k,
  value_and_grad,
)

N, V = 21, 300


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

  @parameterized.parameters(*PLANS | FUSED)
  def test_extreme_hidden_states_under_a_cap(self, name):
    """Caps of any size, -inf and -1e30 for "never", overflow: all finite."""
    student, teacher, labels, _ = problem(5, 256)
    for s in (student, teacher):
      s[0][0] *= 1e5
      s[0][1] *= 1e30  # the GEMM overflows to infinity
      s[2][-9:] = -np.inf if s is student else -1e30
    kw = dict(divergence=oracle.DIVERGENCES["jsd"], temperature=0.5)
    kw.update(labels=jnp.asarray(labels % 240), hard_weight=0.5)
    kw.update(implementation=(PLANS | FUSED)[name])
    for dtype in (jnp.float32, jnp.bfloat16):
      narrow = lambda x, d=dtype: tuple(jnp.asarray(a, d) for a in x)
      # 30.1 rounds up in bfloat16: z may be beyond the cap.
      s = head(narrow(student), soft_cap=30.1)
      t = head(narrow(teacher), soft_cap=1e-3, scale=100.0)
      loss, soft, hard, grads = value_and_grad(s, t, **kw)
      for x in (loss, soft, hard, *grads):
        self.assertTrue(np.isfinite(np.asarray(x, np.float32)).all())
      for x in grads[1:]:
        np.testing.assert_array_equal(np.asarray(x[..., -9:], np.float32), 0)
      at = jnp.asarray(labels % 240)
      fn = lambda s, at=at: token_log_probs(
        s, at, implementation=kw["implementation"]
      ).sum()
      for x in jax.tree.leaves(jax.jit(jax.value_and_grad(fn))(s)):
        self.assertTrue(np.isfinite(np.asarray(x, np.float32)).all())

  @parameterized.product(
    name=tuple(PLANS | FUSED),
    widths=((256, 272), (272, 256), (259, 300)),
    kind=("head", "logits"),
  )
  def test_models_padded_to_different_widths(self, name, widths, kind):
    """What pads holds 7, which must not count, and gets gradient 0."""
    student, teacher, labels, _ = problem(5, 250)
    kw = dict(divergence=oracle.DIVERGENCES["log_ratio"], temperature=3.0)
    heads, arrays = CAPPED, (student, teacher)
    if kind == "logits":
      heads, arrays = ({}, {}), (dense(student), dense(teacher))
    kw.update(labels=labels, hard_weight=0.5)
    want = oracle.loss(*arrays, heads=heads, **kw)
    pad = lambda x, v: np.concatenate(
      [x, np.full((*x.shape[:-1], v - 250), 7, np.float32)], -1
    )

    def wide(x, v, caps):
      if kind == "logits":
        return Logits(jnp.asarray(pad(x[0], v)), vocab_size=250)
      return head((x[0], *(pad(a, v) for a in x[1:])), vocab_size=250, **caps)

    s, t = map(wide, arrays, widths, heads)
    kw.update(labels=jnp.asarray(labels))
    got = value_and_grad(s, t, implementation=(PLANS | FUSED)[name], **kw)
    for g in got[3][kind == "head" :]:
      np.testing.assert_array_equal(g[..., 250:], 0)
    cut = [g[..., :250] for g in got[3][kind == "head" :]]
    grads = (*got[3][: kind == "head"], *cut)
    oracle.assert_close((*got[:3], grads), want)

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
      with self.subTest(case):
        got = value_and_grad(s, t, implementation=PLANS[name], **kw)
        for g in got[3][1:]:
          np.testing.assert_array_equal(g[..., V:], 0)
        got = (*got[:3], got[3][0], *(g[..., :V] for g in got[3][1:]))
        oracle.assert_close(got, want)


if __name__ == "__main__":
  absltest.main()
