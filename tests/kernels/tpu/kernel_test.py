"""The TPU kernel in Pallas interpret mode against float64; races too.

Evidence of kind *run*, on a CPU. What the compiler makes of the kernel is in
tests/compiled/tpu_compiled_test.py.
"""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kd import divergences
from kernels import Head, Logits, distill_loss, linear, xla
from kernels.phi import Phi
from kernels.tpu import plans
from tests.kernels import oracle, problems

SMALL = plans.Generation(
  128 << 20, False, ((2, 2), (2, 2), (2, 2), (2, 2)), (2, 2), (2, 2)
)


def problem(n, v, seed=0, scale=2.0):
  """Returns float32 logits of student and teacher, labels and weights."""
  rng = np.random.default_rng(seed)
  z = lambda: (scale * rng.standard_normal((n, v))).astype(np.float32)
  weights = rng.uniform(0.1, 1, n).astype(np.float32)
  return z(), z(), rng.integers(0, v, n), weights


def plan(*kinds, **tweaks):
  """Returns an interpreted plan whose sweeps take several steps."""
  interpret = tweaks.pop("interpret", True)
  gen = tweaks.pop("gen", SMALL)
  tweak = lambda kernel: dataclasses.replace(kernel, **tweaks)
  kinds = kinds or (Logits(None), Logits(None))
  return plans.plan(*kinds, gen=gen, interpret=interpret, tweak=tweak)


def value_and_grad(student, teacher, **kw):
  fn = lambda z: distill_loss(z, teacher, **kw)
  (loss, rows), grads = jax.jit(jax.value_and_grad(fn, has_aux=True))(student)
  return loss, rows.soft, rows.hard, grads


def loss(z, z_t, **kw):
  """As `value_and_grad`, from arrays of logits; the gradient is an array."""
  out = value_and_grad(Logits(jnp.asarray(z)), Logits(jnp.asarray(z_t)), **kw)
  return *out[:3], (out[3].values,)


HEADS = {
  "plain": dict(rows=8),
  "capped": dict(rows=8),
  "capped_no_stash": dict(stash=0),
  "capped_phases": dict(stash=0, block=256, rows=8),
}


class TpuTest(parameterized.TestCase):
  @parameterized.product(name=tuple(oracle.DIVERGENCES), hard=(False, True))
  def test_agrees_with_float64(self, name, hard):
    """With labels at T = 2 there is a second softmax."""
    z, z_t, labels, weights = problem(9, 555)
    kw = dict(divergence=oracle.DIVERGENCES[name], temperature=2.0)
    labels = labels if hard else None
    kw.update(hard_weight=0.3 * hard, soft_weight=0.7)
    want = oracle.loss((z,), (z_t,), weights=weights, labels=labels, **kw)
    labels = jnp.asarray(labels) if hard else None
    kw.update(weights=jnp.asarray(weights), labels=labels)
    got = loss(z, z_t, implementation=plan(rows=8), **kw)
    oracle.assert_close(got, want)

  @parameterized.parameters(
    ("tvd", divergences.tvd),
    ("jsd", divergences.jsd(0.3)),
    ("skew_kl", divergences.skew_kl(0.1)),
    ("skew_reverse_kl", divergences.skew_reverse_kl(0.1)),
    ("alpha", divergences.alpha_divergence(0.5)),
  )
  def test_closed_slopes_and_series(self, name, phi):
    """kd's forms, whose derivatives are rules of their own; p near q too."""
    kw = dict(divergence=phi, implementation=plan(rows=8))
    fn = lambda z, z_t: distill_loss(Logits(z), Logits(z_t), **kw)
    step = jax.jit(jax.value_and_grad(fn, has_aux=True))
    for width in (1.0, 0.02):
      z, delta, _, _ = problem(9, 555)
      z_t = z + width * delta
      want = oracle.loss((z,), (z_t,), oracle.DIVERGENCES[name])
      (value, rows), dz = step(z, z_t)
      got = (value, *rows, (dz,))
      # Slopes, and skew_kl, pass on the rounding of lq and lp: 1e-6 of |x|.
      oracle.assert_close(got, want, rtol=max(1e-4, 1e-5 / width))

  @parameterized.parameters(
    ("fit", lambda lq, lp: jnp.exp(lp) * (lp - lq) + jnp.exp(lq)),
    ("entropy", lambda lq, lp: jnp.exp(lq) * lq - 0.5 * jnp.exp(lp) * lp),
    ("cross", lambda lq, lp: -2 * jnp.exp(lq) * lp),
    ("jeffreys", lambda lq, lp: (jnp.exp(lq) - jnp.exp(lp)) * (lq - lp)),
  )
  def test_linear_in_the_logs(self, name, phi):
    self.assertEqual(linear.coefficients(Phi(phi)) is None, name == "jeffreys")
    z, z_t, _, _ = problem(9, 555)
    want = oracle.loss((z,), (z_t,), phi, temperature=3.0)
    kw = dict(divergence=phi, temperature=3.0, implementation=plan(rows=8))
    oracle.assert_close(loss(z, z_t, **kw), want)

  @parameterized.named_parameters(
    ("no_stash", dict(stash=0)),
    ("bfloat16_unit", dict(narrow=True)),
    ("phases", dict(stash=0, block=256, rows=8)),
  )
  def test_every_layout(self, tweaks):
    z, z_t, labels, weights = problem(19, 700, seed=1)
    for temperature in (1.0, 3.0):
      kw = dict(divergence=oracle.tvd, temperature=temperature)
      kw.update(hard_weight=0.4)
      want = oracle.loss((z,), (z_t,), weights=weights, labels=labels, **kw)
      kw.update(weights=jnp.asarray(weights), labels=jnp.asarray(labels))
      got = loss(z, z_t, implementation=plan(**tweaks), **kw)
      oracle.assert_close(got, want)

  @parameterized.product(name=("forward_kl", "jsd"), hard=(False, True))
  def test_maxima_far_from_those_of_the_first_columns_and_from_0(
    self, name, hard
  ):
    z, z_t, labels, _ = problem(9, 555)  # the first 256
    z[0, 500] += 300
    z_t[1, 400:] += 90
    z[2, :256] -= 200
    z_t[3, :256] = -1e30
    z[4] -= 500  # all of a row: sums of 2^(c z) underflow
    z_t[5] -= 110
    z[6] += 400
    z_t[7] += 70
    kw = dict(divergence=oracle.DIVERGENCES[name], temperature=1.5)
    kw.update(hard_weight=0.3 * hard)
    labels = np.maximum(labels, 256) if hard else None
    want = oracle.loss((z,), (z_t,), labels=labels, **kw)
    labels = jnp.asarray(labels) if hard else None
    got = loss(z, z_t, labels=labels, implementation=plan(rows=8), **kw)
    oracle.assert_close(got, want)

  @parameterized.parameters((1, 257), (17, 128), (5, 100), (33, 1003))
  def test_ragged_shapes(self, n, v):
    z, z_t, _, _ = problem(n, v)
    kw = dict(divergence=oracle.reverse_kl)
    want = oracle.loss((z,), (z_t,), oracle.reverse_kl)
    oracle.assert_close(loss(z, z_t, implementation=plan(), **kw), want)

  @parameterized.parameters(*HEADS)
  def test_heads(self, name):
    """In chunks of 8 and of all 21 rows; capped in every layout."""
    kw = dict(divergence=oracle.tvd, temperature=1.5, hard_weight=0.5)
    student, teacher, labels, _ = problems.problem(21, 300)
    caps = ({}, {}) if name == "plain" else problems.CAPPED
    want = oracle.loss(student, teacher, labels=labels, heads=caps, **kw)
    s, t = (problems.head(x, **c) for x, c in
            zip((student, teacher), caps, strict=True))  # fmt: skip
    tweaked = plan(s, t, **HEADS[name])
    kw.update(labels=jnp.asarray(labels))
    for implementation in (tweaked, dataclasses.replace(tweaked, chunk=8)):
      *out, grads = value_and_grad(s, t, implementation=implementation, **kw)
      oracle.assert_close((*out, problems.arrays(grads)), want)

  def test_dw_in_halves_is_exact(self):
    rng = np.random.default_rng(0)
    normal = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.bfloat16)
    student, teacher = (Head(normal(37, h), normal(h, 300)) for h in (12, 20))
    grads = []
    for halves in (False, True):
      implementation = dataclasses.replace(
        xla.CPU, chunk=16, width=lambda h, v: 128, halves=halves
      )
      kw = dict(divergence=oracle.forward_kl, implementation=implementation)
      grads.append(value_and_grad(student, teacher, **kw)[3])
    np.testing.assert_array_equal(grads[0].kernel, grads[1].kernel)

  def test_bfloat16_is_no_worse_than_naive(self):
    z, z_t, _, _ = problem(16, 600)
    z, z_t = jnp.asarray(z, jnp.bfloat16), jnp.asarray(z_t, jnp.bfloat16)

    def naive(z):
      lq = jax.nn.log_softmax(z.astype(jnp.float32))
      lp = jax.nn.log_softmax(z_t.astype(jnp.float32))
      return oracle.jsd(0.5)(lq, lp).sum(1).mean()

    want = oracle.loss((z,), (z_t,), oracle.jsd(0.5))[3][0]
    kw = dict(divergence=oracle.jsd(0.5), implementation=plan(narrow=True))
    (got,) = loss(z, z_t, **kw)[3]
    self.assertEqual(got.dtype, jnp.bfloat16)
    norm = lambda a: np.linalg.norm(np.asarray(a, np.float64) - want)
    self.assertLess(norm(got), 1.5 * norm(jax.grad(naive)(z)))

  def test_masked_rows_and_columns(self):
    z, z_t, labels, _ = problem(9, 400)
    weights = np.full(9, 0.25, np.float32)
    weights[[1, 4]] = 0
    z[:, 390:], z_t[:, 390:] = -np.inf, -1e30
    want = oracle.loss(
      (z[:, :390],), (z_t[:, :390],), oracle.jsd(0.5), weights=weights,
      labels=labels % 390, hard_weight=0.5, temperature=2.0,
    )  # fmt: skip
    z[1], z_t[4] = np.nan, np.inf
    kw = dict(divergence=oracle.jsd(0.5), weights=jnp.asarray(weights))
    kw.update(labels=jnp.asarray(labels % 390), hard_weight=0.5)
    out = loss(z, z_t, implementation=plan(), temperature=2.0, **kw)
    np.testing.assert_allclose(out[3][0][:, 390:], 0, atol=1e-10)
    alive = weights != 0
    want = (want[0], want[1] * alive, want[2] * alive, want[3])
    oracle.assert_close((*out[:3], (out[3][0][:, :390],)), want)

  def test_vocab_size_and_value_only(self):
    z, z_t, _, _ = problem(8, 700)
    phases = dict(stash=0, block=256)
    for name, tweaks in (("forward_kl", {}), ("log_ratio", {}),
                         ("forward_kl", phases)):  # fmt: skip
      phi = oracle.DIVERGENCES[name]
      want = oracle.loss((z[:, :300],), (z_t[:, :300],), phi)
      kw = dict(divergence=phi, implementation=plan(**tweaks))
      student = Logits(jnp.asarray(z), vocab_size=300)
      teacher = Logits(jnp.asarray(z_t[:, :333]))
      value, soft, _, grads = value_and_grad(student, teacher, **kw)
      oracle.assert_close(
        (value, soft, grads.values[:, :300]), (want[0], want[1], want[3][0])
      )
      np.testing.assert_array_equal(grads.values[:, 300:], 0)
      np.testing.assert_allclose(
        distill_loss(student, teacher, **kw)[0], want[0], rtol=1e-4
      )

  def test_extreme_logits_give_finite_gradients(self):
    z, z_t, labels, _ = problem(8, 300)
    z[0, 5], z[1, 7], z_t[2, 9], z_t[3, 11] = 1e4, -1e4, 1e4, -1e4
    z[4, :150], z_t[5, 150:] = -np.inf, -np.inf
    for name in ("forward_kl", "jsd", "chi_square"):
      with self.subTest(name):
        phi = oracle.DIVERGENCES[name]
        kw = dict(divergence=phi, labels=jnp.asarray(labels), hard_weight=0.5)
        out = loss(z, z_t, implementation=plan(rows=8), temperature=2.0, **kw)
        self.assertTrue(np.isfinite(out[3][0]).all())

  def test_vmap_over_temperature_and_a_divergence_parameter(self):
    z, z_t, labels, _ = problem(8, 300)
    implementation = plan(rows=8)

    def fn(z, temperature, beta):
      return distill_loss(
        Logits(z),
        Logits(jnp.asarray(z_t)),
        divergence=oracle.jsd(beta),
        temperature=temperature,
        labels=jnp.asarray(labels),
        hard_weight=0.5,
        implementation=implementation,
      )[0]

    ts, betas = jnp.array([1.0, 3.0]), jnp.array([0.2, 0.5])
    values, grads = jax.jit(
      jax.vmap(jax.value_and_grad(fn), in_axes=(None, 0, 0))
    )(jnp.asarray(z), ts, betas)
    for i in range(2):
      want = oracle.loss(
        (z,), (z_t,), oracle.jsd(float(betas[i])), temperature=float(ts[i]),
        labels=labels, hard_weight=0.5,
      )  # fmt: skip
      oracle.assert_close((values[i], grads[i]), (want[0], want[3][0]))


class TableTest(absltest.TestCase):
  def test_what_each_generation_takes_was_measured(self):
    measured = plans.TABLE["measured"]
    column = {name: i for i, name in enumerate(measured["columns"])}
    found = {
      (row[column["choice"]], *row[column["step"]]) for row in measured["rows"]
    }
    for name, gen in plans.GENERATIONS.items():
      with self.subTest(name):
        self.assertIn(("steps[1]", *gen.steps[1]), found)
        self.assertIn(("steps[2]", *gen.steps[2]), found)
        self.assertIn(("busy", *gen.busy), found)
        self.assertIn(("second", *gen.second), found)

  def test_devices(self):
    self.assertEqual(plans.KINDS["TPU v5 lite"], "v5e")
    self.assertEqual(plans.KINDS["TPU7x"], "tpu7x")
    self.assertEqual(plans.UNKNOWN.vmem, 64 << 20)


class RaceTest(absltest.TestCase):
  """Two interpreted cores share the rows of the "parallel" grid dimension."""

  def run_kernel(self, **tweaks):
    """Returns (whether there was a race, outputs, the oracle's)."""
    z, z_t, labels, _ = problem(16, 300)
    interpret = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    kw = dict(divergence=oracle.reverse_kl, hard_weight=0.5)
    want = oracle.loss((z,), (z_t,), labels=labels, **kw)
    implementation = plan(rows=8, interpret=interpret, **tweaks)
    kw.update(labels=jnp.asarray(labels), implementation=implementation)
    out = jax.block_until_ready(loss(z, z_t, **kw))
    return interpret_pallas_call.races.races_found, out, want

  def test_no_races(self):
    for tweaks in (dict(stash=2), dict(block=256, stash=0)):
      with self.subTest(str(tweaks)):
        found, out, want = self.run_kernel(**tweaks)
        self.assertFalse(found)
        oracle.assert_close(out, want)

  def test_a_planted_race_is_caught(self):
    spec = pl.BlockSpec

    def shared(shape, index_map):  # all rows write one block of `out`
      shared_map = lambda *args: (0, 0)
      return spec(shape, shared_map if shape[1] == plans.LANES else index_map)

    with (
      mock.patch.object(plans.pl, "BlockSpec", shared),
      self.assertRaisesRegex(jax.errors.JaxRuntimeError, "RACE DETECTED"),
    ):
      self.run_kernel(stash=2)


if __name__ == "__main__":
  absltest.main()
