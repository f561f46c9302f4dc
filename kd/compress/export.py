"""A model as a folder of its own, which needs jax alone.

    model.jax_export    StableHLO for several platforms, of any number of inputs
    model.safetensors   the weights, which the program is given
    model.json          what inputs and outputs are
    predict.py          kd/compress/predict.py, and flatbuffers, which it needs

All that the program does to inputs, it does itself: numbers are scaled, ids are
numbered as the model does.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Generator, Mapping
from typing import Any

import flatbuffers
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import Array, Float, Int

from kd import files
from kd.compress import packing, predict
from kd.errors import UserError, why
from kd.models import functional
from kd.models.decoder import Decoder
from kd.models.functional import Signature

PROGRAM, WEIGHTS, ABOUT = "model.jax_export", "model.safetensors", "model.json"
PLATFORMS = ("cpu", "tpu", "cuda")
PLACES = "vocabulary.places"  # the name of ids as a student numbers them


@dataclasses.dataclass(frozen=True)
class Program:
  """A model as a function of its weights and inputs.

  Attributes:
    call: ({name: weights}, inputs [B, *shape]) -> logits [B, V]; of tokens from
      ids [B, L] to [B, L, V].
    weights: by name.
    shape, dtype: of an input.
  """

  call: Callable[[Mapping[str, Array], Array], Float[Array, "B *L V"]]
  weights: Mapping[str, Array]
  shape: tuple[int, ...]
  dtype: np.dtype

  def spec(self) -> jax.ShapeDtypeStruct:
    """Returns inputs of any number B."""
    (count,) = jax.export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((count, *self.shape), self.dtype)


def program(
  student: Mapping[str, Any],
  signature: Signature,
  weights: Mapping[str, Any],
  dtype: Any,
  places: Int[np.ndarray, "T"] | None = None,
) -> Program:
  """Makes a program of a model.

  A decoder's reads ids [B, L] of one document each, and attends in plain XLA:
  jax's kernel for TPUs takes no symbolic B.

  Args:
    student: its name and options.
    signature: what it is asked.
    weights: as kd.models.functional takes them.
    dtype: of inputs.
    places: of a decoder of some ids alone, its own id of each of the
      tokenizer's T, which the program then reads.
  """
  shell = nnx.eval_shape(
    lambda: functional.create(student, signature, jax.random.key(0))
  )
  reads_tokens = isinstance(shell, Decoder)
  if reads_tokens:
    student = {**student, "attention": "xla"}
  graphdef, _ = functional.define(student, signature)
  leaves, tree = tree_flatten_with_path(weights)
  named = {_dotted(path): jnp.asarray(x) for path, x in leaves}
  own = list(named)
  if places is not None:
    named[PLACES] = jnp.asarray(places)

  def call(named, inputs):
    of = jax.tree.unflatten(tree, [named[name] for name in own])
    model = nnx.merge(graphdef, *of.values())
    if not reads_tokens:
      return model(functional.scaled(inputs, signature)).logits
    ids = inputs if places is None else jnp.take(named[PLACES], inputs)
    # As a task of tokens has them (kd.data.token_task.arrays_of).
    lines = [ids, jnp.ones_like(ids), inputs][: signature.input_shape[0]]
    z = model(jnp.stack(lines, axis=1)).logits
    return z.reshape(*inputs.shape, -1)

  shape = signature.input_shape[1:] if reads_tokens else signature.input_shape
  return Program(call, named, tuple(shape), np.dtype(dtype))


def _dotted(path: Any) -> str:
  """Returns a weight's path as a text, such as "params.head.kernel"."""
  return keystr(path, simple=True, separator=".").replace(".value", "")


def write(made: Program, about: Mapping[str, Any], folder: str) -> None:
  """Writes a folder; what is there of an earlier one is replaced.

  Args:
    made: the model.
    about: what model.json says beside `input` and `output`: of `input` it has
      what becomes of raw inputs.
    folder: made if needed.

  Raises:
    UserError: it cannot be written.
  """
  out = pathlib.Path(folder)
  whole = lowered(made)
  (logits,) = whole.out_avals
  about = {
    **about,
    "input": {
      "shape": ["b", *made.shape],
      "dtype": str(made.dtype),
      **about["input"],
    },
    "output": {
      "shape": [str(n) if n is logits.shape[0] else n for n in logits.shape],
      "dtype": str(logits.dtype),
      "holds": "logits, whose softmax are probabilities",
    },
    "program": {
      "file": PROGRAM,
      "of": "jax.export: StableHLO, of ({name: weights}, inputs)",
      "weights": WEIGHTS,
      "platforms": list(whole.platforms),
      "calling_convention": whole.calling_convention_version,
    },
  }
  try:
    out.mkdir(parents=True, exist_ok=True)
    (out / PROGRAM).write_bytes(whole.serialize())
    save_weights(made.weights, out / WEIGHTS)
    shutil.copy(predict.__file__, out / "predict.py")
    shutil.copytree(
      pathlib.Path(flatbuffers.__file__).parent,
      out / "flatbuffers",
      ignore=shutil.ignore_patterns("__pycache__"),
      dirs_exist_ok=True,
    )
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{folder}: cannot be written ({why(error)})") from error
  files.write_json(str(out / ABOUT), about)


def lowered(made: Program) -> jax.export.Exported:
  """Returns a program for PLATFORMS, of any number of inputs."""
  specs = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(made.weights)
  )
  with _without_paths():
    return jax.export.export(jax.jit(made.call), platforms=PLATFORMS)(
      specs, made.spec()
    )


@contextlib.contextmanager
def _without_paths() -> Generator[None]:
  """Lowers programs that do not name the files of this machine."""
  key = "jax_traceback_in_locations_limit"
  before = getattr(jax.config, key)
  jax.config.update(key, 0)
  try:
    yield
  finally:
    jax.config.update(key, before)


def save_weights(weights: Mapping[str, Array], path: pathlib.Path) -> None:
  """Writes arrays as safetensors, which `predict.read_weights` reads."""
  tensors, halves = {}, {}
  for name, x in weights.items():
    x = np.asarray(x)
    if x.dtype == jnp.int4:  # which safetensors does not know
      halves[name] = x.shape
      x = packing.stored(x.ravel())
    tensors[name] = np.ascontiguousarray(x).reshape(x.shape)  # () too
  metadata = {"halves": json.dumps(halves)} if halves else None
  path.write_bytes(safetensors.numpy.save(tensors, metadata))
