"""What a teacher leaves of prompts whose completions it wrote.

An example is a prompt, which the student reads with each of C completions in a
row of L tokens. Arrays of a position have C L rows an example.
"""

import dataclasses
import enum

import jax
from jaxtyping import Array, Bool, Float, Int


class Kind(enum.IntEnum):
  """What a completion is."""

  NONE = 0
  SAMPLE = 1  # that the teacher wrote
  REPEAT = 2  # a sample that an earlier one equals
  REJECTED = 3  # known to be worse than any sample
  TRUTH = 4  # the task's own
  RATIONALE = 5  # a sample's, behind a prompt with a prefix of its own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
  """C completions of each of N prompts.

  Attributes:
    tokens: what each position is to predict; -1 outside of a completion.
    kinds: of `Kind`.
    scores: a sample's own, the higher the better; NaN where there is none.
    log_probs: a sample's in nats, as the teacher's; NaN likewise.
    lengths: how many tokens each completion has.
    reference: what a student gives each before its training; None unless an
      objective asks for it.
  """

  tokens: Int[Array, "NCL"]
  kinds: Int[Array, "N C"]
  scores: Float[Array, "N C"]
  log_probs: Float[Array, "N C"]
  lengths: Int[Array, "N C"]
  reference: Float[Array, "N C"] | None = None

  def are(self, *kinds: Kind) -> Bool[Array, "N C"]:
    """Tells which completions are of some kinds."""
    found = self.kinds == kinds[0]
    for kind in kinds[1:]:
      found = found | (self.kinds == kind)
    return found
