"""A divergence inside a tile: traced, differentiated, and kept finite.

With lq and lp the log-probabilities of student and teacher, q = exp(lq) and
p = exp(lp), a divergence is D = sum_v phi(lq, lp), and

    u = dphi/dlq          by jax.jvp, elementwise (tangent 1)

Elementwise jnp operations only, so that XLA and the Pallas kernels share them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.jaxprs import bind, called, called_by_jit, walk
from kernels.tile import DEAD, STEEP, TINY

ROBUST = frozenset(  # primitives that make no NaN of finite numbers
  ["add", "add_any", "sub", "mul", "neg", "abs", "sign", "max", "min", "exp",
   "select_n", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not",
   "broadcast_in_dim", "convert_element_type", "stop_gradient"]
)  # fmt: skip
Divergence = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Phi:
  """A divergence, with what it closes over made explicit.

  phi may close over arrays, traced ones too (a JSD's beta under vmap, say).
  custom_vjp and Pallas must be handed those as arguments. So phi is traced when
  it is called, at the shape of the tile, and the constants that the trace finds
  are replaced by the given ones; their order is that of first use.
  """

  divergence: Divergence

  @classmethod
  def of(cls, divergence: Divergence, dtype) -> "Phi":
    """Returns phi for logits of that dtype.

    For bfloat16 a divergence may bring a cheaper form, its `for_bfloat16`.
    """
    narrow = jnp.dtype(dtype) == jnp.bfloat16
    form = getattr(divergence, "for_bfloat16", None) if narrow else None
    return cls(divergence if form is None else form)

  def constants(self) -> list[Any]:
    """Returns the arrays that phi closes over, without gradients."""
    _, consts = self.trace(jnp.zeros((1, 1), jnp.float32))
    return [jax.lax.stop_gradient(c) for c in consts]

  def value(self, consts, lq, lp, q, p):
    """Returns phi(lq, lp), where q = exp(lq) and p = exp(lp) are known.

    An exp of lq or lp itself inside phi is replaced by q or p: exponentials are
    what these kernels spend their time on. (TPU v5e, JSD: 16.5 bundles per
    1,024 pairs without, 9.5 with the replacement, compiled.) Where phi
    is not robust they are floored at TINY, so that its author sees no 0 / 0.
    """
    q, p = self.floored(q, p)
    return self._evaluate(consts, lq, lp, q, p, called)

  def floor(self, like) -> float:
    """Returns the least q and p that phi may see."""
    return 0.0 if self.robust(like) else TINY

  def floored(self, q, p):
    """Returns (q, p), not below `floor`.

    With a floor of 0 the maximum still keeps a CPU from contracting p - q into
    a multiply-add, so that p = q gives 0.
    """
    floor = self.floor(q)
    return jnp.maximum(q, floor), jnp.maximum(p, floor)

  def of_floored(self, consts, lq, lp, q, p):
    """Returns `value` for q and p from `floored`."""
    return self._evaluate(consts, lq, lp, q, p, called_by_jit)

  def jvp_of_floored(self, consts, lq, lp, q, p):
    """Returns phi and dphi/dlq for q and p from `floored`."""
    value = lambda lq, q: self.of_floored(consts, lq, lp, q, p)
    return jax.jvp(value, (lq, q), (jnp.ones_like(lq), q))

  def value_and_slope(self, consts, lq, lp, q, p):
    """Returns phi and u = dphi/dlq, both finite unless an input is NaN."""
    q, p = self.floored(q, p)
    args = (list(consts), lq, lp, q, p)
    closed = jax.make_jaxpr(self.jvp_of_floored)(*args)
    # A rule of phi's own (jax.custom_jvp) takes exponentials too.
    rule, args = _with_exps(((lq, q), (lp, p))), jax.tree.leaves(args)
    value, u = walk(closed.jaxpr, closed.consts, args, rule)
    u = jnp.clip(u, -STEEP, STEEP)
    if self.robust(lq):
      return value, u
    return _determinate(value, q, p), _determinate(u, q, p)

  def robust(self, like) -> bool:
    """Whether phi is made of operations that give no NaN for finite input."""
    names = set()

    def rule(eqn, is_log):
      name = eqn.primitive.name
      if name == "exp" and not is_log[0]:
        name = "exp of an expression"  # may overflow
      names.add(name)
      return [False] * len(eqn.outvars)

    jaxpr, consts = self.trace(like)
    walk(jaxpr, consts, (True, True), rule, lift=lambda x: False)
    return names <= ROBUST

  def terms(self, consts, lq, lp, q, p):
    """Returns phi and u; 0 where both sides are dead.

    Dead are the columns beyond V and those that the caller masked with -inf or
    -1e30: lq and lp there differ by rounding of 1e30, which must not count.
    """
    dead = jnp.maximum(lq, lp) < DEAD
    value, u = self.value_and_slope(consts, lq, lp, q, p)
    return jnp.where(dead, 0.0, value), jnp.where(dead, 0.0, u)

  def trace(self, like):
    """Returns (jaxpr, constants) of phi at the shape of `like`."""
    closed = jax.make_jaxpr(self.divergence)(like, like)
    return closed.jaxpr, closed.consts

  def _evaluate(self, consts, lq, lp, q, p, enter):
    """Returns phi with q and p for exp(lq) and exp(lp)."""
    jaxpr, _ = self.trace(lq)
    rule = _with_exps(((lq, q), (lp, p)))
    return walk(jaxpr, consts, (lq, lp), rule, enter=enter)[0]


def _determinate(x, q, p):
  """Returns x, 0 where it is NaN because a probability vanished.

  (p - q)^2 / (p + q) at p = q = 0, say: an f-divergence has 0 f(0 / 0) = 0. A
  NaN that came in as an input makes q or p NaN and stays.
  """
  return jnp.where(jnp.isnan(x) & (jnp.minimum(q, p) < 1e-15), 0.0, x)


def _with_exps(known):
  """Returns the rule that takes exp(a) from pairs (a, exp(a))."""

  def rule(eqn, values):
    if eqn.primitive.name == "exp":
      for a, e in known:
        if values[0] is a:
          return [e]
    return bind(eqn, values)

  return rule
