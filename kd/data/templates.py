"""Chat templates: messages to text, and which of it the assistant wrote.

Templates are Jinja that comes with a checkpoint; they run in Jinja's immutable
sandbox with what transformers gives them (transformers 5,
utils/chat_template_utils.py), so that the text is the same. Messages are plain
data: {"role", "content"} and what else a template reads.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import numpy as np
from jaxtyping import Bool, Int32
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kd.data.tokenizers import Tokenizer
from kd.errors import UserError, why

Messages = Sequence[Mapping[str, Any]]


class _Generation(jinja2.ext.Extension):
  """The tag `generation`, which templates put around the assistant's words."""

  tags = {"generation"}  # noqa: RUF012  as Jinja declares it

  def __init__(self, environment: jinja2.Environment):
    super().__init__(environment)
    self.is_used = False
    self.written: list[str] = []  # of the text that is being rendered
    self.spans: list[tuple[int, int]] = []

  def parse(self, parser: Any) -> nodes.Node:
    self.is_used = True
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = nodes.CallBlock(self.call_method("_note"), [], [], body)
    return call.set_lineno(line)

  def _note(self, caller: Any) -> str:
    text = caller()
    start = sum(map(len, self.written))
    self.spans.append((start, start + len(text)))
    return text


class Template:
  """A chat template; `of` takes a tokenizer's own."""

  def __init__(
    self, source: str, where: str, tokens: Mapping[str, Any] | None = None
  ):
    """Compiles a template.

    Args:
      source: Jinja.
      where: the file or folder it is of, for errors.
      tokens: `bos_token` and the like, as a template may name them.

    Raises:
      UserError: it does not compile.
    """
    env = ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    env.filters["tojson"] = _to_json
    self._where = where
    self._given = {
      "raise_exception": _raise,
      "strftime_now": _now,
      "tools": None,
      "documents": None,
      **(tokens or {}),
    }
    self._generation: Any = env.extensions[_Generation.identifier]
    try:
      self._template = env.from_string(source)
    except jinja2.TemplateError as error:
      raise self._failure(error) from error

  def render(
    self, messages: Messages, *, prompt: bool = False, **more: Any
  ) -> str:
    """Returns the text of a chat.

    Args:
      messages: of the chat.
      prompt: whether to end with what comes before the assistant's next words.
      **more: what else the template reads, such as `tools`.

    Raises:
      UserError: the template refuses the messages, or fails.
    """
    return self._render(messages, prompt, more)[0]

  def spans(
    self, messages: Messages, **more: Any
  ) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of a chat and the stretches that the assistant wrote.

    They are what stands in the template's `generation` tags. Where it has none,
    each is what an assistant's message adds to the prompt that ends before it.

    Raises:
      UserError: the template fails, or has no such tag and writes earlier
        messages otherwise once there are later ones.
    """
    text, spans = self._render(messages, False, more)
    if self._generation.is_used:
      return text, spans
    for i, message in enumerate(messages):
      if message.get("role") == "assistant":
        before = self.render(messages[:i], prompt=True, **more)
        after = self.render(messages[: i + 1], **more)
        if not after.startswith(before) or not text.startswith(after):
          raise UserError(
            f"{self._where}: the chat template rewrites what stands before "
            f"message {i}, so what the assistant wrote can't be told; expected "
            "the tag generation around it"
          )
        spans.append((len(before), len(after)))
    return text, spans

  def _render(self, messages, prompt, more):
    generation = self._generation
    written = generation.written = []
    spans = generation.spans = []
    try:
      for piece in self._template.generate(
        messages=messages, add_generation_prompt=prompt, **(self._given | more)
      ):
        written.append(piece)
    except Exception as error:  # a template can raise what Python can
      raise self._failure(error) from error
    return "".join(written), spans

  def _failure(self, error: Exception) -> UserError:
    return UserError(f"{self._where}: the chat template fails ({why(error)})")


def of(tokenizer: Tokenizer) -> Template:
  """Returns a tokenizer's chat template.

  Raises:
    UserError: it has none, or one that does not compile.
  """
  if tokenizer.chat_template is None:
    raise UserError(
      f"{tokenizer.where}: no chat template; expected chat_template in "
      "tokenizer_config.json, or chat_template.jinja"
    )
  tokens = {
    f"{name}_token": tokenizer.backend.id_to_token(i)
    for name, i in (
      ("bos", tokenizer.bos),
      ("eos", tokenizer.eos),
      ("pad", tokenizer.pad),
    )
    if i is not None
  }
  return Template(tokenizer.chat_template, tokenizer.template_path, tokens)


def encode_chat(
  template: Template, tokenizer: Tokenizer, messages: Messages, **more: Any
) -> tuple[Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
  """Returns the ids of a chat and which of them the assistant wrote.

  A stretch ends with its first stop id, if it has one: what a template writes
  behind that is never generated.

  Raises:
    UserError: as `Template.spans`.
  """
  text, spans = template.spans(messages, **more)
  ids, offsets = tokenizer.encode_with_offsets(text)
  wrote = np.zeros(len(ids), bool)
  for start, end in spans:
    (inside,) = np.nonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
    stops = np.isin(ids[inside], tokenizer.stops)
    if stops.any():
      inside = inside[: 1 + np.argmax(stops)]
    wrote[inside] = True
  return ids, wrote


def _to_json(
  x: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  # Jinja's own escapes what HTML would read.
  return json.dumps(
    x,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _raise(message: str) -> None:
  raise jinja2.TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)
