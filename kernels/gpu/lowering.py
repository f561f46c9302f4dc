"""Rewrites elementwise jaxprs into operations that Mosaic GPU can lower.

Mosaic GPU knows no add_any (which every jvp makes), log1p, expm1, pow, logistic
and others, and its interpret mode does not notice. So what a kernel computes
from a researcher's phi is traced first and evaluated again from here, one
substitution after another (jax 0.12.0.1; checked by compiling: kernels.report).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from kernels.jaxprs import bind, walk

# What jax/_src/pallas/mosaic_gpu/lowering.py has a rule for, elementwise.
KNOWN = frozenset(
  ["abs", "add", "and", "bitcast_convert_type", "broadcast_in_dim", "clamp",
   "convert_element_type", "cos", "div", "eq", "erf", "exp", "exp2", "ge", "gt",
   "le", "log", "log2", "lt", "max", "min", "mul", "ne", "neg",
   "not", "or", "rem", "reshape", "rsqrt", "select_n", "sign", "sin", "sqrt",
   "square", "squeeze", "sub", "tanh", "xor", "atan2"]
)  # fmt: skip


def _log1p(x):
  """Returns log(1 + x), by Kahan's correction of log's rounded argument."""
  y = 1 + x
  safe = jnp.where((y == 1) | (y > 3e38), 2.0, y)
  out = jnp.log(safe) * (x / (safe - 1))
  return jnp.where(y == 1, x, jnp.where(y > 3e38, y, out))


def _expm1(x):
  """Returns e^x - 1, by Kahan's correction."""
  y = jnp.exp(x)
  safe = jnp.where((y == 1) | (y > 3e38) | (y < 1e-30), 2.0, y)
  out = (safe - 1) * (x / jnp.log(safe))
  out = jnp.where((y > 3e38) | (y < 1e-30), y - 1, out)
  return jnp.where(y == 1, x, out)


def _pow(x, y):
  """Returns x^y for x >= 0; NaN below."""
  y = jnp.asarray(y, x.dtype)
  zero = jnp.where(y == 0, 1.0, jnp.where(y > 0, 0.0, jnp.inf))
  out = jnp.exp(y * jnp.log(jnp.where(x == 0, 1.0, x)))
  return jnp.where(x == 0, zero, out)


def _integer_pow(x, y):
  """Returns x^y; Mosaic GPU lowers y = -1 and y >= 2."""
  if y < 0:
    return 1 / _integer_pow(x, -y)
  return jnp.ones_like(x) if y == 0 else x if y == 1 else lax.integer_pow(x, y)


def _cbrt(x):
  size = jnp.abs(x)
  root = jnp.exp(jnp.log(jnp.where(size == 0, 1.0, size)) * (1 / 3))
  return jnp.where(size == 0, x, jnp.sign(x) * root)


# Primitive -> function of its operands, in jnp operations that are in KNOWN.
SUBSTITUTES: dict[str, Callable] = {
  "add_any": lambda x, y: x + y,
  "log1p": _log1p,
  "expm1": _expm1,
  "pow": _pow,
  "integer_pow": _integer_pow,
  "cbrt": _cbrt,
  "logistic": lambda x: 1 / (1 + jnp.exp(-x)),
  "sinh": lambda x: 0.5 * (jnp.exp(x) - jnp.exp(-x)),
  "cosh": lambda x: 0.5 * (jnp.exp(x) + jnp.exp(-x)),
  "tan": lambda x: jnp.sin(x) / jnp.cos(x),
  "erfc": lambda x: 1 - lax.erf(x),
  "is_finite": lambda x: jnp.abs(x) < jnp.inf,
  "copy": lambda x: x,
  "copy_p": lambda x: x,
}


def missing(jaxpr, consts: Sequence) -> set[str]:
  """Returns the primitives that would stop the compilation of a jaxpr."""
  names = set()

  def rule(eqn, values):
    del values
    names.add(eqn.primitive.name)
    return [None] * len(eqn.outvars)

  walk(jaxpr, consts, [None] * len(jaxpr.invars), rule)
  return names - KNOWN - set(SUBSTITUTES)


def _rule(eqn, values):
  """Does on arrays what the equation says, or its substitute."""
  fn = SUBSTITUTES.get(eqn.primitive.name)
  if fn is None:
    return bind(eqn, values)
  if eqn.primitive is lax.integer_pow_p:
    return [fn(*values, eqn.params["y"])]
  return [_inline(fn, values)]


def evaluate(jaxpr, consts: Sequence, args: Sequence) -> list:
  """Evaluates a jaxpr with every substitution made."""
  return walk(jaxpr, consts, args, _rule)


def _inline(fn, values):
  """Calls a substitute; its own jit calls (jnp.where) are inlined as well."""
  closed = jax.make_jaxpr(fn)(*values)
  return evaluate(closed.jaxpr, closed.consts, values)[0]


def call(fn: Callable, *args):
  """Returns fn(*args), a pytree, in operations that Mosaic GPU lowers."""
  flat, tree = jax.tree.flatten(args)
  out_tree = None

  def flat_fn(*flat):
    nonlocal out_tree
    outs, out_tree = jax.tree.flatten(fn(*jax.tree.unflatten(tree, flat)))
    return outs

  closed = jax.make_jaxpr(flat_fn)(*flat)
  outs = evaluate(closed.jaxpr, closed.consts, flat)
  return jax.tree.unflatten(out_tree, outs)
