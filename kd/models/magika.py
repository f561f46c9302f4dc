"""Magika, a file type classifier in production, as a frozen teacher.

Fratantonio et al. 2024, "Magika: AI-Powered Content-Type Detection"
(arXiv:2409.13768). The package `magika` ships the weights of its model
standard_v3_3, 784,214 parameters and 214 content types, as an ONNX file that
was exported from Flax; here the same network is written in Flax NNX again and
filled from that file. The package's own code is not run, and nothing of it is
imported.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kd import files
from kd.errors import UserError
from kd.models import quantized
from kd.models.outputs import Outputs, outputs

INSTALL = "pip install --no-deps -r requirements-data.txt"
MODEL = "models/standard_v3_3"
LENGTH = 2048  # bytes that it sees of a file, see kd.datasets.file_types.window
TOKENS = 257  # the values of a byte, and padding
# The ONNX file's names, from the Flax model it was exported from, and what
# turns its arrays into ours.
PREFIX = "jax2tf_get_logits_/"
NET = PREFIX + "pjit_get_logits_/MagikaV2/"
ARRAYS = {
  ("embed", "embedding"): (PREFIX + "Const:0", (TOKENS, 64)),
  ("embed_bias",): (NET + "Dense_0/Reshape:0", (64,)),
  ("norm", "scale"): (NET + "LayerNorm_0/Reshape_2:0", (512,)),
  ("norm", "bias"): (NET + "LayerNorm_0/Reshape_3:0", (512,)),
  ("conv", "kernel"): (NET + "Conv_0/transpose_3:0", (512, 256, 5)),
  ("conv", "bias"): ("const_fold_opt__209", (512,)),
  ("norm_1", "scale"): (NET + "LayerNorm_1/Reshape_2:0", (512,)),
  ("norm_1", "bias"): (NET + "LayerNorm_1/Reshape_3:0", (512,)),
  ("head", "kernel"): (PREFIX + "Const_24:0", (512, 214)),
  ("head", "bias"): (NET + "Dense_1/Reshape:0", (214,)),
}


class Magika(nnx.Module):
  """Embedding, one wide convolution over blocks of four bytes, a maximum.

      e_t = gelu(W[x_t] + b)            x in 0..256, e in R^64
      u   = norm(blocks of 4 of e)      [512, 256], over the 512 blocks
      h   = norm(max_t gelu(conv5(u)))  [512]

  with the tanh form of gelu. Inputs are whole numbers, of any dtype.

  The exported network takes the first norm's variance as E[e^2] - E[e]^2, which
  cancels where most blocks are padding: onnxruntime's probabilities for a short
  file then change by 2e-4 with the batch it is in. The variance here is that of
  the differences, which agrees with float64; files that fill both windows agree
  with onnxruntime to 1e-5, and short ones as far as it agrees with itself.

  Args:
    input_shape: (2048,).
    num_classes: V; 214 to load the published weights.
    rngs: of the initialisation.
  """

  OPTIONS: ClassVar = {}

  def __init__(
    self, input_shape: Sequence[int], num_classes: int, *, rngs: nnx.Rngs
  ):
    if tuple(input_shape) != (LENGTH,):
      raise UserError(
        f"name = 'magika': expected {LENGTH} bytes of a file, the task's "
        f"inputs have shape {tuple(input_shape)}"
      )
    self.embed = nnx.Embed(TOKENS, 64, rngs=rngs)
    self.embed_bias = nnx.Param(jnp.zeros(64))
    self.norm = nnx.LayerNorm(
      512,
      epsilon=1e-6,
      reduction_axes=1,
      feature_axes=1,
      use_fast_variance=False,  # see the class
      rngs=rngs,
    )
    self.conv = nnx.Conv(256, 512, (5,), padding="VALID", rngs=rngs)
    self.norm_1 = nnx.LayerNorm(512, epsilon=1e-6, rngs=rngs)
    self.head = nnx.Linear(512, num_classes, rngs=rngs)

  def __call__(
    self, x_BxL: Float[Array, "B 2048"], rngs: nnx.Rngs | None = None
  ) -> Outputs:
    del rngs  # it has no dropout
    every = quantized.looked_up(self.embed, jnp.arange(TOKENS))
    table = nnx.gelu(every + self.embed_bias[...])
    x = jnp.take(table, x_BxL.astype(jnp.int32), axis=0)
    x = self.norm(x.reshape(-1, LENGTH // 4, 4 * 64))
    x = nnx.gelu(self.conv(x)).max(axis=1)
    return outputs(self.norm_1(x), self.head)

  @staticmethod
  def published_classes() -> tuple[str, ...]:
    """Returns the content types that the published weights tell apart.

    Raises:
      UserError: the package is not installed.
    """
    return content_types()

  def load_published(self) -> None:
    """Fills the model with the published weights.

    Raises:
      UserError: a package is not installed, or has other weights.
    """
    arrays = _initializers(folder() / MODEL / "model.onnx")
    for path, (name, shape) in ARRAYS.items():
      found = arrays.get(name)
      if found is None or found.size != np.prod(shape):
        raise UserError(
          f"teacher.name = 'magika': no weights {name} of shape {shape} in the "
          f"installed package; expected magika 1.0.3: {INSTALL}"
        )
      value = found.reshape(shape)
      if path == ("conv", "kernel"):  # [out, in, width] there
        value = value.transpose(2, 1, 0)
      target: Any = self
      for key in path:
        target = getattr(target, key)
      target[...] = jnp.asarray(value)


def folder() -> pathlib.Path:
  """Returns the package's folder, without importing the package.

  Raises:
    UserError: it is not installed; names the install line.
  """
  found = files.package_folder("magika")
  if found is None:
    raise UserError(f"magika is in a package of its own: {INSTALL}")
  return found


def content_types() -> tuple[str, ...]:
  """Returns the names of the 214 content types, in the head's order."""
  text = (folder() / MODEL / "config.min.json").read_text(encoding="utf-8")
  return tuple(json.loads(text)["target_labels_space"])


def _initializers(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the constants of an ONNX file by name."""
  try:
    import onnx  # of the optional install, as magika itself
  except ImportError as error:
    raise UserError(f"to read {path.name}, onnx: {INSTALL}") from error

  graph = onnx.load(str(path)).graph
  return {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
