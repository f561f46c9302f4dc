"""A tokenizer as a study sees it.

A thin layer over the library `tokenizers`: bytes, a BPE trained on the study's
own corpus, or the tokenizer.json of a Hugging Face folder. No Python of anyone
else's is run.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import pre_tokenizers as pre

from kd import files
from kd.errors import UserError, why

CHUNK = 1024  # texts encoded at once
END = "<|endoftext|>"  # EOS of the tokenizers that we make


RULES = "tokenizer.json"
CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """Texts to token ids and back.

  Attributes:
    backend: of the library `tokenizers`.
    where: what to call it in errors.
    eos: id that ends a document.
    stops: ids that end what a model writes; `eos` is one of them.
    bos: id that begins a document, or None.
    pad: id that fills rows. It may be `eos`, as SmolLM2's is: what counts in a
      row is told by segments and weights, never by this id.
    add_bos: whether a document is to begin with `bos`.
    chat_template: the Jinja source of the template, or None.
    template_path: the file that has it.
  """

  backend: tokenizers.Tokenizer
  where: str
  eos: int
  stops: tuple[int, ...]
  bos: int | None
  pad: int
  add_bos: bool = False
  chat_template: str | None = None
  template_path: str = ""

  @functools.cached_property
  def vocab_size(self) -> int:
    """The largest id, plus 1; a model may have columns for more."""
    return 1 + max(self.backend.get_vocab().values())

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of the content, 16 hexadecimal digits.

    Covers the vocabulary, the rules and the special ids, but neither the folder
    nor the chat template.
    """
    facts = (self.eos, self.stops, self.bos, self.pad, self.add_bos)
    rules = json.loads(self.backend.to_str())
    text = json.dumps([facts, rules], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def encode(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " n"]]:
    """Returns the ids of each text; adds no special ids.

    Where a text spells a special token, the text has that token.
    """
    encode = self.backend.encode_batch_fast
    return [
      np.array(encoding.ids, np.int32)
      for start in range(0, len(texts), CHUNK)
      for encoding in encode(
        [*texts[start : start + CHUNK]], add_special_tokens=False
      )
    ]

  def encode_with_offsets(
    self, text: str
  ) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, "n 2"]]:
    """Returns ids and where each begins and ends in the text, in characters."""
    found = self.backend.encode(text, add_special_tokens=False)
    offsets = np.array(found.offsets, np.int32).reshape(-1, 2)
    return np.array(found.ids, np.int32), offsets

  def decode(
    self, ids: Sequence[int] | np.ndarray, special: bool = False
  ) -> str:
    """Returns the text of ids, with special tokens if asked.

    Bytes that are no UTF-8 become U+FFFD.
    """
    ids = [int(i) for i in ids]
    return self.backend.decode(ids, skip_special_tokens=not special)

  def save(self, folder: str) -> None:
    """Writes the files that `load` and transformers read.

    Raises:
      UserError: the folder can't be written to.
    """
    ids = {"bos": self.bos, "eos": self.eos, "pad": self.pad}
    ids = {name: i for name, i in ids.items() if i is not None}
    about: dict[str, Any] = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "clean_up_tokenization_spaces": False,
      **{f"{x}_token": self.backend.id_to_token(i) for x, i in ids.items()},
    }
    if self.chat_template is not None:
      about["chat_template"] = self.chat_template
    ends = self.eos if len(self.stops) == 1 else [*self.stops]
    # A template in a file of its own would win over the one written here.
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(folder, TEMPLATE))
    rules = self.backend.to_str(pretty=True)
    files.write_text(os.path.join(folder, RULES), rules)
    files.write_json(os.path.join(folder, CONFIG), about)
    files.write_json(
      os.path.join(folder, GENERATION),
      {f"{x}_token_id": i for x, i in (ids | {"eos": ends}).items()},
    )

  def document(
    self, ids: Sequence[int] | np.ndarray, *, ended: bool = True
  ) -> np.ndarray:
    """Puts BOS, where the tokenizer is to, and EOS around a document's ids."""
    first = [self.bos] if self.add_bos else []
    last = [self.eos] if ended else []
    return np.concatenate([first, ids, last]).astype(np.int32)


def of_bytes() -> Tokenizer:
  """Returns the tokenizer whose ids are bytes, with 256 for EOS.

  >>> of_bytes().encode(["é!"])[0].tolist()
  [195, 169, 33]
  """
  # How byte-level BPE spells bytes (Radford et al. 2019): those that print, as
  # themselves, and the others in order from U+0100.
  own = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = [b for b in range(256) if b not in own]
  vocab = {chr(b if b in own else 256 + others.index(b)): b for b in range(256)}
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  backend.pre_tokenizer = pre.ByteLevel(add_prefix_space=False, use_regex=False)
  return _made(backend, "bytes")


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Trains byte-level BPE (Sennrich et al. 2016) on texts; digits are single.

  The ids are a function of the texts, their order included, and of the size.

  Args:
    texts: the corpus; take the training split alone.
    vocab_size: ids in all, EOS (the last) included; at least 257.

  Raises:
    UserError: the corpus has fewer pairs to merge than that takes.
  """
  if vocab_size < 257:
    raise UserError(
      f"task.tokens.vocab_size = {vocab_size}: expected at least 257, the "
      "bytes and an end"
    )
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = pre.Sequence(
    [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size - 1,
    initial_alphabet=sorted(pre.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator(texts, trainer)
  made = _made(backend, f"BPE of {vocab_size}")
  if made.vocab_size != vocab_size:
    raise UserError(
      f"task.tokens.vocab_size = {vocab_size}: the corpus has pairs for "
      f"{made.vocab_size}; expected at most that"
    )
  return made


def _made(backend: tokenizers.Tokenizer, where: str) -> Tokenizer:
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens([END])
  end = backend.get_vocab()[END]
  return Tokenizer(backend, where, end, (end,), None, end)


def load(folder: str) -> Tokenizer:
  """Reads the tokenizer of a Hugging Face folder.

  Reads tokenizer.json; tokenizer_config.json for BOS, EOS, PAD and the chat
  template; chat_template.jinja, which wins where there is one; and
  generation_config.json for further ids that end what a model writes.

  Raises:
    UserError: a file is missing or damaged, or a special token is not in the
      vocabulary, or there is no EOS.
  """
  path = os.path.join(folder, RULES)
  try:
    with open(path, encoding="utf-8") as f:
      backend = tokenizers.Tokenizer.from_str(f.read())
  except Exception as error:  # tokenizers raises nothing more special
    raise UserError(f"{path}: no readable tokenizer ({why(error)})") from error
  backend.no_truncation()
  backend.no_padding()
  config = files.read_json(os.path.join(folder, CONFIG), "JSON")
  ids = {}
  for name in ("bos", "eos", "pad"):
    token = config.get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    ids[name] = None if token is None else backend.token_to_id(token)
    if token is not None and ids[name] is None:
      raise UserError(
        f"{folder}: {CONFIG} has {name}_token = {token!r}, which "
        f"is not in the vocabulary of {RULES}"
      )
  stops = []
  generation = os.path.join(folder, GENERATION)
  if os.path.exists(generation):
    found = files.read_json(generation, "JSON").get("eos_token_id")
    stops = (
      found if isinstance(found, list) else [] if found is None else [found]
    )
  eos = ids["eos"]
  if eos is None:
    if not stops:
      raise UserError(f"{folder}: no EOS; expected eos_token in {CONFIG}")
    eos = stops[0]
  template, template_path = _template(folder, config)
  begins = backend.encode("", add_special_tokens=True).ids[:1]
  return Tokenizer(
    backend,
    folder,
    eos,
    tuple(dict.fromkeys([eos, *stops])),
    ids["bos"],
    eos if ids["pad"] is None else ids["pad"],
    add_bos=ids["bos"] is not None and begins == [ids["bos"]],
    chat_template=template,
    template_path=template_path,
  )


def _template(folder: str, config: dict[str, Any]) -> tuple[str | None, str]:
  """Returns the chat template of a folder and the file that has it."""
  path = os.path.join(folder, TEMPLATE)
  if os.path.exists(path):
    try:
      with open(path, encoding="utf-8") as f:
        return f.read(), path
    except (OSError, ValueError) as error:
      raise UserError(f"{path}: cannot be read ({why(error)})") from error
  found = config.get("chat_template")
  if isinstance(found, list):  # several, by name
    found = {each["name"]: each["template"] for each in found}.get("default")
  return found, os.path.join(folder, CONFIG)
