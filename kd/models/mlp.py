"""The student of most papers: fully connected layers."""

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

from flax import nnx
from jaxtyping import Array

from kd.config import rules
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

  OPTIONS: ClassVar = {
    "hidden": rules.tuple_of(rules.integer(1, 2**16), most=64),
    "dropout": rules.RATE,
    "input_dropout": rules.RATE,
  }

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
    widths = [math.prod(input_shape), *hidden]
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
