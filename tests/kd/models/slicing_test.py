"""Students cut out of a teacher."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd.errors import UserError
from kd.models import config_json
from kd.models.slicing import from_teacher
from tests.families import record
from tests.kd.models.decoders import changed, filled

KEPT = json.loads(record.RECORDED.read_text())["models"]


@functools.cache
def teacher(name):
  return filled(config_json.read(KEPT[name]["config"], "config.json"))


@jax.jit
def logits(model, ids):
  return model.logits(ids)


class SlicingTest(parameterized.TestCase):
  @parameterized.parameters("llama_biases", "gemma3_text", "olmo2")
  def test_all_of_a_teacher_is_the_teacher(self, name):
    whole = teacher(name)
    spec = whole.spec
    student = from_teacher(
      whole,
      layers=range(len(spec.layers)),
      width=spec.width,
      mlp=range(spec.mlp_width),
      kv_heads=spec.kv_heads,
      vocab_ids=range(spec.vocab_size),
    )
    self.assertEqual(student.spec, spec)
    jax.tree.map(
      np.testing.assert_array_equal, nnx.state(student), nnx.state(whole)
    )

  def test_what_gives_nothing_is_cut_first_and_changes_nothing(self):
    def change(path, x):  # keeps units 3.., key head 1 and channels 4..
      part = path.split(".")[-2]
      if part == "down":
        return x.at[:3].set(0).at[:, :4].set(0)
      if part == "o":
        return x.at[: len(x) // 2].set(0).at[:, :4].set(0)
      return x.at[:, :4].set(0) if path == "embed.embedding" else x

    whole = teacher("qwen3")
    small = changed(whole, change)
    student = from_teacher(small, mlp=whole.spec.mlp_width - 3, kv_heads=1)
    ids = record.ids()
    expected = logits(small, ids)
    np.testing.assert_allclose(logits(student, ids), expected, atol=1e-5)
    narrow = from_teacher(small, width=whole.spec.width - 4)
    # RMS is over the width that there is: the same sum over fewer channels.
    ratio = (narrow.spec.width / whole.spec.width) ** 0.5
    scaled = changed(
      narrow,
      lambda path, x: x / ratio
      if path.endswith("norm.scale") and "k_norm" not in path
      and "q_norm" not in path
      else x,
    )  # fmt: skip
    np.testing.assert_allclose(logits(scaled, ids), expected, atol=1e-4)

  def test_layers_and_words(self):
    whole = teacher("gemma3_text")
    ids = np.array([5, 2, 9, 1, 7])
    student = from_teacher(whole, layers=(1, 3), vocab_ids=ids)
    self.assertEqual(
      student.spec.layers, (whole.spec.layers[1], whole.spec.layers[3])
    )
    kept = json.loads(student.spec.kept)
    self.assertEqual(kept["eos_token_id"], 1)
    self.assertEqual(kept["bos_token_id"], 3)
    tokens = jnp.arange(5)[None]
    shell = from_teacher(whole, layers=(1, 3))
    expected = logits(shell, ids[None])[..., ids]
    np.testing.assert_allclose(logits(student, tokens), expected, atol=1e-5)
    config_json.write(student.spec)
    narrow = from_teacher(whole, width=8, vocab_ids=(0, 3))
    self.assertEqual(json.loads(narrow.spec.kept)["eos_token_id"], None)
    config_json.write(narrow.spec)

  def test_one_more_word_is_the_mean_of_all_others(self):
    whole = teacher("llama_biases")
    size = whole.spec.vocab_size
    ids = np.arange(3, size)
    student = from_teacher(whole, vocab_ids=ids, other=True)
    self.assertEqual(student.spec.vocab_size, len(ids) + 1)
    head = whole.kernel
    np.testing.assert_allclose(
      student.kernel,
      np.concatenate([head[:, 3:], head[:, :3].mean(1, keepdims=True)], 1),
      rtol=1e-6,
    )
    text = np.array([[5, 9, 4]])
    shell = logits(whole, text)
    expected = np.concatenate(
      [shell[..., 3:], shell[..., :3].mean(-1, keepdims=True)], -1
    )
    np.testing.assert_allclose(logits(student, text - 3), expected, atol=1e-5)

  @parameterized.parameters(
    ({"layers": (0, 4)}, r"layers = \(0, 4\): expected distinct .* 0 to 3"),
    ({"layers": ()}, "layers"),
    ({"mlp": 41}, "mlp = 41: expected 1 to 40"),
    ({"kv_heads": (0, 0)}, "kv_heads"),
    ({"vocab_ids": (-1,)}, "vocab_ids"),
  )
  def test_what_is_not_there(self, options, message):
    with self.assertRaisesRegex(UserError, f"student.from_teacher.{message}"):
      from_teacher(teacher("qwen3"), **options)


if __name__ == "__main__":
  absltest.main()
