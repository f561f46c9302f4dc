"""Small models of each kind, and inputs for them."""

import jax
import jax.numpy as jnp
import numpy as np

from kd.models import functional
from kd.models.functional import Signature

IMAGES = Signature((8, 8, 1), 10, 1 / 16)
DECODER = dict(name="decoder", layers=2, width=16, heads=4, kv_heads=2)
KINDS = {
  "mlp": (dict(name="mlp", hidden=(24, 16)), IMAGES),
  "cnn": (dict(name="cnn", channels=(6, 8), hidden=12), IMAGES),
  "byte_cnn": (dict(name="byte_cnn", hidden=16), Signature((32,), 7, None)),
  "decoder": (DECODER, Signature((2, 8), 20, None)),
  "untied": (
    dict(DECODER, tie=False, remat="layer"),
    Signature((2, 8), 20, None),
  ),
}


def make(kind):
  """Returns (model, inputs as it takes them)."""
  options, signature = KINDS[kind]
  rng = np.random.default_rng(0)
  high = 16 if signature.scale else 20
  x = rng.integers(1, high, (5, *signature.input_shape)).astype(np.int32)
  if options["name"] == "decoder":
    x[:, 1] = 1
  model = functional.create(options, signature, jax.random.key(0))
  return model, functional.scaled(jnp.asarray(x), signature)
