"""Answers of the model that lies beside this file. Needs jax, and nothing else.

    python predict.py INPUTS.npy PROBABILITIES.npy

or, from Python, `Model().probabilities(inputs)`. What inputs are is said in
model.json; other shapes and dtypes are refused.
"""

import json
import math
import os
import sys

import ml_dtypes  # comes with jax
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
try:
  import flatbuffers  # noqa: F401
except ImportError:  # jax.export reads with it, and jax does not bring it
  sys.path.append(HERE)

from jax import export, jit  # noqa: E402

DTYPES = {
  "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "BOOL": np.bool_,
  **{f"F{n}": np.dtype(f"f{n // 8}") for n in (16, 32, 64)},
  **{f"I{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)},
  **{f"U{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)},
}


def read_weights(path):
  """Returns {name: array} of a safetensors file.

  Of int4 arrays the file's metadata has {name: shape}; two numbers lie in a
  byte, the first in its lower half.
  """
  with open(path, "rb") as f:
    header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    data = f.read()
  halves = json.loads(header.pop("__metadata__", {}).get("halves", "{}"))
  found = {}
  for name, tensor in header.items():
    start, stop = tensor["data_offsets"]
    x = np.frombuffer(data[start:stop], DTYPES[tensor["dtype"]])
    found[name] = x.reshape(tensor["shape"])
    if name in halves:
      both = np.stack([x & 15, x >> 4], -1).ravel()[: math.prod(halves[name])]
      signed = (both.astype(np.int8) ^ 8) - 8
      found[name] = signed.astype(ml_dtypes.int4).reshape(halves[name])
  return found


class Model:
  """The model of a folder: `about` it is what model.json says."""

  def __init__(self, folder=HERE):
    with open(os.path.join(folder, "model.json"), encoding="utf-8") as f:
      self.about = json.load(f)
    self.weights = read_weights(os.path.join(folder, "model.safetensors"))
    with open(os.path.join(folder, "model.jax_export"), "rb") as f:
      self._call = jit(export.deserialize(bytearray(f.read())).call)

  def logits(self, inputs):
    """Returns the logits of inputs [N, ...], float32 [N, ..., V].

    Raises:
      ValueError: the inputs are not as model.json says.
    """
    inputs, wanted = np.asarray(inputs), self.about["input"]
    shape, dtype = wanted["shape"][1:], wanted["dtype"]
    if list(inputs.shape[1:]) != shape or not len(inputs):
      raise ValueError(
        f"inputs have shape {list(inputs.shape)}, expected [N, "
        f"{', '.join(map(str, shape))}] with N >= 1"
      )
    if inputs.dtype != dtype:
      raise ValueError(f"inputs are {inputs.dtype}, expected {dtype}")
    low, high = wanted["range"] or (-math.inf, math.inf)
    if not (low <= inputs.min() and inputs.max() <= high):
      raise ValueError(
        f"inputs are {inputs.min()} to {inputs.max()}, expected {low} to {high}"
      )
    return np.asarray(self._call(self.weights, inputs))

  def probabilities(self, inputs):
    """Returns the softmax of `logits`."""
    z = self.logits(inputs)
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def main(arguments):
  """Returns the command's exit code, and says in a line what is wrong."""
  try:
    source, target = arguments
    with open(source, "rb") as f:
      np.save(target, Model().probabilities(np.load(f)))
  except (OSError, ValueError) as error:
    usage = "expected INPUTS.npy PROBABILITIES.npy"
    print(f"error: {usage if len(arguments) != 2 else error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
