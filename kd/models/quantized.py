r"""Layers whose weights are quantised, or train as if they were.

A kernel W [D, F] is held as whole numbers, or 8-bit floats, Q with scales s:
one for each column, or for each `block` of D within it,

    W ~ s Q,   s = max |W| / (largest Q + 1/2), of floats max |W| / largest Q

and its product with x is qwix's (qwix.dot_general): where x is rounded too,
(s_x s) (Q_x Q) with Q_x Q a product of whole numbers added up in int32; else of
x and s Q in floating point. In training the same rounding is seen, and its
gradient is that of the identity (Bengio et al. 2013, arXiv:1308.3432):

    W + stop_gradient(s Q - W)

A student's option `quantized`, which arms.NAME.compress sets, makes such a
model; so its structure is known from its options as any other's is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jaxtyping import Array

from kd.models.windows import windows

OPTION = "quantized"  # of a student; no config sets it
QTYPES: dict[str, Any] = {
  "int8": jnp.int8,
  "int4": jnp.int4,
  "fp8": jnp.float8_e4m3fn,
}


@dataclasses.dataclass(frozen=True)
class How:
  """What is rounded to what; keys of a step of kd.config.compression."""

  weights: str
  activations: str = "none"
  block: int | None = None
  aware: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel [D, F] in place of an array.

  Attributes:
    weights: Q and s; D is padded with zeros to whole blocks.
    inputs: the scale of a layer's inputs, known beforehand; or None.
    size: D.
    dynamic: whether each row of inputs has a scale of its own.
  """

  weights: qwix.QArray
  inputs: Array | None
  size: int = dataclasses.field(metadata={"static": True})
  dynamic: bool = dataclasses.field(metadata={"static": True})

  @property
  def shape(self) -> tuple[int, int]:
    return self.size, self.weights.shape[-1]

  def __getitem__(self, index) -> "Kernel":
    assert index is Ellipsis  # as a variable's value is read
    return self

  def __rmatmul__(self, x: Array) -> Array:
    """Returns x @ W [..., F] of x [..., D]."""
    if lacking := self.weights.shape[0] - self.size:
      x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, lacking)])
    dims = ((x.ndim - 1,), (0,)), ((), ())
    return qwix.dot_general(self._rounded(x), self.weights, dims)

  def _rounded(self, x: Array) -> Array | qwix.QArray:
    if self.dynamic:
      axes = range(x.ndim - 1)
      return qwix.quantize(x, jnp.int8, channelwise_axes=axes)
    if self.inputs is None:
      return x
    scale = self.inputs.astype(x.dtype)
    whole = jnp.clip(jnp.round(x / scale), -127, 127).astype(jnp.int8)
    return qwix.QArray(whole, scale.reshape((1,) * x.ndim))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
  """Embeddings [V, D], held as the kernel [D, V] that they may also be."""

  kernel: Kernel

  @property
  def shape(self) -> tuple[int, int]:
    return self.kernel.shape[::-1]

  def __getitem__(self, index) -> "Table":
    assert index is Ellipsis
    return self

  def rows(self, ids: Array) -> Array:
    """Returns the embeddings [..., D] of ids [...]."""
    held = self.kernel.weights
    take = lambda x: jnp.moveaxis(jnp.take(x, ids, axis=1), 0, -1)
    own = qwix.QArray(take(held.qvalue), take(held.scale), qtype=held.qtype)
    return qwix.dequantize(own)[..., : self.kernel.size]


class Seen(nnx.Variable):
  """What a layer's inputs were: their largest and mean sizes [2, D]."""


def rounded(weights: Array, how: How) -> Kernel:
  """Returns weights [D, F] as `how` says, with inputs not yet looked at."""
  size, block = len(weights), how.block
  if block:
    weights = jnp.pad(weights, [(0, -size % block), (0, 0)])
  held = qwix.quantize(
    weights,
    QTYPES[how.weights],
    channelwise_axes=(1,),
    tiled_axes={0: block} if block else {},
  )
  static = how.activations == "int8"
  return Kernel(
    held,
    jnp.ones(()) if static else None,
    size,
    how.activations == "int8_dynamic",
  )


def pretended(weights: Array, how: How) -> Array:
  """Returns weights [D, F] rounded, with the gradient of the identity."""
  held = rounded(jax.lax.stop_gradient(weights), how)
  near = qwix.dequantize(held.weights)[: held.size].astype(weights.dtype)
  return weights + jax.lax.stop_gradient(near - weights)


def _pretended_inputs(x: Array, how: How) -> Array:
  """Returns inputs [..., D] rounded likewise, by one scale or row by row."""
  if how.activations == "none":
    return x
  axes = range(x.ndim - 1) if how.activations == "int8_dynamic" else ()
  held = qwix.quantize(
    jax.lax.stop_gradient(x), jnp.int8, channelwise_axes=tuple(axes)
  )
  near = qwix.dequantize(held).astype(x.dtype)
  return x + jax.lax.stop_gradient(near - x)


class _Layer(nnx.Module):
  """What layers have in common.

  Attributes:
    how: which rounding is seen in training; None for none, and for weights
      that are rounded.
    seen: what the last inputs were, where a model is looked at.
  """

  def __init__(self, how: How | None, seen: Seen | None):
    self.how = how
    self.seen = nnx.data(seen)

  def operands(self, x: Array) -> tuple[Array, Any]:
    """Returns (inputs [..., D], kernel [D, F]) as they are multiplied."""
    kernel = self._matrix()
    if self.seen is not None:
      sizes = jnp.abs(x).reshape(-1, x.shape[-1])
      self.seen[...] = jnp.stack([sizes.max(0), sizes.mean(0)])
    if self.how is None:
      return x, kernel
    return _pretended_inputs(x, self.how), pretended(kernel, self.how)

  def _matrix(self) -> Any:
    raise NotImplementedError


class Linear(_Layer):
  """A linear layer, its weights an array or a `Kernel`."""

  def __init__(self, kernel, bias, dtype, how: How | None, seen=None):
    super().__init__(how, seen)
    self.kernel, self.bias, self.dtype = kernel, bias, dtype

  def _matrix(self):
    return _cast(self.kernel[...], self.dtype)

  def __call__(self, x: Array) -> Array:
    x, kernel = self.operands(_cast(x, self.dtype))
    y = x @ kernel
    return y if self.bias is None else y + _cast(self.bias[...], self.dtype)


class Conv(_Layer):
  """A convolution of stride 1, as one product over windows; its kernel is the
  matrix [prod(sizes) C, D]."""

  def __init__(self, kernel, bias, sizes, padding, how, seen=None):
    super().__init__(how, seen)
    self.kernel, self.bias = kernel, bias
    self.sizes, self.padding = tuple(sizes), padding

  def _matrix(self):
    return self.kernel[...]

  def __call__(self, x: Array) -> Array:
    x, kernel = self.operands(windows(x, self.sizes, self.padding))
    y = x @ kernel
    return y if self.bias is None else y + self.bias[...]


class Embed(_Layer):
  """Embeddings [V, D], an array or a `Table`, which may also be a head."""

  def __init__(self, embedding, how: How | None, seen=None):
    super().__init__(how, seen)
    self.embedding = embedding

  def _matrix(self):
    held = self.embedding[...]
    return held.kernel if isinstance(held, Table) else held.T

  def __call__(self, ids: Array) -> Array:
    held = self.embedding[...]
    if isinstance(held, Table):
      return held.rows(ids)
    if self.how is not None:
      held = pretended(held.T, self.how).T
    return jnp.take(held, ids, axis=0)


def _cast(x, dtype):
  return x if dtype is None or isinstance(x, Kernel) else jnp.asarray(x, dtype)


def operands(layer: Any, x: Array) -> tuple[Array, Any]:
  """Returns (inputs [..., D], kernel [D, F]) of any layer that is a head."""
  if isinstance(layer, _Layer):
    return layer.operands(x)
  if isinstance(layer, nnx.Embed):
    return x, layer.embedding[...].T
  return x, jnp.asarray(layer.kernel[...])


def looked_up(layer: Any, ids: Array) -> Array:
  """Returns the embeddings of ids as they are held, an nnx.Embed's too."""
  if isinstance(layer, Embed):
    return layer(ids)
  return jnp.take(layer.embedding[...], ids, axis=0)


def layers(model: nnx.Module) -> dict[str, nnx.Module]:
  """Returns the layers that have a matrix, by dotted path."""
  kinds = nnx.Linear, nnx.Conv, nnx.Embed, _Layer
  return {
    ".".join(map(str, path)): node
    for path, node in nnx.iter_graph(model)
    if isinstance(node, kinds)
  }


def matrix(layer: Any) -> Array:
  """Returns a layer's weights [D, F], which are not rounded yet."""
  if isinstance(layer, nnx.Embed | Embed):
    return layer.embedding[...].T
  kernel = layer.kernel[...]
  return kernel.reshape(-1, kernel.shape[-1])


def convert(model: nnx.Module, how: Mapping[str, Any] | None) -> nnx.Module:
  """Returns a model with other layers in place of those that have a matrix.

  Args:
    model: changed in place.
    how: keys of `How`: its weights are rounded, or where it is `aware` train
      as if they were; None keeps them, and looks at their inputs.
  """
  said = None if how is None else How(**how)
  for path, layer in layers(model).items():
    _put(model, path.split("."), _converted(layer, said))
  return model


def _converted(layer: Any, how: How | None) -> _Layer:
  weights = matrix(layer)
  seen = None if how else Seen(jnp.zeros((2, len(weights))))
  if how is None or how.aware:
    own: Any = nnx.Param(weights)
    held: Any = getattr(layer, "embedding", None)
  else:
    kernel, how = rounded(weights, how), None
    own, held = nnx.Param(kernel), nnx.Param(Table(kernel))
  if isinstance(layer, nnx.Embed | Embed):
    return Embed(held, how, seen)
  if isinstance(layer, nnx.Conv):
    sizes, padding = layer.kernel_size, str(layer.padding)
    return Conv(own, layer.bias, sizes, padding, how, seen)
  if isinstance(layer, Conv):
    sizes, padding = layer.sizes, layer.padding
    return Conv(own, layer.bias, sizes, padding, how, seen)
  return Linear(own, layer.bias, layer.dtype, how, seen)


def _put(model: Any, path: list[str], layer: nnx.Module) -> None:
  *owners, name = path
  for key in owners:
    model = (
      model[int(key)] if isinstance(model, nnx.List) else getattr(model, key)
    )
  if isinstance(model, nnx.List):
    model[int(name)] = layer
  else:
    setattr(model, name, layer)
