"""Pruning: which weights stay, and smaller models against masked ones."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd import compress
from kd.compress import pruning
from kd.errors import UserError
from tests.kd.compress import models_here


def kernels(model):
  return {k: np.asarray(x.kernel[...]) for k, x in pruning._of(model)}


class WeightsTest(parameterized.TestCase):
  @parameterized.product(
    kind=("mlp", "cnn", "untied"), scope=("layer", "global")
  )
  def test_the_smallest_go(self, kind, scope):
    model, _ = models_here.make(kind)
    before = kernels(model)
    after = kernels(compress.prune(model, "weights", 0.75, scope=scope))
    parts = list(before)
    every = [parts] if scope == "global" else [[part] for part in parts]
    for own in every:
      old = np.concatenate([before[k].ravel() for k in own])
      new = np.concatenate([after[k].ravel() for k in own])
      self.assertEqual(np.sum(new == 0), round(0.75 * old.size))
      kept = new != 0
      np.testing.assert_array_equal(new[kept], old[kept])
      self.assertLessEqual(np.abs(old[~kept]).max(), np.abs(old[kept]).min())
    self.assertTrue(all(np.all(x != 0) for x in before.values()))  # unchanged

  @parameterized.parameters("mlp", "cnn", "decoder")
  def test_two_of_four(self, kind):
    model, _ = models_here.make(kind)
    made = compress.prune(model, "2:4")
    for path, new in kernels(made).items():
      old = kernels(model)[path].reshape(-1, new.shape[-1])
      new = new.reshape(-1, new.shape[-1])
      for i in range(0, len(new) // 4 * 4, 4):
        self.assertTrue(np.all(np.sum(new[i : i + 4] != 0, axis=0) == 2))
        order = np.sort(np.abs(old[i : i + 4]), axis=0)
        found = np.sort(np.abs(new[i : i + 4]), axis=0)
        np.testing.assert_array_equal(found[2:], order[2:])


class StructureTest(parameterized.TestCase):
  @parameterized.parameters(
    ("mlp", "units"),
    ("cnn", "units"),
    ("cnn", "channels"),
    ("byte_cnn", "units"),
    ("byte_cnn", "channels"),
  )
  def test_equals_a_model_whose_units_are_off(self, kind, what):
    model, x = models_here.make(kind)
    small = compress.prune(model, what, 0.5)
    masked = nnx.clone(model)
    parts = pruning.structured._parts(compress.anew.origin(model), what)
    own = compress.anew.arrays(model)
    for part in parts:
      score = np.asarray(part.score(own, None))
      off = np.argsort(-score, kind="stable")[part.size - part.size // 2 :]
      for array in ("kernel", "bias"):
        layer = owner(masked, part.write)
        if getattr(layer, array) is not None:
          old = getattr(layer, array)[...]
          getattr(layer, array)[...] = old.at[..., off].set(0)
      if part.norm:
        norm = owner(masked, part.norm)
        for name in ("scale", "bias", "mean"):
          getattr(norm, name)[...] = getattr(norm, name)[...].at[off].set(0)
    np.testing.assert_allclose(
      small(x).logits, masked(x).logits, atol=1e-6, rtol=1e-6
    )
    count = lambda m: sum(v.size for v in compress.anew.arrays(m).values())
    self.assertLess(count(small), count(model))

  @parameterized.parameters("units", "heads", "layers")
  def test_a_decoder_without_its_least_parts(self, what):
    model, x = models_here.make("decoder")
    small = compress.prune(model, what, 0.5)
    spec = small.spec
    sizes = {
      "units": (spec.mlp_width, model.spec.mlp_width // 2),
      "heads": (spec.kv_heads, 1),
      "layers": (len(spec.layers), 1),
    }
    self.assertEqual(*sizes[what])
    self.assertEqual(small(x).logits.shape, model(x).logits.shape)

  def test_units_that_examples_leave_silent_go_first(self):
    model, x = models_here.make("mlp")
    layer = model.layers[0]
    layer.bias[...] = jnp.where(jnp.arange(24) < 12, -100.0, 10.0)
    small = compress.prune(
      model, "units", 0.5, importance="activations", examples=x
    )
    np.testing.assert_array_equal(
      small.layers[0].kernel[...], layer.kernel[...][:, 12:]
    )

  @parameterized.parameters(
    ("mlp", dict(what="heads"), "no heads to take out; expected 'units', 'wei"),
    ("mlp", dict(what="units", sparsity=0.99), "nothing is left of 24 units"),
    (
      "decoder",
      dict(what="units", importance="activations"),
      "importance = 'activations': expected 'weights' of a decoder",
    ),
    ("mlp", dict(what="units", importance="activations"), "needs examples"),
  )
  def test_what_is_refused(self, kind, keys, message):
    model, _ = models_here.make(kind)
    with self.assertRaisesRegex(UserError, message):
      compress.prune(model, **keys)

  def test_prune_first(self):
    model, _ = models_here.make("mlp")
    rounded = compress.quantize(model, "int8")
    for what in ("weights", "units"):
      with self.assertRaisesRegex(UserError, "prune first, then quantize"):
        compress.prune(rounded, what)


def owner(model, path):
  for key in path.split("."):
    model = model[int(key)] if key.isdigit() else getattr(model, key)
  return model


if __name__ == "__main__":
  absltest.main()
