"""A model as a function of its weights, for training and for evaluation."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from kd import config, models
from kd.parallel import mesh


class Signature(NamedTuple):
  """What a model is asked.

  Attributes:
    input_shape: of one example.
    num_classes: V.
    scale: what inputs are multiplied with.
  """

  input_shape: tuple[int, ...]
  num_classes: int
  scale: float


def define(
  student: Mapping, signature: Signature
) -> tuple[nnx.GraphDef, Callable]:
  """Returns (graphdef, init): the model's structure, and weights by key."""

  def make(key):
    model = models.create(
      input_shape=signature.input_shape,
      num_classes=signature.num_classes,
      rngs=nnx.Rngs(params=key),
      **student,
    )
    return nnx.split(model, nnx.Param, ...)

  graphdef, _, _ = nnx.eval_shape(make, jax.random.key(0))

  def init(key):
    _, params, rest = make(key)
    return params, rest

  return graphdef, init


def predict(graphdef, weights, inputs: Array, signature: Signature, batch: int):
  """Returns logits [N, V] of one run, `batch` examples at a time."""
  model = nnx.merge(graphdef, weights["params"], weights["rest"])
  starts = range(0, len(inputs), batch)
  chunks = [inputs[i : i + batch].astype(jnp.float32) for i in starts]
  return jnp.concatenate([model(x * signature.scale).logits for x in chunks])


def forward(student: Mapping, signature: Signature, batch: int):
  """Returns the compiled `predict` of a model: (weights, inputs) -> logits."""
  key = json.dumps(student, sort_keys=True)
  return _forward(key, signature, batch)


@functools.lru_cache(maxsize=32)
def _forward(student: str, signature: Signature, batch: int):
  graphdef, _ = define(config.tuples(json.loads(student)), signature)
  return jax.jit(
    lambda weights, inputs: predict(graphdef, weights, inputs, signature, batch)
  )


def spread(student: Mapping, signature: Signature, batch: int):
  """Returns (forward, rows): the compiled model over this process's devices.

  `forward` takes (weights that lie everywhere, inputs of `rows` examples), one
  batch for each device. A device's program is the same whatever their number,
  and so are its logits.
  """
  key = json.dumps(student, sort_keys=True)
  return _spread(key, signature, batch), batch * jax.local_device_count()


@functools.lru_cache(maxsize=32)
def _spread(student: str, signature: Signature, batch: int):
  graphdef, _ = define(config.tuples(json.loads(student)), signature)
  one = lambda weights, inputs: predict(
    graphdef, weights, inputs, signature, batch
  )
  return jax.jit(
    jax.shard_map(
      one,
      mesh=mesh.local("rows"),
      in_specs=(P(), P("rows")),
      out_specs=P("rows"),
      check_vma=False,
    )
  )
