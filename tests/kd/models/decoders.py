"""Small decoders for tests."""

from kd.models import decoder
from kd.models.spec import Numerics, Spec
from tests.families import record


def filled(spec: Spec, **numerics) -> decoder.Decoder:
  """Returns a decoder whose weights are decided by their names."""

  def draw(path, shape):
    return record.weights(path.replace("scale", "weight"), shape)

  return decoder.build(spec, Numerics(**numerics), draw)


def changed(model: decoder.Decoder, change) -> decoder.Decoder:
  """Returns a copy of a model, of the weights change(path, weights)."""
  own = decoder.arrays(model)
  read = lambda path, shape: change(path, own[path])
  return decoder.build(model.spec, model.numerics, read)
