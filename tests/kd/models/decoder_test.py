"""The decoder: packing, causality, its cache, how it computes."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd import models
from kd.errors import UserError
from kd.models.rope import Rope
from kd.models.spec import LayerSpec, Spec
from tests.kd.models.decoders import filled

V, L = 13, 12
ROPE = Rope(30.0)
# Something of every family.
SPEC = Spec(
  family="llama",
  vocab_size=V,
  width=8,
  mlp_width=12,
  heads=4,
  kv_heads=2,
  head_dim=4,
  layers=(LayerSpec(3, ROPE), LayerSpec(None, None)),
  norm="one_plus",
  post_norm=True,
  qk_norm="head",
  qkv_bias=True,
  activation="gelu_tanh",
  embed_scale=8**0.5,
  attention_scale=0.6,
  attention_cap=2.0,
  logits_scale=0.5,
  logits_cap=3.0,
)
IDS = np.random.default_rng(0).integers(0, V, (2, L)).astype(np.int32)
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [0] * 2 + [1] * 10])
DOCUMENTS = ((0, 0, 5), (0, 5, 9), (1, 2, 12))  # row, first, end


make = functools.partial(filled, SPEC)


@functools.cache
def weights():
  return nnx.state(make())


@jax.jit
def logits(model, ids, segments=None, positions=None):
  return model.logits(ids, segments_BxL=segments, positions_BxL=positions)


def assert_close(found, expected):
  """Asserts that leaves are equal to 1e-5 of their largest number."""
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


class PackingTest(absltest.TestCase):
  def test_packed_documents_give_what_each_gives_alone(self):
    graphdef = nnx.graphdef(make())

    def loss(weights, ids, segments):
      z = nnx.merge(graphdef, weights).logits(ids, segments_BxL=segments)
      return jnp.sum(jnp.sin(z).sum(-1) * (segments > 0)), z

    run = jax.jit(jax.grad(loss, has_aux=True))
    packed, z = run(weights(), IDS, SEGMENTS)
    alone = jax.tree.map(np.zeros_like, packed)
    for row, first, end in DOCUMENTS:
      ids = np.zeros((1, L), np.int32)  # one program for all lengths
      ids[0, : end - first] = IDS[row, first:end]
      segments = (np.arange(L) < end - first)[None].astype(np.int32)
      ids, segments = np.repeat(ids, 2, 0), np.concatenate([segments, 0 * ids])
      gradient, expected = run(weights(), ids, segments)
      expected = expected[0, : end - first]
      np.testing.assert_allclose(z[row, first:end], expected, atol=2e-6)
      alone = jax.tree.map(np.add, alone, gradient)
    assert_close(packed, alone)
    chex.assert_tree_all_finite((packed, z))

  def test_rows_without_segments_are_documents(self):
    model = make()
    ones = np.ones_like(IDS)
    places = np.broadcast_to(np.arange(L), IDS.shape)
    plain = logits(model, IDS)
    np.testing.assert_array_equal(plain, logits(model, IDS, ones))
    np.testing.assert_array_equal(plain, logits(model, IDS, ones, places))
    # Rotations are relative: all later by the same changes nothing.
    later = logits(model, IDS, ones, places + 7)
    np.testing.assert_allclose(plain, later, atol=1e-5)

  def test_a_token_changes_itself_and_what_follows_in_its_document(self):
    model = make()
    before = logits(model, IDS, SEGMENTS)
    for row, first, end in DOCUMENTS:
      at = first + 2
      ids = IDS.copy()
      ids[row, at] = (ids[row, at] + 1) % V
      changed = np.abs(logits(model, ids, SEGMENTS) - before).max(-1) > 1e-6
      expected = np.zeros_like(changed)
      expected[row, at:end] = True
      np.testing.assert_array_equal(changed, expected)


class CacheTest(parameterized.TestCase):
  @parameterized.parameters("left", "right")
  def test_ragged_prompts_and_single_tokens_equal_the_whole(self, side):
    model = make()
    lengths, prompt, more = np.array([3, 5]), 5, 4
    whole = logits(model, IDS)  # causal: the beginning of each row
    ids, segments = np.zeros((2, 2, prompt), np.int32)
    for row, n in enumerate(lengths):
      place = slice(prompt - n, prompt) if side == "left" else slice(0, n)
      ids[row, place], segments[row, place] = IDS[row, :n], 1

    @jax.jit
    def step(model, ids, cache, segments=None, positions=None):
      hidden, cache = model.hidden(
        ids, segments_BxL=segments, positions_BxL=positions, cache=cache
      )
      return model.to_logits(hidden), cache

    cache = model.empty_cache(2, prompt + more)
    z, cache = step(model, ids, cache, segments)
    for row, n in enumerate(lengths):
      found = z[row][segments[row] > 0]
      np.testing.assert_allclose(found, whole[row, :n], atol=3e-6)
    for i in range(more):
      at = (lengths + i)[:, None]
      token = np.take_along_axis(IDS, at, axis=1)
      z, cache = step(model, token, cache, positions=at)
      expected = np.take_along_axis(whole, at[..., None], axis=1)
      np.testing.assert_allclose(z, expected, atol=3e-6)


class NumericsTest(parameterized.TestCase):
  def loss(self, remat):
    graphdef, x = nnx.graphdef(make(remat=remat)), np.stack([IDS, SEGMENTS], 1)
    return lambda w: jnp.sum(jnp.sin(nnx.merge(graphdef, w)(x).logits))

  def test_remat_changes_no_gradient_of_any_arm(self):
    loss = self.loss("none")
    arms = [weights(), jax.tree.map(lambda w: 0.9 * w, weights())]
    gradient = jax.jit(jax.grad(loss))
    expected = jax.tree.map(lambda *w: np.stack(w), *map(gradient, arms))
    stacked = jax.tree.map(lambda *w: np.stack(w), *arms)
    for remat in ("layer", "dots"):
      found = jax.jit(jax.vmap(jax.grad(self.loss(remat))))(stacked)
      assert_close(found, expected)

  def test_remat_keeps_less_for_the_backward_pass(self):
    def kept(remat):
      back = lambda w: jax.vjp(self.loss(remat), w)[1]
      return sum(
        x.size for x in jax.tree.leaves(jax.eval_shape(back, weights()))
      )

    self.assertLess(kept("layer"), 0.6 * kept("dots"))
    self.assertLess(kept("dots"), 0.6 * kept("none"))

  def test_bfloat16_on_float32_weights(self):
    half = make(dtype=jnp.bfloat16)
    for x in jax.tree.leaves(nnx.state(half)):
      self.assertEqual(x.dtype, jnp.float32)
    outputs = half(np.stack([IDS, SEGMENTS], 1))
    self.assertEqual(outputs.hidden.dtype, jnp.bfloat16)
    self.assertEqual(outputs.kernel.dtype, jnp.bfloat16)
    self.assertEqual(outputs.logits.dtype, jnp.float32)
    # 8 bits of 3, the largest logit, over two layers.
    exact = logits(make(), IDS, SEGMENTS)
    np.testing.assert_allclose(
      logits(half, IDS, SEGMENTS)[SEGMENTS > 0], exact[SEGMENTS > 0], atol=0.2
    )

  def test_many_looks_at_a_word_add_up_in_float32(self):
    graphdef = nnx.graphdef(make(dtype=jnp.bfloat16))
    loss = lambda w: jnp.sum(nnx.merge(graphdef, w).hidden(IDS))
    text = str(jax.make_jaxpr(jax.grad(loss))(weights()))
    self.assertRegex(text, rf"f32\[{V},8\] = scatter-add")
    self.assertNotRegex(text, r"bf16\[\S* = scatter-add")

  def test_outputs_are_positions_with_their_head(self):
    model = make()
    outputs = model(np.stack([IDS, SEGMENTS], 1).astype(np.float32))
    chex.assert_shape(outputs.hidden, (2 * L, 8))
    chex.assert_shape(outputs.kernel, (8, V))
    expected = logits(model, IDS, SEGMENTS).reshape(-1, V)
    assert_close(outputs.logits, expected)  # one compiled, one not
    ids = np.array([[3, 1]] * (2 * L))
    for large in (2048, 1):  # from which on columns are computed alone
      some = dataclasses.replace(outputs, large_from=large)
      at = np.take_along_axis(expected, ids, axis=1)
      assert_close(some.logits_at(ids), at)
      np.testing.assert_array_equal(some.answer, expected.argmax(-1))


class StudentTest(parameterized.TestCase):
  make = functools.partial(
    models.create, "decoder", num_classes=V, input_shape=(2, L)
  )

  def test_it_begins_near_the_uniform_distribution(self):
    model = self.make(rngs=nnx.Rngs(0), layers=2, width=32, heads=4)
    outputs = model(np.stack([IDS, SEGMENTS], 1))
    self.assertLess(np.abs(outputs.logits).max(), 1.0)
    # Embeddings, twice q k v o and gate up down, five norms.
    mlp = 88
    self.assertEqual(
      models.num_params(model),
      V * 32 + 2 * (4 * 32 * 32 + 3 * 32 * mlp) + 5 * 32,
    )

  @parameterized.parameters(
    ({}, "llama"), ({"window": 4}, "mistral"), ({"qk_norm": True}, "qwen3")
  )
  def test_its_options_are_those_of_a_family(self, options, family):
    model = nnx.eval_shape(lambda: self.make(rngs=nnx.Rngs(0), **options))
    self.assertEqual(model.spec.family, family)

  @parameterized.parameters(
    ({"input_shape": (L,)}, r"reads tokens, and .* shape \(12,\); expected"),
    ({"heads": 3}, "heads = 3, kv_heads = 3: expected heads that divide"),
    ({"kv_heads": 3}, "kv_heads = 3"),
    ({"head_dim": 3}, "expected an even width"),
    (
      {"remat": "all"},
      "remat = 'all': expected one of 'none', 'layer', 'dots'",
    ),
  )
  def test_what_cannot_be_is_refused(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      self.make(rngs=nnx.Rngs(0), **options)


if __name__ == "__main__":
  absltest.main()
