"""Divergences that are linear in the logarithms: the KLs."""

import dataclasses

import jax.numpy as jnp
from jax.core import Tracer

from kernels.jaxprs import called_by_jit, walk
from kernels.phi import Phi


@dataclasses.dataclass(frozen=True)
class Linear:
  """phi = q (a lq + b lp + c) + p (d lq + e lp + f).

  Sums of such a phi need no normalised q and p: sum_v q lq, say, follows from
  sums of e and e x over V, with x = lq + log s and e = e^x.
  """

  a: float
  b: float
  c: float
  d: float
  e: float
  f: float


def coefficients(phi: Phi) -> Linear | None:
  """Returns phi's coefficients, None if it has none or has two kinds of slope.

  u = dphi/dlq is q (a lq + b lp) + d p and a multiple of q; only one of the
  first two may be there, so that it is one array.
  """
  jaxpr, consts = phi.trace(jnp.zeros((1, 1), jnp.float32))
  logs = {("", "lq"): 1.0}, {("", "lp"): 1.0}
  try:
    (out,) = walk(jaxpr, consts, logs, _rule, _number, called_by_jit)
  except NotImplementedError:
    return None
  names = [("q", "lq"), ("q", "lp"), ("q", ""), ("p", "lq"), ("p", "lp"),
           ("p", "")]  # fmt: skip
  found = Linear(*(out.pop(n, 0.0) for n in names))
  two = (found.a or found.b) and found.d
  return None if any(out.values()) or two else found


# A polynomial is {(q or p, lq or lp): coefficient}; either name may be "".
ONE = ("", "")


def _number(x) -> dict:
  if isinstance(x, Tracer) or jnp.ndim(x):
    raise NotImplementedError
  return {ONE: float(x)}


def _add(x, y, sign=1.0):
  keys = {**x, **y}
  return {k: x.get(k, 0.0) + sign * y.get(k, 0.0) for k in keys}


def _mul(x, y):
  out = {}
  for (a, b), c in x.items():
    for (d, e), f in y.items():
      if (a and d) or (b and e):
        raise NotImplementedError
      out = _add(out, {(a + d, b + e): c * f})
  return out


def _exp(x):
  for name in "qp":
    if x == {("", "l" + name): 1.0}:
      return {(name, ""): 1.0}
  raise NotImplementedError


def _less(x, y):
  """log < -1e30 is false in a kernel, which floors logits at -1e25."""
  is_log = x in ({("", "lq"): 1.0}, {("", "lp"): 1.0})
  if is_log and set(y) == {ONE} and y[ONE] <= -1e27:
    return False
  raise NotImplementedError


RULES = {
  "add": _add,
  "add_any": _add,
  "sub": lambda x, y: _add(x, y, -1.0),
  "neg": lambda x: _add({}, x, -1.0),
  "mul": _mul,
  "exp": _exp,
  "lt": _less,
  "select_n": lambda which, *cases: cases[which],
  "broadcast_in_dim": lambda x: x,
  "convert_element_type": lambda x: x,
}


def _rule(eqn, values):
  name = eqn.primitive.name
  if name not in RULES:
    raise NotImplementedError
  return [RULES[name](*values)]
