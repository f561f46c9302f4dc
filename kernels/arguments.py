"""Arguments are checked before any compute: argument, got, expected."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from kernels.types import Head, Logits, TopK


class ArgumentError(ValueError, TypeError):
  """A wrong argument. Both of its bases, as the two are hard to tell apart."""


def bad(argument: str, got, expected) -> ArgumentError:
  return ArgumentError(f"{argument}: got {got}, expected {expected}")


def concrete(x) -> np.ndarray | None:
  """Returns x on the host, or None where it is traced or on other hosts."""
  if x is None or isinstance(x, Tracer):
    return None
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return None
  return np.asarray(jax.device_get(x))


def is_known(x, value) -> bool:
  """Whether a scalar is a Python or numpy number equal to value (static)."""
  return isinstance(x, (int, float, np.number)) and x == value


def _array(name: str, x, rank: int, kind, expected: str):
  if not hasattr(x, "shape") or not hasattr(x, "dtype"):
    raise bad(name, type(x).__name__, f"an array, {expected}")
  if len(x.shape) != rank:
    raise bad(name, f"shape {tuple(x.shape)}", f"rank {rank}, {expected}")
  if not jnp.issubdtype(x.dtype, kind):
    what = "a floating" if kind is jnp.floating else "an integer"
    raise bad(name, f"dtype {x.dtype}", f"{what} dtype")


def _scores(name: str, x) -> tuple[int, int]:
  """Checks Logits or Head; returns (N, V) as given."""
  if isinstance(x, Logits):
    _array(f"{name}.values", x.values, 2, jnp.floating, "[N, V]")
    n, v = x.values.shape
  elif isinstance(x, Head):
    _array(f"{name}.hidden", x.hidden, 2, jnp.floating, "[N, H]")
    _array(f"{name}.kernel", x.kernel, 2, jnp.floating, "[H, V]")
    (n, h), (h_kernel, v) = x.hidden.shape, x.kernel.shape
    if h != h_kernel:
      raise bad(
        f"{name}.kernel",
        f"shape {tuple(x.kernel.shape)}",
        f"[H, V] with H = {h}, as in {name}.hidden {tuple(x.hidden.shape)}",
      )
    if x.bias is not None:
      _array(f"{name}.bias", x.bias, 1, jnp.floating, "[V]")
      if x.bias.shape != (v,):
        raise bad(f"{name}.bias", f"shape {tuple(x.bias.shape)}", f"({v},)")
    _static_number(f"{name}.scale", x.scale)
    if x.soft_cap is not None:
      _static_number(f"{name}.soft_cap", x.soft_cap)
  else:
    raise bad(name, type(x).__name__, "kernels.Logits or kernels.Head")
  if n == 0 or v == 0:
    raise bad(name, f"N = {n}, V = {v}", "at least one row and one column")
  return n, v


def _static_number(name: str, x):
  number = isinstance(x, (int, float, np.number))
  if not number or not 0 < x < float("inf"):
    raise bad(name, repr(x), "a Python number > 0 (static)")


def _vocab(name: str, x, v: int, vocab_axis: str | None) -> int:
  """Returns the true, global V of scores with v (local) columns."""
  if vocab_axis is not None:
    try:
      v = v * lax.axis_size(vocab_axis)
    except NameError as error:
      raise bad(
        "vocab_axis", repr(vocab_axis), "a mesh axis of an enclosing shard_map"
      ) from error
  if x.vocab_size is None:
    return v
  if not 0 < x.vocab_size <= v:
    raise bad(f"{name}.vocab_size", x.vocab_size, f"1 to {v}, the columns")
  return x.vocab_size


def _temperature(temperature):
  _scalar("temperature", temperature)
  t = concrete(temperature)
  if t is not None and not t > 0:
    raise bad("temperature", t, "a number > 0")


def _scalar(name: str, x):
  if np.shape(x) != ():
    raise bad(name, f"shape {np.shape(x)}", "a scalar (vmap over several)")
  dtype = getattr(x, "dtype", np.dtype(type(x)) if x is not None else None)
  real = dtype is not None and (
    jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
  )
  if not real:
    raise bad(name, f"{x!r}", "a real number")


def _ids(name: str, ids, vocab_size: int, alive: np.ndarray | None):
  """Raises where concrete ids of rows that count are out of range."""
  values = concrete(ids)
  if values is None:
    return
  wrong = (values < 0) | (values >= vocab_size)
  if alive is not None:
    wrong &= alive.reshape(alive.shape + (1,) * (wrong.ndim - 1))
  if wrong.any():
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    raise bad(
      f"{name}[{', '.join(map(str, where))}]",
      int(values[where]),
      f"0 to {vocab_size - 1} (V = {vocab_size})",
    )


def _distinct(ids, alive: np.ndarray | None):
  """Raises where a row that counts holds a concrete id twice."""
  values = concrete(ids)
  if values is None:
    return
  ordered = np.sort(values, axis=1)
  twice = ordered[:, 1:] == ordered[:, :-1]
  if alive is not None:
    twice &= alive[:, None]
  if twice.any():
    row, k = (int(i) for i in np.argwhere(twice)[0])
    raise bad(
      f"teacher.ids[{row}]",
      f"{int(ordered[row, k])} twice",
      "K different ids (fill up with other ids, of log-probability -inf)",
    )


def int32(ids, vocab_size: int) -> jax.Array:
  """Returns ids as int32; those beyond it stay out of range."""
  if ids.dtype.itemsize > 4:
    where = np.where if isinstance(ids, np.ndarray) else jnp.where
    ids = where((ids < 0) | (ids >= vocab_size), -1, ids)
  return jnp.asarray(ids).astype(jnp.int32)


def _topk(teacher: TopK, n: int, vocab_size: int):
  _array("teacher.ids", teacher.ids, 2, jnp.integer, "[N, K]")
  lp = teacher.log_probs
  _array("teacher.log_probs", lp, 2, jnp.floating, "[N, K]")
  if lp.shape != teacher.ids.shape:
    expected = f"that of teacher.ids, {tuple(teacher.ids.shape)}"
    raise bad("teacher.log_probs", f"shape {tuple(lp.shape)}", expected)
  if teacher.ids.shape[0] != n:
    raise bad("teacher.ids", f"N = {teacher.ids.shape[0]}", f"N = {n}")
  if not 0 < teacher.ids.shape[1] <= vocab_size:
    raise bad("teacher.ids", f"K = {teacher.ids.shape[1]}", "0 < K <= V")
  if teacher.tail not in ("bucket", "renormalize"):
    raise bad("teacher.tail", repr(teacher.tail), "'bucket' or 'renormalize'")


def _divergence(divergence):
  if not callable(divergence):
    raise bad("divergence", repr(divergence), "a function phi(lq, lp)")
  like = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  out = jax.eval_shape(divergence, like, like)
  if getattr(out, "shape", None) != (2, 3) or out.dtype != jnp.float32:
    raise bad(
      "divergence", f"phi of two [2, 3] float32 gives {out}", "[2, 3] float32"
    )


def of_loss(
  student, teacher, divergence, temperature, weights, labels, hard_weight,
  soft_weight, vocab_axis,
) -> int:  # fmt: skip
  """Checks the arguments of `distill_loss`; returns the true, global V."""
  n, v = _scores("student", student)
  vocab_size = _vocab("student", student, v, vocab_axis)
  if isinstance(teacher, TopK):
    _topk(teacher, n, vocab_size)
  elif teacher is not None:
    n_t, v_t = _scores("teacher", teacher)
    if n_t != n:
      raise bad("teacher", f"N = {n_t}", f"N = {n}, as the student")
    if teacher.vocab_size is not None:
      size = _vocab("teacher", teacher, v_t, vocab_axis)
      if student.vocab_size is not None and size != vocab_size:
        raise bad("teacher.vocab_size", size, f"{vocab_size}, as the student")
      vocab_size = size
    if v_t != v:
      sizes = {student.vocab_size, teacher.vocab_size} - {None}
      if vocab_axis is not None:
        raise bad("teacher", f"V = {v_t}", f"V = {v}, as the student's shard")
      if not sizes or vocab_size > min(v, v_t):
        expected = f"V = {v}, as the student, or a vocab_size <= {min(v, v_t)}"
        raise bad("teacher", f"V = {v_t}", expected)
  elif not is_known(soft_weight, 0):
    expected = "Logits, Head or TopK (None only with soft_weight=0.0)"
    raise bad("teacher", None, expected)
  _divergence(divergence)
  _temperature(temperature)
  _scalar("hard_weight", hard_weight)
  _scalar("soft_weight", soft_weight)
  alive = None
  if weights is not None:
    _array("weights", weights, 1, jnp.number, "[N]")
    if weights.shape != (n,):
      raise bad("weights", f"shape {tuple(weights.shape)}", f"({n},)")
    alive = concrete(weights)
    alive = None if alive is None else alive != 0
  skip = weights is not None and alive is None  # some rows may be masked
  if isinstance(teacher, TopK) and not skip:
    _ids("teacher.ids", teacher.ids, vocab_size, alive)
    _distinct(teacher.ids, alive)
  if labels is None:
    if not is_known(hard_weight, 0) and _may_be_nonzero(hard_weight):
      raise bad("labels", None, f"[N] ids, as hard_weight is {hard_weight}")
    return vocab_size
  _array("labels", labels, 1, jnp.integer, "[N]")
  if labels.shape != (n,):
    raise bad("labels", f"shape {tuple(labels.shape)}", f"({n},)")
  if not skip:
    _ids("labels", labels, vocab_size, alive)
  return vocab_size


def _may_be_nonzero(x) -> bool:
  value = concrete(x)
  return value is None or bool(value != 0)


def of_scores(scores, ids, temperature, vocab_axis) -> int:
  """Checks the arguments of `token_log_probs`; returns the true, global V."""
  n, v = _scores("head_or_logits", scores)
  vocab_size = _vocab("head_or_logits", scores, v, vocab_axis)
  _array("ids", ids, 1, jnp.integer, "[N]")
  if ids.shape != (n,):
    raise bad("ids", f"shape {tuple(ids.shape)}", f"({n},)")
  _temperature(temperature)
  _ids("ids", ids, vocab_size, None)
  return vocab_size


def of_reference(vocab_axis):
  if vocab_axis is not None:
    raise bad(
      "vocab_axis", repr(vocab_axis), "None with implementation='reference'"
    )
