"""Which ids a student has: the teacher's, or a subset of them."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int32

from kd.data.tokenizers import Tokenizer
from kd.errors import UserError


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
