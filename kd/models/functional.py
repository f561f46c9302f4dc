"""A model as a function of its weights, for training and for evaluation."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from kd import config, models
from kd.models.decoder import dotted
from kd.models.outputs import Outputs
from kd.parallel import mesh

UNROLLED = 2  # batches, up to which a program has a copy for each


class Signature(NamedTuple):
  """What a model is asked.

  Attributes:
    input_shape: of one example.
    num_classes: V.
    scale: what inputs are multiplied with; None leaves tokens as they are.
  """

  input_shape: tuple[int, ...]
  num_classes: int
  scale: float | None


def create(student: Mapping, signature: Signature, key: Array) -> nnx.Module:
  """Makes a model of its name and options."""
  return models.create(
    input_shape=signature.input_shape,
    num_classes=signature.num_classes,
    rngs=nnx.Rngs(params=key),
    **student,
  )


def define(
  student: Mapping, signature: Signature
) -> tuple[nnx.GraphDef, Callable]:
  """Returns (graphdef, init): the model's structure, and weights by key."""

  def make(key):
    return split(create(student, signature, key))

  graphdef, *_ = nnx.eval_shape(make, jax.random.key(0))

  def init(key):
    _, weights = make(key)
    return weights["params"], weights["rest"]

  return graphdef, init


def frozen(student: Mapping, signature: Signature) -> nnx.State:
  """Returns the shapes of the weights that a student does not train."""
  shell = nnx.eval_shape(lambda: create(student, signature, jax.random.key(0)))
  return split(shell)[1].get("frozen", nnx.State({}))


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any]]:
  """Returns (graphdef, weights): "params" are trained, "rest" are variables of
  other kinds; "frozen", if there are any, stay as they are in all runs."""
  of = getattr(model, "is_frozen", lambda path: False)
  held = nnx.All(nnx.Param, lambda path, _: of(dotted(path)))
  graphdef, frozen, params, rest = nnx.split(model, held, nnx.Param, ...)
  weights = {"params": params, "rest": rest}
  return graphdef, weights | ({"frozen": frozen} if frozen else {})


def filled(state: nnx.State, arrays: Mapping[str, Array]) -> nnx.State:
  """Returns a state with the arrays in place of its own, by dotted path."""
  flat = {
    path: x.replace(arrays[dotted(path)]) if dotted(path) in arrays else x
    for path, x in nnx.to_flat_state(state)
  }
  return nnx.from_flat_state(flat)


def of_run(weights: Mapping[str, Any], run: Any) -> dict[str, Any]:
  """Returns the weights at an index `run` of arrays [S, ...], or [S, A, ...];
  "frozen" ones have no such axes."""
  return {
    k: v if k == "frozen" else jax.tree.map(lambda x: x[run], v)
    for k, v in weights.items()
  }


def scaled(inputs: Array, signature: Signature) -> Array:
  """Returns inputs as a model takes them."""
  if signature.scale is None:
    return inputs
  return inputs.astype(jnp.float32) * signature.scale


def logits(outputs: Outputs) -> Array:
  return outputs.logits


def over(
  graphdef,
  weights,
  inputs: Array,
  signature: Signature,
  batch: int,
  fn: Callable[..., Any],
  arrays: Sequence[Any] = (),
) -> Any:
  """Applies fn to what a model makes of `batch` examples at a time.

  Args:
    graphdef, weights: the model.
    inputs: [N, ...].
    signature: of the model.
    batch: examples in one forward pass.
    fn: (outputs, those examples' part of each of `arrays`) -> a pytree of
      arrays with a row for each position.
    arrays: pytrees of arrays with a row for each of the N examples, or for each
      of their positions.

  Returns:
    What fn returns, of all examples.
  """
  model = nnx.merge(graphdef, *weights.values())
  count = len(inputs)

  def part(start, size):
    def cut(x):
      each = len(x) // count
      return jax.lax.dynamic_slice_in_dim(x, start * each, size * each)

    x, *own = jax.tree.map(cut, (inputs, *arrays))
    return fn(model(scaled(x, signature)), *own)

  whole, rest = divmod(count, batch)
  found = []
  if whole > UNROLLED:
    starts = jnp.arange(whole) * batch
    looped = jax.lax.map(lambda start: part(start, batch), starts)
    found.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), looped))
  else:
    found += [part(i * batch, batch) for i in range(whole)]
  if rest:
    found.append(part(whole * batch, rest))
  return jax.tree.map(lambda *xs: jnp.concatenate(xs), *found)


def forward(
  student: Mapping,
  signature: Signature,
  batch: int,
  fn: Callable[..., Any] = logits,
):
  """Returns `over` of a model, compiled: (weights, inputs, *arrays) -> what fn
  makes of them. `fn` is hashable, the same one each time."""
  key = json.dumps(student, sort_keys=True)
  return _forward(key, signature, batch, fn)


@functools.lru_cache(maxsize=128)
def _forward(student: str, signature: Signature, batch: int, fn):
  graphdef, _ = define(config.tuples(json.loads(student)), signature)
  return jax.jit(
    lambda weights, inputs, *arrays: over(
      graphdef, weights, inputs, signature, batch, fn, arrays
    )
  )


def spread(
  student: Mapping,
  signature: Signature,
  batch: int,
  fn: Callable[..., Any] = logits,
):
  """Returns (forward, rows): the compiled model over this process's devices.

  `forward` takes (weights that lie everywhere, inputs of `rows` examples,
  arrays of theirs), one batch for each device. A device's program is the same
  whatever their number, and so is what it returns.
  """
  key = json.dumps(student, sort_keys=True)
  return _spread(key, signature, batch, fn), batch * jax.local_device_count()


@functools.lru_cache(maxsize=32)
def _spread(student: str, signature: Signature, batch: int, fn):
  graphdef, _ = define(config.tuples(json.loads(student)), signature)

  def one(weights, inputs, arrays):
    return over(graphdef, weights, inputs, signature, batch, fn, arrays)

  compiled = jax.jit(
    jax.shard_map(
      one,
      mesh=mesh.local("rows"),
      in_specs=(P(), P("rows"), P("rows")),
      out_specs=P("rows"),
      check_vma=False,
    )
  )
  return lambda weights, inputs, *arrays: compiled(weights, inputs, arrays)
