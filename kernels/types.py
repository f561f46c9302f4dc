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

  They are what the softmax is taken of: a model that caps or scales its logits
  has done so, and autodiff passes through that. `Head` does it in the loss.

  Attributes:
    values: [N, V], bfloat16 or float32. -inf and -1e30 both mean "never".
    vocab_size: the true V where `values` has padding columns at the end; they
      are ignored whatever they hold, and get gradient 0. With `vocab_axis` it
      is the global V. None: that of the other model, or every column counts.
  """

  values: Float[Array, "N V"]
  vocab_size: int | None = _static(None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
  """Scores given as hidden states and the last layer.

      z = soft_cap tanh(y / soft_cap),   y = scale (hidden kernel + bias)

  or z = y without a cap; in float32 whatever the GEMM's operands are. Source of
  the cap: Gemma 2 (2024), 2408.00118, section 2, final_logit_softcapping = 30.
  Granite and Cohere scale: 1 / logits_scaling and logit_scale.

  Attributes:
    hidden: [N, H].
    kernel: [H, V], the orientation of flax.
    bias: [V] or None. -inf and -1e30 mean "never", with a cap too.
    vocab_size: as in `Logits`.
    soft_cap: bound of |z|, > 0, a Python number. Its slope 1 - (z / soft_cap)^2
      is taken of z as the loss has it: of bfloat16 ones it is good to 0.004,
      as autodiff of a tanh in bfloat16 is.
    scale: > 0, a Python number.
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


def soft_cap(scores: Head | Logits) -> float | None:
  return scores.soft_cap if isinstance(scores, Head) else None


def scale(scores: Head | Logits) -> float:
  return scores.scale if isinstance(scores, Head) else 1.0


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
