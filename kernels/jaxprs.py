"""One walk over jaxprs, for all that reads or rewrites a researcher's phi.

A jaxpr is evaluated on values of any kind (arrays, arrays with a range,
polynomials, nothing at all), as the rule that is handed in understands them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core as jex_core

# Primitives that run a jaxpr once, on their operands -> its parameter.
CALLS = {
  "jit": "jaxpr",
  "remat2": "jaxpr",  # jax.checkpoint
  "closed_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}


def called(eqn) -> Any:
  """Returns the closed jaxpr that an equation calls, or None.

  That of a jit (jnp.where and the like), of jax.checkpoint, or of a function
  with a derivative of its own. Loops and branches are no calls.
  """
  key = CALLS.get(eqn.primitive.name)
  return None if key is None else eqn.params[key]


def called_by_jit(eqn) -> Any:
  """As `called`, but keeps functions that have a derivative of their own."""
  return called(eqn) if eqn.primitive.name == "jit" else None


def walk(
  jaxpr,
  consts: Sequence,
  args: Sequence,
  rule: Callable[[Any, list], Sequence],
  lift: Callable = lambda x: x,
  enter: Callable = called,
) -> list:
  """Evaluates a jaxpr; returns its outputs.

  Args:
    jaxpr: as of jax.make_jaxpr(...).jaxpr.
    consts: for its constvars.
    args: one value for each input.
    rule: (equation, its operands' values) -> its results' values.
    lift: literal or constant -> value.
    enter: equation -> the closed jaxpr to walk in its place, or None.
  """
  env = dict(zip(jaxpr.constvars, map(lift, consts), strict=True))
  env.update(zip(jaxpr.invars, args, strict=True))
  read = lambda v: lift(v.val) if isinstance(v, jex_core.Literal) else env[v]
  for eqn in jaxpr.eqns:
    values = [read(v) for v in eqn.invars]
    inner = enter(eqn)
    if inner is None:
      outs = rule(eqn, values)
    else:
      outs = walk(inner.jaxpr, inner.consts, values, rule, lift, enter)
    env.update(zip(eqn.outvars, outs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def bind(eqn, values: Sequence) -> Sequence:
  """The rule that does on arrays what the equation says."""
  params = eqn.primitive.get_bind_params(eqn.params)
  outs = eqn.primitive.bind(*values, **params)
  return outs if eqn.primitive.multiple_results else [outs]
