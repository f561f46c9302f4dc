"""Rows and columns that do not count, extremes, and ids that are invalid."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kernels import Logits, TopK
from tests.kernels import oracle
from tests.kernels.problems import (
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


if __name__ == "__main__":
  absltest.main()
