"""Rounds a trained model's weights, and what its layers are given."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from kd.compress import anew
from kd.errors import UserError
from kd.models import quantized
from kd.models.decoder import Decoder


def quantize(
  model: nnx.Module,
  weights: str,
  *,
  activations: str = "none",
  block: int | None = None,
  examples: Array | None = None,
) -> nnx.Module:
  """Returns a model whose matrices are rounded (kd.models.quantized).

  Biases, norms and batch statistics stay as they are. A model that was trained
  as if it were rounded becomes what it was trained for.

  >>> from kd import models
  >>> rngs = nnx.Rngs(0)
  >>> model = models.create("mlp", input_shape=(8,), num_classes=3, rngs=rngs)
  >>> small, x = quantize(model, "int8"), jnp.ones((1, 8))
  >>> bool(jnp.allclose(small(x).logits, model(x).logits, atol=0.05))
  True

  Args:
    model: of kd.models; it is not changed.
    weights: "int8", "int4" or "fp8" (e4m3).
    activations: "none": products are of floating-point numbers. "int8": a
      layer's inputs are rounded by one scale, the largest that `examples` make.
      "int8_dynamic": each row by its own, found as it comes.
    block: weights of a column that share a scale; None is all of them.
    examples: as the model takes them, of what it may see beforehand.

  Raises:
    UserError: it has no matrix; no examples where they are needed.
  """
  of = anew.origin(model)
  if not quantized.layers(model):
    raise UserError(
      f"{of.student['name']!r} has no matrix to round to {weights}"
    )
  how = {"weights": weights, "activations": activations, "block": block}
  seen = {}
  if activations == "int8":
    if examples is None or not len(examples):
      raise UserError(
        "activations = 'int8': needs examples, whose largest inputs are the "
        "scales; expected some, or 'int8_dynamic'"
      )
    seen = observe(model, examples)
  made = quantized.convert(nnx.clone(model), how)
  for path, layer in quantized.layers(made).items():
    if path in seen:
      _calibrate(layer, seen[path][0].max() / 127)
  student = {**of.student, quantized.OPTION: how}
  return anew.told(made, dataclasses.replace(of, student=student))


def _calibrate(layer: Any, scale: float) -> None:
  """Gives a layer the scale of its inputs; 1 where they were all 0."""
  found = jnp.float32(scale or 1.0)
  if isinstance(layer, quantized.Embed):
    held = layer.embedding[...]
    kernel = dataclasses.replace(held.kernel, inputs=found)
    layer.embedding = nnx.Param(quantized.Table(kernel))
    return
  held = layer.kernel[...]
  layer.kernel = nnx.Param(dataclasses.replace(held, inputs=found))


def observe(model: nnx.Module, examples: Array) -> dict[str, np.ndarray]:
  """Returns what a model's layers are given: by dotted path the largest and
  the mean absolute values [2, D] of each of their D inputs.

  Args:
    model: of kd.models; it is not changed.
    examples: as the model takes them.
  """
  looked: Any = quantized.convert(nnx.clone(model), None)
  if isinstance(looked, Decoder):
    # What is seen inside of a rematerialised layer stays there.
    looked.numerics = dataclasses.replace(looked.numerics, remat="none")
  graphdef, state = nnx.split(looked)
  seen = _look(graphdef, state, examples)
  return {
    ".".join(map(str, path[:-1])): np.asarray(x.get_value())
    for path, x in nnx.to_flat_state(seen)
  }


@jax.jit(static_argnums=0)
def _look(graphdef, state, examples):
  model = nnx.merge(graphdef, state)
  model(examples)
  return nnx.state(model, quantized.Seen)
