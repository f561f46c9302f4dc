"""What was asked and paid for: answers in OUT, outcomes in OUT.log.jsonl.

The log has a line for the settings that the answers were asked for with, and
one for each prompt's outcome: tokens, dollars, and the reason where there is no
answer. Both files grow by a line at a time; where a kill left the last one torn
the next run cuts it off, and goes on with what is missing. Neither is touched
if it does not begin as ours do.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, TextIO

import msgspec
from absl import logging

from kd.errors import UserError, brief, why
from kd.lines import entries, lines, mend
from kd.teachers import answers
from kd.teachers.answers import Answers, Prompt

# Names of one thing. An answer that was whole is the same under any limit.
LIMITS = ("max_tokens", "max_completion_tokens")
PACKED = (".gz", ".zst", ".parquet")


@dataclasses.dataclass
class Ledger:
  """What earlier runs left, and the files that this one adds to.

  Attributes:
    have: the ids that are answered.
    given_up: of those that are not, the ids that were given up, and the reason.
    usd: dollars spent over all runs.
  """

  have: set[str]
  given_up: dict[str, str]
  usd: float
  _out: TextIO
  _log: TextIO

  def note(self, entry: Mapping[str, Any], answer: Answers | None) -> None:
    """Writes a prompt's outcome: what it cost, then what it brought."""
    _append(self._log, json.dumps(entry, ensure_ascii=False))
    self.usd += entry["usd"]
    if answer is not None:
      _append(self._out, msgspec.json.encode(answer).decode())
      self.have.add(answer.id)


@contextlib.contextmanager
def claim(
  out: str,
  prompts: Sequence[Prompt],
  settings: Mapping[str, Any],
  keep: bool = False,
) -> Generator[Ledger]:
  """Makes an output one's own, and sees what it holds.

  Args:
    out: the answers' file, there or not.
    prompts: what is asked now.
    settings: of the requests, JSON; "samples" among them.
    keep: whether to go on where the answers were asked for otherwise. Those to
      other words than now, or with too few samples, move to OUT.old.jsonl; the
      others stay.

  Raises:
    UserError: the output cannot be written, is in use, is no file of ours, or
      was asked for otherwise and `keep` is False.
  """
  asked = {p.id: p for p in prompts}
  path = os.path.realpath(out)  # one lock whatever its names
  log = f"{path}.log.jsonl"
  if out.endswith(PACKED):
    raise UserError(f"--out = {out!r}: is appended to, expected plain JSONL")
  if os.path.exists(path) and not os.path.isfile(path):
    raise UserError(f"--out = {out!r}: expected a file")
  with contextlib.ExitStack() as stack:
    try:
      os.makedirs(os.path.dirname(path), exist_ok=True)
      if not os.path.exists(log):
        _answered(path, asked, False)  # no log beside a file of another's
      logged = stack.enter_context(_appended(log))
      _lock(out, logged)
      past = _logged(log)
      found = _answered(path, asked, past.settings is not None)
      line = {"settings": settings, "prompts": _digest(prompts)}
      words = _differences(past, line, found)
      if words and not keep:
        raise UserError(
          f"{out}: was asked for otherwise: {'; '.join(words)}; expected the "
          "same, another --out, or --keep (which keeps the answers that fit)"
        )
      if found.have and past.settings is None:
        logging.warning(
          "%s: no log says how its %d answers were asked for; they stay",
          *(out, len(found.have)),
        )
      mend(log)
      _complete(path, found.tail)
      if words:
        before = (past.settings or settings)["samples"]
        fewest = settings["samples"] if before < settings["samples"] else 1
        found.have = _sort_out(path, asked, fewest)
      if line != past.line:
        _append(logged, json.dumps(line, ensure_ascii=False))
      answered = stack.enter_context(_appended(path))
    except OSError as error:
      raise UserError(
        f"--out = {out!r}: cannot be used ({why(error)})"
      ) from error
    given_up = past.given_up if past.settings == settings else {}
    yield Ledger(found.have, given_up, past.usd, answered, logged)


def _appended(path: str) -> TextIO:
  # A server's words may hold what UTF-8 cannot.
  return open(path, "a", encoding="utf-8", errors="replace")


def _append(file: TextIO, line: str) -> None:
  file.write(line + "\n")
  file.flush()


def _lock(out: str, file: TextIO) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise UserError(f"--out = {out!r}: in use by another process") from error


@dataclasses.dataclass
class _Past:
  """What a log says: its last line of settings, and what came of prompts."""

  line: dict[str, Any] = dataclasses.field(default_factory=dict)
  given_up: dict[str, str] = dataclasses.field(default_factory=dict)
  usd: float = 0.0

  @property
  def settings(self) -> dict[str, Any] | None:
    return self.line.get("settings")


def _logged(log: str) -> _Past:
  """Reads a log.

  Raises:
    UserError: it is none, or a line is broken: dollars would be forgotten.
  """
  past = _Past()
  with open(log, "rb") as f:
    start = f.readline()
  begin = b'{"settings": '
  if not (start.endswith(b"\n") or _is_torn(start, [begin])):
    raise UserError(f"{log}: is in the way, expected no file or our own log")
  for number, entry in entries(log):
    settings, usd = entry.get("settings"), entry.get("usd", 0.0)
    is_sum = isinstance(usd, int | float) and 0 <= usd < math.inf
    if not is_sum or not {"settings", "usd"} & set(entry):
      raise UserError(f"{log}:{number}: expected settings, or dollars as usd")
    past.usd += usd
    if "settings" in entry:
      samples = settings.get("samples") if isinstance(settings, dict) else None
      if not isinstance(samples, int):
        raise UserError(f"{log}:{number}: expected settings with samples")
      if settings != past.settings:
        past.given_up.clear()
      past.line = entry
    elif "gave_up" in entry:
      past.given_up[str(entry.get("id"))] = str(entry["gave_up"])
  return past


@dataclasses.dataclass
class _Found:
  """What an output holds.

  Attributes:
    have: the ids with an answer.
    other: ids whose prompt or reference is another now, or is not asked.
    tail: how its last line ends: "" with a newline, "whole" without one, and
      "torn" within the line.
  """

  have: set[str] = dataclasses.field(default_factory=set)
  other: list[str] = dataclasses.field(default_factory=list)
  tail: str = ""


def _answered(out: str, asked: Mapping[str, Prompt], is_ours: bool) -> _Found:
  """Reads an output.

  Args:
    out: the file.
    asked: by id.
    is_ours: whether a log says that we began it, so that its first line may
      be the beginning of one of ours.

  Raises:
    UserError: a line holds no answers.
  """
  found = _Found()
  if not os.path.exists(out):
    return found
  for line in lines(out):
    try:
      answer = answers.of_line(line)
    except ValueError as error:
      starts = map(_start, asked.values()) if is_ours else ()
      if not line.whole and (line.number > 1 or _is_torn(line.value, starts)):
        found.tail = "torn"
        break
      raise UserError(
        f"{out}, line {line.number}: {error}; expected answers of an earlier "
        "run (the file is left as it is)"
      ) from error
    found.have.add(answer.id)
    prompt = asked.get(answer.id)
    if prompt != Prompt(answer.id, answer.prompt, answer.reference):
      found.other.append(answer.id)
    found.tail = "" if line.whole else "whole"
  return found


def _start(prompt: Prompt) -> bytes:
  """Returns how the line of a prompt's answers begins."""
  made = Answers(prompt.id, prompt.prompt, [])
  return msgspec.json.encode(made).removesuffix(b"]}")


def _is_torn(line: Any, starts: Iterable[bytes]) -> bool:
  """Whether a line is the beginning of one that starts in one of these ways."""
  if not isinstance(line, bytes):  # too long to be held
    return False
  return any(line.startswith(s) or s.startswith(line) for s in starts)


def _complete(out: str, tail: str) -> None:
  """Cuts off a torn last line; ends a whole one, which was paid for."""
  if tail == "torn":
    mend(out)
  elif tail == "whole":
    with open(out, "ab") as f:
      f.write(b"\n")


def _differences(
  past: _Past, now: Mapping[str, Any], found: _Found
) -> list[str]:
  """Says what is asked for otherwise than the answers so far were."""
  words = []
  if past.settings is not None:
    then, this = past.settings, now["settings"]
    words = [
      f"{key} = {_short(then.get(key))} then, {_short(this.get(key))} now"
      for key in {**then, **this}
      if key not in LIMITS and then.get(key) != this.get(key)
    ]
  if found.other and past.line.get("prompts") != now["prompts"]:
    words.append(
      f"of the prompts answered then, now {brief(found.other, 3)} differ or "
      "are not asked"
    )
  return words


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) < 60 else f"{text[:60]}..."


def _sort_out(out: str, asked: Mapping[str, Prompt], fewest: int) -> set[str]:
  """Moves answers to other words, or with too few samples, to OUT.old.jsonl.

  The references of the others become those of now.

  Returns:
    The ids of those that stay.
  """
  kept = set()
  scratch = f"{out}.tmp"
  with (
    open(scratch, "wb") as new,
    open(f"{out}.old.jsonl", "ab") as old,
  ):
    for line in lines(out):
      answer = answers.of_line(line)
      prompt = asked.get(answer.id)
      if prompt is not None and (
        prompt.prompt != answer.prompt or len(answer.samples) < fewest
      ):
        old.write(msgspec.json.encode(answer) + b"\n")
        continue
      if prompt is not None:
        answer.reference = prompt.reference
      new.write(msgspec.json.encode(answer) + b"\n")
      kept.add(answer.id)
    for file in (old, new):
      file.flush()
      os.fsync(file.fileno())
  os.replace(scratch, out)
  return kept


def _digest(prompts: Sequence[Prompt]) -> str:
  lines_ = sorted(map(msgspec.json.encode, prompts))
  return hashlib.sha256(b"\n".join(lines_)).hexdigest()[:16]
