"""Contrasts: differences between arms that a study means to claim."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from kd.errors import UserError

_FORM = "expected 'ARM - ARM' or 'ARM - ARM within MARGIN'"


@dataclasses.dataclass(frozen=True)
class Contrast:
  """Holds the difference of two arms, arm - other.

  Attributes:
    text: as the config has it.
    arm: its left side.
    other: its right side.
    within: the margin of an equivalence, in the primary metric's own unit;
      None where a difference is tested.
  """

  text: str
  arm: str
  other: str
  within: float | None = None


def parse(text: str, arms: Iterable[str]) -> Contrast:
  """Reads one of a study's `contrasts`.

  Arms' names are exact, and may hold anything: a " - " or a " within " counts
  only where an arm's name stands on either side.

  Raises:
    UserError: it names no two arms, or its margin is no positive number.

  >>> parse("soft[T=4] - hard within 0.01", ["hard", "soft[T=4]"]).within
  0.01
  """
  arms = list(arms)
  if sides := _sides(text, arms):
    return Contrast(text, *sides)
  head, found, margin = text.rpartition(" within ")
  sides = _sides(head, arms) if found else None
  if sides is None:
    raise UserError(
      f"contrasts: {text!r}; {_FORM}, with arms of {', '.join(arms)}"
    )
  try:
    within = float(margin)
  except ValueError:
    within = math.nan
  if not (math.isfinite(within) and within > 0):
    raise UserError(
      f"contrasts: {text!r}: margin {margin!r}; accepted: a number above 0, in "
      "the unit of evaluate.metric (0.01 of accuracy is a point)"
    )
  return Contrast(text, *sides, within)


def check(texts: Iterable[str], arms: Iterable[str]) -> None:
  """Checks a study's `contrasts`.

  Raises:
    UserError: of `parse`; or two are one, which would be corrected for twice.
  """
  arms, seen = list(arms), {}
  for text in texts:
    made = parse(text, arms)
    key = frozenset((made.arm, made.other)), made.within
    if other := seen.get(key):
      raise UserError(
        f"contrasts: {other!r} and {text!r} are one comparison; expected each "
        "once"
      )
    seen[key] = text


def _sides(text: str, arms: Sequence[str]) -> tuple[str, str] | None:
  """Splits at the first " - " that has two different arms on its sides."""
  parts = text.split(" - ")
  for i in range(1, len(parts)):
    left, right = (" - ".join(p).strip() for p in (parts[:i], parts[i:]))
    if left in arms and right in arms and left != right:
      return left, right
  return None
