"""The table of models: features and a head, so that a loss can fuse the head.

A model is a class in Flax NNX, made of (input_shape, num_classes, rngs) and its
options. Called with a batch it returns `Outputs`: the hidden states [B, H] and
the head's kernel [H, V] and bias [V] that turn them into logits; a decoder's
are of B positions. Random numbers given (`rngs`) mean training: dropout is
drawn and batch statistics are updated; without them the model is deterministic.

To add a model, write such a class in a file of its own, with OPTIONS, the rules
of its keyword arguments, which a config then takes; and give it an entry in
MODELS.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from kd.config import rules
from kd.errors import UserError
from kd.models import quantized
from kd.models.byte_cnn import ByteCNN
from kd.models.checkpoint_model import Checkpoint
from kd.models.cnn import CNN
from kd.models.decoder_student import DecoderStudent
from kd.models.magika import Magika
from kd.models.mlp import MLP

MODELS: dict[str, Any] = {
  "mlp": MLP,
  "cnn": CNN,
  "byte_cnn": ByteCNN,
  "magika": Magika,
  "checkpoint": Checkpoint,
  "decoder": DecoderStudent,
}


def check(path: str, options: Mapping[str, Any]) -> None:
  """Raises UserError unless a config's `options` fit the model they name."""
  name = options["name"]
  if not isinstance(name, str) or name not in MODELS:
    raise UserError(
      f"{path}.name = {name!r}: expected one of {', '.join(MODELS)}"
    )
  accepted = MODELS[name].OPTIONS
  for key, value in options.items():
    if key in ("name", quantized.OPTION):
      continue
    if key not in accepted:
      raise UserError(
        f"{path}.{key} = {value!r}: no option of model {name!r}, which takes "
        + (", ".join(accepted) or "none")
      )
    rules.check(f"{path}.{key}", value, accepted[key])


def create(
  name: str,
  *,
  num_classes: int,
  rngs: nnx.Rngs,
  input_shape: Sequence[int] = (28, 28, 1),
  **options,
) -> nnx.Module:
  """Makes a model by name; `options` are its class's keyword arguments, and
  `quantized` makes its layers those of kd.models.quantized.

  The model keeps what it is made of, as JSON: `made_of`.
  """
  check("model", {"name": name, **options})
  how = options.pop(quantized.OPTION, None)
  model = MODELS[name](input_shape, num_classes, rngs=rngs, **options)
  model.made_of = json.dumps(
    {
      "input_shape": list(input_shape),
      "num_classes": num_classes,
      "student": {"name": name, **options},
    },
    sort_keys=True,
  )
  return quantized.convert(model, how) if how else model


def num_params(model: nnx.Module) -> int:
  """Counts a model's trained numbers (batch statistics are not counted)."""
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
