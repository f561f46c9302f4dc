"""A smaller decoder cut out of a larger one, as a student to begin with.

Width is cut as in Minitron (Muralidharan et al. 2024, arXiv:2407.14679), by the
size of weights where no indices are given; layers as in DistilBERT (Sanh et al.
2019, arXiv:1910.01108).
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from kd.errors import UserError
from kd.models.decoder import Decoder, arrays, build
from kd.models.spec import Spec

# What the axes of arrays run over: D width, V vocabulary, F the MLP's units, K
# and H the heads of keys and queries times their width.
OUTER = {"embed.embedding": "VD", "norm.scale": "D", "head.kernel": "DV"}
Choice = int | Sequence[int] | None


def from_teacher(
  teacher: Decoder,
  *,
  layers: Sequence[int] | None = None,
  width: Choice = None,
  mlp: Choice = None,
  kv_heads: Choice = None,
  vocab_ids: Sequence[int] | None = None,
) -> Decoder:
  """Returns a decoder of some of the teacher's layers, widths and words.

  What is None is kept whole. Of widths, a number keeps so many, the most
  important ones, in their order; indices keep those, in every layer. What
  counts as important is the product of the L2 norms of the weights that
  write and read it:

      a channel of the width   its column of the embeddings
      an MLP unit              its gate, up and down
      a key head               its value, and what its query heads give to o

  Query heads go with their key head. A token gets its place in `vocab_ids` as
  its id; config.json's token ids follow, and are dropped where not kept.

  Args:
    teacher: whose weights are copied; the student's numerics are its own.
    layers: their indices, in the student's order.
    width, mlp, kv_heads: how many, or which.
    vocab_ids: the ids whose rows are kept.

  Raises:
    UserError: a number or an index out of range, or twice.
  """
  spec = teacher.spec
  weights = {path: np.asarray(x) for path, x in arrays(teacher).items()}
  norms = np.linalg.norm(weights["embed.embedding"], axis=0)
  kept = {
    "D": _choose("width", width, norms),
    "V": _indices("vocab_ids", vocab_ids, spec.vocab_size),
  }
  chosen = _indices("layers", layers, len(spec.layers))
  own = [
    kept | _within(weights, spec, f"layers.{i}.", mlp, kv_heads) for i in chosen
  ]
  ids, size = kept["V"], len(kept["D"])
  student = dataclasses.replace(
    spec,
    vocab_size=len(ids),
    width=size,
    mlp_width=len(own[0]["F"]),
    heads=len(own[0]["H"]) // spec.head_dim,
    kv_heads=len(own[0]["K"]) // spec.head_dim,
    layers=tuple(spec.layers[i] for i in chosen),
    kept=_renamed(spec.kept, ids),
  )
  if spec.embed_scale == spec.width**0.5:  # Gemma's, which follows its width
    student = dataclasses.replace(student, embed_scale=size**0.5)

  def read(path: str, shape: tuple[int, ...]) -> np.ndarray:
    del shape
    if not path.startswith("layers."):
      return _take(weights[path], OUTER[path], kept)
    _, i, name = path.split(".", 2)
    array = weights[f"layers.{chosen[int(i)]}.{name}"]
    return _take(array, _axes(name, spec), own[int(i)])

  return build(student, teacher.numerics, read)


def _within(weights, spec: Spec, prefix: str, mlp: Choice, kv_heads: Choice):
  """Returns which of a layer's MLP units, keys and queries are kept."""
  part = lambda name: weights[f"{prefix}{name}.kernel"]
  gate, up = (np.linalg.norm(part(f"mlp.{x}"), axis=0) for x in ("gate", "up"))
  down = np.linalg.norm(part("mlp.down"), axis=1)
  value = part("attention.v").reshape(-1, spec.kv_heads, spec.head_dim)
  out = part("attention.o").reshape(spec.kv_heads, -1)
  norms = np.linalg.norm(value, axis=(0, 2)) * np.linalg.norm(out, axis=1)
  groups = _choose("kv_heads", kv_heads, norms)
  each = spec.heads // spec.kv_heads * spec.head_dim
  return {
    "F": _choose("mlp", mlp, gate * up * down),
    "K": _spread(groups, spec.head_dim),
    "H": _spread(groups, each),
  }


def _axes(name: str, spec: Spec) -> str:
  """Returns what each axis of a layer's array runs over; "d" is kept whole."""
  part, kind = name.split(".")[-2:]
  if part in ("q_norm", "k_norm"):
    return "d" if spec.qk_norm == "head" else {"q": "H", "k": "K"}[part[0]]
  out = {"q": "H", "k": "K", "v": "K", "gate": "F", "up": "F"}.get(part, "D")
  if kind != "kernel":
    return out
  return {"o": "H", "down": "F"}.get(part, "D") + out


def _take(array, axes: str, kept) -> np.ndarray:
  for axis, name in enumerate(axes):
    if name in kept:
      array = np.take(array, kept[name], axis=axis)
  return array


def _spread(groups: np.ndarray, size: int) -> np.ndarray:
  return (groups[:, None] * size + np.arange(size)).reshape(-1)


def _indices(name: str, chosen, size: int) -> np.ndarray:
  if chosen is None:
    return np.arange(size)
  found = np.asarray(chosen, np.int64)
  good = len(found) and found.min() >= 0 and found.max() < size
  if not good or len(set(found.tolist())) < len(found):
    raise UserError(
      f"student.from_teacher.{name} = {chosen}: expected distinct numbers from "
      f"0 to {size - 1}"
    )
  return found


def _choose(name: str, wanted: Choice, importance: np.ndarray) -> np.ndarray:
  """Returns the indices asked for, or the most important ones in order."""
  if not isinstance(wanted, int):
    return _indices(name, wanted, len(importance))
  if not 0 < wanted <= len(importance):
    raise UserError(
      f"student.from_teacher.{name} = {wanted}: expected 1 to {len(importance)}"
    )
  order = np.argsort(-importance.astype(np.float32), kind="stable")
  return np.sort(order[:wanted])


def _renamed(kept: str, ids: np.ndarray) -> str:
  """Returns the keys of config.json with their token ids as places in `ids`."""
  new = {old: i for i, old in enumerate(ids.tolist())}
  config = json.loads(kept)
  for key, value in list(config.items()):
    if not key.endswith("_token_id") or value is None:
      continue
    several = isinstance(value, list)
    found = [new[i] for i in (value if several else [value]) if i in new]
    config[key] = (found if several else found[0]) if found else None
  return json.dumps(config, sort_keys=True)
