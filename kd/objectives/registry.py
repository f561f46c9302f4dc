"""The table of objectives: what a config may name, as losses of a signal.

To add an objective, write its loss for each example (in kd.objectives.logits,
samples, sequences or kd.ranking), and give it an entry in OBJECTIVES, or among
kd.objectives.completions'. The entry holds all that others need to know of it.
Keys that are numbers may be traced; an arm that differs in them alone costs no
compilation.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from kd import divergences, ranking
from kd.config import rules
from kd.models.outputs import Outputs
from kd.objectives import completions
from kd.objectives import logits as of_logits
from kd.objectives import samples as of_samples
from kd.objectives.objective import Loss, Objective, Rows
from kd.signals import Signal, present


def _target(signal: Signal, target: str):
  if target == "best":
    return signal.samples.best
  return (signal.truth if target == "truth" else signal.answer).ids


def _has_target(signal: Signal, num_classes, *, target, **_) -> Rows:
  return _target(signal, target) >= 0


def _hard(student: Outputs, signal: Signal, *, target) -> Loss:
  return of_logits.hard(student.logits, _target(signal, target))


def _hard_fused(signal: Signal, weight, *, target) -> dict[str, Any]:
  return {"labels": _target(signal, target), "hard_weight": weight}


def _soft(
  student: Outputs, signal: Signal, *, temperature, divergence, **parameters
) -> Loss:
  phi = divergences.get(divergence, **parameters)
  return of_logits.soft(student.logits, signal.logits, temperature, phi)


def _soft_fused(
  signal: Signal, weight, *, temperature, divergence, **parameters
) -> dict[str, Any]:
  return {
    "teacher": signal.head,
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
  ids, log_probs = signal.top_k_at(k, temperature)
  phi = divergences.get(divergence, **parameters)
  return of_logits.top_k(student.logits, ids, log_probs, temperature, phi, tail)


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
  return {
    "teacher": of_logits.top_k_teacher(*signal.top_k_at(k, temperature), tail),
    "divergence": divergences.get(divergence, **parameters),
    "temperature": temperature,
    "soft_weight": weight,
  }


def _dkd(
  student: Outputs, signal: Signal, *, alpha, beta, temperature, target
) -> Loss:
  labels = _target(signal, target)
  return of_logits.dkd(
    student.logits, signal.logits, labels, alpha, beta, temperature
  )


def _dist(
  student: Outputs, signal: Signal, *, beta, gamma, temperature
) -> Loss:
  return of_logits.dist(
    student.logits, signal.logits, beta, gamma, temperature, signal.counts
  )


def _partial_plackett_luce(student: Outputs, signal: Signal, *, k) -> Loss:
  ids = signal.top_k(k).ids  # best first
  return ranking.partial_plackett_luce(student.logits, ids)


def _frequencies(
  student: Outputs, signal: Signal, *, samples, temperature
) -> Loss:
  ids = signal.samples.at_most(samples).ids
  return of_samples.frequencies(student, ids, temperature)


def _has_answer(signal: Signal, num_classes, *, samples) -> Rows:
  return of_samples.has_answer(signal.samples.at_most(samples).ids)


def _acceptable(
  student: Outputs, signal: Signal, *, samples, temperature
) -> Loss:
  ids = signal.samples.at_most(samples).ids
  return of_samples.acceptable(student, ids, signal.rejected, temperature)


def _has_acceptable(signal: Signal, num_classes, *, samples) -> Rows:
  ids = signal.samples.at_most(samples).ids
  return of_samples.has_acceptable(ids, signal.rejected)


def _preference(student: Outputs, signal: Signal, *, samples) -> Loss:
  ids = signal.samples.at_most(samples).ids
  return of_samples.preference(student, ids, _rejected(signal))


def _has_pair(signal: Signal, num_classes, *, samples) -> Rows:
  ids = signal.samples.at_most(samples).ids
  return of_samples.has_pair(ids, _rejected(signal))


def _rejected(signal: Signal):
  return present(signal.rejected, "rejected alternatives")


def _list_net(
  student: Outputs, signal: Signal, *, samples, scores, temperature
) -> Loss:
  """Subset ListNet times T^2.

  Scores that are log-probabilities were divided by the temperature of the
  sampling already, so only the student's are divided here: the two sides meet
  where `temperature` is the one at which the samples were drawn.
  """
  drawn = signal.samples.at_most(samples)
  s, t, where = of_samples.candidates(student, drawn, scores, "sampled")
  if scores == "votes":  # softmax(log votes): the frequencies
    t = jnp.log(jnp.maximum(t, 1.0))
  loss = ranking.list_net(s, t * temperature, temperature, where)
  return temperature**2 * loss


def _plackett_luce(
  student: Outputs, signal: Signal, *, samples, scores, candidates, ties
) -> Loss:
  drawn = signal.samples.at_most(samples)
  s, t, where = of_samples.candidates(student, drawn, scores, candidates)
  return ranking.plackett_luce(s, t, where, ties=ties)


def _has_score(signal: Signal, num_classes, *, samples, scores, **_) -> Rows:
  return of_samples.has_score(signal.samples.at_most(samples), scores)


def _pairwise(
  student: Outputs, signal: Signal, *, samples, scores, candidates, weights
) -> Loss:
  drawn = signal.samples.at_most(samples)
  s, t, where = of_samples.candidates(student, drawn, scores, candidates)
  return ranking.pairwise_logistic(s, t, where, weights=weights)


def _has_order(
  signal: Signal, num_classes, *, samples, scores, candidates, weights
) -> Rows:
  drawn = signal.samples.at_most(samples)
  return of_samples.has_order(drawn, scores, candidates, num_classes)


def _all_have_votes(keys: Mapping[str, Any]) -> str:
  if keys["candidates"] != "sampled" and keys["scores"] != "votes":
    return (
      f"scores = {keys['scores']!r}: classes that were not sampled have votes "
      "alone; expected 'votes', or candidates = 'sampled'"
    )
  return ""


def _orders_are_few(keys: Mapping[str, Any]) -> str:
  if keys["ties"] in ("mean", "any"):
    if keys["candidates"] == "all":
      return (
        f"ties = {keys['ties']!r}: takes every order of the classes that were "
        "not sampled; expected candidates = 'sampled' or 'rest'"
      )
    most = ranking.LONGEST - (keys["candidates"] == "rest")
    if keys["samples"] > most:
      return (
        f"samples = {keys['samples']}: ties = {keys['ties']!r} takes every "
        f"order; expected at most {most}, or ties = 'average'"
      )
  return _all_have_votes(keys)


WEIGHT = rules.number(low=0)
TEMPERATURE = {"temperature": rules.number(above=0)}
DIVERGENCE = {"divergence": rules.choice(*divergences.DIVERGENCES)}
SAMPLES = {"samples": rules.integer(1)}
RANKED = {**SAMPLES, "scores": rules.choice("votes", "log_probs", "scores")}
CANDIDATES = {"candidates": rules.choice("sampled", "all", "rest")}
TIES = {"ties": rules.choice("average", "mean", "any", "index")}
TOP = {"k": rules.integer(1)}

OBJECTIVES: dict[str, Objective] = {
  "hard": Objective(
    _hard,
    {"target": rules.choice("answer", "truth", "best")},
    reads="{target}",
    words="cross-entropy on {target}",
    rows=_has_target,
    needs="such a label",
    fused=_hard_fused,
  ),
  "soft": Objective(
    _soft,
    {**TEMPERATURE, **DIVERGENCE},
    reads="logits",
    words="teacher's distribution",
    fused=_soft_fused,
  ),
  "top_k": Objective(
    _top_k,
    {
      **TOP,
      **TEMPERATURE,
      **DIVERGENCE,
      "tail": rules.choice("bucket", "zero", "renormalize"),
    },
    reads="top_k",
    words="the teacher's top {k}",
    fused=_top_k_fused,
  ),
  "dkd": Objective(
    _dkd,
    {
      "alpha": WEIGHT,
      "beta": WEIGHT,
      **TEMPERATURE,
      "target": rules.choice("answer", "truth"),
    },
    reads="logits {target}",
    words="decoupled KD on {target}",
    rows=_has_target,
    needs="such a label",
    classes=3,
  ),
  "dist": Objective(
    _dist,
    {"beta": WEIGHT, "gamma": WEIGHT, **TEMPERATURE},
    reads="logits",
    words="relations within and between classes",
    couples=True,
  ),
  "partial_plackett_luce": Objective(
    _partial_plackett_luce,
    TOP,
    reads="top_k",
    words="order of the teacher's top {k}",
  ),
  "frequencies": Objective(
    _frequencies,
    {**SAMPLES, **TEMPERATURE},
    reads="samples",
    words="frequencies of the teacher's samples",
    rows=_has_answer,
    needs="a sample",
  ),
  "acceptable": Objective(
    _acceptable,
    {**SAMPLES, **TEMPERATURE},
    reads="samples",
    words="equal shares of the teacher's answers",
    rows=_has_acceptable,
    needs="a sample that is not rejected",
  ),
  "preference": Objective(
    _preference,
    SAMPLES,
    reads="rejected samples",
    words="the teacher's samples against its rejected",
    rows=_has_pair,
    needs="a sample and another, rejected alternative",
  ),
  "list_net": Objective(
    _list_net,
    {**RANKED, **TEMPERATURE},
    reads="{scores} samples",
    words="ListNet on the teacher's samples",
    rows=_has_score,
    needs="a sample with such a score",
  ),
  "plackett_luce": Objective(
    _plackett_luce,
    {**RANKED, **CANDIDATES, **TIES},
    reads="{scores} samples",
    words="Plackett-Luce on the teacher's samples",
    rows=_has_score,
    needs="a sample with such a score",
    limit=_orders_are_few,
  ),
  "pairwise_logistic": Objective(
    _pairwise,
    {**RANKED, **CANDIDATES, "weights": rules.choice(None, "difference")},
    reads="{scores} samples",
    words="pairwise order of the teacher's samples",
    rows=_has_order,
    needs="two samples that such scores tell apart",
    limit=_all_have_votes,
  ),
  **completions.OBJECTIVES,
}
