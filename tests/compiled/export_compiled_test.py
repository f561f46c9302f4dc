"""Exported programs for TPUs and GPUs, with neither.

Evidence of kind *compiled*. Skipped without libtpu or the CUDA plugin
(requirements-tpu.txt, requirements-gpu.txt).
"""

import jax
from absl.testing import absltest, parameterized

from kd.compress import export
from kernels import topologies
from kernels.report import gpu
from tests.kd.compress.export_test import CASES, made

COUNT = 7


def lowered(name):
  """Returns (an exported program that was written and read, its arguments)."""
  program, inputs, _ = made(name)
  arrays = {**program.weights, "": inputs[:1].repeat(COUNT, 0)}
  specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
  asked = specs.pop("")
  whole = export.lowered(program)
  return jax.export.deserialize(whole.serialize()).call, specs, asked


class CompiledTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_for_a_tpu(self, name):
    if reason := topologies.available():
      self.skipTest(reason)
    call, weights, inputs = lowered(name)
    compiled = topologies.compile_for("v5e", call, weights, inputs)
    (logits,) = jax.tree.leaves(compiled.out_info)
    self.assertEqual(logits.shape[0], COUNT)

  @parameterized.parameters(*CASES)
  @absltest.skipIf(gpu.available() is not None, gpu.available())
  def test_for_a_gpu(self, name):
    call, weights, inputs = lowered(name)
    mesh = gpu.mesh_of("h100", 1)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    put = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
    with jax.set_mesh(mesh):
      traced = jax.jit(call).trace(*jax.tree.map(put, (weights, inputs)))
    compiled = topologies.compiled(traced, "cuda")
    (logits,) = jax.tree.leaves(compiled.out_info)
    self.assertEqual(logits.shape[0], COUNT)


if __name__ == "__main__":
  absltest.main()
