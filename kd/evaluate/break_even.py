r"""When a student pays: what it costs to make and to ask, beside its teacher.

A request costs, of either side,

    c = call + (prompt in_1k + completion out_1k) / 1000
        + hour seconds / (3600 utilization)

with prices of `cost`, the tokens of a request and the measured seconds of an
example at the batch of best throughput. A student that was made for M, and
whose owner pays Y a year, saves s = c_T - c_S a request. With n requests a
month, and M spread over as many months as the model is to serve, it has paid

    in total     from N = M / s requests
    by traffic   from n = (M / months + Y / 12) / s requests a month
    by time      after M / (n s - Y / 12) months

and never where the denominator is not above 0. All three fall as s grows, so
the interval of s, Student's t over the units of evidence, gives theirs. It
carries the spread of the measured seconds; prices are taken as they are.
Worked by hand: docs/cost.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from kd.evaluate import stats

NEVER = math.inf
HOUR = 3600.0


class Estimate(NamedTuple):
  """A number with its 95 % interval; NEVER where it is reached by none."""

  value: float
  low: float
  high: float

  def said(self) -> dict[str, float | str]:
    """Returns it for JSON, which has no infinity."""
    return {
      k: "never" if math.isinf(v) else float(v)
      for k, v in self._asdict().items()
    }

  @classmethod
  def read(cls, said: Mapping[str, float | str]) -> Estimate:
    """Reads what `said` wrote."""
    return cls(
      **{k: NEVER if v == "never" else float(v) for k, v in said.items()}
    )


def request(
  prices: Mapping[str, float],
  prompt: float,
  completion: float,
  seconds: Float[np.ndarray, " n"] | float,
) -> Float[np.ndarray, " n"] | float:
  """Returns c, what a request costs.

  Args:
    prices: call, in_1k, out_1k, hour (of the hardware) and utilization, the
      share of an hour in which it answers.
    prompt, completion: tokens of a request.
    seconds: of a request.

  >>> api = dict(call=0.0, in_1k=1.0, out_1k=4.0, hour=0.0, utilization=1.0)
  >>> request(api, 500, 100, 0.0)
  0.9
  """
  hardware = prices["hour"] * seconds / (HOUR * prices["utilization"])
  tokens = (prompt * prices["in_1k"] + completion * prices["out_1k"]) / 1000
  return prices["call"] + tokens + hardware


def total(making: float, saving: float) -> float:
  """Returns N, the requests after which a student has paid for its making.

  >>> total(500.0, 0.25), total(500.0, 0.0)
  (2000.0, inf)
  """
  return making / saving if saving > 0 else NEVER


def traffic(
  making: float, yearly: float, months: float, saving: float
) -> float:
  """Returns n, the requests a month from which a student pays.

  >>> traffic(1200.0, 600.0, 12.0, 0.01)
  15000.0
  """
  return total(making / months + yearly / 12, saving)


def payback(
  making: float, yearly: float, requests: float, saving: float
) -> float:
  """Returns the months after which a student has paid for its making.

  >>> payback(1200.0, 600.0, 25_000.0, 0.01), payback(1.0, 600.0, 100.0, 0.01)
  (6.0, inf)
  """
  return total(making, requests * saving - yearly / 12)


def estimate(units: Float[np.ndarray, " n"]) -> Estimate:
  """Returns a mean over units with its interval, Student's t; of numbers that
  are all the same, or of one, that number alone. NaN is left out."""
  units = units[np.isfinite(units)]
  mean = float(np.mean(units))
  if len(units) < 2 or np.ptp(units) == 0:
    return Estimate(mean, mean, mean)
  error = float(np.std(units, ddof=1)) / math.sqrt(len(units))
  half = stats.quantile(len(units)) * error
  return Estimate(mean, mean - half, mean + half)


def falling(fn, saving: Estimate) -> Estimate:
  """Applies a function that falls as its argument grows."""
  return Estimate(fn(saving.value), fn(saving.high), fn(saving.low))
