"""The Pallas GEMMs against XLA's, in interpret mode.

Evidence of kind "run", on a CPU; tests/compiled has what libtpu says.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, PartitionSpec

from kernels import Head, accumulate, distill_loss, xla
from kernels.tpu import gemm
from tests.kernels import oracle

P = PartitionSpec
GEMMS = gemm.Gemms(interpret=True)
# Tight VMEM: 128 columns at a time, and the rows of W in parts.
SMALL = gemm.Gemms(vmem=gemm.MIB * 11 // 2, interpret=True)
PLAN = dataclasses.replace(
  xla.ACCELERATOR, chunk=32, halves=True, width=lambda h, v: 256
)


def random(seed, *shape):
  x = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(x, jnp.bfloat16)


class GemmTest(parameterized.TestCase):
  def test_blocks(self):
    self.assertEqual(SMALL.gradient_block(40, 512), (128, 256))
    self.assertEqual(SMALL.score_block(40, 512), 512)
    self.assertIsNone(GEMMS.gradient_block(1 << 14, 1 << 14))
    h = jnp.zeros((464, 4096), jnp.bfloat16)
    for v, fits in ((131072, True), (128256, True), (50257, False)):
      w = jax.ShapeDtypeStruct((4096, v), jnp.bfloat16)
      self.assertEqual(GEMMS.fits(h, w), fits)
      self.assertFalse(GEMMS.fits(h.astype(jnp.float32), w))

  @parameterized.product(v=(1024, 1152), gemms=(GEMMS, SMALL))
  def test_scores(self, v, gemms):
    h, w, bias = random(0, 40, 512), random(1, 512, v), random(2, v)
    for b in (None, bias):
      want = accumulate.dot(h, w, (1, 0)) + (0 if b is None else b)
      got = gemms.scores(h, w, b, jnp.float32, lambda y: y)
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
      got = gemms.scores(h, w, b, jnp.float32, jnp.tanh)
      np.testing.assert_allclose(got, jnp.tanh(want), rtol=1e-5, atol=1e-4)

  @parameterized.product(
    v=(1024, 1152), gemms=(GEMMS, SMALL), last=(False, True)
  )
  def test_gradients(self, v, gemms, last):
    h, w, dz = random(0, 40, 512), random(1, 512, v), random(2, 40, v)
    dw = random(3, 512, v).astype(jnp.float32) * 1.2345
    dh, halves = gemms.gradients(h, w, dz, accumulate.split32(dw), last)
    np.testing.assert_allclose(dh, accumulate.dot(dz, w, (1, 1)), 1e-5, 1e-3)
    want = dw + accumulate.dot(h, dz, (0, 0))
    if last:
      got, want = halves[0], want.astype(jnp.bfloat16)
      got, want = (np.asarray(x, np.float32) for x in (got, want))
      np.testing.assert_allclose(got, want, rtol=2.0**-7, atol=1e-4)
    else:
      got = accumulate.join32(*halves)
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)

  def heads(self, bias=True, **kw):
    b = (random(4, 640), random(5, 640)) if bias else (None, None)
    student = Head(random(0, 72, 128), random(1, 128, 640) / 8, b[0], **kw)
    teacher = Head(random(2, 72, 256), random(3, 256, 640) / 8, b[1], **kw)
    return student, teacher

  @parameterized.parameters({}, dict(soft_cap=3.0, scale=0.5))
  def test_a_loss_in_ragged_chunks(self, **kw):
    student, teacher = self.heads(**kw)
    weights = jnp.where(jnp.arange(72) % 5 == 1, 0, 1 / 72)
    out = []
    for gemms in (None, GEMMS):
      plan = dataclasses.replace(PLAN, gemms=gemms)
      fn = lambda s, plan=plan: distill_loss(
        *(s, teacher), weights=weights, divergence=oracle.jsd(0.5),
        temperature=2.0, implementation=plan,
      )  # fmt: skip
      fn = jax.jit(jax.value_and_grad(fn, has_aux=True))
      text = str(jax.make_jaxpr(fn)(student))
      self.assertEqual("head_gradients" in text, gemms is not None)
      out.append(fn(student))
    for got, want in zip(*map(jax.tree.leaves, out), strict=True):
      got, want = (np.asarray(x, np.float32) for x in (got, want))
      np.testing.assert_allclose(got, want, 2.0**-7, 2.0**-9 * abs(want).max())

  def test_vmapped_temperatures(self):
    student, teacher = self.heads(bias=False)
    plan = dataclasses.replace(PLAN, gemms=GEMMS)

    def arm(t):
      fn = lambda s: distill_loss(
        *(s, teacher), divergence=oracle.forward_kl, temperature=t,
        implementation=plan,
      )[0]  # fmt: skip
      return jax.value_and_grad(fn)(student)

    temperatures = jnp.array([1.0, 3.0])
    got = jax.jit(jax.vmap(arm))(temperatures)
    want = [jax.jit(arm)(t) for t in temperatures]
    want = jax.tree.map(lambda *x: jnp.stack(x), *want)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
      np.testing.assert_array_equal(a, b)

  def test_inside_shard_map(self):
    """Rows of the student sharded; the teacher's kernel is the same on all."""
    student, teacher = self.heads(bias=False)
    plan = dataclasses.replace(PLAN, gemms=GEMMS)
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
    spec = Head(P("d"), P())

    def fn(s, t):
      loss = lambda s: distill_loss(
        s, t, divergence=oracle.forward_kl, implementation=plan
      )[0]
      value, grads = jax.value_and_grad(loss)(s)
      return jax.lax.psum(value, "d"), grads

    specs = dict(in_specs=(spec, spec), out_specs=(P(), spec))
    whole = jax.shard_map(fn, mesh=mesh, **specs)
    # Interpreted kernels hold slices that check_vma does not take: traced only.
    text = str(jax.make_jaxpr(whole)(student, teacher))
    self.assertIn("head_gradients", text)


if __name__ == "__main__":
  absltest.main()
