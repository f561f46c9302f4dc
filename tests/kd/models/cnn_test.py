"""The convolution that a CPU takes."""

import chex
import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from kd.models import cnn


class ConvolutionTest(parameterized.TestCase):
  @parameterized.product(size=((8, 8), (7, 5)), kernel=((3, 3), (1, 5)))
  def test_it_is_the_native_one(self, size, kernel):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, *size, 3))
    k = jax.random.normal(keys[1], (*kernel, 3, 4))
    weights = jax.random.normal(keys[2], (2, *size, 4))
    options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(convolve, x, k):
      return jnp.sum(weights * convolve(x, k, (1, 1), "SAME", **options))

    ours, theirs = (
      jax.jit(jax.value_and_grad(f, argnums=(1, 2)), static_argnums=0)
      for f in (loss, loss)
    )
    chex.assert_trees_all_close(
      ours(cnn.convolution, x, k),
      theirs(jax.lax.conv_general_dilated, x, k),
      rtol=2e-5,
      atol=2e-5,
    )

  def test_a_cpu_takes_a_product(self):
    model = cnn.CNN((8, 8, 1), 3, channels=(4,), rngs=cnn.nnx.Rngs(0))
    run = jax.jit(lambda x: model(x).logits)
    x = jnp.zeros((2, 8, 8, 1))
    for platform, native in (("cpu", False), ("tpu", True)):
      text = run.trace(x).lower(lowering_platforms=(platform,)).as_text()
      self.assertEqual("stablehlo.convolution" in text, native, platform)


if __name__ == "__main__":
  absltest.main()
