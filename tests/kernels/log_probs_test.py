"""token_log_probs against float64 autodiff of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kernels import Logits, token_log_probs
from tests.kernels import oracle
from tests.kernels.problems import (
  CAPPED,
  PLANS,
  arrays,
  dense,
  head,
  problem,
)

N, V = 21, 300


class ScoreTest(parameterized.TestCase):
  @parameterized.product(
    implementation=tuple(PLANS), shape=((1, 257), (37, 1003), (130, 300))
  )
  def test_agrees_with_float64(self, implementation, shape):
    student, _, ids, g = problem(*shape)
    g = g - 0.5
    capped = lambda a: head(a, **CAPPED[0])
    logits = lambda a: Logits(jnp.asarray(a[0]))
    cases = (student, head), (student, capped), (dense(student), logits)
    for s, wrap in cases:

      def fn(x):
        out = token_log_probs(
          x, jnp.asarray(ids), temperature=1.5,
          implementation=PLANS[implementation],
        )  # fmt: skip
        return (jnp.asarray(g) * out).sum(), out

      grads, out = jax.jit(jax.grad(fn, has_aux=True))(wrap(s))
      kw = CAPPED[0] if wrap is capped else {}
      want = oracle.token_log_probs(s, ids, 1.5, g, **kw)
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
