"""A small convolutional network over the bytes of a file."""
from collections.abc import Sequence
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from kd.errors import UserError
from kd.outputs import Outputs, outputs

class ByteCNN(nnx.Module):
  def __init__(self, input_shape: Sequence[int], num_classes: int, *, embed: int = 8, channels: Sequence[int] = (64, 64), width: int=8, hidden: int = 0, rngs: nnx.Rngs):
    pass
