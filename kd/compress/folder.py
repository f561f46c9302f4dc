"""A model in a folder: its arrays in few bytes, and what it is made of.

weights.safetensors   arrays as kd.compress.packing keeps them
model.json            the model's options, and each array's form
"""

import json
import os
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from kd import config, files
from kd.compress import anew, packing
from kd.errors import UserError, why
from kd.models.decoder import dotted

WEIGHTS, MODEL = "weights.safetensors", "model.json"


def save(model: nnx.Module, folder: str) -> None:
  """Writes a model, rounded or pruned as it may be, into a folder.

  >>> import tempfile
  >>> from kd import compress, models
  >>> make = dict(input_shape=(64,), num_classes=9, hidden=(512,))
  >>> model = models.create("mlp", rngs=nnx.Rngs(0), **make)
  >>> with tempfile.TemporaryDirectory() as out:
  ...   compress.save(model, f"{out}/float32")
  ...   compress.save(compress.quantize(model, "int8"), f"{out}/int8")
  ...   sizes = [compress.size_bytes(f"{out}/{x}") for x in ("float32", "int8")]
  >>> 3 < sizes[0] / sizes[1] < 4
  True

  Args:
    model: of kd.models.
    folder: created if needed.

  Raises:
    UserError: the folder cannot be written.
  """
  try:
    os.makedirs(folder, exist_ok=True)
    for name, content in contents(model).items():
      files.write_bytes(os.path.join(folder, name), content)
  except OSError as error:
    raise UserError(f"{folder}: cannot be written ({why(error)})") from error


def contents(model: nnx.Module) -> dict[str, bytes]:
  """Returns what `save` writes, by file."""
  of, tensors, forms = anew.origin(model), {}, {}
  for path, leaf in _leaves(model):
    packed = packing.pack(np.asarray(leaf))
    forms[path] = packed.form
    tensors |= {_key(path, k): x for k, x in packed.parts.items()}
  described = {
    "input_shape": list(of.input_shape),
    "num_classes": of.num_classes,
    "student": of.student,
    "arrays": forms,
  }
  return {
    WEIGHTS: safetensors.numpy.save(tensors),
    MODEL: json.dumps(described, sort_keys=True).encode(),
  }


def load(folder: str) -> nnx.Module:
  """Returns the model that `save` wrote.

  Raises:
    UserError: a file is missing, or is none that it writes.
  """
  path = os.path.join(folder, MODEL)
  told: Any = files.read_json(path, "description of a model")
  try:
    of = anew.Origin(
      config.tuples(told["student"]),
      tuple(told["input_shape"]),
      told["num_classes"],
    )
    tensors = safetensors.numpy.load_file(os.path.join(folder, WEIGHTS))
    graphdef, state = nnx.split(of.shell())
    leaves, treedef = jax.tree.flatten(state)
    read = []
    for name, leaf in zip(_paths(state), leaves, strict=True):
      form = told["arrays"][name]
      suffixes = _SUFFIXES[form["form"]]
      parts = {k: tensors[_key(name, k)] for k in suffixes}
      array = packing.unpack(packing.Packed(parts, form))
      read.append(jax.numpy.asarray(array, leaf.dtype))
  except (KeyError, TypeError, OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{folder}: no model that kd.compress.save wrote ({why(error)})"
    ) from error
  return anew.told(nnx.merge(graphdef, jax.tree.unflatten(treedef, read)), of)


def size_bytes(folder: str) -> int:
  """Returns how many bytes the files of a folder have."""
  return sum(
    os.path.getsize(os.path.join(place, name))
    for place, _, names in os.walk(folder)
    for name in names
  )


_SUFFIXES = {
  "dense": ("",),
  "mask": ("", "mask"),
  "csr": ("", "columns", "ends"),
}


def _key(path: str, suffix: str) -> str:
  return f"{path}:{suffix}" if suffix else path


def _leaves(model: nnx.Module) -> list[tuple[str, Any]]:
  _, state = nnx.split(model)
  return [*zip(_paths(state), jax.tree.leaves(state), strict=True)]


def _paths(state: Any) -> list[str]:
  """Returns the names of a state's arrays; those of a kernel that is rounded
  are its own, as `layers.0.kernel.weights.scale`."""
  found = []
  for path, x in nnx.to_flat_state(state):
    for keys, _ in jax.tree_util.tree_leaves_with_path(x):
      inner = [str(getattr(k, "name", "")) for k in keys]
      found.append(dotted([*path, *(k for k in inner if k and k != "value")]))
  return found
