"""What a decoder gives completions that others wrote.

Axes: B prompts, L tokens of a prompt, C completions of a prompt, M tokens of a
completion, D width.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from kd.models import prefill
from kd.models.decoder import Cache, Decoder


def token_scores(
  model: Decoder,
  prompts: Int[ArrayLike, "B L"],
  lengths: Int[ArrayLike, "B"],
  completions: Int[ArrayLike, "B C M"] | Int[ArrayLike, "C M"],
  completion_lengths: Int[ArrayLike, "B C"] | Int[ArrayLike, "C"],
  *,
  padding: prefill.Padding = "right",
  prefix: Cache | None = None,
) -> Float[Array, "B C M"]:
  """Computes log q(y_m | prefix, x, y_<m) of given completions, at T = 1.

  The first tokens, which for class names may be all, cost no pass beyond the
  prompt's; the others one pass for each of the C.

  Args:
    model: a decoder.
    prompts, lengths, padding, prefix: as in `generate`.
    completions: token ids, each prompt's own or the same for all; filled up on
      the right by any id.
    completion_lengths: their tokens, from 0 (none is there) to M.

  Returns:
    Nats for each token; 0 beyond a completion's end.

  Raises:
    ValueError: a length out of range, or a token that the model has not.
  """
  segments = prefill.segments(model, prompts, lengths, padding)
  completions = jnp.asarray(completions, jnp.int32)
  each = jnp.asarray(completion_lengths, jnp.int32)
  batch, (c, m) = len(segments), completions.shape[-2:]
  prefill.check(each, 0, m, "completion_lengths", f"0 to {m}")
  there = jnp.arange(m) < each[..., None]
  prefill.check_ids(model, "completions", completions, there)
  graphdef, weights = nnx.split(model)
  return _token_scores(
    weights,
    jnp.asarray(prompts, jnp.int32),
    segments,
    jnp.broadcast_to(completions, (batch, c, m)),
    jnp.broadcast_to(each, (batch, c)),
    prefix,
    graphdef=graphdef,
  )


@functools.partial(jax.jit, static_argnames="graphdef")
def _token_scores(
  weights,
  prompts_BxL,
  segments_BxL,
  ids_BxCxM,
  lengths_BxC,
  prefix,
  *,
  graphdef,
):
  model = nnx.merge(graphdef, weights)
  length = ids_BxCxM.shape[-1]
  hidden_BxD, cache, first = prefill.read(
    model, prompts_BxL, segments_BxL, prefix, length
  )
  score = lambda hidden_NxD, ids_NxK: model.outputs(hidden_NxD).log_probs_at(
    ids_NxK, 1.0
  )

  def rest(one):
    ids_BxM, lengths_B = one
    offsets = jnp.arange(length - 1)[None]
    hidden_BxMxD, _ = model.hidden(
      ids_BxM[:, :-1],
      segments_BxL=(offsets < lengths_B[:, None] - 1).astype(jnp.int32),
      positions_BxL=first[:, None] + offsets,
      cache=cache,
    )
    hidden_NxD = hidden_BxMxD.reshape(-1, hidden_BxMxD.shape[-1])
    scores_Nx1 = score(hidden_NxD, ids_BxM[:, 1:].reshape(-1, 1))
    return scores_Nx1.reshape(-1, length - 1)

  scores_BxCxM = score(hidden_BxD, ids_BxCxM[..., 0])[..., None]
  if length > 1:
    each = ids_BxCxM.swapaxes(0, 1), lengths_BxC.T
    rest_BxCxM = jax.lax.map(rest, each).swapaxes(0, 1)
    scores_BxCxM = jnp.concatenate([scores_BxCxM, rest_BxCxM], axis=-1)
  there = jnp.arange(length) < lengths_BxC[..., None]
  return jnp.where(there, scores_BxCxM, 0.0)
