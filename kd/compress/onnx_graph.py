"""A program as ONNX, through jax2onnx, where it converts.

jax2onnx replaces functions of jax and flax while it traces. So a program is
traced before, and jax2onnx sees its primitives alone, some in another form:

  branches by platform    the one of any platform
  maxima over windows     of a reshaped array, where windows do not overlap
  cumulative maxima       of whole numbers, in float32
  products of int8        of float32, which onnxruntime has
  casts to int8           of what it holds: ONNX wraps the rest, XLA does not
  padding                 a concatenation
"""

import importlib.util
import logging
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kd.compress.export import Program
from kd.errors import why
from kernels.jaxprs import bind, walk

NEEDED = ("jax2onnx", "onnx_ir", "onnx", "onnxruntime")
INSTALL = "pip install --no-deps -r requirements-data.txt"
LARGEST = 1e-4  # difference of probabilities
FATAL = 4  # onnxruntime's level of what is logged


def write(
  made: Program, inputs: np.ndarray, logits: np.ndarray, path: str
) -> dict[str, Any]:
  """Writes a file that onnxruntime agrees with, or none.

  Args:
    made: the program.
    inputs, logits: some, and the study's logits of them.
    path: of the file.

  Returns:
    `file`, `opset` and `largest_difference` of probabilities where there is a
    file; else `file` of None, and `why`.
  """
  target = pathlib.Path(path)
  target.unlink(missing_ok=True)
  lacking = [x for x in NEEDED if importlib.util.find_spec(x) is None]
  if lacking:
    return _none(f"{', '.join(lacking)} not installed; {INSTALL} brings it")
  try:
    graph = _convert(made)
    found = _run(graph, inputs)
  except Exception as error:  # a converter fails in any way
    return _none(f"jax2onnx or onnxruntime could not take it: {why(error)}")
  difference = largest_difference(found, logits)
  if not difference <= LARGEST:
    return _none(
      f"onnxruntime's probabilities differ by {difference:.2g}, more than "
      f"{LARGEST:g}"
    )
  target.write_bytes(graph.SerializeToString())
  return {
    "file": target.name,
    "opset": graph.opset_import[0].version,
    "largest_difference": difference,
  }


def largest_difference(z: np.ndarray, other: np.ndarray) -> float:
  """Returns the largest difference of probabilities of two logits [..., V]."""
  return float(np.max(np.abs(_softmax(z) - _softmax(other))))


def _softmax(z: np.ndarray) -> np.ndarray:
  z = z.astype(np.float64)
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def _none(why: str) -> dict[str, Any]:
  return {"file": None, "why": why}


def _convert(made: Program) -> Any:
  """Returns an ONNX model."""
  spec = made.spec()  # one, since a B is another than the next one
  closed = jax.make_jaxpr(lambda x: made.call(made.weights, x))(spec)

  def primitives(inputs):
    return walk(closed.jaxpr, closed.consts, [inputs], _rule)[0]

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # It says at length which of its examples cannot be imported.
    for name in ("jax2onnx", "onnx_ir"):
      logging.getLogger(name).setLevel(logging.CRITICAL)
    kept = dict(vars(jnp))
    try:
      import jax2onnx

      return jax2onnx.to_onnx(
        primitives,
        [spec],
        model_name="model",
        input_names=["inputs"],
        output_names=["logits"],
      )
    finally:
      vars(jnp).update(kept)  # it leaves jnp.cumsum replaced


def _run(graph: Any, inputs: np.ndarray) -> np.ndarray:
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = FATAL  # the rest is said in an exception
  session = onnxruntime.InferenceSession(
    graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
  )
  return np.asarray(session.run(None, {"inputs": inputs})[0])


def _rule(eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
  """Does what an equation says, in a form that jax2onnx takes."""
  keys = eqn.params
  match eqn.primitive.name:
    case "platform_index":
      return [jnp.int32(0)]
    case "cond" if keys.get("branches_platforms"):
      branch = keys["branches"][keys["branches_platforms"].index(None)]
      return walk(branch.jaxpr, branch.consts, values[1:], _rule)
    case "reduce_window_max":
      return [_pooled(values[0], keys)]
    case "pad":
      return [_padded(*values, keys["padding_config"])]
    case "dot_general" if values[0].dtype == values[1].dtype == jnp.int8:
      floats = [x.astype(jnp.float32) for x in values]
      found = lax.dot_general(*floats, keys["dimension_numbers"])
      return [found.astype(eqn.outvars[0].aval.dtype)]
    case "convert_element_type" if keys["new_dtype"] == jnp.int8:
      if jnp.issubdtype(values[0].dtype, jnp.floating):
        return bind(eqn, [jnp.clip(values[0], -128, 127)])
    case "cummax" if jnp.issubdtype(values[0].dtype, jnp.integer):
      (found,) = bind(eqn, [values[0].astype(jnp.float32)])
      return [found.astype(values[0].dtype)]
  return bind(eqn, values)


def _pooled(x: Any, keys: Any) -> Any:
  """Returns the maxima over windows that lie side by side."""
  window = keys["window_dimensions"]
  if window != keys["window_strides"]:
    raise NotImplementedError(
      f"maxima over windows {window} with strides {keys['window_strides']}"
    )
  around = [(low, high, 0) for low, high in keys["padding"]]
  x = _padded(x, jnp.asarray(-jnp.inf, x.dtype), around)
  parts = [n for size, own in zip(x.shape, window, strict=True)
           for n in (size // own, own)]  # fmt: skip
  return lax.reduce_max(lax.reshape(x, parts), range(1, len(parts), 2))


def _padded(x: Any, value: Any, around: Any) -> Any:
  """Returns an array with values before and after it along each axis."""
  if any(low < 0 or high < 0 or inside for low, high, inside in around):
    raise NotImplementedError(f"padding by {around}")
  for axis, (low, high, _) in enumerate(around):
    fill = lambda n, axis=axis, x=x: lax.broadcast(
      value, (*x.shape[:axis], n, *x.shape[axis + 1 :])
    )
    ends = [fill(low)] if low else [], [fill(high)] if high else []
    if low or high:
      x = lax.concatenate([*ends[0], x, *ends[1]], axis)
  return x
