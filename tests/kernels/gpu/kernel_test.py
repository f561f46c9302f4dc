"""The GPU kernel in Pallas' interpret mode, and where it is taken.

Evidence of kind "run" for its numerics, on a CPU; tests/compiled has what the
compilers say. Each interpreted call takes 1 to 3 s, so cases are few.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import divergences
from kernels import (
  Logits,
  TopK,
  distill_loss,
  token_log_probs,
)
from kernels.gpu import lowering, plans, tiling
from kernels.phi import Phi
from kernels.plan import Spec
from tests.kernels import oracle
from tests.kernels.gpu import problems
from tests.kernels.gpu.problems import RACES, compare, value_and_grad
from tests.kernels.problems import CAPPED, head, problem
from tests.kernels.problems import value_and_grad as of_heads

ROOT = pathlib.Path(__file__).parents[3]
PLAN = plans.make_plan(interpret=RACES, cluster=1)


class InterpretedTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("reverse_kl", oracle.reverse_kl, None, 1040, True, 2.0),
    ("jsd", divergences.jsd(0.3), oracle.jsd(0.3), 512, True, 1.0),
    ("hellinger", oracle.hellinger, None, 257, False, 4.0),
    ("not_an_f_divergence", oracle.log_ratio, None, 1003, True, 1.5),
  )
  def test_agrees_with_float64(self, phi, definition, v, hard, temperature):
    compare(*(2, v, phi, PLAN, hard, temperature), definition=definition or phi)

  def test_clusters_and_a_planted_race(self):
    env = os.environ | {"NPROC": "32", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
      [sys.executable, "-m", "tests.kernels.gpu.problems"],
      cwd=ROOT, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    self.assertIn("all agree", done.stdout)

  @parameterized.parameters(False, True)
  def test_heads_in_chunks(self, capped):
    student, teacher, labels, _ = problem(3, 256)
    heads = CAPPED if capped else ({}, {})
    kw = dict(divergence=oracle.chi_square, hard_weight=0.5, temperature=2.0)
    want = oracle.loss(student, teacher, labels=labels, heads=heads, **kw)
    plan = plans.make_plan(alias=True, interpret=RACES, cluster=1)
    kw.update(implementation=dataclasses.replace(plan, chunk=2))
    s, t = head(student, **heads[0]), head(teacher, **heads[1])
    got = of_heads(s, t, labels=jnp.asarray(labels), **kw)
    oracle.assert_close(got, want)

  def test_vmapped_temperature_and_parameter_and_extreme_logits(self):
    z_s, z_t, labels, weights = problems.logits(3, 384)
    z_s[2], z_t[2], weights[2] = np.nan, np.inf, 0
    z_s[0, :5], z_s[0, 7], z_t[1, 3] = -np.inf, 1e4, -1e30
    weights, labels = jnp.asarray(weights), jnp.asarray(labels)
    teacher = Logits(jnp.asarray(z_t), vocab_size=380)

    def arm(temperature, beta, implementation):
      fn = lambda z: distill_loss(
        Logits(z, vocab_size=380),
        teacher,
        divergence=divergences.jsd(beta),
        temperature=temperature,
        weights=weights,
        labels=jnp.minimum(labels, 379),
        hard_weight=0.3,
        implementation=implementation,
      )
      return jax.value_and_grad(fn, has_aux=True)(jnp.asarray(z_s))

    arms = (jnp.array([1.0, 4.0]), jnp.array([0.3, 0.5]))
    got, want = (
      jax.jit(jax.vmap(lambda *a, name=name: arm(*a, name)))(*arms)
      for name in ("gpu", "xla")
    )
    oracle.assert_close(got, want, 1e-5)

  def test_bfloat16_is_no_worse_than_naive(self):
    z_s, z_t, _, _ = problems.logits(2, 640)
    z_s, z_t = (jnp.asarray(z, jnp.bfloat16) for z in (z_s, z_t))
    value, _, _, (want,) = oracle.loss((z_s,), (z_t,), oracle.jsd(0.5))

    def naive(z):
      log_p = [jax.nn.log_softmax(x.astype(jnp.float32)) for x in (z, z_t)]
      return oracle.jsd(0.5)(*log_p).sum(1).mean()

    loss, plain = jax.value_and_grad(naive)(z_s)
    got = value_and_grad(z_s, z_t, PLAN, divergence=oracle.jsd(0.5))
    self.assertEqual(got[3][0].dtype, jnp.bfloat16)
    norm = lambda a: np.linalg.norm(np.asarray(a, np.float64) - want)
    self.assertLess(norm(got[3][0]), 1.5 * norm(plain))
    self.assertLess(abs(got[0] - value), 1.5 * abs(loss - value) + 1e-6)

  def test_value_only_and_labels_only(self):
    z_s, z_t, labels, _ = problems.logits(2, 256)
    want = oracle.loss((z_s,), (z_t,), oracle.forward_kl)
    loss, rows = distill_loss(
      *(Logits(jnp.asarray(z_s)), Logits(jnp.asarray(z_t))),
      divergence=oracle.forward_kl,
      implementation="gpu",
    )
    oracle.assert_close((loss, rows.soft), want[:2])
    kw = dict(labels=labels, hard_weight=1.0, soft_weight=0.0)
    want = oracle.loss((z_s,), (z_t,), oracle.forward_kl, **kw)
    kw["labels"] = jnp.asarray(labels)
    got = value_and_grad(z_s, None, PLAN, divergence=oracle.forward_kl, **kw)
    oracle.assert_close((got[0], got[2], got[3]), (want[0], want[2], want[3]))

  def test_what_runs_in_xla_under_its_name(self):
    z_s, z_t, labels, _ = problems.logits(3, 257)
    student, ids = Logits(jnp.asarray(z_s)), jnp.asarray(labels)
    got, want = (
      token_log_probs(student, ids, implementation=name)
      for name in ("gpu", "reference")
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
    log_p = jax.nn.log_softmax(z_t)
    topk = TopK(*jax.lax.top_k(log_p, 5)[::-1])
    got, want = (
      distill_loss(
        *(student, topk), divergence=oracle.jsd(0.5), implementation=name
      )[0]
      for name in ("gpu", "reference")
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


class ChoiceTest(parameterized.TestCase):
  def spec(self, phi, v):
    return Spec(Phi(phi), False, False, False, v)

  def found(self, phi=oracle.forward_kl, v=1024, dtype=jnp.bfloat16):
    z = Logits(jax.ShapeDtypeStruct((8, v), dtype))
    return plans.by_platform(self.spec(phi, v), z, z)

  @parameterized.parameters(
    ("gpu", "9.0", True),
    ("gpu", "10.3", True),
    ("gpu", "8.9", False),
    ("gpu", "12.0", False),
    ("gpu", "gfx942", False),
    ("tpu", None, False),
  )
  def test_capability(self, platform, capability, want):
    device = types.SimpleNamespace(
      platform=platform, device_kind="-", compute_capability=capability
    )
    with mock.patch.object(jax, "devices", return_value=[device]):
      self.assertEqual(plans.capable(), want)
      found = self.found()
      if platform == "gpu" and not want:
        self.assertIn("compute capability", found)
      else:
        self.assertEqual(set(found), {"cuda" if want else "cpu"})

  @parameterized.parameters("7.5", "8.9", "12.0", "gfx942")
  def test_auto_takes_xla_on_other_gpus_and_traces_no_kernel(self, capability):
    device = types.SimpleNamespace(
      platform="gpu", device_kind="-", compute_capability=capability
    )
    student = Logits(jnp.zeros((8, 1024), jnp.bfloat16))
    loss = lambda z, implementation="auto": distill_loss(
      z, student, divergence=oracle.forward_kl, implementation=implementation
    )[0]
    with (
      mock.patch.object(plans, "target_devices", return_value=[device]),
      mock.patch.object(plans, "launch", side_effect=AssertionError),
    ):
      lowered = jax.jit(jax.grad(loss)).trace(student)
      text = lowered.lower(lowering_platforms=("cuda",)).as_text()
      with self.assertRaisesRegex(ValueError, "compute capability"):
        loss(student, "gpu")
    self.assertNotIn("mosaic", text)
    self.assertIn("stablehlo.reduce", text)

  def test_names_of_devices_that_are_not_here(self):
    for name in ("NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB", "NVIDIA B200"):
      self.assertRegex(name, plans.CAPABLE)
    for name in ("NVIDIA A100-SXM4-80GB", "NVIDIA L4", "AMD Instinct MI300X"):
      self.assertNotRegex(name, plans.CAPABLE)

  def test_reasons(self):
    array = jnp.ones((1, 1024))
    self.assertIn("shape (1, 1024)", self.found(lambda q, p: array * (q - p)))
    loop = lambda q, p: jax.lax.fori_loop(0, 3, lambda i, a: a + q, p)
    self.assertIn("scan", self.found(loop))
    self.assertIn("lgamma", self.found(lambda q, p: jax.lax.lgamma(q) * p))
    self.assertIn("shared memory", self.found(v=1 << 20))
    with self.assertRaisesRegex(ValueError, "shared memory"):
      z = Logits(jnp.zeros((1, 1 << 19)))
      distill_loss(z, z, divergence=oracle.jsd(0.5), implementation="gpu")

  def test_auto_leaves_to_xla_what_must_be_padded(self):
    for v, auto in ((50257, False), (50304, True), (10, False)):
      self.assertEqual(self.found(v=v)["cpu"].auto, auto, v)

  @parameterized.parameters(
    *(32000, 50304, 128256, 151936, 152064, 256000, 262144)
  )
  def test_tiling(self, v):
    for b in (2, 4):
      cut = tiling.tiling(v, [b, b])
      if v * 2 * b // 8 > tiling.LIMIT:
        self.assertIn("shared memory", cut)
        continue
      pieces = cut.pieces()
      self.assertEqual(cut.cluster * cut.width, v)
      self.assertEqual(sum(size for *_, size in pieces), cut.held)
      self.assertLessEqual(cut.held * 2 * b, 227 << 10)
      for column, place, size in pieces:
        self.assertEqual(
          (column * b % 16, place * b % 16, size % 128), (0,) * 3
        )
        self.assertLessEqual(column + size, cut.width)


class LowerableTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("log1p", jnp.log1p, -0.9, 9),
    ("expm1", jnp.expm1, -40, 60),
    ("log1p_small", jnp.log1p, -1e-4, 1e-4),
    ("expm1_small", jnp.expm1, -1e-4, 1e-4),
    ("power", lambda x: x**1.7, 0, 9),
    ("negative_power", lambda x: x**-3, 0.1, 9),
    ("cbrt", jnp.cbrt, -9, 9),
    ("sigmoid", jax.nn.sigmoid, -9, 9),
    ("softplus", jax.nn.softplus, -9, 9),
    ("logaddexp", lambda x: jnp.logaddexp(x, 0.5), -9, 9),
  )
  def test_substitutes(self, fn, low, high):
    x = jnp.linspace(low, high, 1001)
    both = lambda x: jax.jvp(fn, (x,), (jnp.ones_like(x),))
    closed = jax.make_jaxpr(lambda x: lowering.call(both, x))(x)
    self.assertEmpty(lowering.missing(closed.jaxpr, closed.consts))
    names = {eqn.primitive.name for eqn in closed.jaxpr.eqns}
    self.assertEmpty(names & set(lowering.SUBSTITUTES) - {"integer_pow"})
    for got, want in zip(lowering.call(both, x), both(x), strict=True):
      np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-12)


if __name__ == "__main__":
  absltest.main()
