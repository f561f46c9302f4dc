"""Completions that a decoder writes.

A prompt is read once, into a cache of keys and values; each further token is a
forward pass of one position a row.

Axes: B prompts, L tokens of a prompt, M tokens of a completion, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from kd.models import prefill
from kd.models.decoder import Cache, Decoder


def generate(
  model: Decoder,
  prompts: Int[ArrayLike, "B L"],
  lengths: Int[ArrayLike, "B"],
  *,
  max_new_tokens: int,
  temperature: float | Float[Array, ""],
  top_k: int | None = None,
  top_p: float | Float[Array, ""] | None = None,
  stop_ids: tuple[int, ...] = (),
  pad_id: int = 0,
  padding: prefill.Padding = "right",
  prefix: Cache | None = None,
  samples: int | None = None,
  rngs: nnx.Rngs | Array | None = None,
) -> tuple[Int[Array, "B *K M"], Float[Array, "B *K M"]]:
  """Writes a completion of each prompt, or K of them.

  At temperature 0 each token is the likeliest, the lowest id of equals. Else it
  is drawn from softmax(z / T) over, if they are given, the `top_k` likeliest
  tokens, and of these the fewest that hold at least `top_p` of their mass (the
  order of Hugging Face's generate; Holtzman et al. 2019, 1904.09751).

  Writing ends at a stop id, which is part of the completion; the program ends
  when all rows have. One is compiled for each shape of prompts, M, top_k and
  stop ids; temperature and top_p are traced.

  Args:
    model: a decoder.
    prompts: token ids; what is beyond a prompt's length may be any id.
    lengths: tokens of each prompt, from 1 to L.
    max_new_tokens: M.
    temperature: T >= 0.
    top_k, top_p: how many at most, and what share; None is all.
    stop_ids: any of them ends a completion.
    pad_id: what follows the end.
    padding: the side of a prompt that is filled up.
    prefix: of `read_prefix`: what comes before each prompt.
    samples: K completions of each prompt, which is read once; what is returned
      then has an axis K. None is one, without the axis.
    rngs: for T > 0; or a key for each prompt [B], on which alone then its draws
      depend, not on the batch that it is in.

  Returns:
    The completions, and each token's log-probability in nats: the model's own,
    log softmax(z) at T = 1 over all V, whatever it was drawn from (0 after the
    end). `completion_lengths` tells where they end.

  Raises:
    ValueError: an argument out of range, or no `rngs` to draw with.
  """
  counts = {
    "max_new_tokens": max_new_tokens,
    "top_k": top_k,
    "samples": samples,
  }
  for name, count in counts.items():
    if count is not None and count < 1:
      raise ValueError(f"{name} = {count}; accepted: 1 or more")
  prefill.check(temperature, 0, np.inf, "temperature", "0 or more")
  if top_p is not None:
    prefill.check(top_p, 1e-9, 1, "top_p", "above 0, up to 1")
  segments = prefill.segments(model, prompts, lengths, padding)
  keys = None
  if prefill.is_traced(temperature) or float(temperature) > 0:
    if rngs is None:
      raise ValueError(f"temperature = {temperature}: draws, and needs rngs")
    keys = _fold(_keys(rngs, len(segments))[:, None], jnp.arange(samples or 1))
    keys = keys.reshape(-1)
  graphdef, weights = nnx.split(model)
  written = _generate(
    weights,
    jnp.asarray(prompts, jnp.int32),
    segments,
    prefix,
    keys,
    jnp.asarray(temperature, jnp.float32),
    top_p,
    graphdef=graphdef,
    max_new_tokens=max_new_tokens,
    top_k=top_k,
    stop_ids=tuple(stop_ids),
    pad_id=pad_id,
    samples=samples or 1,
  )
  if samples is None:
    return written
  return tuple(x.reshape(-1, samples, max_new_tokens) for x in written)


def completion_lengths(
  completions: Int[Array, "*axes M"], stop_ids: tuple[int, ...]
) -> Int[Array, "*axes"]:
  """Returns the tokens of what `generate` wrote, its stop id included.

  >>> print(completion_lengths(jnp.array([[5, 2, 0], [5, 6, 7]]), (2,)))
  [2 3]
  """
  stopped = jnp.cumsum(_among(completions, stop_ids), axis=-1) > 0
  length = completions.shape[-1]
  return jnp.minimum(length, jnp.sum(~stopped, axis=-1) + 1)


@functools.partial(
  jax.jit,
  static_argnames=(
    "graphdef",
    "max_new_tokens",
    "top_k",
    "stop_ids",
    "pad_id",
    "samples",
  ),
)
def _generate(
  weights,
  prompts_BxL,
  segments_BxL,
  prefix,
  keys,
  temperature,
  top_p,
  *,
  graphdef,
  max_new_tokens,
  top_k,
  stop_ids,
  pad_id,
  samples,
):
  model = nnx.merge(graphdef, weights)

  def choose(hidden_BxD, t):
    logits_BxV = model.outputs(hidden_BxD).logits
    if keys is None:
      token = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    else:
      now = _fold(keys, t)
      token = draw(logits_BxV, now, temperature, top_k, top_p)
    log_probs = jax.nn.log_softmax(logits_BxV)
    return token, jnp.take_along_axis(log_probs, token[:, None], -1)[:, 0]

  def write(state, t, hidden_BxD):
    done, completions, log_probs = state
    token, log_prob = choose(hidden_BxD, t)
    completions = completions.at[:, t].set(jnp.where(done, pad_id, token))
    log_probs = log_probs.at[:, t].set(jnp.where(done, 0.0, log_prob))
    return token, (done | _among(token, stop_ids), completions, log_probs)

  def unfinished(carry):
    t, _, _, (done, _, _) = carry
    return (t < max_new_tokens) & ~jnp.all(done)

  def step(carry):
    t, token, cache, state = carry
    hidden_Bx1xD, cache = model.hidden(
      token[:, None], positions_BxL=(first + t - 1)[:, None], cache=cache
    )
    token, state = write(state, t, hidden_Bx1xD[:, 0])
    return t + 1, token, cache, state

  hidden_BxD, cache, first = prefill.read(
    model, prompts_BxL, segments_BxL, prefix, max_new_tokens
  )
  if samples > 1:
    hidden_BxD, cache, first = jax.tree.map(
      lambda x: jnp.repeat(x, samples, axis=0), (hidden_BxD, cache, first)
    )
  shape = (len(first), max_new_tokens)
  state = (
    jnp.zeros(shape[:1], bool),
    jnp.full(shape, pad_id, jnp.int32),
    jnp.zeros(shape),
  )
  token, state = write(state, 0, hidden_BxD)
  carry = jax.lax.while_loop(unfinished, step, (1, token, cache, state))
  return carry[-1][1:]


def draw(
  logits_BxV: Float[Array, "B V"],
  keys: Array,
  temperature: float | Float[Array, ""],
  top_k: int | None,
  top_p: float | Float[Array, ""] | None,
) -> Int[Array, "B"]:
  """Draws a token of each row, with the row's own key; see `generate`."""
  scores, ids = logits_BxV, None
  if top_k is not None:
    scores, ids = jax.lax.top_k(logits_BxV, min(top_k, logits_BxV.shape[-1]))
  # First the offset: then the likeliest stays finite at any T.
  scores = scores - jnp.max(scores, axis=-1, keepdims=True)
  scores = scores / temperature
  if top_p is not None:
    scores = _nucleus(scores, top_p)
  drawn = jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
  if ids is None:
    return drawn
  return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0]


def _nucleus(scores: Float[Array, "B K"], top_p) -> Float[Array, "B K"]:
  """Masks all but the fewest that hold `top_p`; equals of the last stay.

  The least probability kept is found by halving the range of float32's bits,
  which have the order of the numbers: of 8 x 49,152 scores that took 8 ms of a
  CPU where sorting them took 53.
  """
  probs = jax.nn.softmax(scores)
  bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

  def halve(_, bounds):
    low, high = bounds  # what is above `high` holds less than top_p
    middle = low + (high - low) // 2
    above = jnp.sum(jnp.where(bits > middle, probs, 0.0), -1, keepdims=True)
    less = above < top_p
    return jnp.where(less, low, middle), jnp.where(less, middle, high)

  shape = (*scores.shape[:-1], 1)
  one = np.float32(1.0).view(np.int32)
  bounds = jnp.full(shape, -1), jnp.full(shape, one)
  _, least = jax.lax.fori_loop(0, 30, halve, bounds)
  return jnp.where(bits >= least, scores, -jnp.inf)


def _keys(rngs: nnx.Rngs | Array, batch: int) -> Array:
  if isinstance(rngs, nnx.Rngs):
    return _fold(rngs(), jnp.arange(batch))
  if rngs.shape[:1] != (batch,):
    raise ValueError(f"rngs: shape {rngs.shape}; accepted: {(batch,)} keys")
  return rngs


_fold = jnp.vectorize(jax.random.fold_in)


def _among(ids: Int[Array, "..."], chosen: tuple[int, ...]):
  return jnp.isin(ids, jnp.array(chosen, jnp.int32))
