"""A tokenizer as a study sees it, and a subset of its vocabulary.

A thin layer over the library `tokenizers`: bytes, a BPE trained on the study's
own corpus, or the tokenizer.json of a Hugging Face folder. No Python of anyone
else's is run.
"""

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
  """

  backend: tokenizers.Tokenizer
  where: str
  eos: int
  stops: tuple[int, ...]
  bos: int | None
  pad: int
  add_bos: bool = False
  chat_template: str | None = None

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
      f"tokenizer.vocab_size = {vocab_size}: expected at least 257, the bytes "
      "and an end"
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
      f"tokenizer.vocab_size = {vocab_size}: the corpus has pairs for "
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
  path = os.path.join(folder, "tokenizer.json")
  try:
    with open(path, encoding="utf-8") as f:
      backend = tokenizers.Tokenizer.from_str(f.read())
  except Exception as error:  # tokenizers raises nothing more special
    raise UserError(f"{path}: no readable tokenizer ({why(error)})") from error
  backend.no_truncation()
  backend.no_padding()
  config = files.read_json(
    os.path.join(folder, "tokenizer_config.json"), "JSON"
  )
  ids = {}
  for name in ("bos", "eos", "pad"):
    token = config.get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    ids[name] = None if token is None else backend.token_to_id(token)
    if token is not None and ids[name] is None:
      raise UserError(
        f"{folder}: tokenizer_config.json has {name}_token = {token!r}, which "
        "is not in the vocabulary of tokenizer.json"
      )
  stops = []
  generation = os.path.join(folder, "generation_config.json")
  if os.path.exists(generation):
    found = files.read_json(generation, "JSON").get("eos_token_id")
    stops = (
      found if isinstance(found, list) else [] if found is None else [found]
    )
  eos = ids["eos"]
  if eos is None:
    if not stops:
      raise UserError(
        f"{folder}: no EOS; expected eos_token in tokenizer_config.json"
      )
    eos = stops[0]
  begins = backend.encode("", add_special_tokens=True).ids[:1]
  return Tokenizer(
    backend,
    folder,
    eos,
    tuple(dict.fromkeys([eos, *stops])),
    ids["bos"],
    eos if ids["pad"] is None else ids["pad"],
    add_bos=ids["bos"] is not None and begins == [ids["bos"]],
    chat_template=_template(folder, config),
  )


def _template(folder: str, config: dict[str, Any]) -> str | None:
  path = os.path.join(folder, "chat_template.jinja")
  if os.path.exists(path):
    try:
      with open(path, encoding="utf-8") as f:
        return f.read()
    except (OSError, ValueError) as error:
      raise UserError(f"{path}: cannot be read ({why(error)})") from error
  found = config.get("chat_template")
  if isinstance(found, list):  # several, by name
    found = {each["name"]: each["template"] for each in found}.get("default")
  return found


def refuse_others(teacher: Tokenizer, student: Tokenizer) -> None:
  """Raises UserError where two vocabularies differ, and says in which ids."""
  theirs, ours = (
    {i: token for token, i in t.backend.get_vocab().items()}
    for t in (teacher, student)
  )
  differ = [i for i in sorted(theirs | ours) if theirs.get(i) != ours.get(i)]
  if differ:
    some = ", ".join(
      f"{i} ({theirs.get(i)!r}, {ours.get(i)!r})" for i in differ[:3]
    )
    raise UserError(
      f"the vocabularies of {teacher.where} and {student.where} differ in "
      f"{len(differ)} ids: {some}{', ...' if len(differ) > 3 else ''}; "
      "expected one tokenizer"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
  """Some ids of a vocabulary, numbered anew from 0.

  What a teacher gives to the other ids goes to nobody: in a loss it is part of
  the tail.

  Attributes:
    ids: int32 [K], the teacher's ids that are kept, ascending; the student's id
      is the place in it.
    vocab_size: V, of the teacher.
  """

  ids: Int32[np.ndarray, " K"]
  vocab_size: int

  def __len__(self) -> int:
    return len(self.ids)

  @functools.cached_property
  def places(self) -> Int32[np.ndarray, " V"]:
    """The student's id of each of the teacher's, -1 where it has none."""
    places = np.full(self.vocab_size, -1, np.int32)
    places[self.ids] = np.arange(len(self.ids))
    places.flags.writeable = False
    return places

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of which ids are kept, 16 hexadecimal digits."""
    digest = hashlib.sha256(str(self.vocab_size).encode())
    digest.update(self.ids.astype("<i4").tobytes())
    return digest.hexdigest()[:16]

  def to_student(self, ids: np.ndarray, other: int = -1) -> np.ndarray:
    """Maps the teacher's ids [...]; those not kept become `other`."""
    found = self.places[ids]
    return np.where(found < 0, np.int32(other), found)

  def to_teacher(self, ids: np.ndarray) -> np.ndarray:
    """Maps the student's ids [...] back."""
    return self.ids[ids]

  def coverage(self, ids: np.ndarray) -> float:
    """Returns the share of tokens [...] whose ids are kept."""
    return float(np.mean(self.places[ids] >= 0))


def subset(
  ids: np.ndarray,
  vocab_size: int,
  *,
  coverage: float = 1.0,
  keep: Iterable[int] = (),
) -> Subset:
  """Returns the most frequent ids of a corpus.

  Args:
    ids: the corpus's tokens, of any shape; take the training split alone.
    vocab_size: V.
    coverage: share of the tokens that the ids are to cover, the fewest that
      do; 1 keeps every id that occurs. Of equally frequent ids the lower comes
      first.
    keep: ids to keep whatever their frequency, as those that end a text.

  Raises:
    UserError: an id is outside 0..V-1, or the coverage outside 0..1.

  >>> subset(np.array([5, 5, 2, 7]), 9, coverage=0.5, keep=[0]).ids.tolist()
  [0, 5]
  """
  keep = np.array([*keep], np.int64)
  ids = np.ravel(ids)
  if not 0 < coverage <= 1:
    raise UserError(f"coverage = {coverage}: expected above 0, at most 1")
  for each in (ids, keep):
    if each.size and not 0 <= each.min() <= each.max() < vocab_size:
      raise UserError(
        f"ids {each.min()} to {each.max()}, expected 0 to {vocab_size - 1}"
      )
  counts = np.bincount(ids, minlength=vocab_size)
  order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
  reached = np.cumsum(counts[order]) >= coverage * counts.sum()
  few = order[: 1 + np.argmax(reached)] if len(order) else order
  return Subset(np.union1d(few, keep).astype(np.int32), vocab_size)
