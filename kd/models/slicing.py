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

Choice = int | Sequence[int] | None


def from_teacher(
  teacher: Decoder,
  *,
  layers: Sequence[int] | None = None,
  width: Choice = None,
  mlp: Choice = None,
  kv_heads: Choice = None,
  vocab_ids: Sequence[int] | None = None,
  other: bool = False,
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
    other: one more id, the last, stands for all that are not kept: its row is
      the mean of theirs.

  Raises:
    UserError: a number or an index out of range, or twice.
  """
  spec = teacher.spec
  weights = {path: np.asarray(x) for path, x in arrays(teacher).items()}
  student = smaller(
    spec,
    layers=layers,
    width=width,
    mlp=mlp,
    kv_heads=kv_heads,
    vocab_ids=vocab_ids,
    other=other,
  )
  chosen = _indices("layers", layers, len(spec.layers))
  ids = _indices("vocab_ids", vocab_ids, spec.vocab_size)
  channels = _choose("width", width, _norm(weights["embed.embedding"], 0))
  cut = {}
  for new, old in enumerate(chosen):
    part = lambda name, i=old: weights[f"layers.{i}.{name}.kernel"]
    gate, up = (_norm(part(f"mlp.{x}"), 0) for x in ("gate", "up"))
    down = _norm(part("mlp.down"), 1)
    units = _choose("mlp", mlp, gate * up * down)
    value = part("attention.v").reshape(-1, spec.kv_heads, spec.head_dim)
    out = part("attention.o").reshape(spec.kv_heads, -1)
    groups = _choose("kv_heads", kv_heads, _norm(value, (0, 2)) * _norm(out, 1))
    each = spec.heads // spec.kv_heads * spec.head_dim
    kept = {
      "D": channels,
      "F": units,
      "K": _spread(groups, spec.head_dim),
      "H": _spread(groups, each),
    }
    prefix = f"layers.{old}."
    for name, array in weights.items():
      if name.startswith(prefix):
        own = name.removeprefix(prefix)
        cut[f"layers.{new}.{own}"] = _take(array, _axes(own, spec), kept)
  rows = {"embed.embedding": "VD", "norm.scale": "D", "head.kernel": "DV"}
  for name in rows.keys() & weights.keys():
    axes = rows[name]
    array = _take(weights[name], axes, {"D": channels})
    cut[name] = _words(array, axes.find("V"), ids, other)
  return build(student, teacher.numerics, lambda path, shape: cut[path])


def smaller(
  spec: Spec,
  *,
  layers: Sequence[int] | None = None,
  width: Choice = None,
  mlp: Choice = None,
  kv_heads: Choice = None,
  vocab_ids: Sequence[int] | None = None,
  other: bool = False,
) -> Spec:
  """Returns what `from_teacher` makes of a teacher of this spec."""
  chosen = _indices("layers", layers, len(spec.layers))
  ids = _indices("vocab_ids", vocab_ids, spec.vocab_size)
  kept = _size("kv_heads", kv_heads, spec.kv_heads)
  wide = _size("width", width, spec.width)
  return dataclasses.replace(
    spec,
    vocab_size=len(ids) + other,
    width=wide,
    mlp_width=_size("mlp", mlp, spec.mlp_width),
    heads=spec.heads // spec.kv_heads * kept,
    kv_heads=kept,
    layers=tuple(spec.layers[i] for i in chosen),
    embed_scale=(  # Gemma's follows its width
      wide**0.5 if spec.embed_scale == spec.width**0.5 else spec.embed_scale
    ),
    kept=_renamed(spec.kept, ids),
  )


def _norm(array, axis) -> np.ndarray:
  return np.linalg.norm(array.astype(np.float32), axis=axis)


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


def _words(array, axis: int, ids: np.ndarray, other: bool) -> np.ndarray:
  """Keeps the rows of `ids`, and the mean of all others as one more."""
  if axis < 0:
    return array
  found = np.take(array, ids, axis=axis)
  if not other:
    return found
  every = np.arange(array.shape[axis])
  rest = np.setdiff1d(every, ids)
  mean = np.take(array, rest if len(rest) else every, axis=axis).mean(
    axis, dtype=np.float32, keepdims=True
  )
  return np.concatenate([found, mean.astype(array.dtype)], axis=axis)


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


def _size(name: str, wanted: Choice, size: int) -> int:
  """Returns how many are kept."""
  if not isinstance(wanted, int):
    return len(_indices(name, wanted, size))
  if not 0 < wanted <= size:
    raise UserError(
      f"student.from_teacher.{name} = {wanted}: expected 1 to {size}"
    )
  return wanted


def _choose(name: str, wanted: Choice, importance: np.ndarray) -> np.ndarray:
  """Returns the indices asked for, or the most important ones in order."""
  if not isinstance(wanted, int):
    return _indices(name, wanted, len(importance))
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
