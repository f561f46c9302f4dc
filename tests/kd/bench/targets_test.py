"""The page's numbers: gradients by another way, and a page from a store."""

import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import files, objectives, signals
from kd.bench import targets as bench_targets
from kd.errors import UserError
from kd.signals import label
from tests.kd import labelling

RNG = np.random.default_rng(0)
TEACHER, STUDENT = 2 * RNG.normal(size=(2, 30, 12))


class TargetTest(parameterized.TestCase):
  @parameterized.product(kind=("zero", "bucket", "renormalize"), k=(1, 4, 11))
  def test_the_loss_has_the_gradient_q_minus_t(self, kind, k):
    top = signals.top_k(signals.Dense(jnp.asarray(TEACHER, jnp.float32)), k)

    def loss(z):
      return objectives.top_k(z, top.ids, top.log_probs, 1.0, tail=kind).sum()

    slope = jax.grad(loss)(jnp.asarray(STUDENT, jnp.float32))
    p, q = bench_targets.softmax(TEACHER), bench_targets.softmax(STUDENT)
    expected = q - bench_targets.target(kind, p, q, k)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=2e-6)

  def test_the_noise_of_draws(self):
    p = bench_targets.softmax(TEACHER)
    r = p**0.8 / (p**0.8).sum(-1, keepdims=True)
    counts = np.stack([RNG.multinomial(9, r) for _ in range(4000)])
    t = counts / 9 * p / r
    np.testing.assert_allclose(t.mean(0), p, atol=0.02)
    found = np.sqrt(np.square(t - p).sum((1, 2)).mean())
    self.assertAlmostEqual(
      found / bench_targets._noise(p, r, 9), 1.0, delta=0.02
    )


class PageTest(absltest.TestCase):
  def test_a_page_from_a_study(self):
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    with self.assertRaisesRegex(UserError, "no dense float32 signal"):
      bench_targets.dense_store(workdir)
    os.makedirs(os.path.join(workdir, "signals"))
    for name, options in (("a", {"keep": "top_k"}), ("b", {})):
      folder = os.path.join(workdir, "signals", name)
      label.label(folder, labelling.plan(classes=200, **options))
    files.write_json(
      os.path.join(workdir, "config.json"), {"config": {"study": "tiny"}}
    )
    page = pathlib.Path(workdir, "page.md")
    page.write_text("<!-- bias -->\n<!-- /bias -->\n")
    bench_targets.main(["bias", workdir, str(page)])
    self.assertIn("700 rows, V = 200", page.read_text())
    self.assertIn("`tiny`", page.read_text())
    self.assertTrue(os.path.exists(os.path.join(workdir, "top_k.png")))

  def test_what_the_numbers_must_be(self):
    found = bench_targets.measure(2 * RNG.normal(size=(300, 200)))
    for t in found["targets"]:
      if t["kind"] == "sampled":
        self.assertEqual(set(t["bias"].values()), {0.0})
        self.assertGreater(t["noise"], 0)
      else:
        self.assertGreater(min(t["bias"].values()), 0)
      if t["kind"] == "zero":
        self.assertAlmostEqual(t["tv"], t["tail"], delta=1e-9)
    for ratio in found["unbiased"].values():
      self.assertAlmostEqual(ratio, 1.0, delta=0.1)
    self.assertGreater(min(found["proposals"].values()), 1.0)


if __name__ == "__main__":
  absltest.main()
