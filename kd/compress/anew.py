"""What a model is made of, and models of other options with its weights."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from kd import config, models
from kd.errors import UserError
from kd.models import config_json, quantized
from kd.models.checkpoint_model import Checkpoint
from kd.models.decoder import Decoder, dotted


@dataclasses.dataclass(frozen=True)
class Origin:
  """What kd.models.create was told: a model's structure.

  Attributes:
    student: name and options.
    input_shape, num_classes: of the task.
  """

  student: Mapping[str, Any]
  input_shape: tuple[int, ...]
  num_classes: int

  def shell(self) -> nnx.Module:
    """Returns the model with shapes in place of arrays."""
    return nnx.eval_shape(
      lambda: models.create(
        input_shape=self.input_shape,
        num_classes=self.num_classes,
        rngs=nnx.Rngs(0),
        **self.student,
      )
    )


def origin(model: nnx.Module) -> Origin:
  """Returns what a model is made of.

  A decoder that was read from a checkpoint is a student of its config, over as
  many ids.

  Raises:
    UserError: it was not made by kd.models, or has adapters beside its weights.
  """
  found = getattr(model, "made_of", None)
  told = config.tuples(json.loads(found)) if found else {}
  student = dict(told.get("student", {}))
  if student.get("lora"):
    raise UserError(
      f"a model with adapters ({dict(student['lora'])}): expected one whose "
      "weights hold them (kd.models.adapters.merged)"
    )
  whole = isinstance(model, Checkpoint) and model.kept is None
  if isinstance(model, Decoder) and (not found or whole):
    how = student.get(quantized.OPTION)
    student = of_spec(model, {quantized.OPTION: how} if how else {})
    told.setdefault("input_shape", (2, 2))
    told.setdefault("num_classes", model.spec.vocab_size)
  elif not found:
    raise UserError(
      f"{type(model).__name__}: expected a model of kd.models.create"
    )
  for key in ("freeze", "lora"):  # of training alone
    student.pop(key, None)
  return Origin(student, told["input_shape"], told["num_classes"])


def of_spec(model: Decoder, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of a student that a decoder's spec makes."""
  numerics = model.numerics
  return {
    "name": "decoder",
    "config": json.dumps(config_json.write(model.spec), sort_keys=True),
    "dtype": str(numerics.dtype),
    "param_dtype": str(numerics.param_dtype),
    "attention": numerics.attention,
    **options,
  }


def told(model: nnx.Module, of: Origin) -> nnx.Module:
  """Returns the model, which now says what it is made of."""
  made: Any = model
  made.made_of = json.dumps(
    {
      "input_shape": list(of.input_shape),
      "num_classes": of.num_classes,
      "student": of.student,
    },
    sort_keys=True,
  )
  return made


def filled(of: Origin, arrays: Mapping[str, Any]) -> nnx.Module:
  """Returns a model of other options, with arrays by dotted path."""
  graphdef, state = nnx.split(of.shell())
  flat = {
    path: x.replace(jnp.asarray(arrays[dotted(path)]))
    for path, x in nnx.to_flat_state(state)
  }
  return told(nnx.merge(graphdef, nnx.from_flat_state(flat)), of)


def arrays(model: nnx.Module) -> dict[str, Any]:
  """Returns the value of every variable, by dotted path."""
  _, state = nnx.split(model)
  return {dotted(path): x.get_value() for path, x in nnx.to_flat_state(state)}
