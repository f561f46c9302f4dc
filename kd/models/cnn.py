"""A small network over images."""

from collections.abc import Sequence
from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array

from kd.config import rules
from kd.errors import UserError
from kd.models.outputs import Outputs, drop, outputs
from kd.models.windows import windows


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

  OPTIONS: ClassVar = {
    "channels": rules.tuple_of(rules.integer(1, 2**14), most=64),
    "hidden": rules.integer(0, 2**16),
    "dropout": rules.RATE,
  }

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
      conv = nnx.Conv(
        last,
        size,
        (3, 3),
        use_bias=False,
        conv_general_dilated=convolution,
        rngs=rngs,
      )
      self.convs.append(conv)
      self.norms.append(nnx.BatchNorm(size, momentum=0.9, rngs=rngs))
      height, width, last = -(-height // 2), -(-width // 2), size
    flat = height * width * last
    self.dense = nnx.Linear(flat, hidden, rngs=rngs) if hidden else None
    self.head = nnx.Linear(hidden or flat, num_classes, rngs=rngs)
    self.dropout = nnx.Dropout(dropout)

  def __call__(self, x_BxHxWxC: Array, rngs: nnx.Rngs | None = None) -> Outputs:
    for conv, norm in zip(self.convs, self.norms, strict=True):
      x_BxHxWxC = norm(conv(x_BxHxWxC), use_running_average=rngs is None)
      x_BxHxWxC = nnx.max_pool(nnx.relu(x_BxHxWxC), (2, 2), (2, 2), "SAME")
    x_BxD = x_BxHxWxC.reshape(x_BxHxWxC.shape[0], -1)
    if self.dense is not None:
      x_BxD = nnx.relu(self.dense(x_BxD))
    return outputs(drop(self.dropout, x_BxD, rngs), self.head)


def convolution(x_BxHxWxC, kernel_RxSxCxD, *args, **keys) -> Array:
  """Computes a 2-D convolution of stride 1 that keeps an image's size.

  On a CPU as one product over patches: in a loop over steps XLA's own takes
  many times as long there, forward and backward (docs/performance.md).

  Args:
    x_BxHxWxC: images.
    kernel_RxSxCxD: R and S odd.
    args, keys: as of jax.lax.conv_general_dilated.
  """

  def patches(x, kernel):
    seen = windows(x, kernel.shape[:2], "SAME")
    return seen @ kernel.reshape(-1, kernel.shape[-1])

  def native(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, *args, **keys)

  return jax.lax.platform_dependent(
    x_BxHxWxC, kernel_RxSxCxD, cpu=patches, default=native
  )
