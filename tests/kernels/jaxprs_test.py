"""The walk does what the jaxpr says, and enters calls but no loops."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kernels import jaxprs
from kernels.phi import Phi

X = jnp.linspace(-2.0, 3.0, 7)


@jax.custom_jvp
def squared(x):
  return x * x


squared.defjvp(lambda x, dx: (squared(*x), 2 * x[0] * dx[0]))


@jax.custom_vjp
def cubed(x):
  return x * x * x


cubed.defvjp(lambda x: (cubed(x), x), lambda x, g: (3 * x * x * g,))

CALLS = {
  "jit": jax.jit(jnp.sin),
  "checkpoint": jax.checkpoint(jnp.sin),
  "custom_jvp": squared,
  "custom_vjp": cubed,
}


def walked(fn, rule=jaxprs.bind, **kw):
  """Returns (fn(X) by way of a walk, the primitives that the rule saw)."""
  closed, seen = jax.make_jaxpr(fn)(X), []

  def spy(eqn, values):
    seen.append(eqn.primitive.name)
    return rule(eqn, values)

  (out,) = jaxprs.walk(closed.jaxpr, closed.consts, (X,), spy, **kw)
  return out, seen


class WalkTest(parameterized.TestCase):
  @parameterized.parameters(*CALLS)
  def test_calls_are_entered(self, name):
    constant = jnp.arange(7.0)
    fn = lambda x: jnp.where(x > 0, CALLS[name](2 * x) + constant, 1.0)
    out, seen = walked(fn)
    np.testing.assert_allclose(out, fn(X), rtol=1e-6)
    self.assertEmpty(set(seen) & set(jaxprs.CALLS))

  def test_a_derivative_of_its_own_can_be_kept(self):
    fn = lambda x: jax.jit(squared)(x) + 1
    _, seen = walked(fn, enter=jaxprs.called_by_jit)
    self.assertEqual(seen, ["custom_jvp_call", "add"])

  def test_a_loop_is_one_operation(self):
    fn = lambda x: jax.lax.fori_loop(0, 3, lambda i, a: a + x, x)
    out, seen = walked(fn)
    np.testing.assert_allclose(out, 4 * X, rtol=1e-6)
    self.assertEqual(seen, ["scan"])

  @parameterized.parameters(
    (lambda lq, lp: jnp.exp(lq) * (lq - lp), True),
    (jax.jit(lambda lq, lp: jnp.exp(lq) * (lq - lp)), True),
    (lambda lq, lp: jax.jit(jnp.exp)(lq - lp), False),  # may overflow
    (lambda lq, lp: jnp.exp(lp) / jnp.exp(lq), False),
  )
  def test_what_makes_no_nan(self, phi, robust):
    self.assertEqual(Phi(phi).robust(X), robust)


if __name__ == "__main__":
  absltest.main()
