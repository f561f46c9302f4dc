"""Shifts of a task's own inputs: images corrupted, texts and bytes damaged.

To add one, write a function (inputs, generator, severity - 1) -> inputs of the
same form, and give it an entry in the table of its form. Severities are 1 to 5,
and a shift of the same inputs, severity and seed is the same everywhere.
"""

import string
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kd.data.corruptions import CORRUPTIONS

PADDING = 256  # in rows of bytes
_KEPT = (0.75, 0.5, 0.25, 0.1, 0.05)


def typos(texts: Sequence[str], rng: np.random.Generator, s: int) -> list[str]:
  """Swaps, drops, doubles or replaces letters, each with the same chance."""
  rate = (0.02, 0.05, 0.1, 0.2, 0.3)[s]

  def damaged(text):
    letters = list(text)
    hit = np.flatnonzero(rng.random(len(letters)) < rate)
    kinds = rng.integers(0, 4, len(hit))
    others = rng.integers(0, 26, len(hit))
    for i, kind, other in zip(hit, kinds, others, strict=True):
      if not letters[i].isalpha():
        continue
      if kind == 0 and i + 1 < len(letters):
        letters[i], letters[i + 1] = letters[i + 1], letters[i]
      elif kind == 1:
        letters[i] = ""
      elif kind == 2:
        letters[i] *= 2
      else:
        letters[i] = string.ascii_lowercase[other]
    return "".join(letters)

  return [damaged(text) for text in texts]


def cut_texts(
  texts: Sequence[str], rng: np.random.Generator, s: int
) -> list[str]:
  """Keeps the first words, one at least."""
  del rng
  split = [text.split() for text in texts]
  return [" ".join(w[: max(1, round(_KEPT[s] * len(w)))]) for w in split]


def case(texts: Sequence[str], rng: np.random.Generator, s: int) -> list[str]:
  """Writes a share of the words in capitals. Hashed n-grams know no case."""
  share = (0.2, 0.4, 0.6, 0.8, 1.0)[s]

  def some(text):
    words = text.split(" ")
    up = rng.random(len(words)) < share
    return " ".join(
      w.upper() if u else w for w, u in zip(words, up, strict=True)
    )

  return [some(text) for text in texts]


def byte_noise(x: np.ndarray, rng: np.random.Generator, s: int) -> np.ndarray:
  """Replaces bytes by any others; padding stays."""
  hit = rng.random(x.shape) < (0.01, 0.02, 0.05, 0.1, 0.2)[s]
  other = rng.integers(0, PADDING, x.shape).astype(x.dtype)
  return np.where(hit & (x != PADDING), other, x)


def cut_bytes(x: np.ndarray, rng: np.random.Generator, s: int) -> np.ndarray:
  """Keeps the first bytes of each row, and pads the rest."""
  del rng
  known = x != PADDING
  seen = np.cumsum(known, axis=-1)
  kept = seen <= np.ceil(_KEPT[s] * known.sum(-1, keepdims=True))
  return np.where(kept, x, np.asarray(PADDING, x.dtype))


TEXTS: dict[str, Callable[..., Any]] = {
  "typos": typos,
  "truncation": cut_texts,
  "case": case,
}
BYTES: dict[str, Callable[..., Any]] = {
  "byte_noise": byte_noise,
  "truncation": cut_bytes,
}
FORMS = {"images": CORRUPTIONS, "texts": TEXTS, "bytes": BYTES}
NAMES = tuple(dict.fromkeys(name for of in FORMS.values() for name in of))


def apply(form: str, name: str, inputs: Any, severity: int, seed: int) -> Any:
  """Returns inputs shifted: as many, of the same form and type.

  Args:
    form: of FORMS.
    name: of its table.
    inputs: images [N, H, W, C], uint8 or float32 in 0..1; texts; or rows of
      whole numbers in 0..256, where 256 is padding.
    severity: 1 to 5.
    seed: of what is drawn.
  """
  rng = np.random.default_rng([seed, zlib.crc32(name.encode()), severity])
  shift = FORMS[form][name]
  if form != "images":
    return shift(inputs, rng, severity - 1)
  bits = inputs.dtype == np.uint8
  x = np.asarray(inputs, np.float64) / (255 if bits else 1)
  x = np.clip(shift(x.copy(), rng, severity - 1), 0, 1)
  return np.rint(255 * x).astype(np.uint8) if bits else x.astype(inputs.dtype)
