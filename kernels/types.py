"""What a loss is computed from: logits, hidden states and heads, top-k ids.

Axes: N rows (tokens or examples), V vocabulary or classes, H hidden, K top-k.
All of these are pytrees: they pass through jit, vmap, grad and shard_map.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def _static(default):
  return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Logits:
  """Scores of every class for every row.

  Attributes:
    values: [N, V], bfloat16 or float32. -inf and -1e30 both mean "never".
    vocab_size: the true V where `values` has padding columns at the end; they
      are ignored whatever they hold, and get gradient 0. With `vocab_axis` it
      is the global V. None: every column counts.
  """

  values: Float[Array, "N V"]
  vocab_size: int | None = _static(None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
  """Scores given as hidden states and the last layer: z = hidden kernel + bias.

  Attributes:
    hidden: [N, H].
    kernel: [H, V], the orientation of flax.
    bias: [V] or None.
    vocab_size: as in `Logits`.
  """

  hidden: Float[Array, "N H"]
  kernel: Float[Array, "H V"]
  bias: Float[Array, "V"] | None = None
  vocab_size: int | None = _static(None)
  soft_cap: float | None = _static(None)
  scale: float = _static(1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK:
  """A teacher of which only the K most likely ids are known.

  Attributes:
    ids: [N, K] int32, distinct within a row; global ids under `vocab_axis`.
      Concrete ids out of range, or twice in a row, raise; a row with traced
      ones is NaN. So a list of fewer than K ids is filled up with other ids, of
      log-probability -inf.
    log_probs: [N, K], natural log-probabilities at the loss's temperature,
      normalised over all of V (so they sum to less than 1).
    tail: what stands for the V - K other ids.
      "bucket": one further class that holds all of the rest, on both sides:
      p_rest = 1 - sum_k p_k and q_rest = 1 - sum_k q_k.
      "renormalize": the rest is dropped and both sides are renormalised over
      the K ids: p_k / sum_j p_j and q_k / sum_j q_j. The student's mass outside
      of the K ids is then free.
  """

  ids: Int[Array, "N K"]
  log_probs: Float[Array, "N K"]
  tail: Literal["bucket", "renormalize"] | str = _static("bucket")

  def invalid(self, vocab_size: int) -> Bool[Array, "N"]:
    """Returns which rows hold an id out of range, or one twice."""
    ids = jnp.sort(self.ids, axis=1)
    outside = (ids[:, 0] < 0) | (ids[:, -1] >= vocab_size)
    return outside | (ids[:, 1:] == ids[:, :-1]).any(1)


class Rows(NamedTuple):
  """Per-row terms for logging, in nats, without gradients; 0 at weight 0.

  Attributes:
    soft: [N] float32, T^2 D_n.
    hard: [N] float32, CE_n at T = 1; 0 where no labels were given.
  """

  soft: Float[Array, "N"]
  hard: Float[Array, "N"]


def operand_dtype(scores: Head | Logits):
  """Returns the dtype of a head's GEMMs, or of given logits."""
  if isinstance(scores, Logits):
    return scores.values.dtype
  return jnp.promote_types(scores.hidden.dtype, scores.kernel.dtype)


def num_columns(scores: Head | Logits) -> int:
  """Returns V, local under vocab_axis and padding columns included."""
  if isinstance(scores, Logits):
    return scores.values.shape[1]
  return scores.kernel.shape[1]


def num_rows(scores: Head | Logits) -> int:
  if isinstance(scores, Logits):
    return scores.values.shape[0]
  return scores.hidden.shape[0]
