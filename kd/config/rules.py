"""Rules: what a key accepts, and the words that say so."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kd.errors import UserError

INT32 = 2**31 - 1
# Numbers become float32: beyond these they would be infinite, or 0.
LARGEST, SMALLEST = 3.4028234e38, 1.1754944e-38


@dataclasses.dataclass(frozen=True)
class Check:
  """What a key accepts: `accepts(value)`, and `words` for the error.

  `traced` marks a number that may differ between the arms of one compiled
  program, where it is an array with one entry for each arm.
  """

  words: str
  accepts: Callable[[Any], bool]
  traced: bool = False


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of a section: its usual value, and what it accepts."""

  default: Any
  rule: Check


def is_number(value, kinds=int | float) -> bool:
  """Whether a value is of the kinds, of which bool is none."""
  return isinstance(value, kinds) and not isinstance(value, bool)


def number(*, above=None, low=None, high=None, below=None) -> Check:
  """A traced float in the given range, and in float32's."""
  bounds = [
    (above, ">", lambda v: v > above and v - above >= SMALLEST),
    (low, ">=", lambda v: v >= low),
    (high, "<=", lambda v: v <= high),
    (below, "<", lambda v: v < below),
  ]
  bounds = [b for b in bounds if b[0] is not None]
  words = " and ".join(f"{sign} {bound}" for bound, sign, _ in bounds)
  return Check(
    f"a number {words}".rstrip(),
    lambda v: (
      is_number(v)
      and abs(v) <= LARGEST
      and all(holds(v) for _, _, holds in bounds)
    ),
    traced=True,
  )


def integer(low: int, high: int = INT32) -> Check:
  words = f"from {low} to {high}"
  if high == INT32:
    words = f">= {low} and at most {high}"
  return Check(
    f"a whole number {words}",
    lambda v: is_number(v, int) and low <= v <= high,
  )


def integers(low: int, high: int = INT32) -> Check:
  return tuple_of(integer(low, high))


def tuple_of(rule: Check, *, most: int | None = None, least: int = 0) -> Check:
  """A tuple of `least` to `most` values that `rule` accepts, which may itself
  be of tuples; `most` of None is any number."""
  count = f" of {least} to {most}" if least else f" of at most {most}"
  if most is None:
    count = f" of at least {least}" if least else ""
  return Check(
    f"a tuple{count}, each {rule.words}",
    lambda v: (
      isinstance(v, tuple | list)
      and least <= len(v)
      and (most is None or len(v) <= most)
      and all(map(rule.accepts, v))
    ),
  )


def choice(*names) -> Check:
  return Check(
    "one of " + ", ".join(map(repr, names)),
    lambda v: any(v == n and type(v) is type(n) for n in names),
  )


def optional(check: Check) -> Check:
  return Check(
    f"None or {check.words}", lambda v: v is None or check.accepts(v)
  )


def _is_regex(value) -> bool:
  try:
    re.compile(value)
  except (re.error, TypeError):
    return False
  return True


def _is_text(value) -> bool:
  # Half of a surrogate pair, which no file takes, isn't printable either.
  return isinstance(value, str) and value.isprintable()


NAME_FORM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
TEXT = Check("a text without control characters", _is_text)
PATH = Check("a path without control characters", _is_text)
PROSE = Check(
  "a text, its only control characters newlines",
  lambda v: isinstance(v, str) and _is_text(v.replace("\n", " ")),
)
NAME = Check(
  "a name of up to 64 letters, digits, _, ., + and -, which does not begin "
  "with one of the last three",
  lambda v: isinstance(v, str) and NAME_FORM.fullmatch(v) is not None,
)
RATE = dataclasses.replace(
  number(low=0, below=1), words="a rate in [0, 1)", traced=False
)
FLAG = Check("True or False", lambda v: isinstance(v, bool))
REGEX = Check("a regular expression", _is_regex)
WEIGHTS = Check(
  "a section of weights > 0 by name",
  lambda v: (
    isinstance(v, Mapping) and all(map(number(above=0).accepts, v.values()))
  ),
)


def check(path: str, value, rule: Check) -> None:
  """Raises UserError unless `rule` accepts `value` for the key `path`."""
  if isinstance(value, Mapping) and set(value) == {"sweep"}:
    raise UserError(
      f"{path} is a sweep, which only keys of arms can be: expected "
      f"{rule.words}, or the sweep in arms.NAME"
    )
  if not rule.accepts(value):
    raise UserError(f"{path} = {value!r}: expected {rule.words}")


def refuse_unknown(path: str, found: Mapping, known: Iterable[str]) -> None:
  """Raises UserError where a section has a key that is not known."""
  for key in found:
    if key not in known:
      raise UserError(
        f"{path}.{key} = {found[key]!r}: unknown key, expected one of "
        + ", ".join(known)
      )


def check_keys(path: str, found: Mapping, rules: Mapping[str, Check]) -> None:
  """Checks a section: no unknown key, none missing, every value accepted."""
  refuse_unknown(path, found, rules)
  for key, rule in rules.items():
    if key not in found:
      raise UserError(f"{path}.{key} is missing: expected {rule.words}")
    check(f"{path}.{key}", found[key], rule)
