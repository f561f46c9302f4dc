"""What every model returns: features and a head, which a loss can fuse."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kernels import Head, token_log_probs

# Chosen, not measured: well above the usual K of samples.
LARGE_VOCABULARY = 2048


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
  """What a model makes of a batch, before its head is applied.

  Attributes:
    hidden, kernel, bias: scores are z = hidden @ kernel + bias; a bias of None
      is 0.
    soft_cap, scale: logits are soft_cap * tanh(scale * z / soft_cap), and
      scale * z without a cap.
    large_from: the classes from which on what is asked of a few of them is
      computed without the logits of all.
  """

  hidden: Float[Array, "B H"]
  kernel: Float[Array, "H V"]
  bias: Float[Array, "V"] | None = None
  soft_cap: float | None = dataclasses.field(
    default=None, metadata={"static": True}
  )
  scale: float = dataclasses.field(default=1.0, metadata={"static": True})
  large_from: int = dataclasses.field(
    default=LARGE_VOCABULARY, metadata={"static": True}
  )

  @property
  def num_classes(self) -> int:
    return self.kernel.shape[-1]

  @property
  def head(self) -> Head:
    """What the kernels compute the logits from."""
    return Head(
      self.hidden,
      self.kernel,
      self.bias,
      soft_cap=self.soft_cap,
      scale=self.scale,
    )

  @property
  def logits(self) -> Float[Array, "B V"]:
    return self._logits_of(self.hidden)

  def _logits_of(self, hidden) -> Float[Array, "B V"]:
    z = jnp.matmul(hidden, self.kernel, preferred_element_type=jnp.float32)
    return self._finish(z, self.bias)

  def _finish(self, z, bias) -> Array:
    """Makes logits of products, in float32."""
    z = z if bias is None else z + bias
    z = z if self.scale == 1 else z * self.scale
    cap = self.soft_cap
    return z if cap is None else cap * jnp.tanh(z / cap)

  def logits_at(self, ids: Int[Array, "B K"]) -> Float[Array, "B K"]:
    """Returns the logits of K classes, without the others if V is large."""
    if self.num_classes < self.large_from:
      return jnp.take_along_axis(self.logits, ids, axis=-1)
    columns = jnp.take(self.kernel, ids, axis=-1)  # [H, B, K]
    z = jnp.einsum(
      "bh,hbk->bk", self.hidden, columns, preferred_element_type=jnp.float32
    )
    return self._finish(z, None if self.bias is None else self.bias[ids])

  def log_probs_at(
    self, ids: Int[Array, "B K"], temperature
  ) -> Float[Array, "B K"]:
    """Returns log softmax(logits / T) of K classes, K >= 1."""
    if self.num_classes < self.large_from:
      log_probs = jax.nn.log_softmax(self.logits / temperature)
      return jnp.take_along_axis(log_probs, ids, axis=-1)
    first = token_log_probs(self.head, ids[:, 0], temperature=temperature)
    scores = self.logits_at(ids) / temperature
    return scores - scores[:, :1] + first[:, None]

  @property
  def answer(self) -> Int[Array, "B"]:
    """The likeliest class, found a few examples at a time if V is large."""

    def best(hidden):
      return jnp.argmax(self._logits_of(hidden), -1).astype(jnp.int32)

    if self.num_classes < self.large_from:
      return best(self.hidden)
    at_a_time = max(1, (1 << 22) // self.num_classes)
    return jax.lax.map(best, self.hidden, batch_size=at_a_time)


def outputs(hidden: Float[Array, "B H"], head: nnx.Linear) -> Outputs:
  """Returns the outputs of a model whose head is a linear layer with a bias."""
  assert head.bias is not None
  return Outputs(hidden, jnp.asarray(head.kernel[...]), head.bias[...])


def drop(dropout: nnx.Dropout, x: Array, rngs: nnx.Rngs | None) -> Array:
  """Applies dropout in training (where there are random numbers) alone."""
  if rngs is None or dropout.rate == 0:
    return x
  return dropout(x, deterministic=False, rngs=rngs)
