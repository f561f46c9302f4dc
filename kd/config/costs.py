"""The section `cost`: prices, and what a break-even is asked of.

What is made of them: kd.evaluate.break_even, docs/cost.md.
"""

from collections.abc import Mapping
from typing import Any

from kd.config.rules import TEXT, Key, choice, number
from kd.errors import UserError

PRICE = number(low=0)
# What asking a model costs, in any unit of money.
PRICES = {
  "call": Key(0.0, PRICE),  # a request
  "in_1k": Key(0.0, PRICE),  # a thousand tokens of prompts
  "out_1k": Key(0.0, PRICE),  # of completions
  "hour": Key(0.0, PRICE),  # of the hardware that answers
  "utilization": Key(1.0, number(above=0, high=1)),  # when it does
}
COST = {
  "requests": Key(0.0, PRICE),  # a month; 0 asks for none of it
  "unit": Key("$", TEXT),
  "months": Key(12.0, number(above=0)),  # that a student serves
  "prompt_tokens": Key(0.0, PRICE),  # of a request
  "completion_tokens": Key(0.0, PRICE),
  "teacher": PRICES,
  "student": PRICES,
  "labelling": Key(0.0, PRICE),  # people's, an example
  "training": Key(0.0, PRICE),  # an hour
  "evaluation": Key(0.0, PRICE),  # an hour
  # Which measured seconds count: all, or a run's share of them.
  "count": Key("study", choice("study", "run")),
  "people": Key(0.0, PRICE),  # once
  "yearly": Key(0.0, PRICE),  # of owning a student
}


def check(cost: Mapping[str, Any], measured: bool) -> None:
  """Refuses a break-even that nothing could tell.

  Args:
    cost: the section.
    measured: whether the study times its models (`evaluate.measure`).

  Raises:
    UserError: a teacher that costs nothing, a price of seconds that nobody
      measures, or one of tokens where a request has none.
  """
  if not cost["requests"]:
    return
  teacher = cost["teacher"]
  if not any(v for k, v in teacher.items() if k != "utilization"):
    raise UserError(
      f"cost.requests = {cost['requests']:g}: the teacher costs nothing, so "
      "that no student can pay; expected a price above 0 of cost.teacher.call, "
      "in_1k, out_1k or hour"
    )
  for side in ("teacher", "student"):
    prices = cost[side]
    if prices["hour"] and not measured:
      raise UserError(
        f"cost.{side}.hour = {prices['hour']:g}: a price of measured seconds, "
        "which evaluate.measure = False leaves out; expected True, or 0"
      )
    for key, tokens in (("in_1k", "prompt"), ("out_1k", "completion")):
      if prices[key] and not cost[f"{tokens}_tokens"]:
        raise UserError(
          f"cost.{side}.{key} = {prices[key]:g}: a price of tokens, and "
          f"cost.{tokens}_tokens = 0; expected how many a request has"
        )
