"""Run a teacher over a transfer set, shard by shard, into a store.

    FOLDER.partial/plan.json         what is being labelled
    FOLDER.partial/signal-*          the shards that are done
    FOLDER.partial/signal-*.json     and what is known of each
    FOLDER                           all of it, renamed when it is whole

A killed labelling goes on with the shards that are missing. Shard i is the
work of process i mod n of n, and a batch is spread over a process's devices.
What a row gets depends on its input and its number alone, and batches have one
shape and the same boundaries always, so that the bytes are the same however
often it was stopped, and over however many devices and hosts it ran.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from scipy import special

from kd import files, signals
from kd.errors import UserError
from kd.parallel import hosts
from kd.signals import Signal, codec, schema, store

PACKAGES = ("jax", "array-record", "numpy")
# What says how a signal is stored and found, not what it is.
PLACE = ("path", "shard_size")
AUGMENTATION = {"jitter": 0, "seed": None}  # inputs are labelled as they are


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be labelled, and how.

  Attributes:
    section: the config's signal section.
    count: N, the transfer set's examples.
    num_classes: V.
    inputs: reads the inputs of rows [n], counted from 0 in the transfer set.
    ask: asks the teacher for the signal of rows [n] (kd.signals.of_teacher).
    facts: metadata that says what the teacher and the data were.
    batch: rows of a batch on one device (`whole_records`).
    positions: L, of an example; a store has a row for each of them.
  """

  section: Mapping[str, Any]
  count: int
  num_classes: int
  inputs: Callable[[np.ndarray], np.ndarray]
  ask: Callable[[np.ndarray], Signal]
  facts: Mapping[str, Any]
  batch: int
  positions: int = 1

  @property
  def schema(self) -> list[codec.Field]:
    return schema.fields(self.section, self.num_classes)

  @property
  def kept(self) -> dict[str, Any]:
    """What a study that reads the store must agree with."""
    signal = {k: v for k, v in self.section.items() if k not in PLACE}
    return {
      "signal": signal,
      "augmentation": AUGMENTATION,
      "num_classes": self.num_classes,
      "examples": self.count,
      **({"positions": self.positions} if self.positions > 1 else {}),
      **self.facts,
    }

  def shards(self) -> list[tuple[str, int, int]]:
    """Returns (name, first row, end) of each."""
    size = self.section["shard_size"]
    starts = range(0, self.count, size)
    return [
      (
        f"signal-{i:05d}-of-{len(starts):05d}.array_record",
        start,
        min(start + size, self.count),
      )
      for i, start in enumerate(starts)
    ]


def whole_records(batch: int, positions: int = 1) -> int:
  """Returns `batch` examples, rounded up to a whole number of records."""
  least = store.ROWS // math.gcd(store.ROWS, positions)
  return -(-batch // least) * least


def label(folder: str, plan: Plan) -> None:
  """Labels a transfer set into a store, or what is missing of it.

  Args:
    folder: of the store; its parent exists. Nothing is done where it is.
    plan: what to label.

  Raises:
    UserError: the teacher's logits are not finite.
  """
  if store.exists(folder):
    return
  partial = f"{folder}.partial"
  own = jax.process_index()
  if own == 0:
    _begin(partial, plan)
  hosts.wait_for_all(f"{folder} begun")
  if not store.exists(partial):
    left = [
      shard
      for shard in plan.shards()[own :: jax.process_count()]
      if not os.path.exists(os.path.join(partial, f"{shard[0]}.json"))
    ]
    if left:
      examples = sum(end - first for _, first, end in left)
      logging.info("labelling %d examples into %s; compiling", examples, folder)
    for name, first, end in left:
      path = os.path.join(partial, name)
      errors: list[dict[str, Any]] = []
      parts = _parts(plan, first, end, errors)
      about = store.write_shard(path, plan.schema, parts)
      about["error"] = _worst(errors)
      files.write_json(f"{path}.json", about)
      if len(left) > 1:
        logging.info("labelled examples %d to %d of %d", first, end, plan.count)
  hosts.wait_for_all(f"{folder} labelled")
  if own == 0:
    _finish(partial, folder, plan)
  hosts.wait_for_all(f"{folder} finished")


def _begin(partial: str, plan: Plan) -> None:
  """Makes the folder, unless what is there is a part of the same."""
  path = os.path.join(partial, "plan.json")
  ours = json.loads(json.dumps({**plan.kept, "shards": plan.shards()}))
  if os.path.exists(path):
    if files.read_json(path, "plan") == ours:
      return
    logging.warning("%s is of another signal: beginning anew", partial)
  if not store.exists(partial):
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    files.write_json(path, ours)


def _finish(partial: str, folder: str, plan: Plan) -> None:
  """Writes the metadata of all shards, and moves the folder to its place."""
  notes = [f"{name}.json" for name, _, _ in plan.shards()]
  if not store.exists(partial):
    shards = [files.read_json(os.path.join(partial, n), "note") for n in notes]
    errors = [shard.pop("error") for shard in shards]
    stored = sum(shard["bytes"] for shard in shards)
    files.write_json(
      os.path.join(partial, "metadata.json"),
      {
        "format": store.FORMAT,
        **plan.kept,
        "schema": codec.describe(plan.schema),
        "rows_per_record": store.ROWS,
        "shards": shards,
        "bytes_per_example": round(stored / plan.count, 3),
        "error": _worst(errors),
        "versions": {name: metadata.version(name) for name in PACKAGES},
      },
    )
  # From here on the metadata says what the notes said.
  for name in ["plan.json", *notes]:
    if os.path.exists(os.path.join(partial, name)):
      os.remove(os.path.join(partial, name))
  shutil.rmtree(folder, ignore_errors=True)  # one without metadata
  os.replace(partial, folder)


def _parts(
  plan: Plan, first: int, end: int, errors: list[dict[str, Any]]
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the arrays of a shard's rows, and notes what storing them loses."""
  size = plan.batch * plan.positions
  ahead = plan.batch * jax.local_device_count()
  for start in range(first, end, ahead):
    rows = np.arange(start, min(start + ahead, end))
    keys = np.repeat(store.keys(plan.inputs(rows)), plan.positions)
    arrays = schema.to_arrays(plan.ask(rows), keys)
    logits = arrays["logits"]
    finite = np.isfinite(logits).all(axis=-1) & np.isfinite(arrays["entropy"])
    if not finite.all():
      bad = rows[np.argmin(finite) // plan.positions]
      raise UserError(
        f"the teacher's logits of row {bad} of the transfer set are not finite"
      )
    for at in range(0, len(keys), size):
      part = {name: x[at : at + size] for name, x in arrays.items()}
      errors.append(_error(plan, part))
      yield part


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a section asks of a teacher; hashable, so that it compiles once.

  Attributes:
    k: of top_k; 0 keeps all logits.
    temperatures: at which top_k knows the tail.
    samples, temperature: of the answers that are drawn.
  """

  k: int
  temperatures: tuple[float, ...]
  samples: int
  temperature: float

  @classmethod
  def of(cls, section: Mapping[str, Any]) -> "Asked":
    return cls(
      k=section["k"] if section["keep"] == "top_k" else 0,
      temperatures=tuple(float(t) for t in section["temperatures"]),
      samples=section["samples"],
      temperature=section["temperature"],
    )

  def __call__(self, outputs, truth, numbers, seeds) -> Signal:
    """Makes the signal of positions: outputs, true labels, their numbers; each
    has the seed of the draws, so that it is no part of what is compiled."""
    if not self.k:
      outputs = signals.Dense(outputs.logits.astype(jnp.float32))
    return signals.of_teacher(
      outputs,
      truth,
      samples=self.samples,
      temperature=self.temperature,
      key=jax.random.key(seeds[0]),
      numbers=numbers,
      k=self.k,
      temperatures=self.temperatures,
    )


def _error(plan: Plan, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Measures what storing a batch's logits in fewer bits changes.

  At each temperature: the mean and the largest KL(p || p~) over rows in nats,
  p from the logits and p~ from those stored, and the largest |log p - log p~|
  of a class. In float64.
  """
  temperatures = [float(t) for t in plan.section["temperatures"]]
  field = next(f for f in plan.schema if f.name == "logits")
  exact = arrays["logits"].astype(np.float64)
  stored = field.unpack(field.pack(arrays["logits"])).astype(np.float64)
  out: dict[str, Any] = {"examples": len(exact)}
  for m, t in enumerate(temperatures):
    lp, lp_stored = (
      special.log_softmax(x / t, axis=-1) for x in (exact, stored)
    )
    if "tail" in arrays:  # what the tail holds is stored exactly
      inside = np.log1p(-arrays["tail"][:, m, None].astype(np.float64))
      lp, lp_stored = lp + inside, lp_stored + inside
    kl = np.maximum((np.exp(lp) * (lp - lp_stored)).sum(-1), 0.0)
    out[f"T={t:g}"] = {
      "mean_kl": float(kl.mean()),
      "max_kl": float(kl.max()),
      "max_log_prob": float(np.abs(lp - lp_stored).max()),
    }
  return out


def _worst(errors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Joins the errors of parts: means over examples, the largest of the rest."""
  total = sum(e["examples"] for e in errors)
  out: dict[str, Any] = {"examples": total}
  for key in (k for k in errors[0] if k != "examples"):
    mean = sum(e["examples"] * e[key]["mean_kl"] for e in errors) / total
    most = {
      name: max(e[key][name] for e in errors)
      for name in ("max_kl", "max_log_prob")
    }
    out[key] = {"mean_kl": mean, **most}
  return out
