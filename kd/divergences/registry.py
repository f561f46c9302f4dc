"""The table of divergences: what a config may name.

To add a divergence, write it, phi(lq, lp) or a function of its parameters that
makes one (in kd.divergences.kl, say), and give it an entry in DIVERGENCES: its
parameters with their rules, and its words in a report if they are not its name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kd.config import rules
from kd.config.rules import Check
from kd.divergences.alpha import alpha_divergence
from kd.divergences.forms import Divergence, Parameter
from kd.divergences.kl import forward_kl, reverse_kl, tvd
from kd.divergences.mixtures import jsd, skew_kl, skew_reverse_kl


@dataclasses.dataclass(frozen=True)
class Entry:
  """A divergence as a config names it.

  Attributes:
    function: phi(lq, lp) itself, or where there are parameters, what makes it
      of them.
    words: in a report.
    parameters: {name: rule}.
  """

  function: Callable[..., Any]
  words: str
  parameters: Mapping[str, Check] = dataclasses.field(default_factory=dict)


SHARE = rules.number(low=0, high=1)
DIVERGENCES: dict[str, Entry] = {
  "forward_kl": Entry(forward_kl, "forward KL"),
  "reverse_kl": Entry(reverse_kl, "reverse KL"),
  "tvd": Entry(tvd, "total variation"),
  "jsd": Entry(jsd, "JSD", {"beta": SHARE}),
  "skew_kl": Entry(skew_kl, "skew KL", {"alpha": SHARE}),
  "skew_reverse_kl": Entry(
    skew_reverse_kl, "skew reverse KL", {"alpha": SHARE}
  ),
  "alpha_divergence": Entry(
    alpha_divergence, "alpha-divergence", {"alpha": SHARE}
  ),
}


def get(name: str, **parameters: Parameter) -> Divergence:
  """Returns the divergence of that name, for configs.

  Args:
    name: one of DIVERGENCES.
    **parameters: those of its entry; they may be traced.

  Returns:
    phi(lq, lp).

  Raises:
    ValueError: the name is unknown; a parameter is missing, unknown or out of
      range.

  >>> get("jsd", beta=1.5)
  Traceback (most recent call last):
    ...
  ValueError: divergence 'jsd': beta is 1.5; accepted: a number in [0, 1]
  """
  if name not in DIVERGENCES:
    names = ", ".join(sorted(DIVERGENCES))
    raise ValueError(f"divergence {name!r} is unknown; accepted: {names}")
  entry = DIVERGENCES[name]
  takes = ", ".join(entry.parameters) or "no parameters"
  for key in parameters:
    if key not in entry.parameters:
      raise ValueError(
        f"divergence {name!r}: unknown parameter {key!r}; accepted: {takes}"
      )
  for key, rule in entry.parameters.items():
    if key not in parameters:
      found = ", ".join(parameters) or "none"
      raise ValueError(
        f"divergence {name!r}: parameter {key!r} is missing, found {found};"
        f" accepted: {rule.words}"
      )
  return entry.function(**parameters) if parameters else entry.function
