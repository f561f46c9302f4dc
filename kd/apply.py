"""A model as a function of its weights, for training and for evaluation."""

import functools
import json
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from kd import config, data, models


def define(student: Mapping, task: data.Task) -> tuple[nnx.GraphDef, Callable]:
  """Returns (graphdef, init): the model's structure, and weights by key."""

  def make(key):
    model = models.create(
      input_shape=task.input_shape,
      num_classes=task.num_classes,
      rngs=nnx.Rngs(params=key),
      **student,
    )
    return nnx.split(model, nnx.Param, ...)

  graphdef, _, _ = nnx.eval_shape(make, jax.random.key(0))

  def init(key):
    _, params, rest = make(key)
    return params, rest

  return graphdef, init


def predict(graphdef, weights, inputs: Array, task: data.Task, batch: int):
  """Returns logits [N, V] of one run, `batch` examples at a time."""
  model = nnx.merge(graphdef, weights["params"], weights["rest"])
  starts = range(0, len(inputs), batch)
  chunks = [inputs[i : i + batch].astype(jnp.float32) for i in starts]
  return jnp.concatenate([model(x * task.scale).logits for x in chunks])


def forward(student: Mapping, task: data.Task, batch: int):
  """Returns the compiled `predict` of a model: (weights, inputs) -> logits."""
  key = json.dumps(student, sort_keys=True)
  return _forward(key, task, batch)


@functools.lru_cache(maxsize=32)
def _forward(student: str, task: data.Task, batch: int):
  graphdef, _ = define(config.tuples(json.loads(student)), task)
  return jax.jit(
    lambda weights, inputs: predict(graphdef, weights, inputs, task, batch)
  )


def _devices() -> jax.sharding.Mesh:
  return jax.sharding.Mesh(np.asarray(jax.local_devices()), ("rows",))


def everywhere(weights):
  """Returns weights that lie on each of this process's devices."""
  return jax.device_put(weights, NamedSharding(_devices(), P()))


def spread(student: Mapping, task: data.Task, batch: int):
  """Returns (forward, rows): the compiled model over this process's devices.

  `forward` takes (weights of `everywhere`, inputs of `rows` examples), a batch
  for each device. A device's program is the same whatever their number, and so
  are its logits.
  """
  key = json.dumps(student, sort_keys=True)
  return _spread(key, task, batch), batch * jax.local_device_count()


@functools.lru_cache(maxsize=32)
def _spread(student: str, task: data.Task, batch: int):
  graphdef, _ = define(config.tuples(json.loads(student)), task)
  one = lambda weights, inputs: predict(graphdef, weights, inputs, task, batch)
  return jax.jit(
    jax.shard_map(
      one,
      mesh=_devices(),
      in_specs=(P(), P("rows")),
      out_specs=P("rows"),
      check_vma=False,
    )
  )
