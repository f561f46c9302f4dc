r"""Smaller dense models: units, channels, heads or layers are taken out.

What counts as important, of the parts of a layer:

    units      of an MLP's, CNN's or byte_cnn's dense layers, channels of its
    channels   convolutions: j has the score ||W_in[:, j]||_1 ||W_out[j, :]||_1
               (how it is written, times how it is read; Li et al. 2017,
               arXiv:1608.08710, has the first factor alone); by "activations"
               mean |a_j| ||W_out[j, :]||_1, with a_j its values on examples
               (as Sun et al. 2023, arXiv:2306.11695, weigh a weight)
    units      of a decoder's MLPs, and
    heads      its key heads with their query heads: the product of the L2 norms
               of what writes and reads them (kd.models.slicing)
    layers     of a decoder: the L2 norms of its two matrices that write to the
               stream, multiplied

Of N parts max(0, round((1 - sparsity) N)) stay, in their order; a model that
would lose all of some layer's is refused.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array

from kd.compress import anew
from kd.compress.anew import Origin
from kd.compress.rounding import observe
from kd.errors import UserError
from kd.models import quantized, slicing
from kd.models.decoder import Decoder

Arrays = dict[str, Any]


def prune(
  model: nnx.Module,
  what: str,
  sparsity: float,
  *,
  importance: str = "weights",
  examples: Array | None = None,
) -> nnx.Module:
  """Returns the smaller model; arguments as of kd.compress.prune."""
  of = anew.origin(model)
  smaller = shrunk(of, what, sparsity, importance)
  if isinstance(model, Decoder):
    return _decoder(model, smaller, what, sparsity)
  seen = None
  if importance == "activations":
    if examples is None or not len(examples):
      raise UserError("importance = 'activations': needs examples")
    seen = observe(model, examples)
  weights = {k: np.asarray(x) for k, x in anew.arrays(model).items()}
  parts = _parts(of, what)
  scores = [part.score(weights, seen) for part in parts]
  for part, score in zip(parts, scores, strict=True):
    order = np.argsort(-score.astype(np.float32), kind="stable")
    kept = order[: _keep(part.size, sparsity)]
    part.cut(weights, np.sort(kept))
  return anew.filled(smaller, weights)


def shrunk(
  of: Origin, what: str, sparsity: float, importance: str, path: str = ""
) -> Origin:
  """Returns what a smaller model is made of, before there are weights.

  Args:
    of: the model.
    what, sparsity, importance: as of kd.compress.prune.
    path: of the config, for messages.

  Raises:
    UserError: it has no such parts, or none would be left.
  """
  student, at = dict(of.student), f"{path}." if path else ""
  if quantized.OPTION in student:
    raise UserError("a model that is rounded: prune first, then quantize")
  sizes = _sizes(of, what)
  if not sizes:
    raise UserError(
      f"{at}what = {what!r}: model {student['name']!r} has no {what} to take "
      f"out; expected {_accepted(student['name'])}"
    )
  for size in sizes:
    if not _keep(size, sparsity):
      raise UserError(
        f"{at}sparsity = {sparsity}: nothing is left of {size} {what}; "
        "expected less"
      )
  decoder = student["name"] in ("decoder", "checkpoint")
  if decoder and importance != "weights":
    raise UserError(
      f"{at}importance = {importance!r}: expected 'weights' of a decoder"
    )
  kept = tuple(_keep(size, sparsity) for size in sizes)
  if decoder:
    shell: Any = of.shell()
    shell.spec = slicing.smaller(
      shell.spec,
      layers=range(kept[0]) if what == "layers" else None,
      kv_heads=kept[0] if what == "heads" else None,
      mlp=kept[0] if what == "units" else None,
    )
    return dataclasses.replace(of, student=anew.of_spec(shell, {}))
  key = {"channels": "channels", "units": "hidden"}[what]
  several = isinstance(
    student.get(key, _USUAL[student["name"]][key]), tuple | list
  )
  student[key] = kept if several else kept[0]
  return dataclasses.replace(of, student=student)


_USUAL: Mapping[str, Mapping[str, Any]] = {
  "mlp": {"hidden": (128, 128)},
  "cnn": {"channels": (32, 64), "hidden": 128},
  "byte_cnn": {"channels": 16, "hidden": 96},
}


def _accepted(name: str) -> str:
  own = [k for k, of in _KINDS.items() if name in of]
  return ", ".join(map(repr, [*own, "weights", "2:4"]))


_KINDS = {
  "units": ("mlp", "cnn", "byte_cnn", "decoder", "checkpoint"),
  "channels": ("cnn", "byte_cnn"),
  "heads": ("decoder", "checkpoint"),
  "layers": ("decoder", "checkpoint"),
}


def _keep(size: int, sparsity: float) -> int:
  return round((1 - sparsity) * size)


def _sizes(of: Origin, what: str) -> list[int]:
  """Returns how many there are in each layer."""
  if of.student["name"] not in _KINDS[what]:
    return []
  if of.student["name"] in ("decoder", "checkpoint"):
    shell: Any = of.shell()
    spec = shell.spec
    return [
      {
        "units": spec.mlp_width,
        "heads": spec.kv_heads,
        "layers": len(spec.layers),
      }[what]
    ]
  return [part.size for part in _parts(of, what)]


@dataclasses.dataclass(frozen=True)
class Part:
  """The units of one layer: who writes them, and who reads them.

  Attributes:
    size: how many there are.
    write: the path of the layer that makes them.
    norm: of the norm that follows it, or "".
    read: of the layer that takes them.
    start: the first of that layer's inputs that is one.
    repeat: how often they come there, one after another: the places of an image
      that is flattened, or of a window.
    conv: whether who reads is a convolution.
  """

  size: int
  write: str
  read: str
  norm: str = ""
  start: int = 0
  repeat: int = 1
  conv: bool = False

  def _rows(self) -> np.ndarray:
    """Returns the inputs [repeat, size] of who reads that are these units."""
    return self.start + np.arange(self.repeat * self.size).reshape(
      self.repeat, self.size
    )

  def score(self, weights: Arrays, seen: Mapping[str, Any] | None):
    """Returns how important each is [size], see the module."""
    read = weights[f"{self.read}.kernel"]
    read = read.reshape(-1, read.shape[-1])[self._rows()]
    reads = np.abs(read).sum((0, 2))
    if seen is not None:
      return seen[self.read][1][self._rows()].mean(0) * reads
    write = weights[f"{self.write}.kernel"]
    return np.abs(write).reshape(-1, self.size).sum(0) * reads

  def cut(self, weights: Arrays, kept: np.ndarray) -> None:
    """Keeps some of them, in place."""
    own = [f"{self.write}.{k}" for k in ("kernel", "bias")]
    own += [f"{self.norm}.{k}" for k in ("scale", "bias", "mean", "var")]
    for path in own:
      if weights.get(path) is not None:
        weights[path] = np.take(weights[path], kept, axis=-1)
    path = f"{self.read}.kernel"
    if self.conv:
      weights[path] = np.take(weights[path], kept, axis=-2)
      return
    gone = np.delete(self._rows(), kept, axis=1).ravel()
    weights[path] = np.delete(weights[path], gone, axis=0)


def _parts(of: Origin, what: str) -> list[Part]:
  """Returns the layers of a model that have such units, in order."""
  shell: Any = of.shell()
  make: Callable = {
    ("mlp", "units"): _mlp_units,
    ("cnn", "units"): _dense_units,
    ("cnn", "channels"): _cnn_channels,
    ("byte_cnn", "units"): _dense_units,
    ("byte_cnn", "channels"): _byte_channels,
  }.get((of.student["name"], what), lambda shell: [])
  return make(shell)


def _mlp_units(shell: Any) -> list[Part]:
  names = [f"layers.{i}" for i in range(len(shell.layers))] + ["head"]
  return [
    Part(layer.kernel.shape[-1], names[i], names[i + 1])
    for i, layer in enumerate(shell.layers)
  ]


def _dense_units(shell: Any) -> list[Part]:
  if shell.dense is None:
    return []
  return [Part(shell.dense.kernel.shape[-1], "dense", "head")]


def _cnn_channels(shell: Any) -> list[Part]:
  found, last = [], "head" if shell.dense is None else "dense"
  for i, conv in enumerate(shell.convs):
    size, norm = conv.kernel.shape[-1], f"norms.{i}"
    if i + 1 < len(shell.convs):
      places = int(np.prod(conv.kernel_size))
      read = f"convs.{i + 1}"
      own = Part(size, f"convs.{i}", read, norm, 0, places, conv=True)
    else:
      flat = getattr(shell, last).kernel.shape[0]
      own = Part(size, f"convs.{i}", last, norm, 0, flat // size)
    found.append(own)
  return found


def _byte_channels(shell: Any) -> list[Part]:
  if shell.conv is None:
    return []
  from kd.models.byte_cnn import TOKENS

  size = shell.conv.kernel.shape[-1]
  return [Part(size, "conv", "dense", start=TOKENS)]


def _decoder(
  model: Decoder, smaller: Origin, what: str, sparsity: float
) -> nnx.Module:
  spec = model.spec
  size = {"heads": spec.kv_heads, "units": spec.mlp_width}.get(what, 0)
  made = slicing.from_teacher(
    model,
    layers=_layers(model, sparsity) if what == "layers" else None,
    kv_heads=_keep(size, sparsity) if what == "heads" else None,
    mlp=_keep(size, sparsity) if what == "units" else None,
  )
  return anew.filled(smaller, anew.arrays(made))


def _layers(model: Decoder, sparsity: float) -> list[int]:
  """Returns which layers stay."""

  def norm(layer):
    return np.linalg.norm(np.asarray(layer.kernel[...], np.float32))

  norms = [norm(x.attention.o) * norm(x.mlp.down) for x in model.layers]
  order = np.argsort(-np.asarray(norms), kind="stable")
  return np.sort(order[: _keep(len(norms), sparsity)]).tolist()
