"""Adapters beside frozen weights."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd.models import adapters, functional
from kd.models.decoder import Decoder
from kd.models.spec import Numerics
from tests.kd.models import written

IDS = written.prompts("right")[:2].clip(0)


def model(numerics):
  made = written.decoder()
  return nnx.merge(
    nnx.split(
      nnx.eval_shape(lambda: Decoder(made.spec, numerics, rngs=nnx.Rngs(0)))
    )[0],
    nnx.state(made),
  )


def flat(made):
  state = nnx.to_flat_state(nnx.state(made, nnx.Param))
  return {functional.dotted(path): x[...] for path, x in state}


class AdaptersTest(parameterized.TestCase):
  @parameterized.product(dtype=("float32", "bfloat16"), remat=("none", "layer"))
  def test_they_are_what_is_merged(self, dtype, remat):
    numerics = Numerics(dtype=jnp.dtype(dtype), remat=remat)
    lora = {"rank": 2, "alpha": 3.0, "parts": ("q", "down")}
    plain, adapted = model(numerics), model(numerics)
    adapters.adapt(adapted, lora, nnx.Rngs(1))
    before = plain.logits(IDS)
    np.testing.assert_array_equal(adapted.logits(IDS), before)
    draw = np.random.default_rng(0).normal
    is_adapter = lambda path, _: adapters.is_adapter(functional.dotted(path))
    _, own, rest = nnx.split(adapted, is_adapter, ...)
    own = jax.tree.map(lambda x: jnp.float32(draw(size=x.shape) / 4), own)
    nnx.update(adapted, own)
    after = adapted.logits(IDS)
    self.assertGreater(jnp.max(jnp.abs(after - before)), 0.1)
    merged = adapters.merged(flat(adapted), lora)
    self.assertEqual(merged.keys(), flat(plain).keys())
    changed = {k for k, x in flat(plain).items() if np.any(merged[k] != x)}
    self.assertEqual(
      changed,
      {
        f"layers.{i}.{part}.kernel"
        for i in range(2)
        for part in ("attention.q", "mlp.down")
      },
    )
    if dtype == "float32":
      nnx.update(plain, functional.filled(nnx.state(plain), merged))
      np.testing.assert_allclose(plain.logits(IDS), after, atol=1e-4)
    graphdef, _ = nnx.split(adapted)

    def loss(own):
      found = nnx.merge(graphdef, own, rest, copy=True)
      return jnp.mean(found.logits(IDS) ** 2)

    grads = jax.grad(loss)(own)
    for x in jax.tree.leaves(grads):
      self.assertEqual(x.dtype, jnp.float32)
      self.assertTrue(jnp.any(x != 0))


if __name__ == "__main__":
  absltest.main()
