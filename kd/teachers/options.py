"""How to ask a server: what kd.teachers.ask is told, and what it refuses."""

import dataclasses
import json
import math
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from kd.errors import UserError
from kd.teachers.answers import Prompt
from kd.teachers.ledger import LIMITS

OWN_FIELDS = ("model", "messages", "n", "stream")  # not for extra_body
MOST_TOKENS = 10**9
CHAT_TOKENS = 16  # what a chat adds to a prompt's tokens, at most


@dataclasses.dataclass(frozen=True)
class Options:
  """How to ask.

  Attributes:
    url: the server's, up to and with /v1.
    model: its name at the server.
    samples: K, of each prompt.
    temperature: the sampling's.
    max_tokens: at most, of a sample; 0 sends no limit.
    system: the system message, or "".
    logprobs: whether to ask for token log-probabilities (their sum is kept).
    one_by_one: K requests of one sample, for servers that ignore "n".
    extra_body: other fields of the request; one that is null is not sent.
    concurrency: requests at once.
    timeout: seconds for one try.
    tries: at most, of one request.
    price_in: US dollars for a million tokens of prompts.
    price_out: US dollars for a million tokens of answers.
    spend_limit: US dollars, over all runs with the same output.
    keep: whether to go on with an output that was asked for otherwise.
    key: sent as a bearer token; "" sends none.
  """

  url: str
  model: str
  samples: int = 1
  temperature: float = 1.0
  max_tokens: int = 256
  system: str = ""
  logprobs: bool = False
  one_by_one: bool = False
  extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  concurrency: int = 8
  timeout: float = 60.0
  tries: int = 6
  price_in: float = 0.0
  price_out: float = 0.0
  spend_limit: float = math.inf
  keep: bool = False
  key: str = dataclasses.field(default="", repr=False)

  @property
  def fields(self) -> dict[str, Any]:
    """The request's fields, but for model, messages and n."""
    fields = {
      "temperature": self.temperature,
      "max_tokens": self.max_tokens or None,
      "logprobs": self.logprobs or None,
      **self.extra_body,
    }
    return {key: value for key, value in fields.items() if value is not None}

  @property
  def settings(self) -> dict[str, Any]:
    """What an answer depends on, beside its prompt; JSON."""
    own = {key: getattr(self, key) for key in ("model", "system", "samples")}
    return json.loads(json.dumps({**own, **self.fields}))

  @property
  def longest(self) -> int | None:
    """The most tokens of a sample; None where the request does not say."""
    given = [self.fields.get(key) for key in LIMITS]
    return max((v for v in given if isinstance(v, int)), default=None)

  @property
  def requests(self) -> int:
    """Requests for a prompt."""
    return self.samples if self.one_by_one else 1

  @property
  def choices(self) -> int:
    """Samples of a request."""
    return 1 if self.one_by_one else self.samples

  def most(self, prompt: Prompt) -> tuple[int, int]:
    """Returns the most tokens that a request uses: (in, out). A token is at
    least a byte."""
    asked = len((self.system + prompt.prompt).encode()) + CHAT_TOKENS
    return asked, (self.longest or 0) * self.choices

  def usd(self, tokens_in: int, tokens_out: int) -> float:
    """Returns what tokens cost, US dollars."""
    return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

  def check(self) -> None:
    """Raises UserError for the first option that is not as it should be."""
    for name, (accepts, words) in RULES.items():
      value = getattr(self, name)
      if not accepts(value):
        raise UserError(f"--{name} = {value!r}: expected {words}")
    if any(not "!" <= letter <= "~" for letter in self.key):
      raise UserError(
        "the API key (--key_env): expected printable ASCII without spaces"
      )
    for key in OWN_FIELDS:
      if key in self.extra_body:
        raise UserError(
          f"--extra_body: {key} is not for it; expected any field but "
          + ", ".join(OWN_FIELDS)
        )
    if math.isfinite(self.spend_limit):
      if not (self.price_in or self.price_out):
        raise UserError(
          f"--spend_limit = {self.spend_limit}: needs --price_in and "
          "--price_out"
        )
      if self.price_out and self.longest is None:
        raise UserError(
          f"--spend_limit = {self.spend_limit}: needs a limit of tokens, "
          "expected --max_tokens > 0, or max_completion_tokens in --extra_body"
        )


def extra_body(text: str) -> dict[str, Any]:
  """Reads --extra_body.

  Raises:
    UserError: it is no JSON object of finite numbers.
  """
  try:
    found = json.loads(text)
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise UserError(
      f"--extra_body = {text[:100]!r}: expected a JSON object, such as "
      "'{\"max_completion_tokens\": 400}'"
    )
  return found


def _is_url(url: str) -> bool:
  try:
    parts = urllib.parse.urlsplit(url)
    good = parts.scheme in ("http", "https") and bool(parts.hostname)
    good = good and (parts.port is None or parts.port > 0)
  except ValueError:  # a bad port, or half a bracket
    return False
  return good and url.isprintable() and " " not in url


def _is_utf8(text: str) -> bool:
  return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _whole(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
  return (
    lambda v: isinstance(v, int) and low <= v <= high,
    f"a whole number from {low} to {high:,}",
  )


def _number(
  what: str, above: float = -1.0
) -> tuple[Callable[[Any], bool], str]:
  least = f"> {above:g}" if above >= 0 else ">= 0"
  return (
    lambda v: math.isfinite(v) and v >= 0 and v > above,
    f"{what} {least}",
  )


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
  "url": (_is_url, "http(s)://HOST[:PORT]/v1"),
  "model": (
    lambda v: bool(v.strip()) and _is_utf8(v),
    "the model's name at the server",
  ),
  "system": (_is_utf8, "a text in UTF-8"),
  "samples": _whole(1, 4096),
  "temperature": _number("a number"),
  "max_tokens": _whole(0, MOST_TOKENS),
  "concurrency": _whole(1, 1000),
  "timeout": _number("seconds", above=0.0),
  "tries": _whole(1, 1000),
  "price_in": _number("dollars"),
  "price_out": _number("dollars"),
  "spend_limit": (lambda v: v >= 0, "dollars >= 0"),  # of NaN it does not hold
}
