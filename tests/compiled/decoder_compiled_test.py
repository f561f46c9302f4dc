"""A decoder's gradient for TPUs and GPUs, with neither.

Evidence of kind *compiled*. Skipped without libtpu or the CUDA plugin
(requirements-tpu.txt, requirements-gpu.txt).
"""

import dataclasses

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized
from flax import nnx

from kd.models.decoder import Decoder
from kd.models.rope import Rope
from kd.models.spec import LayerSpec, Numerics, Spec
from kernels import topologies
from kernels.report import gpu

ARMS, B, L = 2, 2, 512
ROPE = Rope(1e4)
SPEC = Spec(
  family="gemma2",
  vocab_size=896,
  width=256,
  mlp_width=640,
  heads=4,
  kv_heads=2,
  head_dim=64,
  layers=(LayerSpec(200, ROPE), LayerSpec(None, ROPE)),
  attention_scale=0.125,
  tie=True,
)


def gradients(spec, **numerics):
  """Returns (gradients of arms, their weights) of a decoder's hidden states."""
  model = nnx.eval_shape(
    lambda: Decoder(spec, Numerics(**numerics), rngs=nnx.Rngs(0))
  )
  graphdef, state = nnx.split(model)

  def loss(weights, x_Bx2xL):
    hidden = nnx.merge(graphdef, weights)(x_Bx2xL).hidden
    return jnp.sum(jnp.square(hidden.astype(jnp.float32)))

  arms = jax.tree.map(
    lambda w: jax.ShapeDtypeStruct((ARMS, *w.shape), w.dtype), state
  )
  return jax.vmap(jax.grad(loss), in_axes=(0, None)), arms


X = jax.ShapeDtypeStruct((B, 2, L), jnp.int32)
SCORES = (
  f"{L},{L}]"  # the end of an array's shape that has a score for each pair
)


class TpuTest(parameterized.TestCase):
  @parameterized.parameters(("v5e", None, "bfloat16"), ("v6e", 50.0, "float32"))
  def test_splash_attention_holds_no_scores(self, target, cap, dtype):
    if reason := topologies.available():
      self.skipTest(reason)
    spec = dataclasses.replace(SPEC, attention_cap=cap)
    numerics = {"dtype": jnp.dtype(dtype), "remat": "layer"}
    compiled = topologies.compile_for(target, *gradients(spec, **numerics), X)
    text = compiled.as_text()
    self.assertIn("splash", text)
    self.assertNotIn(SCORES, text)


class GpuTest(absltest.TestCase):
  @absltest.skipIf(gpu.available() is not None, gpu.available())
  def test_plain_attention_compiles(self):
    mesh = gpu.mesh_of("h100", 1)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    run, arms = gradients(SPEC, dtype=jnp.bfloat16)
    put = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
    with jax.set_mesh(mesh):
      traced = jax.jit(run).trace(*jax.tree.map(put, (arms, X)))
      text = topologies.compiled(traced, "cuda").as_text()
    self.assertIn(SCORES, text)
    self.assertNotIn("splash", text)


if __name__ == "__main__":
  absltest.main()
