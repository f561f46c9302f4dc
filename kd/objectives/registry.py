"""The table of objectives: what a config may name, as losses of a signal.

To add an objective, write its loss (in kd.objectives or kd.ranking), and give
it an entry in OBJECTIVES: a function of the student's outputs, the signal and
its config keys, that returns a loss for each example. Keys that are numbers
may be traced; an arm that differs in them alone costs no compilation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd import divergences, objectives, ranking, signals
from kd.config import rules
from kd.config.rules import Check
from kd.errors import UserError
from kd.models.outputs import Outputs
from kd.signals import Signal
from kernels import Logits

Keys = Mapping[str, Check]
Loss = Float[Array, "B"]

TEMPERATURE = rules.number(above=0)
TARGET = rules.choice("answer", "truth")
HARD_TARGET = rules.choice("answer", "truth", "best")
SAMPLES = rules.integer(1)
SCORES = rules.choice("votes", "log_probs", "scores")
CANDIDATES = rules.choice("sampled", "all")
TAIL = rules.choice("bucket", "zero", "renormalize")


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss for each example, and the config keys that it takes.

  `keys` may be a function of the arm's own keys, where one key (a divergence)
  decides which others are needed. `fused`, if there is one, gives the arguments
  with which kernels.distill_loss computes the weighted mean of the loss:
  (signal, weight, **keys) -> arguments. `reads` says what of the signal the
  loss needs: "answers" or "samples", which every teacher leaves; "logits", of
  which a top-k signal has the "top_k" alone and a black box none; or the
  "rejected" that only a black box may have.
  """

  loss: Callable[..., Loss]
  keys: Keys | Callable[[str, Mapping], Keys]
  fused: Callable[..., dict[str, Any]] | None = None
  reads: str = "logits"


def _target(signal: Signal, target: str):
  if target == "best":
    return signal.samples.best
  return (signal.truth if target == "truth" else signal.answer).ids


def _logits(signal: Signal):
  # kd.train.arms refuses what reads logits that are not there.
  assert signal.dense is not None
  return signal.dense.logits


def _hard(student: Outputs, signal: Signal, *, target) -> Loss:
  return objectives.hard(student.logits, _target(signal, target))


def _hard_fused(signal: Signal, weight, *, target) -> dict[str, Any]:
  return {"labels": _target(signal, target), "hard_weight": weight}


def _soft(
  student: Outputs, signal: Signal, *, temperature, divergence, **parameters
) -> Loss:
  phi = divergences.get(divergence, **parameters)
  return objectives.soft(student.logits, _logits(signal), temperature, phi)


def _soft_fused(
  signal: Signal, weight, *, temperature, divergence, **parameters
) -> dict[str, Any]:
  teacher = signal.dense
  return {
    "teacher": teacher.head
    if isinstance(teacher, Outputs)
    else Logits(_logits(signal)),
    "divergence": divergences.get(divergence, **parameters),
    "temperature": temperature,
    "soft_weight": weight,
  }


def _top_k(
  student: Outputs,
  signal: Signal,
  *,
  k,
  tail,
  temperature,
  divergence,
  **parameters,
) -> Loss:
  top = _likeliest(signal, k)
  return objectives.top_k(
    student.logits,
    top.ids,
    _log_probs(signal, top, temperature),
    temperature,
    divergences.get(divergence, **parameters),
    tail,
  )


def _top_k_fused(
  signal: Signal,
  weight,
  *,
  k,
  tail,
  temperature,
  divergence,
  **parameters,
) -> dict[str, Any]:
  top = _likeliest(signal, k)
  return {
    "teacher": objectives.top_k_teacher(
      top.ids, _log_probs(signal, top, temperature), tail
    ),
    "divergence": divergences.get(divergence, **parameters),
    "temperature": temperature,
    "soft_weight": weight,
  }


def _likeliest(signal: Signal, k: int) -> signals.TopK:
  """Returns the top k in any order, without a search where they are stored."""
  dense = signal.dense
  if isinstance(dense, signals.TopK) and dense.ids.shape[-1] == k:
    return dense
  assert dense is not None  # as in _logits
  return signals.top_k(dense, k)


def _log_probs(signal: Signal, top: signals.TopK, temperature):
  """Returns log p_T of the top k; a stored one knows it at its own T alone."""
  if isinstance(signal.dense, signals.TopK):
    return top.log_probs_at(temperature)
  logits = _logits(signal).astype(jnp.float32)
  logits = logits - jnp.max(logits, -1, keepdims=True)
  lse = jax.nn.logsumexp(logits / temperature, -1, keepdims=True)
  return top.logits / temperature - lse


def _top_k_keys(path: str, arm: Mapping) -> Keys:
  return {**_soft_keys(path, arm), "k": rules.integer(1), "tail": TAIL}


def _soft_keys(path: str, arm: Mapping) -> Keys:
  name = arm.get("divergence")
  if name not in DIVERGENCES:
    raise UserError(
      f"{path}.divergence = {name!r}: expected one of {', '.join(DIVERGENCES)}"
    )
  return {
    "temperature": TEMPERATURE,
    "divergence": rules.choice(*DIVERGENCES),
    **DIVERGENCES[name],
  }


def _dkd(
  student: Outputs, signal: Signal, *, alpha, beta, temperature, target
) -> Loss:
  return objectives.dkd(
    student.logits,
    _logits(signal),
    _target(signal, target),
    alpha,
    beta,
    temperature,
  )


def _dist(
  student: Outputs, signal: Signal, *, beta, gamma, temperature
) -> Loss:
  return objectives.dist(
    student.logits, _logits(signal), beta, gamma, temperature
  )


def _same(ids, others):
  """Returns [..., K, L] bool: which answers are the same, -1 being none."""
  return (ids[:, :, None] == others[:, None, :]) & (ids[:, :, None] >= 0)


def _first(ids):
  """Returns [..., K] bool: the first of each answer's samples."""
  earlier = jnp.tril(jnp.ones((ids.shape[-1],) * 2, bool), -1)
  return (ids >= 0) & ~jnp.any(_same(ids, ids) & earlier, axis=-1)


def _cross_entropy(student: Outputs, ids, target, temperature) -> Loss:
  """T^2 sum_k target_k (log target_k - log q_k), the forward KL of a target
  that is split over some ids; those with target 0 may be anything."""
  log_q = student.log_probs_at(jnp.maximum(ids, 0), temperature)
  log_p = jnp.log(jnp.where(target > 0, target, 1.0))
  split = jnp.where(target > 0, target * (log_p - log_q), 0.0)
  return temperature**2 * split.sum(axis=-1)


def _frequencies(
  student: Outputs, signal: Signal, *, samples, temperature
) -> Loss:
  """Soft targets estimated by the frequencies of K sampled answers.

  The forward KL is over the answers sampled: other classes have no frequency.
  """
  ids = signal.samples.ids[:, :samples]
  counts = jnp.where(_first(ids), _same(ids, ids).sum(axis=-1), 0)
  target = counts / jnp.maximum(counts.sum(axis=-1, keepdims=True), 1)
  return _cross_entropy(student, ids, target, temperature)


def _acceptable(
  student: Outputs, signal: Signal, *, samples, temperature
) -> Loss:
  """One target over several acceptable answers: an equal share for each
  distinct sample that is not among the rejected."""
  ids = signal.samples.ids[:, :samples]
  good = _first(ids)
  if signal.rejected is not None:
    good &= ~jnp.any(_same(ids, signal.rejected), axis=-1)
  target = good / jnp.maximum(good.sum(axis=-1, keepdims=True), 1)
  return _cross_entropy(student, ids, target, temperature)


def _preference(student: Outputs, signal: Signal, *, samples) -> Loss:
  """Mean of log(1 + exp(-(z_a - z_b))) over pairs of a distinct sample a and a
  distinct rejected alternative b; 0 without such a pair.

  Source: the pairwise loss of Burges et al. (2005), on a black box's pairs.
  """
  ids, rejected = signal.samples.ids[:, :samples], signal.rejected
  assert rejected is not None
  pairs = _first(ids)[:, :, None] & _first(rejected)[:, None, :]
  pairs &= ids[:, :, None] != rejected[:, None, :]
  better, worse = (
    student.logits_at(jnp.maximum(x, 0)) for x in (ids, rejected)
  )
  losses = jax.nn.softplus(worse[:, None, :] - better[:, :, None])
  total = jnp.where(pairs, losses, 0.0).sum(axis=(-2, -1))
  return total / jnp.maximum(pairs.sum(axis=(-2, -1)), 1)


def _candidates(student: Outputs, signal: Signal, samples, scores, candidates):
  """Returns the list that is ranked: student scores, teacher scores, mask.

  With "sampled" the list is the distinct answers among the K samples; with
  "all" it is every class, those never sampled having no vote. An answer given
  more than once has the mean of its samples' values; one without a value is
  not ranked.
  """
  drawn = signal.samples.at_most(samples)
  ids = drawn.ids
  if candidates == "all":
    votes = jax.nn.one_hot(ids, student.num_classes).sum(axis=-2)
    return student.logits, votes, jnp.ones(votes.shape, bool)
  same = _same(ids, ids)
  if scores == "votes":
    values, where = same.sum(axis=-1).astype(jnp.float32), _first(ids)
  else:
    each = drawn.log_probs if scores == "log_probs" else drawn.scores
    assert each is not None  # kd.train.arms refuses what no teacher gave
    same &= ~jnp.isnan(each)[:, None, :]
    number = same.sum(axis=-1)
    each = jnp.nan_to_num(each.astype(jnp.float32))
    total = jnp.where(same, each[:, None, :], 0.0).sum(axis=-1)
    values = total / jnp.maximum(number, 1)
    where = _first(ids) & (number > 0)
  return student.logits_at(jnp.maximum(ids, 0)), values, where


def _list_net(
  student: Outputs, signal: Signal, *, samples, scores, temperature
) -> Loss:
  """Subset ListNet times T^2.

  Scores that are log-probabilities were divided by the temperature of the
  sampling already, so only the student's are divided here: the two sides meet
  where `temperature` is the one at which the samples were drawn.
  """
  s, t, where = _candidates(student, signal, samples, scores, "sampled")
  if scores == "votes":  # softmax(log votes): the frequencies
    t = jnp.log(jnp.maximum(t, 1.0))
  loss = ranking.list_net(s, t * temperature, temperature, where)
  return temperature**2 * loss


def _plackett_luce(
  student: Outputs, signal: Signal, *, samples, scores, candidates, ties
) -> Loss:
  s, t, where = _candidates(student, signal, samples, scores, candidates)
  return ranking.plackett_luce(s, t, where, ties=ties)


def _pairwise(
  student: Outputs, signal: Signal, *, samples, scores, candidates, weights
) -> Loss:
  s, t, where = _candidates(student, signal, samples, scores, candidates)
  return ranking.pairwise_logistic(s, t, where, weights=weights)


def _partial_plackett_luce(student: Outputs, signal: Signal, *, k) -> Loss:
  assert signal.dense is not None  # as in _logits
  top = signals.top_k(signal.dense, k)  # best first
  return ranking.partial_plackett_luce(student.logits, top.ids)


SAMPLED: Keys = {"samples": SAMPLES, "temperature": TEMPERATURE}
RANKED: Keys = {"samples": SAMPLES, "scores": SCORES}
SHARE = rules.number(low=0, high=1)
DIVERGENCES: dict[str, Keys] = {  # and the parameters of each
  "forward_kl": {},
  "reverse_kl": {},
  "tvd": {},
  "jsd": {"beta": SHARE},
  "skew_kl": {"alpha": SHARE},
  "skew_reverse_kl": {"alpha": SHARE},
  "alpha_divergence": {"alpha": SHARE},
}
OBJECTIVES: dict[str, Objective] = {
  "hard": Objective(_hard, {"target": HARD_TARGET}, _hard_fused, "answers"),
  "soft": Objective(_soft, _soft_keys, _soft_fused),
  "top_k": Objective(_top_k, _top_k_keys, _top_k_fused, "top_k"),
  "dkd": Objective(
    _dkd,
    {
      "alpha": rules.number(low=0),
      "beta": rules.number(low=0),
      "temperature": TEMPERATURE,
      "target": TARGET,
    },
  ),
  "dist": Objective(
    _dist,
    {
      "beta": rules.number(low=0),
      "gamma": rules.number(low=0),
      "temperature": TEMPERATURE,
    },
  ),
  "frequencies": Objective(_frequencies, SAMPLED, reads="samples"),
  "acceptable": Objective(_acceptable, SAMPLED, reads="samples"),
  "preference": Objective(_preference, {"samples": SAMPLES}, reads="rejected"),
  "list_net": Objective(
    _list_net, RANKED | {"temperature": TEMPERATURE}, reads="samples"
  ),
  "plackett_luce": Objective(
    _plackett_luce,
    RANKED
    | {"candidates": CANDIDATES, "ties": rules.choice("average", "index")},
    reads="samples",
  ),
  "pairwise_logistic": Objective(
    _pairwise,
    RANKED
    | {
      "candidates": CANDIDATES,
      "weights": rules.choice(None, "difference"),
    },
    reads="samples",
  ),
  "partial_plackett_luce": Objective(
    _partial_plackett_luce, {"k": rules.integer(1)}, reads="top_k"
  ),
}
