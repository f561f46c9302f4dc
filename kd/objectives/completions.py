"""The table's part of losses of whole completions, one for each prompt [B].

`length` says what a completion's log-probability is: the "sum" over its tokens,
its stop token among them, or the "mean" (kd.objectives.sequences).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd import ranking
from kd.config import rules
from kd.models.outputs import Outputs
from kd.objectives import sequences
from kd.objectives.objective import Loss, Objective, Rows
from kd.signals import Completions, Kind, Signal, present
from kernels import token_log_probs

Each = Float[Array, "B C"]
Where = Bool[Array, "B C"]
Length = Literal["sum", "mean"]


def at_tokens(student: Outputs, tokens: Int[Array, "N"]) -> Float[Array, "N"]:
  """Returns the log-probability of each position's token, in nats, of which no
  more than a chunk of logits is there at once; of -1, any number."""
  ids = jnp.maximum(tokens, 0)
  if student.kept is None:
    return token_log_probs(student.head, ids)
  return student.log_probs_at(ids[:, None], 1.0)[:, 0]


def log_probs(student: Outputs, of: Completions, length: Length) -> Each:
  """Returns the student's log-probability of each completion, in nats."""
  each = at_tokens(student, of.tokens)
  prompts, count = of.kinds.shape
  slots = jnp.repeat(jnp.arange(of.kinds.size), len(each) // of.kinds.size)
  slots = jnp.where(of.tokens >= 0, slots, -1)
  rows = (of.kinds.size, -1)
  found, _ = sequences.completion_log_probs(
    each.reshape(rows), slots.reshape(rows), (prompts, count), length=length
  )
  return found


def _completions(signal: Signal) -> Completions:
  return present(signal.completions, "completions")


def _scaled(values: Each, of: Completions, length: str) -> Each:
  """Returns another model's log-probabilities as `length` says."""
  return values / jnp.maximum(of.lengths, 1) if length == "mean" else values


def _scores(of: Completions, scores: str, length: str = "sum") -> Each:
  if scores == "scores":
    return of.scores
  return _scaled(of.log_probs, of, length)


def _best(of: Completions) -> Each:
  """Returns the scores, of prompts without any the log-probabilities."""
  scored = of.are(Kind.SAMPLE, Kind.REPEAT) & ~jnp.isnan(of.scores)
  return jnp.where(scored.any(-1, keepdims=True), of.scores, of.log_probs)


def _sequence_kd(student: Outputs, signal: Signal, *, several, length) -> Loss:
  of = _completions(signal)
  kinds = (Kind.SAMPLE,) if several == "any" else (Kind.SAMPLE, Kind.REPEAT)
  return sequences.sequence_kd(
    log_probs(student, of, length),
    of.are(*kinds),
    several=several,
    scores=_best(of),
  )


def _has_sample(signal: Signal, num_classes, *, several="", **_) -> Rows:
  of = _completions(signal)
  there = of.are(Kind.SAMPLE, Kind.REPEAT)
  if several == "best":
    there = there & ~jnp.isnan(_best(of))
  return there.any(-1)


def _ranked(loss: Callable[..., Loss]) -> Callable[..., Loss]:
  def of_signal(student, signal, *, scores, length, **keys) -> Loss:
    of = _completions(signal)
    own = log_probs(student, of, length)
    given = _scores(of, scores, length)
    return sequences.ranked(loss, own, given, of.are(Kind.SAMPLE), **keys)

  return of_signal


def _list_net(student: Outputs, signal: Signal, *, temperature, **keys) -> Loss:
  """ListNet times T^2."""
  of = _ranked(ranking.list_net)
  return temperature**2 * of(student, signal, temperature=temperature, **keys)


def _has_order(signal: Signal, num_classes, *, scores, length, **_) -> Rows:
  of = _completions(signal)
  values = _scores(of, scores, length)
  values = jnp.where(of.are(Kind.SAMPLE), values, jnp.nan)
  return jnp.nanmax(values, -1, initial=-jnp.inf) > jnp.nanmin(
    values, -1, initial=jnp.inf
  )


def _pairs(of: Completions, against: str) -> tuple[Where, Where]:
  """Returns which completions to prefer, and to which."""
  chosen = of.are(Kind.SAMPLE)
  if against == "rejected":
    return chosen, of.are(Kind.REJECTED)
  values = _best(of)
  known = chosen & ~jnp.isnan(values)
  places = jnp.arange(known.shape[-1])

  def extreme(sign):
    at = jnp.argmax(jnp.where(known, sign * values, -jnp.inf), -1)
    return known & (places == at[:, None])

  first, last = extreme(1), extreme(-1)
  differ = ~(first & last).any(-1, keepdims=True)
  return first & differ, last & differ


def _reference(of: Completions, reference: str) -> Each | None:
  if reference == "none":
    return None
  if reference == "teacher":
    return of.log_probs
  return present(of.reference, "log-probabilities of the initial student")


def _preference(
  student: Outputs, signal: Signal, *, against, reference, beta, form, length
) -> Loss:
  of = _completions(signal)
  own, given = log_probs(student, of, length), _reference(of, reference)
  if given is not None:
    given = _scaled(given, of, length)
    given = given, given
  where = _known_pairs(of, against, reference)
  return sequences.preference(
    own, own, given, beta=beta, form=form, where=where
  )


def _known_pairs(of: Completions, against: str, reference: str):
  chosen, rejected = _pairs(of, against)
  if reference == "teacher":
    known = ~jnp.isnan(of.log_probs)
    return chosen & known, rejected & known
  return chosen, rejected


def _has_pair(signal: Signal, num_classes, *, against, reference, **_) -> Rows:
  pairs = _known_pairs(_completions(signal), against, reference)
  return pairs[0].any(-1) & pairs[1].any(-1)


def _step_by_step(
  student: Outputs, signal: Signal, *, rationale_weight, length
) -> Loss:
  of = _completions(signal)
  own, reasons = log_probs(student, of, length), of.are(Kind.RATIONALE)
  return sequences.step_by_step(
    sequences.sequence_kd(own, of.are(Kind.SAMPLE, Kind.REPEAT)),
    sequences.sequence_kd(own, reasons),
    reasons.any(-1),
    weight=rationale_weight,
  )


def _any_is_a_sum(keys: Mapping[str, Any]) -> str:
  if keys["several"] == "any" and keys["length"] == "mean":
    return (
      "length = 'mean': 'any' adds probabilities of completions; expected 'sum'"
    )
  return ""


LENGTH = {"length": rules.choice("sum", "mean")}
RANKED = {"scores": rules.choice("log_probs", "scores"), **LENGTH}
ORDER = "two completions that such scores tell apart"
READS = "{scores} completions"

OBJECTIVES: dict[str, Objective] = {
  "sequence_kd": Objective(
    _sequence_kd,
    {"several": rules.choice("mean", "any", "best"), **LENGTH},
    reads="completions",
    words="cross-entropy on the teacher's completions",
    rows=_has_sample,
    needs="a completion, for 'best' one with a score",
    limit=_any_is_a_sum,
    sequences=True,
  ),
  "sequence_list_net": Objective(
    _list_net,
    {**RANKED, "temperature": rules.number(above=0)},
    reads=READS,
    words="ListNet on the teacher's completions",
    rows=_has_order,
    needs=ORDER,
    sequences=True,
  ),
  "sequence_plackett_luce": Objective(
    _ranked(ranking.plackett_luce),
    {**RANKED, "ties": rules.choice("average", "index")},
    reads=READS,
    words="Plackett-Luce on the teacher's completions",
    rows=_has_order,
    needs=ORDER,
    sequences=True,
  ),
  "sequence_pairwise": Objective(
    _ranked(ranking.pairwise_logistic),
    {**RANKED, "weights": rules.choice(None, "difference")},
    reads=READS,
    words="pairwise order of the teacher's completions",
    rows=_has_order,
    needs=ORDER,
    sequences=True,
  ),
  "sequence_preference": Objective(
    _preference,
    {
      "against": rules.choice("rejected", "worst"),
      "reference": rules.choice("initial", "teacher", "none"),
      "beta": rules.number(above=0),
      "form": rules.choice("sigmoid", "ipo"),
      **LENGTH,
    },
    reads="{against} completions",
    words="the teacher's completions preferred to its {against}",
    rows=_has_pair,
    needs="a completion and one to prefer it to",
    sequences=True,
  ),
  "step_by_step": Objective(
    _step_by_step,
    {"rationale_weight": rules.number(low=0), **LENGTH},
    reads="rationales completions",
    words="the teacher's completions and, apart, its rationales",
    rows=_has_sample,
    needs="a completion",
    sequences=True,
  ),
}
