"""The tokenizer of a GGUF file, as `tokenizers` and transformers have it.

Byte-level BPE only (`tokenizer.ggml.model` = "gpt2"). How a text is cut before
BPE is known by name alone; the table is llama.cpp's, whose expressions come
from the models' own tokenizer.json files.
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing

from kd.errors import UserError, brief, why

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type

_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> pre.PreTokenizer:
  return pre.Sequence(
    [
      pre.Split(Regex(_WORDS % digits), "isolated"),
      pre.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


# Name: (what cuts the text, whether whole words of the vocabulary skip the
# merges, whether Unicode is normalised to NFC first, whether BOS is added
# where the file does not say).
PRE = {
  "gpt-2": (pre.ByteLevel(add_prefix_space=False), False, False, False),
  "smollm": (
    pre.Sequence(
      [
        pre.Digits(individual_digits=True),
        pre.ByteLevel(add_prefix_space=False),
      ]
    ),
    False,
    False,
    False,
  ),
  "llama-bpe": (_split("{1,3}"), True, False, True),
  "qwen2": (_split(""), False, True, False),
}


def ids(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns bos, eos and pad ids; eos is a list where turns end otherwise."""
  found = {
    f"{ours}_token_id": fields[f"tokenizer.ggml.{theirs}_token_id"]
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    if f"tokenizer.ggml.{theirs}_token_id" in fields
  }
  turn = fields.get("tokenizer.ggml.eot_token_id")
  if turn is not None and turn != found.setdefault("eos_token_id", turn):
    found["eos_token_id"] = [found["eos_token_id"], turn]
  return found


def build(
  path: str, fields: Mapping[str, Any]
) -> tuple[Tokenizer, dict[str, Any]]:
  """Builds the tokenizer and its tokenizer_config.json.

  Control tokens are special, user-defined ones are matched whole, and unused
  ones, which only pad the vocabulary, are left out.

  Args:
    path: of the file, for errors.
    fields: the file's metadata.

  Raises:
    UserError: the tokenizer is of a kind, or cuts texts in a way, that we
      don't know.
  """
  get = lambda key, default=None: fields.get(f"tokenizer.ggml.{key}", default)
  for key, known in (("model", ("gpt2",)), ("pre", tuple(PRE))):
    if get(key) not in known:
      raise UserError(
        f"{path}: tokenizer.ggml.{key} = {get(key)!r}; accepted: {brief(known)}"
      )
  split, ignore_merges, nfc, bos = PRE[get("pre")]
  tokens = get("tokens", [])
  types = get("token_type") or [NORMAL] * len(tokens)
  if not tokens or len(types) != len(tokens):
    raise UserError(
      f"{path}: {len(tokens)} tokens with {len(types)} types, expected one each"
    )
  vocab = {
    token: i
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
    if kind != UNUSED
  }
  try:
    merges = [tuple(merge.split(" ")) for merge in get("merges", [])]
    tokenizer = Tokenizer(
      tokenizers.models.BPE(vocab, merges, ignore_merges=ignore_merges)
    )
  except Exception as error:  # tokenizers raises nothing more special
    raise UserError(f"{path}: no tokenizer ({why(error)})") from error
  tokenizer.pre_tokenizer = split
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  if nfc:
    tokenizer.normalizer = tokenizers.normalizers.NFC()
  for add, kind in (
    (tokenizer.add_special_tokens, CONTROL),
    (tokenizer.add_tokens, USER_DEFINED),
  ):
    add(
      [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, found in zip(tokens, types, strict=True)
        if found == kind
      ]
    )
  about = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "add_bos_token": bool(get("add_bos_token", bos)),
    "add_eos_token": bool(get("add_eos_token", False)),
  }
  for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
    if (i := get(f"{theirs}_token_id")) is not None:
      if not 0 <= i < len(tokens):
        raise UserError(
          f"{path}: tokenizer.ggml.{theirs}_token_id = {i}, expected below "
          f"{len(tokens)}"
        )
      about[f"{ours}_token"] = tokens[i]
  if template := fields.get("tokenizer.chat_template"):
    about["chat_template"] = template
  _add_ends(tokenizer, about)
  return tokenizer, about


def _add_ends(tokenizer: Tokenizer, about: Mapping[str, Any]) -> None:
  """Makes the tokenizer put BOS and EOS around a text, where it is to."""
  first, last = (
    [about[f"{end}_token"]]
    if about[f"add_{end}_token"] and f"{end}_token" in about
    else []
    for end in ("bos", "eos")
  )
  if first or last:
    tokenizer.post_processor = TemplateProcessing(
      single=[*first, "$A", *last],
      pair=[*first, "$A", *last, *first, "$B:1", *last],
      special_tokens=[(t, tokenizer.token_to_id(t)) for t in {*first, *last}],
    )
