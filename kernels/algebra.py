"""Evaluates phi and its slope in few vector operations.

XLA simplifies what jvp leaves behind; Pallas kernels get it as it is. So a
jaxpr is evaluated here with three things known of every value:

- a constant factor, kept apart from the array: negations, literal factors and
  the ln 2 between nats and bits are multiplied into sums of a row at the end;
- its range, which shows whether it can overflow or become NaN, so that guards
  are paid for only where needed;
- its origin: equal operations on equal operands are done once.

Ranges assume finite inputs; NaN inputs stay NaN.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from kernels import tile
from kernels.jaxprs import bind, walk
from kernels.phi import Phi

LN2 = math.log(2)
INF = math.inf
HUGE = 3e38  # beyond it, an intermediate may be infinite


@dataclasses.dataclass(frozen=True)
class Value:
  """factor * x, or the constant `factor` where x is None.

  Attributes:
    factor: a Python number.
    x: array or None.
    low, high: bounds of factor * x.
    terms: two Values that were added, or none.
  """

  factor: Any
  x: Any = None
  low: float = -INF
  high: float = INF
  terms: tuple["Value", ...] = ()

  @property
  def bound(self) -> float:
    return max(abs(self.low), abs(self.high))

  @property
  def finite(self) -> bool:
    return self.bound < HUGE


def constant(c) -> Value:
  return Value(c, None, c, c)


def array(v: Value, like):
  """Returns the array that a value stands for."""
  if v.x is None:
    return jnp.full(like.shape, v.factor, jnp.float32)
  return v.x if v.factor == 1 else v.x * v.factor


def _range(candidates) -> tuple[float, float]:
  candidates = list(candidates)
  if any(math.isnan(c) or abs(c) >= HUGE for c in candidates):
    return -INF, INF
  return min(candidates), max(candidates)


def value_and_slope(phi: Phi, consts, lq, lp, q, p, reciprocal=None):
  """Returns phi and u = dphi/dlq as Values.

  Args:
    phi: the divergence.
    consts: its constants.
    lq, lp: Values.
    q, p: arrays, exp of the former, in [0, 1] up to rounding.
    reciprocal: x -> 1 / x, if there is a better way than dividing.
  """

  fn = phi.jvp_of_floored
  value, u = _evaluate(fn, phi, consts, lq, lp, q, p, reciprocal)
  return _guarded(value, q, p), _guarded(_clipped(u), q, p)


def without(value: Value, u: Value) -> tuple[Value, float]:
  """Returns (rest, share), value = rest + share u, both finite.

  share is 0 unless value is a sum of which a multiple of u is one term, as in a
  JSD: then a row's sum of that term is known from U.
  """
  for term, rest in (value.terms, value.terms[::-1]) if value.terms else ():
    if term.x is u.x and rest.x is not None and value.finite:
      return rest, term.factor / u.factor
  return value, 0.0


def value(phi: Phi, consts, lq, lp, q, p, reciprocal=None) -> Value:
  """Returns phi alone; see `value_and_slope`."""
  fn = phi.of_floored
  (out,) = _evaluate(fn, phi, consts, lq, lp, q, p, reciprocal)
  return _guarded(out, q, p)


def _evaluate(fn, phi, consts, lq, lp, q, p, reciprocal):
  """Floors q and p only if something may not be finite without."""
  closed = jax.make_jaxpr(fn)(consts, q, q, q, q)
  for low in (0.0, 0.99 * phi.floor(q)):
    if low > 0:
      q, p = phi.floored(q, p)
    probabilities = [Value(1.0, x, low, 1.001) for x in (q, p)]
    known = list(zip((lq, lp), probabilities, strict=True))
    inputs = [*(Value(1.0, c) for c in consts), lq, lp, *probabilities]
    evaluator = _Evaluator(q, reciprocal, known)
    out = evaluator.run(closed.jaxpr, closed.consts, inputs)
    if all(v.finite for v in out):
      break
  return out


def _clipped(u: Value) -> Value:
  if u.x is None or u.bound <= tile.STEEP:
    return u
  most = tile.STEEP / abs(u.factor)
  x = jnp.clip(u.x, -most, most)
  # Clipping does not remove a NaN, so what was not finite stays suspect.
  return Value(u.factor, x, u.low, u.high)


def _guarded(v: Value, q, p) -> Value:
  """Returns v, 0 where it is NaN because a probability vanished."""
  if v.x is None or v.finite:
    return v
  lost = jnp.isnan(v.x) & (jnp.minimum(q, p) < 1e-15)
  return Value(v.factor, jnp.where(lost, 0.0, v.x), v.low, v.high)


class _Evaluator:
  """Evaluates a jaxpr on Values; see the module."""

  def __init__(self, like, reciprocal, known):
    self.like = like
    self.known = known  # pairs (a, exp a)
    self.inverse = reciprocal or (lambda x: 1 / x)
    self.seen = {}
    self.keep = []  # what `seen` refers to by id

  def run(self, jaxpr, consts, args) -> list[Value]:
    return walk(jaxpr, consts, args, self.apply, self.lift)

  def lift(self, c) -> Value:
    if isinstance(c, Tracer) or jnp.ndim(c):
      return Value(1.0, c)
    if jnp.issubdtype(jnp.result_type(c), jnp.floating):
      return constant(float(c))
    return Value(1.0, c)

  def apply(self, eqn, args: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    key = (name, str(eqn.params), *((a.factor, id(a.x)) for a in args))
    if key not in self.seen:
      self.keep.append(args)
      rule = getattr(self, "_" + name, None)
      kinds = [v.aval.dtype for v in eqn.invars]
      floating = all(d == jnp.float32 for d in kinds[name == "select_n" :])
      out = rule(eqn, *args) if rule and floating else None
      self.seen[key] = [out] if out is not None else self.bind(eqn, args)
    return self.seen[key]

  def bind(self, eqn, args) -> list[Value]:
    """Any other operation, on arrays."""
    arrays = []
    for a, v in zip(args, eqn.invars, strict=True):
      if a.x is None:
        arrays.append(jnp.full(v.aval.shape, a.factor, v.aval.dtype))
      else:
        arrays.append(a.x if a.factor == 1 else a.x * a.factor)
    return [Value(1.0, x) for x in bind(eqn, arrays)]

  # Rules: name of the primitive, None where it does not apply.

  def _neg(self, eqn, a):
    return Value(-a.factor, a.x, -a.high, -a.low)

  def _mul(self, eqn, a, b):
    if 0 in (a.factor, b.factor):
      return constant(0.0)
    ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    low, high = _range(ends)
    if a.x is not None and a.x is b.x and a.factor * b.factor > 0:
      low = 0.0 if a.low > -INF and a.high < INF else low  # a square: no NaN
    if a.x is None or b.x is None:
      x = b.x if a.x is None else a.x
    else:
      x = a.x * b.x
    factor = a.factor * b.factor
    if x is not None and not 1e-6 < abs(factor) < 1e6:
      # Factors of series (1 / 8!) multiply up to what float32 cannot hold.
      factor, x = 1.0, x * factor
    return Value(factor, x, low, high)

  def _add(self, eqn, a, b, sign=1):
    low, high = _range((a.low + min(sign * b.low, sign * b.high),
                        a.high + max(sign * b.low, sign * b.high)))  # fmt: skip
    fb = sign * b.factor
    if a.factor == 0:
      return Value(fb, b.x, low, high)
    if fb == 0:
      return Value(a.factor, a.x, low, high)
    if a.x is None and b.x is None:
      return constant(a.factor + fb)
    if a.x is b.x:
      total = a.factor + fb
      return Value(total, a.x, low, high) if total else constant(0.0)
    if a.x is None:
      return Value(fb, b.x + a.factor / fb, low, high)
    if b.x is None:
      return Value(a.factor, a.x + fb / a.factor, low, high)
    ratio = fb / a.factor
    if abs(ratio) == 1:
      factor, x = a.factor, a.x + b.x if ratio == 1 else a.x - b.x
    elif 1e-3 < abs(ratio) < 1e3:
      factor, x = fb, a.x * (1 / ratio) + b.x
    else:
      factor, x = 1.0, a.x * a.factor + b.x * fb
    return Value(factor, x, low, high, (a, Value(fb, b.x, -INF, INF)))

  def _sub(self, eqn, a, b):
    return self._add(eqn, a, b, -1)

  _add_any = _add

  def _div(self, eqn, a, b):
    if b.x is None:
      return self._mul(eqn, a, constant(1 / b.factor)) if b.factor else None
    if a.factor == 0:
      return constant(0.0)
    low, high = -INF, INF
    if b.low > 0 or b.high < 0:
      ends = [x / y for x in (a.low, a.high) for y in (b.low, b.high)]
      low, high = _range(ends)
    x = self.reciprocal(b.x)
    x = x if a.x is None else a.x * x
    return Value(a.factor / b.factor, x, low, high)

  def reciprocal(self, x):
    key = ("reciprocal", id(x))
    if key not in self.seen:
      self.keep.append(x)
      self.seen[key] = self.inverse(x)
    return self.seen[key]

  def _integer_pow(self, eqn, a):
    y = eqn.params["y"]
    if a.x is None or y not in (2, 3):
      return None
    x = a.x * a.x
    low, high = _range((a.low**y, a.high**y))
    if y == 2:
      return Value(a.factor**2, x, 0.0 if low > -INF else -INF, high)
    return Value(a.factor**3, x * a.x, low, high)

  def _square(self, eqn, a):
    return self._mul(eqn, a, a)

  def _exp(self, eqn, a):
    for log, e in self.known:
      if a.x is log.x and a.factor == log.factor:
        return e
    if a.x is None:
      return constant(math.exp(a.factor)) if a.factor < 80 else None
    power = a.factor / LN2
    x = a.x if abs(power - 1) < 1e-12 else a.x * power
    high = math.exp(a.high) if a.high < 80 else INF
    return Value(1.0, jnp.exp2(x), 0.0 if high < INF else -INF, high)

  def _log(self, eqn, a):
    if a.x is None:
      return constant(math.log(a.factor)) if a.factor > 0 else None
    low, high = -INF, INF
    if a.low > 0 and a.high < HUGE:
      low, high = math.log(a.low), math.log(a.high)
    x = a.x if a.factor == 1 else a.x * a.factor
    return Value(LN2, jnp.log2(x), low, high)

  def scaled(self, a, factor):
    """Returns the array x with factor * x = a."""
    return a.x if a.factor == factor else a.x * (a.factor / factor)

  def _max(self, eqn, a, b):
    return self._extremum(a, b, jnp.maximum, max)

  def _min(self, eqn, a, b):
    return self._extremum(a, b, jnp.minimum, min)

  def _extremum(self, a, b, op, of):
    if a.x is None and b.x is None:
      return constant(of(a.factor, b.factor))
    if b.x is None:
      a, b = b, a
    if b.factor < 0:  # max(-x, y) = -min(x, -y)
      op = jnp.minimum if op is jnp.maximum else jnp.maximum
    if a.x is None:
      x = op(b.x, a.factor / b.factor)
    else:
      x = op(b.x, self.scaled(a, b.factor))
    return Value(b.factor, x, of(a.low, b.low), of(a.high, b.high))

  def _lt(self, eqn, a, b):
    """Known from the ranges, or without a factor if b is a number."""
    if a.high < b.low:
      return constant(True)
    if a.low >= b.high:
      return constant(False)
    if a.x is None or b.x is not None or a.factor < 0:
      return None
    return Value(1.0, a.x < b.factor / a.factor)

  def _eq(self, eqn, a, b):
    if a.x is None or b.x is None or a.factor != b.factor:
      return None
    return Value(1.0, a.x == b.x)

  def _abs(self, eqn, a):
    if a.x is None:
      return constant(abs(a.factor))
    low = 0.0 if a.bound < HUGE else -INF
    return Value(abs(a.factor), jnp.abs(a.x), low, a.bound)

  def _broadcast_in_dim(self, eqn, a):
    if a.x is None:
      return a
    (out,) = self.bind(eqn, [a])
    return Value(1.0, out.x, a.low, a.high)

  def _convert_element_type(self, eqn, a):
    return a if eqn.params["new_dtype"] == jnp.float32 else None

  def _copy(self, eqn, a):
    return a

  _stop_gradient = _copy

  def _select_n(self, eqn, which, *cases):
    """Keeps a common factor; 0 has any."""
    if which.x is None:
      return cases[int(which.factor)]
    # With several, that of the first array, which stays as it is.
    arrays = [c for c in cases if c.x is not None and c.factor != 0]
    factor = arrays[0].factor if arrays else 1.0
    shape = eqn.outvars[0].aval.shape
    xs = []
    for c in cases:
      if c.x is None:
        xs.append(jnp.full(shape, c.factor / factor, jnp.float32))
      else:
        xs.append(self.scaled(c, factor))
    which = which.x if which.x is not None else which.factor
    x = jax.lax.select_n(which, *xs)
    low, high = min(c.low for c in cases), max(c.high for c in cases)
    return Value(factor, x, low, high)
