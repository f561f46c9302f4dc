"""Takes the least important weights, or whole units, out of a trained model."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from kd.compress import anew, structured
from kd.config.compression import STRUCTURES
from kd.errors import UserError
from kd.models import quantized


def prune(
  model: nnx.Module,
  what: str,
  sparsity: float = 0.5,
  *,
  scope: str = "layer",
  importance: str = "weights",
  examples: Array | None = None,
) -> nnx.Module:
  """Returns a model without its least important parts.

  >>> from kd import models
  >>> make = lambda: models.create(
  ...   "mlp", input_shape=(8,), num_classes=3, hidden=(16,), rngs=nnx.Rngs(0)
  ... )
  >>> kernel = prune(make(), "2:4").layers[0].kernel[...]
  >>> int((kernel == 0).sum()), prune(make(), "units").layers[0].kernel.shape
  (64, (8, 8))

  Args:
    model: of kd.models, not rounded; it is not changed.
    what: "weights" sets the smallest |w| of the matrices to 0 (embeddings stay
      as they are); "2:4" the two smallest of every four that follow each other
      among the inputs of an output; the others, see kd.compress.structured,
      make a smaller dense model.
    sparsity: the share that goes, in (0, 1); 2:4 has its own.
    scope: of "weights": "layer" takes that share of each matrix, "global" of
      all of them together.
    importance: of units and channels: of their "weights", or with their mean
      sizes on the examples, their "activations".
    examples: as the model takes them, of what it may see beforehand.

  Raises:
    UserError: nothing would be left, or a model has no such parts.
  """
  if what in STRUCTURES:
    return structured.prune(
      model, what, sparsity, importance=importance, examples=examples
    )
  of = anew.origin(model)
  if quantized.OPTION in of.student:
    raise UserError("a model that is rounded: prune first, then quantize")
  made: Any = nnx.clone(model)
  weights = {path: np.asarray(layer.kernel[...]) for path, layer in _of(made)}
  if not weights:
    raise UserError(f"{of.student['name']!r} has no matrix to prune")
  for path, layer in _of(made):
    if what == "2:4":
      kept = two_of_four(weights[path])
    elif scope == "layer":
      kept = _largest([weights[path]], sparsity)[0]
    else:
      every = _largest(list(weights.values()), sparsity)
      kept = every[list(weights).index(path)]
    layer.kernel[...] = jnp.asarray(np.where(kept, weights[path], 0))
  return made


def _of(model: nnx.Module) -> list[tuple[str, Any]]:
  """Returns the layers whose weights can go, those of products."""
  return [
    (path, layer)
    for path, layer in quantized.layers(model).items()
    if not isinstance(layer, nnx.Embed | quantized.Embed)
  ]


def _largest(weights: list[np.ndarray], sparsity: float) -> list[np.ndarray]:
  """Returns which weights stay of several arrays together, of equal ones the
  first."""
  flat = np.concatenate([np.abs(w.astype(np.float32)).ravel() for w in weights])
  gone = round(sparsity * flat.size)
  order = np.argsort(-flat, kind="stable")
  kept = np.zeros(flat.size, bool)
  kept[order[: flat.size - gone]] = True
  parts = np.split(kept, np.cumsum([w.size for w in weights])[:-1])
  return [k.reshape(w.shape) for k, w in zip(parts, weights, strict=True)]


def two_of_four(weights: np.ndarray) -> np.ndarray:
  """Returns which weights [..., F] stay: of every four inputs of an output the
  two largest, of equal ones the first."""
  matrix = np.abs(weights.reshape(-1, weights.shape[-1]).astype(np.float32))
  rows, columns = matrix.shape
  padded = np.pad(matrix, [(0, -rows % 4), (0, 0)], constant_values=-1.0)
  fours = padded.reshape(-1, 4, columns)
  order = np.argsort(-fours, axis=1, kind="stable")
  kept = np.zeros(fours.shape, bool)
  np.put_along_axis(kept, order[:, :2], True, axis=1)
  return kept.reshape(-1, columns)[:rows].reshape(weights.shape)
