"""Per-prompt losses [B] from log-probabilities of completions [B, K], in nats.

The student's log-probabilities of tokens (kernels.token_log_probs) become those
of K completions of each prompt (`completion_log_probs`), and every loss is of
those. Where `where` is False there is no completion: whatever is there, NaN
included, counts for nothing, and a prompt without any has loss 0. Teacher's
scores and the reference model's log-probabilities get no gradient.

Every loss means whatever a completion's log-probability means: the sum over its
tokens, or the mean over them. The sum is log q(y | x) itself, and favours the
short; the mean is no distribution over completions. As others have it: TRL's
DPO sums, and its IPO takes means; SimPO and ORPO take means. Fine-tuning, and
with it sequence-level distillation, commonly takes one mean over all tokens of
a batch, which weighs long completions more: that is `hard` at each position.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd.objectives.logits import Scalar

LogProbs = Float[Array, "B K"]
Where = Bool[Array, "B K"]

_MASKED = -1e30  # always set by `where`; finite, so that 0 times it is 0


def completion_log_probs(
  log_probs: Float[Array, "N L"],
  slots: Int[Array, "N L"],
  shape: tuple[int, int],
  *,
  length: Literal["sum", "mean"],
) -> tuple[LogProbs, Where]:
  """Computes log q(y | x) = sum_l log q(y_l | x, y_<l), or its mean over l.

  Args:
    log_probs: of tokens, in rows that may hold several completions.
    slots: b K + k for a token of completion k of prompt b (its stop token is
      one); below 0 for a token of a prompt, or padding, which may hold NaN.
    shape: (B, K).
    length: "sum" over the tokens, or "mean".

  Returns:
    Nats for each completion (per token, for "mean"), and which completions have
    a token at all. The others get 0.

  Raises:
    ValueError: `length` is neither; or shapes differ.

  >>> lp = jnp.array([[0.0, -1.0, -2.0], [-3.0, -4.0, jnp.nan]])
  >>> slots = jnp.array([[-1, 0, 0], [1, 2, -1]])
  >>> for length in ("sum", "mean"):
  ...   print(completion_log_probs(lp, slots, (2, 2), length=length)[0])
  [[-3. -3.]
   [-4.  0.]]
  [[-1.5 -3. ]
   [-4.   0. ]]
  """
  if length not in ("sum", "mean"):
    raise ValueError(f"length is {length!r}; accepted: 'sum', 'mean'")
  _same_shape("slots", slots, log_probs)
  counts = slots.ravel() >= 0
  number = shape[0] * shape[1]

  def total(x):
    return jax.ops.segment_sum(
      jnp.where(counts, x, 0.0),
      jnp.where(counts, slots.ravel(), number),  # out of range, hence dropped
      number,
    ).reshape(shape)

  sums = total(log_probs.astype(jnp.float32).ravel())
  tokens = total(jnp.ones(counts.shape, jnp.float32))
  if length == "mean":
    sums = sums / jnp.maximum(tokens, 1.0)
  return sums, tokens > 0


def sequence_kd(
  log_probs: LogProbs,
  where: Where | None = None,
  *,
  several: Literal["mean", "any", "best"] = "mean",
  scores: Float[Array, "B K"] | None = None,
) -> Float[Array, "B"]:
  """Computes sequence-level distillation: -log q(y | x), y the teacher's.

  Of K completions:

    "mean"  -1/K sum_k log q(y_k | x). With samples of the teacher, an unbiased
            estimate of its cross-entropy over all completions, so repeats
            count as often as they were drawn.
    "any"   -log sum_k q(y_k | x): any of several acceptable answers will do,
            and nothing is said of their shares. For sums over tokens, and
            distinct completions: `where` leaves repeats out.
    "best"  -log q(y_k | x), k with the highest score, the first of equals.
            Completions without a score (NaN) are left out.

  Source: Kim and Rush (2016), 1606.07947, where y is the teacher's mode.

  Args:
    log_probs: the student's.
    where: which completions there are; None means all.
    several: "mean", "any" or "best".
    scores: for "best", the higher the better.

  Returns:
    Nats per prompt.

  Raises:
    ValueError: `several` is none of them; "best" without scores.

  >>> lp = jnp.log(jnp.array([[0.5, 0.25]]))
  >>> for several in ("mean", "any", "best"):
  ...   loss = sequence_kd(lp, several=several, scores=jnp.array([[0.0, 1.0]]))
  ...   print(f"{several} {loss[0]:.4f}")
  mean 1.0397
  any 0.2877
  best 1.3863
  """
  where = _all(log_probs) if where is None else where
  if several == "best":
    if scores is None:
      raise ValueError("sequence_kd: 'best' of no scores")
    where = where & ~jnp.isnan(scores)
    scores = jnp.where(where, scores, -jnp.inf)
    first = jnp.argmax(scores, axis=-1, keepdims=True)
    where = where & (jnp.arange(where.shape[-1])[None] == first)
  elif several not in ("mean", "any"):
    raise ValueError(f"several is {several!r}; accepted: 'mean', 'any', 'best'")
  if several == "any":
    masked = jnp.where(where, log_probs, _MASKED)
    total = jax.nn.logsumexp(masked, axis=-1)
    return jnp.where(jnp.any(where, axis=-1), -total, 0.0)
  return -_mean(log_probs, where, axis=-1)


def ranked(
  loss: Callable[..., Float[Array, "B"]],
  log_probs: LogProbs,
  scores: Float[Array, "B K"],
  where: Where | None = None,
  **keys,
) -> Float[Array, "B"]:
  """Computes a loss of kd.ranking over a prompt's K completions.

  The student's scores are its log-probabilities. ListNet compares their softmax
  over the list with the scores', so there the scale of both matters: sums
  differ by hundreds of nats between a long and a short completion. Plackett-
  Luce reads the order of the teacher's scores alone.

  Args:
    loss: kd.ranking's list_net, plackett_luce or pairwise_logistic.
    log_probs: the student's.
    scores: the teacher's, the higher the better; NaN where it gave none, which
      leaves that completion out.
    where: which completions there are; None means all.
    **keys: the loss's own, as its temperature or its rule of ties.

  Returns:
    Nats, as the loss has them: per list, ranked item or pair.

  >>> from kd import ranking
  >>> lp, scores = (
  ...   jnp.array([[-2.0, -1.0, -9.0]]),
  ...   jnp.array([[3.0, 1.0, -1.0]]),
  ... )
  >>> where = jnp.array([[True, True, False]])
  >>> loss = ranked(ranking.pairwise_logistic, lp, scores, where)
  >>> print(f"{loss[0]:.4f}")  # log(1 + e)
  1.3133
  """
  where = _all(log_probs) if where is None else where
  return loss(log_probs, scores, where=where & ~jnp.isnan(scores), **keys)


def preference(
  chosen: LogProbs,
  rejected: Float[Array, "B R"],
  reference: tuple[LogProbs, Float[Array, "B R"]] | None,
  *,
  beta: Scalar,
  form: Literal["sigmoid", "ipo"] = "sigmoid",
  label_smoothing: Scalar = 0.0,
  margin: Scalar = 0.0,
  where: tuple[Where, Bool[Array, "B R"]] | None = None,
) -> Float[Array, "B"]:
  """Computes DPO, the mean over pairs of a chosen and a rejected completion.

    h = [log q(y_w) - log r(y_w)] - [log q(y_l) - log r(y_l)],  r the reference
    "sigmoid"  -(1 - eps) log sigma(beta h - m) - eps log sigma(m - beta h)
    "ipo"      (h - 1 / (2 beta))^2

  eps is the share of pairs taken to be the wrong way round (conservative DPO).
  DPO proper: sums over tokens, m = 0. IPO as TRL has it: means. SimPO: means,
  no reference, beta 2 to 2.5 and m 0.3 to 1.6.

  Source: Rafailov et al. (2023), 2305.18290; IPO: Azar et al. (2023),
  2310.12036; SimPO: Meng et al. (2024), 2405.14734.

  Args:
    chosen: the student's log-probabilities of the completions to prefer.
    rejected: of those to avoid.
    reference: the reference model's of both, commonly the student's before
      this training; None is a reference for which all are equally likely.
    beta: > 0; how much a nat counts. 0.1 in most of the paper.
    form: "sigmoid" or "ipo".
    label_smoothing: eps, in [0, 0.5); for "sigmoid".
    margin: m, by which the chosen one is to lead; for "sigmoid".
    where: which chosen and which rejected completions there are; None: all.

  Returns:
    Nats per pair ("ipo": no unit), one number for each prompt.

  Raises:
    ValueError: `form` is neither; or the reference's shapes differ.

  >>> w, l = jnp.array([[-1.0]]), jnp.array([[-3.0]])
  >>> print(f"{preference(w, l, (w, l), beta=0.1)[0]:.4f}")  # log 2
  0.6931
  >>> print(f"{preference(w, l, None, beta=0.1)[0]:.4f}")  # log(1 + exp(-0.2))
  0.5981
  """
  if form not in ("sigmoid", "ipo"):
    raise ValueError(f"form is {form!r}; accepted: 'sigmoid', 'ipo'")
  there = (_all(chosen), _all(rejected)) if where is None else where
  given = reference or (jnp.zeros_like(chosen), jnp.zeros_like(rejected))
  for name, r, q in zip(
    ("chosen", "rejected"), given, (chosen, rejected), strict=True
  ):
    _same_shape(f"the reference's {name}", r, q)
  better, worse = (
    jnp.where(w, q, 0.0) - jax.lax.stop_gradient(jnp.where(w, r, 0.0))
    for w, q, r in zip(there, (chosen, rejected), given, strict=True)
  )
  h = better[:, :, None] - worse[:, None, :]
  if form == "ipo":
    losses = (h - 1 / (2 * beta)) ** 2
  else:
    lead = beta * h - margin
    losses = (1 - label_smoothing) * jax.nn.softplus(-lead)
    losses = losses + label_smoothing * jax.nn.softplus(lead)
  pairs = there[0][:, :, None] & there[1][:, None, :]
  return _mean(losses, pairs, axis=(-2, -1))


def step_by_step(
  labels: Float[Array, "B"],
  rationales: Float[Array, "B"],
  where: Bool[Array, "B"],
  *,
  weight: Scalar,
) -> Float[Array, "B"]:
  """Computes the label's loss + weight * the rationale's loss.

  Two tasks on one example, told apart by the prompt's prefix ("[label]" and
  "[rationale]" in the paper), so that no rationale is written when the student
  is asked for labels: of an example's rows, one holds the label's completion
  and another the rationale's, and each loss is `sequence_kd`'s of its group.

  Source: Hsieh et al. (2023), 2305.02301, weight 1; their code weighs the two
  alpha and 1 - alpha, with 0.5, and takes means over tokens.

  Args:
    labels: nats per example.
    rationales: the same.
    where: which examples have a rationale; the others have the label's loss
      alone, so that a mean over examples is of all of them in both terms.
    weight: of the rationale's loss, >= 0.

  Returns:
    Nats per example.

  >>> both, one = jnp.array([True, False]), jnp.ones(2)
  >>> print(step_by_step(one, 2 * one, both, weight=0.5))
  [2. 1.]
  """
  return labels + weight * jnp.where(where, rationales, 0.0)


def _all(log_probs):
  return jnp.ones(log_probs.shape, bool)


def _mean(values, where, axis):
  total = jnp.sum(jnp.where(where, values, 0.0), axis=axis)
  return total / jnp.maximum(jnp.sum(where, axis=axis), 1)


def _same_shape(name, x, log_probs):
  if x.shape != log_probs.shape:
    raise ValueError(
      f"{name}: shape {x.shape}; accepted: {log_probs.shape}, that of the "
      "log-probabilities"
    )
