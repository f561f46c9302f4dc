"""Documents of tokens to rows of one length, packed or one example a row.

A row is what a decoder is fed: token ids, and which document each belongs to.
Position l of a row predicts the token at l + 1.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from kd.errors import UserError

OPEN = 256  # rows that still take documents; older ones are closed


class Document(NamedTuple):
  """The tokens of one document.

  Attributes:
    ids: int32 [n], with BOS and EOS where they belong.
    counts: bool [n], which tokens are to be predicted: all of a text, those of
      the completion of an instruction. The first never is.
    where: what to call it in errors.
  """

  ids: Int32[np.ndarray, " n"]
  counts: Bool[np.ndarray, " n"]
  where: str


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """N rows of L tokens.

  Attributes:
    x: int32 [N, 2, L]: x[:, 0] are ids, x[:, 1] segments, which number the
      documents of a row from 1 and are 0 where it is padded.
    weights: uint8 [N, L], 1 where a position counts: where the next token is of
      the same segment and is to be predicted.
    documents: int32 [N, L], which document a position is of, -1 for padding.
  """

  x: Int32[np.ndarray, "N 2 L"]
  weights: UInt8[np.ndarray, "N L"]
  documents: Int32[np.ndarray, "N L"]

  @functools.cached_property
  def labels(self) -> Int32[np.ndarray, "N L"]:
    """The next token where a position counts, else 0."""
    following = np.roll(self.x[:, 0], -1, axis=1)  # the last counts nowhere
    return following * self.weights

  @property
  def positions(self) -> int:
    """How many positions count."""
    return int(self.weights.sum(dtype=np.int64))

  @property
  def fill(self) -> float:
    """The share of tokens that are no padding."""
    return float(np.mean(self.x[:, 1] > 0))


def rows(
  documents: Sequence[Document], length: int, *, pad: int, packed: bool = True
) -> Rows:
  """Puts documents into rows.

  A document longer than a row, if all of it counts, is cut into pieces of L
  tokens, each a segment of its own: nothing predicts the first token of a
  piece. Pieces go in their order to the first row that has room (first fit,
  among the last 256 rows begun), or to a row each. The rows are a function of
  the arguments alone.

  Args:
    documents: D, of one token or more each.
    length: L.
    pad: id that fills rows.
    packed: whether a row may hold several documents.

  Raises:
    UserError: no document; or one with a prompt is longer than L, or without a
      token to predict: an empty completion.
  """
  pieces = _pieces(documents, length)
  if not pieces:
    raise UserError("no document with a token; expected at least one")
  sizes = [end - start for _, start, end in pieces]
  row_of = _first_fit(sizes, length) if packed else range(len(pieces))
  n = 1 + max(row_of)
  ids = np.full((n, length), pad, np.int32)
  segments = np.zeros((n, length), np.int32)
  weights = np.zeros((n, length), np.uint8)
  owners = np.full((n, length), -1, np.int32)
  used = np.zeros((n, 2), int)  # tokens and segments of each row
  for (d, start, end), row, size in zip(pieces, row_of, sizes, strict=True):
    at, segment = used[row]
    here = slice(at, at + size)
    ids[row, here] = documents[d].ids[start:end]
    segments[row, here] = segment + 1
    weights[row, at : at + size - 1] = documents[d].counts[start + 1 : end]
    owners[row, here] = d
    used[row] += size, 1
  return Rows(np.stack([ids, segments], axis=1), weights, owners)


def _pieces(
  documents: Sequence[Document], length: int
) -> list[tuple[int, int, int]]:
  """Cuts documents to L tokens: (document, first, after the last)."""
  if length < 2:
    raise UserError(f"length = {length}: expected 2 tokens a row or more")
  pieces = []
  for d, (ids, counts, where) in enumerate(documents):
    is_text = bool(counts.all())
    if not is_text and len(ids) > length:
      prompt = int(np.argmax(counts)) if counts.any() else len(ids)
      raise UserError(
        f"{where}: {len(ids)} tokens, {prompt} of them the prompt; expected at "
        f"most {length}, the length of a row"
      )
    if not is_text and not counts[1:].any():
      raise UserError(f"{where}: an empty completion; expected some text")
    pieces += [
      (d, start, min(start + length, len(ids)))
      for start in range(0, len(ids), length)
    ]
  return pieces


def _first_fit(sizes: Sequence[int], length: int) -> list[int]:
  """Returns the row of each piece: the first of the open ones with room."""
  room = np.zeros(0, int)  # of rows closed, closed + 1, ...
  closed, row_of = 0, []
  for size in sizes:
    fits = room >= size
    if not fits.any():
      if len(room) == OPEN:
        room, closed = room[1:], closed + 1
      room = np.append(room, length)
      place = len(room) - 1
    else:
      place = int(np.argmax(fits))
    room[place] -= size
    row_of.append(closed + place)
  return row_of
