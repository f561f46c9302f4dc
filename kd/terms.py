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

from kd import divergences, objectives, ranking, schema, signals
from kd.errors import UserError
from kd.models import Outputs
from kd.schema import Check
from kd.signals import Signal
from kernels import Logits

Keys = Mapping[str, Check]
Loss = Float[Array, "B"]

TEMPERATURE = schema.number(above=0)
TARGET = schema.choice("answer", "truth")
SAMPLES = schema.integer(1)
SCORES = schema.choice("votes", "log_probs")
CANDIDATES = schema.choice("sampled", "all")
TAIL = schema.choice("bucket", "zero", "renormalize")
# What needs the logits of all classes, which a top-k signal has not.
ALL_LOGITS = ("soft", "dkd", "dist")


@dataclasses.dataclass(frozen=True)
class Objective:
  """A loss for each example, and the config keys that it takes.

  `keys` may be a function of the arm's own keys, where one key (a divergence)
  decides which others are needed. `fused`, if there is one, gives the arguments
  with which kernels.distill_loss computes the weighted mean of the loss:
  (signal, weight, **keys) -> arguments.
  """

  loss: Callable[..., Loss]
  keys: Keys | Callable[[str, Mapping], Keys]
  fused: Callable[..., dict[str, Any]] | None = None


def _target(signal: Signal, target: str):
  return (signal.truth if target == "truth" else signal.answer).ids


def _hard(student: Outputs, signal: Signal, *, target) -> Loss:
  return objectives.hard(student.logits, _target(signal, target))


def _hard_fused(signal: Signal, weight, *, target) -> dict[str, Any]:
  return {"labels": _target(signal, target), "hard_weight": weight}


def _soft(
  student: Outputs, signal: Signal, *, temperature, divergence, **parameters
) -> Loss:
  phi = divergences.get(divergence, **parameters)
  teacher = signal.dense.logits
  return objectives.soft(student.logits, teacher, temperature, phi)


def _soft_fused(
  signal: Signal, weight, *, temperature, divergence, **parameters
) -> dict[str, Any]:
  teacher = signal.dense
  return {
    "teacher": teacher.head
    if isinstance(teacher, Outputs)
    else Logits(teacher.logits),
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
  return signals.top_k(dense, k)


def _log_probs(signal: Signal, top: signals.TopK, temperature):
  """Returns log p_T of the top k; a stored one knows it at its own T alone."""
  if isinstance(signal.dense, signals.TopK):
    return top.log_probs_at(temperature)
  logits = signal.dense.logits.astype(jnp.float32)
  logits = logits - jnp.max(logits, -1, keepdims=True)
  lse = jax.nn.logsumexp(logits / temperature, -1, keepdims=True)
  return top.logits / temperature - lse


def _top_k_keys(path: str, arm: Mapping) -> Keys:
  return {**_soft_keys(path, arm), "k": schema.integer(1), "tail": TAIL}


def _soft_keys(path: str, arm: Mapping) -> Keys:
  name = arm.get("divergence")
  if name not in DIVERGENCES:
    raise UserError(
      f"{path}.divergence = {name!r}: expected one of {', '.join(DIVERGENCES)}"
    )
  return {
    "temperature": TEMPERATURE,
    "divergence": schema.choice(*DIVERGENCES),
    **DIVERGENCES[name],
  }


def _dkd(
  student: Outputs, signal: Signal, *, alpha, beta, temperature, target
) -> Loss:
  return objectives.dkd(
    student.logits,
    signal.dense.logits,
    _target(signal, target),
    alpha,
    beta,
    temperature,
  )


def _dist(
  student: Outputs, signal: Signal, *, beta, gamma, temperature
) -> Loss:
  return objectives.dist(
    student.logits, signal.dense.logits, beta, gamma, temperature
  )


def _frequencies(
  student: Outputs, signal: Signal, *, samples, temperature
) -> Loss:
  """Soft targets estimated by the frequencies of K sampled answers.

  With f_k the frequency of the k-th sample's answer, the forward KL is
  sum_k (log f_k - log q_k) / K: the other classes have no frequency.
  """
  ids = signal.samples.ids[:, :samples]
  same = ids[:, :, None] == ids[:, None, :]
  log_f = jnp.log(same.mean(axis=-1))
  log_q = student.log_probs_at(ids, temperature)
  return temperature**2 * (log_f - log_q).mean(axis=-1)


def _candidates(student: Outputs, signal: Signal, samples, scores, candidates):
  """Returns the list that is ranked: student scores, teacher scores, mask.

  With "sampled" the list is the distinct answers among the K samples; with
  "all" it is every class, those never sampled having no vote.
  """
  drawn = signal.samples
  ids, log_probs = drawn.ids[:, :samples], drawn.log_probs[:, :samples]
  if candidates == "all":
    votes = jax.nn.one_hot(ids, student.num_classes).sum(axis=-2)
    return student.logits, votes, jnp.ones(votes.shape, bool)
  same = ids[:, :, None] == ids[:, None, :]
  earlier = jnp.tril(jnp.ones((samples, samples), bool), -1)
  first = ~jnp.any(same & earlier, axis=-1)
  values = same.sum(axis=-1) if scores == "votes" else log_probs
  return student.logits_at(ids), values.astype(jnp.float32), first


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
  top = signals.top_k(signal.dense, k)
  return ranking.partial_plackett_luce(student.logits, top.ids)


RANKED = {"samples": SAMPLES, "scores": SCORES}
SHARE = schema.number(low=0, high=1)
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
  "hard": Objective(_hard, {"target": TARGET}, _hard_fused),
  "soft": Objective(_soft, _soft_keys, _soft_fused),
  "top_k": Objective(_top_k, _top_k_keys, _top_k_fused),
  "dkd": Objective(
    _dkd,
    {
      "alpha": schema.number(low=0),
      "beta": schema.number(low=0),
      "temperature": TEMPERATURE,
      "target": TARGET,
    },
  ),
  "dist": Objective(
    _dist,
    {
      "beta": schema.number(low=0),
      "gamma": schema.number(low=0),
      "temperature": TEMPERATURE,
    },
  ),
  "frequencies": Objective(
    _frequencies, {"samples": SAMPLES, "temperature": TEMPERATURE}
  ),
  "list_net": Objective(_list_net, RANKED | {"temperature": TEMPERATURE}),
  "plackett_luce": Objective(
    _plackett_luce,
    RANKED
    | {"candidates": CANDIDATES, "ties": schema.choice("average", "index")},
  ),
  "pairwise_logistic": Objective(
    _pairwise,
    RANKED
    | {
      "candidates": CANDIDATES,
      "weights": schema.choice(None, "difference"),
    },
  ),
  "partial_plackett_luce": Objective(
    _partial_plackett_luce, {"k": schema.integer(1)}
  ),
}
