"""Folders of published weights: parity with transformers, and bad folders."""

import dataclasses
import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized
from flax import nnx

from kd import models
from kd.errors import UserError
from kd.models import config_json, pretrained
from kd.models.decoder import Decoder
from kd.models.rope import Rope
from kd.models.spec import Numerics
from tests.families import record

KEPT = json.loads(record.RECORDED.read_text())["models"]


def tensors(name):
  shapes = KEPT[name]["tensors"]
  return {k: record.weights(k, shape) for k, shape in shapes.items()}


def folder(test):
  return pathlib.Path(test.enterContext(tempfile.TemporaryDirectory()))


def write(folder, config, arrays, shards=1):
  """Writes a folder as transformers does."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  keys = sorted(arrays)
  places = {}
  for i in range(shards):
    own = {k: arrays[k] for k in keys[i::shards]}
    file = f"model-{i}.safetensors" if shards > 1 else pretrained.WEIGHTS
    safetensors.numpy.save_file(own, folder / file)
    places |= dict.fromkeys(own, file)
  if shards > 1:
    index = {"metadata": {}, "weight_map": places}
    (folder / pretrained.INDEX).write_text(json.dumps(index))
  return folder


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, weights):
  return nnx.merge(graphdef, weights).logits(record.ids())[0]


def logits(model):
  return np.asarray(run(*nnx.split(model)))


def gap(name, found):
  expected = np.array(KEPT[name]["logits"])
  return np.abs(found - expected).max() / np.abs(expected).max()


class ParityTest(parameterized.TestCase):
  @parameterized.parameters(*KEPT)
  def test_logits_are_transformers_and_weights_come_back(self, name):
    config, arrays = KEPT[name]["config"], tensors(name)
    root = folder(self)
    model = models.load_pretrained(write(root / "a", config, arrays, 3))
    self.assertLess(gap(name, logits(model)), 2e-5)
    models.save_pretrained(model, root / "b")
    again = safetensors.numpy.load_file(root / "b" / pretrained.WEIGHTS)
    self.assertEqual(again.keys(), arrays.keys())
    for key, array in arrays.items():
      np.testing.assert_array_equal(again[key], array, strict=True)
    with safetensors.safe_open(root / "b" / pretrained.WEIGHTS, "np") as f:
      self.assertEqual(f.metadata(), {"format": "pt"})
    saved = json.loads((root / "b" / "config.json").read_text())
    self.assertEqual(models.load_pretrained(root / "b").spec, model.spec)
    same = {"vocab_size", "eos_token_id", "architectures", "rope_parameters"}
    for key in same & config.keys():
      self.assertEqual(saved[key], config[key], key)
    # Readers of transformers 4 know the old keys alone.
    del saved["rope_parameters"]
    self.assertEqual(config_json.read(saved, "old"), model.spec)

  @parameterized.parameters(
    ("llama", {"rope": Rope(50.0)}),
    ("smollm3", {"rope": Rope(100.0)}),
    ("mistral", {"window": None}),
    ("gemma2", {"attention_cap": None}),
    ("gemma2", {"logits_cap": None}),
    ("qwen3", {"qk_norm": None}),
    ("granite", {"residual_scale": 1.0}),
  )
  def test_the_goldens_see_it(self, name, change):
    spec = config_json.read(KEPT[name]["config"], "config.json")
    if change.keys() <= {"rope", "window"}:  # of every layer
      layers = [dataclasses.replace(x, **change) for x in spec.layers]
      change = {"layers": tuple(layers)}
    root = folder(self)
    write(root, KEPT[name]["config"], tensors(name))
    model = models.load_pretrained(root)
    other = dataclasses.replace(spec, **change)
    graphdef = nnx.graphdef(
      nnx.eval_shape(lambda: Decoder(other, Numerics(), rngs=nnx.Rngs(0)))
    )
    state = nnx.state(model)
    if "qk_norm" in change:
      for layer in state["layers"].values():
        del layer["attention"]["q_norm"], layer["attention"]["k_norm"]
    self.assertGreater(gap(name, np.asarray(run(graphdef, state))), 1e-3)


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = folder(self)
    self.config, self.arrays = KEPT["qwen2"]["config"], tensors("qwen2")

  def test_dtypes(self):
    half = {k: x.astype(ml_dtypes.bfloat16) for k, x in self.arrays.items()}
    write(self.root, self.config, half)
    model = models.load_pretrained(self.root)
    self.assertEqual(model.numerics.dtype, jnp.bfloat16)
    models.save_pretrained(model, self.root / "b")
    again = safetensors.numpy.load_file(self.root / "b" / pretrained.WEIGHTS)
    for key, array in half.items():
      np.testing.assert_array_equal(again[key], array, strict=True)
    saved = json.loads((self.root / "b" / "config.json").read_text())
    self.assertEqual(saved["dtype"], "bfloat16")
    model = models.load_pretrained(
      self.root, "bfloat16", param_dtype="float32", remat="layer"
    )
    self.assertEqual(model.kernel.dtype, jnp.bfloat16)
    for x in jax.tree.leaves(nnx.state(model)):
      self.assertEqual(x.dtype, jnp.float32)

  @parameterized.parameters(
    ("language_model.model.", "language_model."), ("model.language_model.", "")
  )
  def test_the_text_part_of_a_model_that_sees_images(self, body, head):
    config, arrays = KEPT["gemma3_text"]["config"], tensors("gemma3_text")
    renamed = {body + k.removeprefix("model."): x for k, x in arrays.items()}
    renamed["vision_tower.patch.weight"] = np.zeros(3, np.float32)
    text = {k: x for k, x in config.items() if k != "num_key_value_heads"}
    text["num_key_value_heads"] = config["num_key_value_heads"]
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
    write(self.root, whole, renamed)
    model = models.load_pretrained(self.root)
    self.assertEqual(model.spec, config_json.read(config, ""))
    embedding = model.embed.embedding[...]
    np.testing.assert_array_equal(
      embedding, arrays["model.embed_tokens.weight"]
    )

  def test_a_tied_head_may_lie_there_if_it_is_the_table(self):
    table = self.arrays["model.embed_tokens.weight"]
    self.arrays["lm_head.weight"] = table
    self.arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = table[0]
    write(self.root, self.config, self.arrays)
    models.load_pretrained(self.root)
    write(self.root, self.config, self.arrays | {"lm_head.weight": table + 1})
    with self.assertRaisesRegex(UserError, "lm_head.weight differs from model"):
      models.load_pretrained(self.root)

  @parameterized.parameters(
    ({"model_type": "qwen3_5"}, "model_type = 'qwen3_5': expected .*signal"),
    ({"model_type": "qwen3_moe"}, "model_type = 'qwen3_moe': expected"),
    ({"model_type": None}, "model_type = None"),
    ({"sliding_windows": 3}, "sliding_windows = 3: unknown key of .* 'qwen2'"),
    ({"attention_dropout": 0.1}, "attention_dropout = 0.1: expected 0"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu': expected one of silu"),
    ({"hidden_size": "24"}, "hidden_size is '24': expected a whole number"),
    ({"hidden_size": None}, "hidden_size is None: expected a whole number"),
    ({"num_key_value_heads": 4}, "num_key_value_heads = 4: expected a divisor"),
    ({"layer_types": ["chunked"] * 4}, "layer_types = .*'chunked'.*4 of 'full"),
    (
      {"rope_parameters": {"rope_type": "longrope"}},
      "rope_parameters.rope_type = 'longrope': expected one of default",
    ),
    (
      {"rope_parameters": {"rope_type": "linear"}},
      "rope_parameters.factor is missing",
    ),
    (
      {"rope_parameters": {"rope_type": "linear", "factor": 2, "low": 1}},
      "rope_parameters.low = 1: unknown key of 'linear'",
    ),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "different things"),
  )
  def test_configs_that_are_not_ours_to_read(self, change, message):
    write(self.root, self.config | change, self.arrays)
    with self.assertRaisesRegex(UserError, f"config.json: .*{message}"):
      models.load_pretrained(self.root)

  @parameterized.parameters("missing", "shard", "index", "over", "shape", "cut",
                            "ids", "json", "list")  # fmt: skip
  def test_files_that_are_not_whole(self, what):
    key, shards = "model.layers.1.mlp.up_proj.weight", 1
    if what == "missing":
      del self.arrays[key]
    if what == "over":
      self.arrays["model.layers.4.mlp.up_proj.weight"] = self.arrays[key]
    if what == "shape":
      self.arrays[key] = self.arrays[key][:-1]
    if what == "ids":
      self.arrays[key] = self.arrays[key].astype(np.int8)
    if what in ("shard", "index"):
      shards = 2
    write(self.root, self.config, self.arrays, shards)
    path = self.root / pretrained.WEIGHTS
    if what == "shard":
      (self.root / "model-1.safetensors").unlink()
    if what == "index":
      index = json.loads((self.root / pretrained.INDEX).read_text())
      index["weight_map"]["other.weight"] = "model-1.safetensors"
      (self.root / pretrained.INDEX).write_text(json.dumps(index))
    if what == "cut":
      path.write_bytes(path.read_bytes()[:-5])
    if what in ("json", "list"):
      text = {"json": "{", "list": "[]"}[what]
      (self.root / "config.json").write_text(text)
    message = {
      "missing": f"no tensors {key}",
      "shard": "model-1.safetensors: no such file, which .*index.json names",
      "index": "model-1.safetensors: has no other.weight",
      "over": "'qwen2' does not have: model.layers.4.mlp.up_proj.weight",
      "shape": rf"{key} has shape \[39, 24\], config.json says \[40, 24\]",
      "cut": "model.safetensors: no whole safetensors file",
      "ids": f"{key} is I8: expected one of F32",
      "json": "config.json: no readable config of a model",
      "list": "config.json: expected an object",
    }[what]
    with self.assertRaisesRegex(UserError, message):
      models.load_pretrained(self.root)

  def test_no_folder(self):
    with self.assertRaisesRegex(UserError, "nowhere/config.json: no readable"):
      models.load_pretrained(self.root / "nowhere")
    (self.root / "config.json").write_text(json.dumps(self.config))
    with self.assertRaisesRegex(UserError, "model.safetensors: no such file"):
      models.load_pretrained(self.root)

  def test_a_decoder_that_its_family_cannot_describe(self):
    spec = config_json.read(self.config, "config.json")
    spec = dataclasses.replace(spec, logits_cap=3.0)
    model = nnx.eval_shape(lambda: Decoder(spec, Numerics(), rngs=nnx.Rngs(0)))
    with self.assertRaisesRegex(UserError, "'qwen2' has no keys .* logits_cap"):
      models.save_pretrained(model, self.root)

  @parameterized.parameters({}, {"window": 4}, {"qk_norm": True, "head_dim": 6})
  def test_students_from_scratch_can_be_saved(self, **options):
    student = functools.partial(
      models.create, "decoder", num_classes=9, input_shape=(2, 8), layers=1,
      width=8, heads=2,
    )  # fmt: skip
    model = student(rngs=nnx.Rngs(0), **options)
    models.save_pretrained(model, self.root)
    again = models.load_pretrained(self.root)
    self.assertEqual(again.spec, model.spec)
    jax.tree.map(
      np.testing.assert_array_equal, nnx.state(again), nnx.state(model)
    )


if __name__ == "__main__":
  absltest.main()
