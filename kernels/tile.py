"""What every implementation does to a tile of rows, whatever the divergence.

With x = z / T, lq = x_s - lse_s, lp = x_t - lse_t, q = exp(lq), p = exp(lp) and
a divergence D = sum_v phi(lq, lp):

    u = dphi/dlq          by jax.jvp, elementwise (tangent 1)
    U = sum_v u
    dD/dx_s = u - q U     since dlq_v/dx_w = [v = w] - q_w

The functions take float32 tiles of any shape and hold elementwise jnp
operations only, so that XLA and the Pallas kernels share them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

FLOOR = -1e30  # log-probability of what never happens: finite, unlike -inf
DEAD = -1e25  # below it on both sides, a column contributes nothing
TINY = 1e-37  # least probability that phi sees; still a normal float32
STEEP = 1e30  # bound on |u|: U and q U stay finite for V up to 1e8

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
    _, consts = self._trace(jnp.zeros((1, 1), jnp.float32))
    return [jax.lax.stop_gradient(c) for c in consts]

  def value(self, consts, lq, lp, q, p):
    """Returns phi(lq, lp), where q = exp(lq) and p = exp(lp) are known.

    An exp of lq or lp itself inside phi is replaced by q or p: exponentials are
    what these kernels spend their time on. (TPU v5e, JSD: 16.5 bundles per
    1,024 pairs without, 9.5 with the replacement; ACCELERATORS.md.) Where phi
    is not robust they are floored at TINY, so that its author sees no 0 / 0.
    """
    q, p = self.floored(q, p)
    jaxpr, _ = self._trace(lq)
    return _evaluate(jaxpr, consts, (lq, lp), ((lq, q), (lp, p)), True)[0]

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
    jaxpr, _ = self._trace(lq)
    return _evaluate(jaxpr, consts, (lq, lp), ((lq, q), (lp, p)))[0]

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
    known, args = ((lq, q), (lp, p)), jax.tree.leaves(args)
    value, u = _evaluate(closed.jaxpr, closed.consts, args, known, True)
    u = jnp.clip(u, -STEEP, STEEP)
    if self.robust(lq):
      return value, u
    return _determinate(value, q, p), _determinate(u, q, p)

  def robust(self, like) -> bool:
    """Whether phi is made of operations that give no NaN for finite input."""
    return _primitives(self._trace(like)[0]) <= ROBUST

  def _trace(self, like):
    closed = jax.make_jaxpr(self.divergence)(like, like)
    return closed.jaxpr, closed.consts


def _determinate(x, q, p):
  """Returns x, 0 where it is NaN because a probability vanished.

  (p - q)^2 / (p + q) at p = q = 0, say: an f-divergence has 0 f(0 / 0) = 0. A
  NaN that came in as an input makes q or p NaN and stays.
  """
  return jnp.where(jnp.isnan(x) & (jnp.minimum(q, p) < 1e-15), 0.0, x)


def _primitives(jaxpr) -> set[str]:
  names = set()
  for eqn in jaxpr.eqns:
    inner = inlined(eqn)
    if inner is not None:
      names |= _primitives(inner.jaxpr)
    elif eqn.primitive.name == "exp" and eqn.invars[0] not in jaxpr.invars:
      names.add("exp of an expression")  # may overflow
    else:
      names.add(eqn.primitive.name)
  return names


def inlined(eqn) -> Any:
  """Returns the closed jaxpr that an equation calls, or none.

  That of a jit (jnp.where and the like) or of a jax.custom_jvp.
  """
  if eqn.primitive.name == "custom_jvp_call":
    return eqn.params["call_jaxpr"]
  return eqn.params["jaxpr"] if eqn.primitive.name == "jit" else None


def _evaluate(
  jaxpr, consts: Sequence, args: Sequence, known: Sequence[tuple],
  custom: bool = False,
) -> list:  # fmt: skip
  """Evaluates a jaxpr, taking exp(a) from `known` pairs (a, exp(a)).

  Unless `custom`, calls of a jax.custom_jvp stay, with their derivative.
  """
  env = dict(zip(jaxpr.constvars, consts, strict=True))
  env.update(zip(jaxpr.invars, args, strict=True))
  read = lambda v: v.val if isinstance(v, jex_core.Literal) else env[v]
  for eqn in jaxpr.eqns:
    values = [read(v) for v in eqn.invars]
    hits = [e for a, e in known if values and values[0] is a]
    if eqn.primitive.name == "exp" and hits:
      outs = hits[:1]
    elif (inner := inlined(eqn)) and (custom or eqn.primitive.name == "jit"):
      outs = _evaluate(inner.jaxpr, inner.consts, values, known, custom)
    else:
      params = eqn.primitive.get_bind_params(eqn.params)
      outs = eqn.primitive.bind(*values, **params)
      outs = outs if eqn.primitive.multiple_results else [outs]
    env.update(zip(eqn.outvars, outs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def scaled(z, inv_t, valid=None):
  """Returns x = z / T in float32, FLOOR where not valid."""
  x = z.astype(jnp.float32) * inv_t
  return x if valid is None else jnp.where(valid, x, FLOOR)


def terms(phi: Phi, consts, lq, lp, q, p):
  """Returns phi and u; 0 where both sides are dead.

  Dead are the columns beyond V and those that caller masked with -inf or -1e30:
  lq and lp there differ by rounding of 1e30, which must not count.
  """
  dead = jnp.maximum(lq, lp) < DEAD
  value, u = phi.value_and_slope(consts, lq, lp, q, p)
  return jnp.where(dead, 0.0, value), jnp.where(dead, 0.0, u)


def gradient(u, q, total, soft_scale, softmax, onehot, hard_scale):
  """Returns dloss/dz = soft_scale (u - q U) + hard_scale (softmax - onehot).

  Args:
    u, q, total: of the soft term, total = U [C, 1]; None if there is none.
    soft_scale: [C, 1], weights soft_weight T (T^2 of the loss, 1/T of dx/dz).
    softmax, onehot, hard_scale: of the hard term, or None; hard_scale [C, 1] is
      weights hard_weight.
  """
  dz = 0.0
  if u is not None:
    dz = soft_scale * (u - q * total)
  if softmax is not None:
    dz = dz + hard_scale * (softmax - onehot)
  return dz


def frexp(s):
  """Returns (f, k), float32, with s = f 2^k and f around 1: 0.707 to 1.414."""
  f, k = jnp.frexp(s)
  k = k.astype(jnp.float32)
  small = f < 0.70710678
  return jnp.where(small, 2 * f, f), jnp.where(small, k - 1, k)


def split_log(s):
  """Returns (hi, lo) with hi + lo = log(s) to 2e-8, hi a rounded float32.

  log s is about log V, whose rounding (5e-7 at V = 65536) is common to a whole
  row, so it adds U times itself to D: 1e-3 of D at T = 20. `lo` corrects it.
  With s = f 2^k, log s = k ln 2 + log f, and k times 0x1.62ep-1 is exact.
  """
  f, k = frexp(s)
  exact = k * 0.693145751953125
  rest = jnp.log(f) + k * 1.42860682030941723212e-6
  hi = exact + rest
  return hi, (exact - hi) + rest


def log_rest(log_probs):
  """Returns log(1 - sum_k p_k) [..., 1] of a top-k teacher, at least log TINY.

  1 - p_1 = -expm1(lp_1) is exact to rounding for the largest p_1, so that a
  rest of 1e-6 keeps its digits where 1 - sum p would leave one.
  """
  best = jnp.argmax(log_probs, -1, keepdims=True)
  is_best = jnp.arange(log_probs.shape[-1]) == best
  others = jnp.where(is_best, 0.0, jnp.exp(log_probs)).sum(-1, keepdims=True)
  rest = -jnp.expm1(log_probs.max(-1, keepdims=True)) - others
  return jnp.log(jnp.maximum(rest, TINY))
