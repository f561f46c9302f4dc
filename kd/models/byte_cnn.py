"""A small network over the bytes of a file, cheap on a CPU."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kd.config import rules
from kd.errors import UserError
from kd.models.outputs import Outputs, drop, outputs

TOKENS = 257  # the values of a byte, and padding
# Factors that bring the features to about the same size, so that the many
# counts are not drowned by few others; chosen on file_types' validation split.
COUNTS, PATTERNS = 16.0, 0.3


class ByteCNN(nnx.Module):
  r"""Which bytes there are, which patterns of them, and how the file begins.

  Three kinds of features of the bytes x_0 .. x_{L-1}, joined by a dense layer:

      sqrt(count of v in x / L), for each of the 257 values v
      max_i relu(A [e_{4i} .. e_{4i+3}]), e_t = W[x_t]   a convolution, stride 4
      F[x_0] .. F[x_{first-1}]                           a file's signature

  The square root keeps rare bytes in sight. Patterns and signature have
  dropout: the few files of a package would be learned by heart from them. The
  convolution's stride is as wide as its kernel, which makes it one matrix
  product: XLA's own convolution over sequences took 1 s a step in a compiled
  loop on a CPU, block products of about the same arithmetic 10 ms.

  Inputs are whole numbers in 0..256, of any dtype.

  Args:
    input_shape: (L,), the bytes of one file.
    num_classes: V.
    embed: the width of a byte's embeddings, W in R^{257 x embed} and F twice.
    channels: patterns; 0 leaves the convolution out.
    block: bytes in a pattern; divides L.
    first: bytes of the signature; 0 leaves it out.
    hidden: the width of the dense layer.
    dropout: the rate on patterns and signature, in [0, 1).
    rngs: of the initialisation.
  """

  OPTIONS: ClassVar = {
    "embed": rules.integer(1, 2**12),
    "channels": rules.integer(0, 2**16),
    "block": rules.integer(1, 2**16),
    "first": rules.integer(0, 2**16),
    "hidden": rules.integer(1, 2**16),
    "dropout": rules.RATE,
  }

  def __init__(
    self,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    embed: int = 4,
    channels: int = 16,
    block: int = 4,
    first: int = 4,
    hidden: int = 96,
    dropout: float = 0.5,
    rngs: nnx.Rngs,
  ):
    length = input_shape[0]
    good = len(input_shape) == 1 and first <= length
    if not (good and length % block == 0):
      raise UserError(
        f"name = 'byte_cnn', block = {block}, first = {first}: expected inputs "
        f"[L] of at least `first` bytes that the block divides, the task's "
        f"have shape {tuple(input_shape)}"
      )

    def embedding(width: int, scale: float) -> nnx.Embed:
      init = nnx.initializers.normal(scale)
      return nnx.Embed(TOKENS, width, embedding_init=init, rngs=rngs)

    he = nnx.initializers.he_normal()
    self.embed = embedding(embed, 1.0) if channels else None
    self.conv = (
      nnx.Linear(block * embed, channels, kernel_init=he, rngs=rngs)
      if channels
      else None
    )
    self.signature = embedding(2 * embed, 0.5) if first else None
    self.block, self.first = block, first
    self.dropout = nnx.Dropout(dropout)
    width = TOKENS + channels + 2 * embed * first
    self.dense = nnx.Linear(width, hidden, kernel_init=he, rngs=rngs)
    self.head = nnx.Linear(hidden, num_classes, rngs=rngs)

  def __call__(
    self, x_BxL: Float[Array, "B L"], rngs: nnx.Rngs | None = None
  ) -> Outputs:
    x = x_BxL.astype(jnp.int32)
    rows = jnp.arange(x.shape[0])[:, None]
    counts = jnp.zeros((x.shape[0], TOKENS)).at[rows, x].add(1.0, mode="drop")
    features = [COUNTS * jnp.sqrt(counts / x.shape[1])]
    if self.conv is not None and self.embed is not None:
      blocks = self.embed(x).reshape(x.shape[0], x.shape[1] // self.block, -1)
      patterns = nnx.relu(self.conv(blocks)).max(axis=1)
      features.append(drop(self.dropout, PATTERNS * patterns, rngs))
    if self.signature is not None:
      begin = self.signature(x[:, : self.first]).reshape(x.shape[0], -1)
      features.append(drop(self.dropout, begin, rngs))
    hidden = nnx.relu(self.dense(jnp.concatenate(features, axis=-1)))
    return outputs(hidden, self.head)
