"""Small decoders for tests."""

import jax.numpy as jnp
from flax import nnx

from kd.models.decoder import Decoder
from kd.models.spec import Numerics, Spec
from tests.families import record


def filled(spec: Spec, **numerics) -> Decoder:
  """Returns a decoder whose weights are decided by their names."""
  model = nnx.eval_shape(
    lambda: Decoder(spec, Numerics(**numerics), rngs=nnx.Rngs(0))
  )

  def draw(path, x):
    return record.weights(path.replace("scale", "weight"), x.shape)

  return changed(model, draw)


def changed(model: Decoder, change) -> Decoder:
  """Returns a copy of a model, of the weights change(path, weights)."""
  graphdef, state = nnx.split(model)
  flat = {
    parts: variable.replace(
      jnp.asarray(change(".".join(map(str, parts)), variable.get_value()))
    )
    for parts, variable in nnx.to_flat_state(state)
  }
  return nnx.merge(graphdef, nnx.from_flat_state(flat))
