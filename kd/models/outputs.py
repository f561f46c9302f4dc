"""What every model returns: features and a head, which a loss can fuse."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kd.models.quantized import Kernel, operands
from kernels import Head, token_log_probs

# Chosen, not measured: well above the usual K of samples.
LARGE_VOCABULARY = 2048
AT_A_TIME = 1 << 24  # logits that are there at once, of a large vocabulary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
  """What a model makes of a batch, before its head is applied.

  Its rows are positions: one for each image, L for each text of L tokens, one
  text after another.

  Attributes:
    hidden, kernel, bias: z = scale (hidden @ kernel + bias) are the logits, or
      where there is a `soft_cap`, soft_cap tanh(z / soft_cap) are. A kernel
      that is rounded (kd.models.quantized) has a product alone.
    kept: a vocabulary that is smaller than the kernel's: its class i is column
      kept[i], and its last class is all other columns together, whose logit is
      their log-sum-exp. None where classes are columns.
    vocab_size: V, where the kernel has columns more that pad it; they are no
      classes. None: all are.
    soft_cap, scale: Gemma 2 has a cap of 30, Granite divides its logits.
    large_from: the columns from which on what is asked of the logits is
      computed for a few rows at a time, or for a few classes.
  """

  hidden: Float[Array, "B H"]
  kernel: Float[Array, "H V"] | Kernel
  bias: Float[Array, "V"] | None = None
  kept: Int[Array, "C"] | None = None
  vocab_size: int | None = dataclasses.field(
    default=None, metadata={"static": True}
  )
  soft_cap: float | None = dataclasses.field(
    default=None, metadata={"static": True}
  )
  scale: float = dataclasses.field(default=1.0, metadata={"static": True})
  large_from: int = dataclasses.field(
    default=LARGE_VOCABULARY, metadata={"static": True}
  )

  @property
  def num_classes(self) -> int:
    if self.kept is not None:
      return len(self.kept) + 1
    return self.vocab_size or self.kernel.shape[-1]

  @property
  def is_large(self) -> bool:
    return self.kernel.shape[-1] >= self.large_from

  @property
  def head(self) -> Head:
    """What the kernels compute the logits from.

    Raises:
      ValueError: classes are not the columns of an array.
    """
    if self.kept is not None:
      raise ValueError("a smaller vocabulary than the head's has no head")
    if isinstance(self.kernel, Kernel):
      raise ValueError("a rounded kernel is no array")
    return Head(
      self.hidden,
      self.kernel,
      self.bias,
      self.vocab_size,
      soft_cap=self.soft_cap,
      scale=self.scale,
    )

  def _bounded(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
    z = z if self.scale == 1.0 else self.scale * z
    if self.soft_cap is None:
      return z
    return self.soft_cap * jnp.tanh(z / self.soft_cap)

  def _logits(self, hidden: Float[Array, "... H"]) -> Float[Array, "... V"]:
    if isinstance(self.kernel, Kernel):
      z = (hidden @ self.kernel).astype(jnp.float32)
    else:
      z = jnp.matmul(hidden, self.kernel, preferred_element_type=jnp.float32)
    z = self._bounded(z if self.bias is None else z + self.bias)
    if self.vocab_size is not None:
      z = z[..., : self.vocab_size]
    if self.kept is None:
      return z
    other = jnp.ones(z.shape[-1], bool).at[self.kept].set(False)
    rest = jax.nn.logsumexp(jnp.where(other, z, -jnp.inf), -1, keepdims=True)
    return jnp.concatenate([jnp.take(z, self.kept, -1), rest], -1)

  @property
  def logits(self) -> Float[Array, "B V"]:
    return self._logits(self.hidden)

  def each[T](self, fn: Callable[..., T], *arrays: Any) -> T:
    """Maps fn over the rows, a few at a time if V is large.

    Args:
      fn: (logits [V], that row of each of the arrays) -> a pytree.
      arrays: pytrees of arrays [B, ...].
    """
    one = lambda row: fn(self._logits(row[0]), *row[1:])
    rows = (self.hidden, *arrays)
    count, most = len(self.hidden), AT_A_TIME // self.kernel.shape[-1]
    if not self.is_large or count <= most:
      return jax.vmap(one)(rows)
    # Equal parts: a few rows that are left over would read the whole head.
    parts = -(-count // max(1, most))
    return jax.lax.map(one, rows, batch_size=-(-count // parts))

  def logits_at(self, ids: Int[Array, "B K"]) -> Float[Array, "B K"]:
    """Returns the logits of K classes, without the others if V is large."""
    if self.kept is not None or isinstance(self.kernel, Kernel):
      return self.each(lambda z, i: z[i], ids)
    if not self.is_large:
      return jnp.take_along_axis(self.logits, ids, axis=-1)
    columns = jnp.take(self.kernel, ids, axis=-1)  # [H, B, K]
    z = jnp.einsum(
      "bh,hbk->bk", self.hidden, columns, preferred_element_type=jnp.float32
    )
    return self._bounded(z if self.bias is None else z + self.bias[ids])

  def log_probs_at(
    self, ids: Int[Array, "B K"], temperature
  ) -> Float[Array, "B K"]:
    """Returns log softmax(logits / T) of K classes, K >= 1."""
    whole = self.kept is not None or isinstance(self.kernel, Kernel)
    if whole or not self.is_large:
      take = lambda z, i: jax.nn.log_softmax(z / temperature)[i]
      return self.each(take, ids)
    first = token_log_probs(self.head, ids[:, 0], temperature=temperature)
    scores = self.logits_at(ids) / temperature
    return scores - scores[:, :1] + first[:, None]

  @property
  def answer(self) -> Int[Array, "B"]:
    """The likeliest class."""
    return self.each(lambda z: jnp.argmax(z).astype(jnp.int32))


def outputs(hidden: Float[Array, "B H"], head: nnx.Linear) -> Outputs:
  """Returns the outputs of a model whose head is a linear layer with a bias."""
  assert head.bias is not None
  hidden, kernel = operands(head, hidden)
  return Outputs(hidden, kernel, head.bias[...])


def drop(dropout: nnx.Dropout, x: Array, rngs: nnx.Rngs | None) -> Array:
  """Applies dropout in training (where there are random numbers) alone."""
  if rngs is None or dropout.rate == 0:
    return x
  return dropout(x, deterministic=False, rngs=rngs)
