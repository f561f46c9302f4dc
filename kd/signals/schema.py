"""What a row of a store holds: a signal as arrays with names, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd.signals import Dense, Labels, Samples, Signal, TopK
from kd.signals.codec import Field

KEY = "key"


def fields(section: Mapping[str, Any], num_classes: int) -> list[Field]:
  """Returns what a row holds, from a config's signal section."""
  k, v = section["k"], num_classes
  kind = {"float32": "plain"}.get(section["dtype"], section["dtype"])
  kept = (len(section["temperatures"]),)
  drawn = (section["samples"],)
  logits = [Field("logits", kind, (v,), "float32")]
  if section["keep"] == "top_k":
    logits = [
      Field("ids", "ids", (k,), "int32", v),
      Field("logits", kind, (k,), "float32"),
      Field("lse", "plain", kept, "float32"),
      Field("tail", "plain", kept, "float32"),
    ]
  return [
    Field(KEY, "plain", (), "uint64"),
    Field("truth", "plain", (), "int32"),
    Field("answer", "plain", (), "int32"),
    Field("entropy", "plain", (), "float32"),
    *logits,
    Field("sample_ids", "plain", drawn, "int32"),
    Field("sample_log_probs", "plain", drawn, "float32"),
  ]


def row_memory(fields: Sequence[Field]) -> int:
  """Returns the bytes of a row once it is read."""
  return sum(f.size * np.dtype(f.dtype).itemsize for f in fields)


def row_bytes(section: Mapping[str, Any], num_classes: int) -> int:
  """Returns the bytes of a row, without the file format's own."""
  return sum(field.width for field in fields(section, num_classes))


def to_arrays(signal: Signal, of: np.ndarray) -> dict[str, np.ndarray]:
  """Returns a signal's arrays by their fields' names; `of` are the keys."""
  arrays = {
    KEY: of,
    "truth": np.asarray(signal.truth.ids),
    "answer": np.asarray(signal.answer.ids),
    "entropy": np.asarray(signal.entropy),
    "sample_ids": np.asarray(signal.samples.ids),
    "sample_log_probs": np.asarray(signal.samples.log_probs),
  }
  dense = signal.dense
  if not isinstance(dense, TopK):
    return arrays | {"logits": np.asarray(signal.logits)}
  order = np.argsort(dense.ids, axis=-1)  # the ids' code is for ascending ones
  top = {"ids": np.asarray(dense.ids), "logits": np.asarray(dense.logits)}
  return arrays | {
    **{k: np.take_along_axis(x, order, -1) for k, x in top.items()},
    "lse": np.asarray(dense.lse),
    "tail": np.asarray(dense.tail),
  }


def to_signal(
  arrays: Mapping[str, Any], temperatures: Sequence[float]
) -> Signal:
  """Makes a signal of what `to_arrays` returns, of the same arrays."""
  x = arrays
  dense = Dense(x["logits"])
  if "ids" in x:
    kept = tuple(float(t) for t in temperatures)
    dense = TopK(x["ids"], x["logits"], x["lse"], x["tail"], kept)
  return Signal(
    truth=Labels(x["truth"]),
    answer=Labels(x["answer"]),
    dense=dense,
    samples=Samples(x["sample_ids"], x["sample_log_probs"]),
    entropy=x["entropy"],
  )
