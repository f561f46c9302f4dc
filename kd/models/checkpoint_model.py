"""A language model of a Hugging Face folder, as a study's model."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from kd.config import rules
from kd.errors import UserError
from kd.models import adapters, pretrained
from kd.models.attention import IMPLEMENTATIONS, Implementation
from kd.models.decoder import Decoder, padded_from
from kd.models.decoder_student import DTYPES
from kd.models.outputs import Outputs
from kd.models.spec import REMAT, Numerics


class Checkpoint(Decoder):
  """A decoder whose weights are published (kd.models.checkpoints).

  As a student it is a starting point: kd.study.students makes a decoder of it.

  Where students know a part of the vocabulary, the rows that it is given hold a
  third line, the ids as it numbers them, and its outputs are of the students'
  classes: those that are kept, and all others as one.

  Args:
    input_shape: (2, L), or (3, L) where students know a part.
    num_classes: V of the students. Columns beyond it pad the vocabulary.
    folder: with a config.json.
    dtype, param_dtype: of computation and weights.
    remat, attention: see `Numerics`.
    rngs: of weights that `load_published` replaces.
  """

  OPTIONS: ClassVar = {
    "folder": rules.PATH,
    "dtype": rules.choice(*DTYPES),
    "param_dtype": rules.choice(*DTYPES),
    "remat": rules.choice(*REMAT),
    "attention": rules.choice(*IMPLEMENTATIONS),
    **adapters.OPTIONS,  # of a student
  }

  def __init__(
    self,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    folder: str,
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: str = "none",
    attention: Implementation = "auto",
    rngs: nnx.Rngs,
  ):
    if len(input_shape) != 2:
      raise UserError(
        f"a language model reads tokens, and the task's inputs have shape "
        f"{tuple(input_shape)}; expected task.tokens.length >= 2"
      )
    numerics = Numerics(
      jnp.dtype(dtype), jnp.dtype(param_dtype), remat, attention
    )
    super().__init__(pretrained.spec_of(folder), numerics, rngs=rngs)
    part = input_shape[0] == 3
    self.kept = nnx.data(
      nnx.Variable(jnp.zeros(num_classes - 1, jnp.int32)) if part else None
    )
    if not part:
      columns = self.spec.vocab_size
      self.vocab_size = padded_from(columns, num_classes, folder)

  def __call__(
    self, x_BxCxL: Int[Array, "B C L"], rngs: nnx.Rngs | None = None
  ) -> Outputs:
    del rngs
    if self.kept is None:
      return super().__call__(x_BxCxL)
    made = super().__call__(x_BxCxL[:, 2:0:-1])
    return dataclasses.replace(made, kept=self.kept[...])
