"""Every line of docs/conventions.md, against what the peers computed."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import divergences, objectives, ranking
from kd.errors import UserError
from kd.objectives import terms
from kernels import Head, Logits, TopK, distill_loss
from tests.conventions import record

KEPT = json.loads(record.RECORDED.read_text())
SAME, OTHERS = record.lines("same"), record.lines("others")
LEAVES = ("z", "h_z")


def names(arrays):
  """Returns the names that our calls may use, as the page defines them."""
  z, t, h_z, w = (arrays[k] for k in ("z", "t", "h_z", "w"))
  log_p = jax.nn.log_softmax(t)

  def loss(student, teacher):
    return lambda x, **keys: distill_loss(
      student, teacher, divergence=x, **keys
    )[0]

  def at(x, ids):
    return jnp.take_along_axis(x, ids, axis=-1)

  def top(k, temperature):
    ids = jax.lax.top_k(t, k)[1]
    return ids, at(jax.nn.log_softmax(t / temperature), ids)

  entropy = -jnp.sum(jnp.where(log_p > -1e9, jnp.exp(log_p) * log_p, 0.0), -1)
  heads = [Head(h_z, arrays["W_z"]), Head(arrays["h_t"], arrays["W_t"])]
  return {
    **vars(divergences),
    **vars(objectives),
    **arrays,
    "pairwise_logistic": ranking.pairwise_logistic,
    "sum": jnp.sum,
    "mean": jnp.mean,
    "D": loss(Logits(z), Logits(t)),
    "head_D": loss(*heads),
    "H": entropy.mean(),
    "H_w": jnp.sum(w * entropy),
    "log_p": log_p,
    "ids": top(3, 1.0)[0],
    "ids_z": jax.lax.top_k(z, 3)[1],
    "top": top,
    "at": at,
    "T": record.T,
  }


@functools.cache
def ours(kind):
  """Returns {call: (values, gradients)} of our calls for such inputs, at each
  scale; all in one program, which compiles sooner than one for each."""
  made = [record.inputs(KEPT["inputs"], kind, s) for s in record.SCALES]
  arrays = {
    k: np.stack([x[k] for x in made]).astype(
      np.int32 if made[0][k].dtype.kind == "i" else np.float32
    )
    for k in made[0]
  }
  leaves = {k: arrays.pop(k) for k in LEAVES}
  calls = {c for _, _, (c,), _ in SAME if kind == "plain"}
  calls |= {c for _, (k,), _, (c,), _ in OTHERS if k == kind}

  def both(leaves, rest):
    def value(call):
      def of(leaves):
        found = eval(call, names(rest | leaves))
        return jnp.sum(found), found

      return of

    return {
      call: jax.grad(value(call), has_aux=True)(leaves)
      for call in sorted(calls)
    }

  found = jax.jit(jax.vmap(both))(leaves, arrays)
  return jax.tree.map(np.asarray, found)


class SameTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f"{line[0][0]}_{i}", *line) for i, line in enumerate(SAME)
  )
  def test_line(self, peer, theirs, our, ratio):
    (call,), (ratio,) = our, ratio
    sizes = {"V": record.V, "S": record.S, "T": record.T}
    ratio = eval(ratio, sizes)
    gradients, values = ours("plain")[call]
    for name in theirs:
      for scale, found in enumerate(KEPT["same"][name]):
        expected = np.array(found["value"], float)
        np.testing.assert_allclose(
          ratio * values[scale], expected, rtol=2e-5, err_msg=f"{peer} {name}"
        )
        expected = np.array(found["gradient"], float)
        self.assertGreater(np.abs(expected).max(), 0)
        np.testing.assert_allclose(
          ratio * gradients[found["of"]][scale],
          expected,
          rtol=0,
          atol=2e-5 * np.abs(expected).max(),
          err_msg=f"gradient, {peer} {name}",
        )

  def test_each_line_has_its_values_and_each_value_its_line(self):
    said = [call for _, theirs, _, _ in SAME for call in theirs]
    self.assertCountEqual(said, KEPT["same"])
    said = [f"{k}: {c}" for _, (k,), theirs, _, _ in OTHERS for c in theirs]
    self.assertCountEqual(said, KEPT["others"])

  def test_the_versions_are_those_of_the_page(self):
    page = record.PAGE.read_text()
    tools = {"triton", "numpy"}  # which run the peers, and are none
    for name in KEPT["versions"].keys() - tools:
      version = KEPT["versions"][name].split("+")[0]
      self.assertRegex(page, rf"\b{re.escape(version)}\b", name)


class OthersTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f"{line[0][0]}_{i}", *line) for i, line in enumerate(OTHERS)
  )
  def test_line(self, peer, kind, theirs, our, what):
    (call,), (kind,), (what,) = our, kind, what
    gradients, values = ours(kind)[call]
    self.assertTrue(np.isfinite(values).all())
    for gradient in gradients.values():
      self.assertTrue(np.isfinite(gradient).all())
    for name in theirs:
      found = KEPT["others"][f"{kind}: {name}"]
      value = np.array(found["value"], float)
      gradient = np.array(found["gradient"], float)
      gap = gradients[found["of"]][0] - gradient
      off = {
        "value": abs(values[0] - value) / abs(values[0]),
        "gradient": np.abs(gap).max() / np.abs(gradient + gap).max(),
      }
      self.assertEqual(says(off), what, f"{peer} {name}")
      self.assertFalse(all(x < 0.1 for x in off.values()))


def says(off) -> str:
  nan = [k for k, x in off.items() if np.isnan(x)]
  if len(nan) == 1:
    return f"not finite in {nan[0]}"
  parts = [f"{100 * x:.0f} % in {k}" for k, x in off.items()]
  return "not finite" if nan else f"off by {', '.join(parts)}"


class TrapsTest(absltest.TestCase):
  def test_a_top_k_signal_serves_its_temperatures_alone(self):
    arm = {"objective": "top_k", "k": 3, "temperature": 4.0, "tail": "bucket"}
    arm |= {"divergence": "forward_kl"}
    signal = {"keep": "top_k", "k": 3, "temperatures": (1.0,)}
    with self.assertRaisesRegex(
      UserError, "temperature = 4.0: expected one of"
    ):
      terms.check("arms.a", arm | {"signal": signal}, False)
    signal["temperatures"] = (1.0, 4.0)
    terms.check("arms.a", arm | {"signal": signal}, False)

  def test_the_kernels_take_a_zero_tail_as_a_bucket_without_mass(self):
    z = jnp.asarray(KEPT["inputs"]["z"])
    known = names(record.inputs(KEPT["inputs"], "plain", 2.0))
    ids, log_probs = known["top"](3, 1.0)
    loss = lambda teacher: distill_loss(
      Logits(z), teacher, divergence=divergences.forward_kl
    )[0]
    with self.assertRaisesRegex(ValueError, "tail: got 'zero'"):
      loss(TopK(ids, log_probs, "zero"))
    teacher = objectives.top_k_teacher(ids, log_probs, "zero")
    expected = objectives.top_k(z, ids, log_probs, 1.0, tail="zero").mean()
    np.testing.assert_allclose(loss(teacher), expected, rtol=1e-6)

  def test_the_jsd_goes_to_0_with_beta_and_kl_does_not(self):
    arrays = record.inputs(KEPT["inputs"], "plain", 2.0)
    z, t = jnp.asarray(arrays["z"]), jnp.asarray(arrays["t"])
    mean = lambda x: float(objectives.soft(z, t, 1.0, x).mean())
    self.assertEqual(mean(divergences.jsd(0.0)), 0)
    kl = mean(divergences.forward_kl)
    self.assertBetween(mean(divergences.jsd(0.01)), 0.005 * kl, 0.01 * kl)


if __name__ == "__main__":
  absltest.main()
