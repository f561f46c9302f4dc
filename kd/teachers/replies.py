"""What a server's reply means: samples, or why there are none.

A reply is data. `read` takes any JSON value, of which servers send many shapes,
and never raises:

    JSON -> Reply(samples, dropped, usage, fault)
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from kd.errors import why
from kd.teachers.answers import Sample

CUT = "cut off at the limit of tokens (max_tokens)"
FILTERED = "held back by the server's filter"
REFUSED = "refused"
BROKEN = "broken off by the server"
NO_TEXT = "without text"
# Reasons to stop, of several servers, that leave no answer.
UNFINISHED = {
  "length": CUT,
  "max_tokens": CUT,
  "model_length": CUT,
  "content_filter": FILTERED,
  "safety": FILTERED,
  "recitation": FILTERED,
  "blocklist": FILTERED,
  "prohibited_content": FILTERED,
  "refusal": REFUSED,
  "error": BROKEN,
  "abort": BROKEN,
  "insufficient_system_resource": BROKEN,
}
# The same request would meet these again, unless it is sampled.
LASTING = (CUT, FILTERED, REFUSED)
THOUGHTS = ("thinking", "reasoning")  # kinds of a content's parts
ROUNDING = 1e-4  # a log-probability above 0 by no more than this is 0


@dataclasses.dataclass(frozen=True)
class Reply:
  """What one reply holds.

  Attributes:
    samples: the choices that are answers.
    dropped: why each of the other choices is none.
    usage: tokens of the prompt and of the answers; None where not told.
    fault: why there are no choices at all, "" where there are.
    is_error: whether the server says that it failed, so that it charges
      nothing and may be asked again.
  """

  samples: list[Sample] = dataclasses.field(default_factory=list)
  dropped: list[str] = dataclasses.field(default_factory=list)
  usage: tuple[int, int] | None = None
  fault: str = ""
  is_error: bool = False


def read(reply: Any, count: int) -> Reply:
  """Reads a reply.

  Args:
    reply: any JSON value.
    count: how many choices were asked for.
  """
  try:
    return _read(_mended(reply), count)
  except (ValueError, OverflowError, RecursionError) as error:
    return Reply(fault=f"an answer of another form: {why(error)}")


def _read(reply: Any, count: int) -> Reply:
  usage = _usage(_field(reply, "usage"))
  choices = _field(reply, "choices")
  if isinstance(choices, list) and choices:
    if len(choices) != count:
      words = f"{len(choices)} choices for n = {count}"
      if len(choices) < count:
        words += ": try --one_by_one"
      return Reply(usage=usage, fault=words)
    found = [_sample_or_why(choice) for choice in choices]
    return Reply(
      samples=[s for s in found if isinstance(s, Sample)],
      dropped=[s for s in found if isinstance(s, str)],
      usage=usage,
    )
  error = _field(reply, "error")
  if error or _field(reply, "object") == "error":
    words = f"an error in the answer: {_brief(error or reply)}"
    return Reply(usage=usage, fault=words, is_error=True)
  if isinstance(choices, list):
    return Reply(usage=usage, fault="an answer without choices")
  return Reply(usage=usage, fault=f"an answer of another form: {_brief(reply)}")


def _sample_or_why(choice: Any) -> Sample | str:
  """Returns a choice's sample, or why it is none; never the other choices'
  loss."""
  try:
    return _sample(choice)
  except (ValueError, OverflowError, RecursionError) as error:
    return f"of another form: {why(error)}"


def _sample(choice: Any) -> Sample | str:
  message = _field(choice, "message")
  if not isinstance(message, dict):
    return f"of another form: {_brief(choice)}"
  text, thoughts = _content(message.get("content"))
  for key in ("reasoning_content", "reasoning"):
    thoughts = _text(message.get(key)) or thoughts
  finish = _field(choice, "finish_reason")
  if isinstance(finish, str) and finish.casefold() in UNFINISHED:
    reason = UNFINISHED[finish.casefold()]
    return reason if text or not thoughts else f"{reason} while reasoning"
  if refusal := _refusal(message):
    return f"{REFUSED}: {refusal[:100]}"
  calls = message.get("tool_calls")
  trace = calls if isinstance(calls, list) and calls else None
  if not text and trace is None:
    return NO_TEXT
  sample = Sample(
    text=text,
    logprob=_logprob(choice),
    rationale=thoughts or None,
    trace=trace,
  )
  # As it will be read again: a NaN in a trace is null.
  return msgspec.json.decode(msgspec.json.encode(sample), type=Sample)


def _content(content: Any) -> tuple[str, str]:
  """Returns a content's text and thoughts, each joined."""
  parts = content if isinstance(content, list) else [content]
  thoughts = [p for p in parts if _field(p, "type") in THOUGHTS]
  said = [p for p in parts if _field(p, "type") not in THOUGHTS]
  return _text(said), _text(thoughts)


def _text(node: Any) -> str:
  """Joins the texts of a text, a part or a list of parts."""
  return "".join(_texts(node))


def _texts(node: Any) -> Iterator[str]:
  if isinstance(node, str):
    yield node
  elif isinstance(node, list):
    for part in node:
      yield from _texts(part)
  elif isinstance(node, dict):
    for key in ("text", *THOUGHTS, "value"):
      if key in node:
        yield from _texts(node[key])
        return


def _refusal(message: Mapping[str, Any]) -> str:
  parts = message.get("content")
  refused = [message, *(parts if isinstance(parts, list) else [])]
  return "".join(_text(_field(part, "refusal")) for part in refused)


def _logprob(choice: Any) -> float | None:
  """Returns the natural log-probability of a choice, the sum over its tokens;
  None where that of a token is absent or cannot be one."""
  tokens = _field(_field(choice, "logprobs"), "content")
  if not isinstance(tokens, list) or not tokens:
    return None
  each = [_number(_field(token, "logprob")) for token in tokens]
  known = [v for v in each if v is not None and v <= ROUNDING]
  total = sum(known)
  if len(known) < len(each) or not math.isfinite(total):
    return None
  return min(0.0, total)


def _usage(usage: Any) -> tuple[int, int] | None:
  keys = ("prompt_tokens", "completion_tokens")
  asked, made = (_number(_field(usage, key)) for key in keys)
  if asked is None or made is None or asked < 0 or made < 0:
    return None
  return math.ceil(asked), math.ceil(made)


def _number(value: Any) -> float | None:
  """Returns a finite number; None for anything else."""
  if not isinstance(value, int | float) or isinstance(value, bool):
    return None
  return float(value) if abs(value) <= sys.float_info.max else None


def _field(node: Any, key: str) -> Any:
  return node.get(key) if isinstance(node, dict) else None


def _mended(node: Any) -> Any:
  """Returns a JSON value with U+FFFD for each half of a surrogate pair, which
  no file can hold."""
  text = json.dumps(node, ensure_ascii=False)
  if text.isascii():
    return node
  units = text.encode("utf-16-le", "surrogatepass")
  return json.loads(units.decode("utf-16-le", "replace"))


def _brief(node: Any) -> str:
  message = _field(node, "message")
  words = message if isinstance(message, str) else json.dumps(node)
  return words[:200]
