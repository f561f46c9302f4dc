"""Models in Flax NNX: features and a head, so that a loss can fuse the head.

A model is called with a batch and returns `Outputs`: the hidden states [B, H]
and the head's kernel [H, V] and bias [V] that turn them into logits. Random
numbers given (`rngs`) mean training: dropout is drawn and batch statistics are
updated; without them the model is deterministic.

To add a model, write a class with `__call__` and `head`, and add it to MODELS;
its keyword arguments are its options in a config.
"""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from kd.errors import UserError
from kd.models.byte_cnn import ByteCNN
from kd.models.magika import Magika
from kd.models.outputs import Outputs, drop, outputs


class MLP(nnx.Module):
  """Fully connected layers with ReLU and dropout (Hinton et al. 2015).

  Args:
    input_shape: of one example; flattened.
    num_classes: V.
    hidden: the widths of the hidden layers; () is a linear model.
    dropout: the rate after each hidden layer, in [0, 1).
    input_dropout: the rate on the inputs, in [0, 1).
    rngs: of the initialisation.
  """

  def __init__(
    self,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    hidden: Sequence[int] = (128, 128),
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    rngs: nnx.Rngs,
  ):
    widths = [_size(input_shape), *hidden]
    self.layers = nnx.List(
      nnx.Linear(a, b, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
      for a, b in itertools.pairwise(widths)
    )
    self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)
    self.dropout = nnx.Dropout(dropout)
    self.input_dropout = nnx.Dropout(input_dropout)

  def __call__(self, x_BxD: Array, rngs: nnx.Rngs | None = None) -> Outputs:
    x_BxD = x_BxD.reshape(x_BxD.shape[0], -1)
    x_BxD = drop(self.input_dropout, x_BxD, rngs)
    for layer in self.layers:
      x_BxD = drop(self.dropout, nnx.relu(layer(x_BxD)), rngs)
    return outputs(x_BxD, self.head)


class CNN(nnx.Module):
  """3x3 convolutions with batch norm and ReLU, halving the image at each.

  Args:
    input_shape: (height, width, channels) of one example.
    num_classes: V.
    channels: the width of each convolution; the image is halved after each.
    hidden: the width of a dense layer before the head; 0 leaves it out.
    dropout: the rate before the head, in [0, 1).
    rngs: of the initialisation.
  """

  def __init__(
    self,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
  ):
    if len(input_shape) != 3:
      raise UserError(
        f"name = 'cnn': expected images [height, width, channels], the task's "
        f"inputs have shape {tuple(input_shape)}"
      )
    height, width, last = input_shape
    self.convs, self.norms = nnx.List(), nnx.List()
    for size in channels:
      conv = nnx.Conv(last, size, (3, 3), use_bias=False, rngs=rngs)
      self.convs.append(conv)
      self.norms.append(nnx.BatchNorm(size, momentum=0.9, rngs=rngs))
      height, width, last = -(-height // 2), -(-width // 2), size
    flat = height * width * last
    self.dense = nnx.Linear(flat, hidden, rngs=rngs) if hidden else None
    self.head = nnx.Linear(hidden or flat, num_classes, rngs=rngs)
    self.dropout = nnx.Dropout(dropout)

  def __call__(self, x_BxHxWxC: Array, rngs: nnx.Rngs | None = None) -> Outputs:
    x = x_BxHxWxC
    for conv, norm in zip(self.convs, self.norms, strict=True):
      x = nnx.relu(norm(conv(x), use_running_average=rngs is None))
      x = nnx.max_pool(x, (2, 2), (2, 2), "SAME")
    x = x.reshape(x.shape[0], -1)
    if self.dense is not None:
      x = nnx.relu(self.dense(x))
    return outputs(drop(self.dropout, x, rngs), self.head)


MODELS: dict[str, Callable[..., nnx.Module]] = {
  "mlp": MLP,
  "cnn": CNN,
  "byte_cnn": ByteCNN,
  "magika": Magika,
}


def check(path: str, options: Mapping[str, Any]) -> None:
  """Raises UserError unless a config's `options` fit the model they name."""
  name = options["name"]
  if name not in MODELS:
    raise UserError(
      f"{path}.name = {name!r}: expected one of {', '.join(MODELS)}"
    )
  signature = inspect.signature(MODELS[name].__init__)
  accepted = {
    k: p
    for k, p in signature.parameters.items()
    if p.kind is p.KEYWORD_ONLY and k != "rngs"
  }
  for key, value in options.items():
    if key == "name":
      continue
    if key not in accepted:
      raise UserError(
        f"{path}.{key} = {value!r}: no option of model {name!r}, which takes "
        + ", ".join(accepted)
      )
    _check_option(f"{path}.{key}", value, accepted[key].default)


def create(
  name: str,
  *,
  num_classes: int,
  rngs: nnx.Rngs,
  input_shape: Sequence[int] = (28, 28, 1),
  **options,
) -> nnx.Module:
  """Makes a model by name; `options` are its class's keyword arguments."""
  check("model", {"name": name, **options})
  return MODELS[name](input_shape, num_classes, rngs=rngs, **options)


def num_params(model: nnx.Module) -> int:
  """Counts a model's trained numbers (batch statistics are not counted)."""
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _check_option(path, value, default) -> None:
  """An option is of its default's kind: widths, a rate or a whole number."""
  if isinstance(default, tuple):
    good = isinstance(value, tuple | list) and all(
      isinstance(v, int) and v > 0 for v in value
    )
    words = "a tuple of whole numbers > 0"
  elif isinstance(default, float):
    good = isinstance(value, int | float) and 0 <= value < 1
    words = "a rate in [0, 1)"
  else:
    good = isinstance(value, int) and value >= 0
    words = "a whole number >= 0"
  if not good:
    raise UserError(f"{path} = {value!r}: expected {words}")


def _size(shape: Sequence[int]) -> int:
  size = 1
  for n in shape:
    size *= n
  return size
