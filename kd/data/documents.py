"""Where texts come from, as records: files of text, lines, TFDS data sets.

A record is a text, a prompt with its completion, or a chat. `encode` turns
records into documents of tokens, `kd.data.tokens.rows` those into rows. Splits
are by record: `kd.data.slices.rows` cuts them.
"""

import contextlib
import glob
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from kd.data import slices, templates
from kd.data.memory import NAME
from kd.data.templates import Template
from kd.data.tokenizers import Tokenizer
from kd.data.tokens import Document
from kd.errors import UserError, why
from kd.lines import decode, lines


class Record(msgspec.Struct):
  """One example, of exactly one of three kinds.

  Attributes:
    text: all of which is to be predicted.
    prompt: what `completion`, which is to be predicted, follows.
    completion: see `prompt`.
    messages: a chat, of which the assistant's words are to be predicted.
    where: its file and line, or its name.
  """

  text: str | None = None
  prompt: str | None = None
  completion: str | None = None
  messages: list[dict[str, Any]] | None = None
  where: str = ""


def of_files(pattern: str, unit: str = "document") -> list[Record]:
  """Reads text files, in the order of their names.

  Args:
    pattern: a path, with * and ** as of glob.
    unit: "document", one a file; or "line", one a line that is not empty.

  Raises:
    UserError: no file fits, or one is not UTF-8 text.
  """
  if unit not in ("document", "line"):
    raise UserError(f"unit = {unit!r}: expected 'document' or 'line'")
  paths = sorted(glob.glob(pattern, recursive=True))
  found = []
  for path in paths:
    try:
      with open(path, encoding="utf-8") as f:
        text = f.read()
    except IsADirectoryError:
      continue
    except (OSError, ValueError) as error:
      raise UserError(
        f"{path}: cannot be read as text ({why(error)})"
      ) from error
    if unit == "document":
      found.append(Record(text=text, where=path))
    else:
      found += [
        Record(text=line, where=f"{path}:{i}")
        for i, line in enumerate(text.split("\n"), 1)
        if line.strip()
      ]
  if not found:
    raise UserError(f"{pattern}: no text; expected files that it names")
  return found


def of_lines(path: str) -> list[Record]:
  """Reads JSONL (perhaps .gz or .zst) or Parquet.

  A line is {"text"}, {"prompt", "completion"} or {"messages"}; other fields are
  left alone.

  Raises:
    UserError: the file, or a line of it (named), is not so.
  """
  found = []
  for line in lines(path):
    where = f"{path}:{line.number}"
    try:
      record = decode(line, Record)
      _check(record)
    except ValueError as error:
      raise UserError(f"{where}: {error}") from error
    record.where = where
    found.append(record)
  if not found:
    raise UserError(f"{path}: no line, expected texts")
  return found


def _check(record: Record) -> None:
  """Raises ValueError if a record is not of exactly one kind."""
  kinds = {
    "text": record.text is not None,
    "prompt": (record.prompt is not None) or (record.completion is not None),
    "messages": record.messages is not None,
  }
  if sum(kinds.values()) != 1 or (
    kinds["prompt"] and None in (record.prompt, record.completion)
  ):
    given = [
      name
      for name in ("text", "prompt", "completion", "messages")
      if getattr(record, name) is not None
    ]
    raise ValueError(
      f"holds {' and '.join(given) or 'none'} of text, prompt, completion and "
      "messages; expected text, prompt and completion, or messages"
    )
  if record.completion is not None and not record.completion.strip():
    raise ValueError("an empty completion; expected some text")
  if kinds["messages"] and not all(
    "role" in m for m in record.messages or [{}]
  ):
    raise ValueError("messages without a role; expected {role, content} each")


def encode(
  records: Sequence[Record],
  tokenizer: Tokenizer,
  template: Template | None = None,
) -> list[Document]:
  """Returns the tokens of records, in their order.

  A text is BOS (where the tokenizer is to add it), its ids and EOS, and counts
  as a whole. A prompt and its completion are encoded apart, so that a prompt
  has the same ids without its completion; EOS ends the completion. With a
  template they are a chat of two messages.

  Args:
    records: the examples.
    tokenizer: of their texts.
    template: of chats.

  Raises:
    UserError: a chat has no template, or the template fails on it (named).
  """
  chats = [_messages(record, template) for record in records]
  plain = (
    [r.text] if r.prompt is None else [r.prompt, r.completion]
    for r, messages in zip(records, chats, strict=True)
    if messages is None
  )
  ids = iter(tokenizer.encode([x or "" for texts in plain for x in texts]))
  found = []
  for record, messages in zip(records, chats, strict=True):
    if messages is not None:
      whole, counts = _encode_chat(record, messages, tokenizer, template)
    else:
      prompt = [] if record.prompt is None else next(ids)
      start = tokenizer.document(prompt, ended=False)
      whole = np.concatenate([start, next(ids), [tokenizer.eos]])
      first = 0 if record.prompt is None else len(start)
      counts = np.arange(len(whole)) >= first
    found.append(Document(whole.astype(np.int32), counts, record.where))
  return found


def encode_prompts(
  records: Sequence[Record],
  tokenizer: Tokenizer,
  template: Template | None = None,
) -> list[np.ndarray]:
  """Returns the ids that a completion is generated after, int32 [n] each.

  A prompt, or a chat up to the assistant's last words.

  Raises:
    UserError: as `encode`, or a record has no prompt.
  """
  chats = [_messages(record, template) for record in records]
  texts = [
    _rendered(record, messages, template)
    for record, messages in zip(records, chats, strict=True)
  ]
  found = tokenizer.encode(texts)
  return [
    tokenizer.document(ids, ended=False) if messages is None else ids
    for ids, messages in zip(found, chats, strict=True)
  ]


def _rendered(
  record: Record,
  messages: Sequence[dict[str, Any]] | None,
  template: Template | None,
) -> str:
  if messages is not None:
    if messages[-1]["role"] == "assistant":
      messages = messages[:-1]
    with _named(record):
      return _of(template).render(messages, prompt=True)
  if record.prompt is None:
    raise UserError(f"{record.where}: a text; expected a prompt or messages")
  return record.prompt


def prompt_of(record: Record, template: Template | None = None) -> str:
  """Returns the text that a teacher is asked: the prompt as it was written, or
  a chat up to the assistant's last words."""
  return _rendered(record, record.messages, template)


def completion_of(record: Record) -> str | None:
  """Returns the text that follows `prompt_of`; None where there is none."""
  if record.messages is None:
    return record.completion
  last = record.messages[-1]
  return last.get("content") if last["role"] == "assistant" else None


def completed(record: Record, completion: str, prefix: str = "") -> Record:
  """Returns a record with another completion, `prefix` before its prompt or the
  last words of the user."""
  if record.messages is None:
    prompt = prefix + (record.prompt or "")
    return msgspec.structs.replace(record, prompt=prompt, completion=completion)
  before = [*record.messages]
  if before[-1]["role"] == "assistant":
    before.pop()
  if prefix:
    before[-1] = before[-1] | {"content": prefix + before[-1]["content"]}
  messages = [*before, {"role": "assistant", "content": completion}]
  return msgspec.structs.replace(record, messages=messages)


def _messages(
  record: Record, template: Template | None
) -> list[dict[str, Any]] | None:
  """Returns a record as a chat, or None if it is none."""
  if template and record.prompt is not None:
    return [
      {"role": "user", "content": record.prompt},
      {"role": "assistant", "content": record.completion},
    ]
  return record.messages


def _encode_chat(
  record: Record,
  messages: list[dict[str, Any]],
  tokenizer: Tokenizer,
  template: Template | None,
) -> tuple[np.ndarray, np.ndarray]:
  with _named(record):
    return templates.encode_chat(_of(template), tokenizer, messages)


def _of(template: Template | None) -> Template:
  if template is None:
    raise UserError("messages, but the tokenizer has no chat template")
  return template


@contextlib.contextmanager
def _named(record: Record) -> Generator[None]:
  """Names the record in what goes wrong."""
  try:
    yield
  except UserError as error:
    raise UserError(f"{record.where}: {error}") from error


def split(
  task: Mapping[str, Any], records: Sequence[Record]
) -> dict[str, list[Record]]:
  """Cuts records into train, validation and test by the config's slices.

  Args:
    task: the config's section: `seed`, and `train`, `validation` and `test`,
      slices of a seeded shuffle called `train`.
    records: in an order that does not vary.

  Raises:
    UserError: a slice is not of `train`, is empty or overlaps another.
  """
  rows = slices.rows(task, [NAME], lambda name: len(records))
  return {
    part: [records[i] for _, of in pieces for i in of]
    for part, pieces in rows.items()
  }
