"""Checks of tokenizers."""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from kd.data import tokenizers
from kd.errors import UserError

TRICKY = ["", "é!\x00\x7f", "  two \n\n", "日本語🙂", "x = 123", "\ufeff\u200b"]
CORPUS = [
  f"the {word} of the {word}s, {i}" for i in range(40) for word in "abc"
]
TRAIN = """
from kd.data import tokenizers
corpus = [f"the {w} of the {w}s, {i}" for i in range(40) for w in "abc"]
print(tokenizers.train_bpe(corpus, 265).fingerprint)
"""


class TokenizerTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("bytes", tokenizers.of_bytes, 257),
    ("bpe", lambda: tokenizers.train_bpe(CORPUS, 265), 265),
  )
  def test_texts_return_from_ids(self, make, size):
    tokenizer = make()
    self.assertEqual(tokenizer.vocab_size, size)
    self.assertEqual((tokenizer.eos, tokenizer.stops), (size - 1, (size - 1,)))
    for text, ids in zip(TRICKY, tokenizer.encode(TRICKY), strict=True):
      self.assertEqual(ids.dtype, np.int32)
      self.assertEqual(tokenizer.decode(ids), text)
    whole = tokenizer.document(ids)
    self.assertEqual(whole[-1], tokenizer.eos)
    self.assertEqual(tokenizer.decode(whole), TRICKY[-1])
    self.assertEndsWith(tokenizer.decode(whole, special=True), tokenizers.END)

  def test_bytes_are_their_own_ids(self):
    everything = "".join(map(chr, range(0x500)))
    (ids,) = tokenizers.of_bytes().encode([everything])
    self.assertEqual(bytes(ids.tolist()), everything.encode())

  def test_offsets_are_of_characters(self):
    ids, offsets = tokenizers.of_bytes().encode_with_offsets("aé🙂")
    self.assertLen(ids, 7)
    self.assertEqual(offsets.tolist(), [[0, 1], *[[1, 2]] * 2, *[[2, 3]] * 4])

  def test_bpe_is_the_same_in_every_process(self):
    here = tokenizers.train_bpe(CORPUS, 265).fingerprint
    for seed in "12":
      there = subprocess.run(
        [sys.executable, "-c", TRAIN],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
      )
      self.assertEqual(there.stdout.strip(), here)

  def test_bpe_of_a_size_that_the_corpus_has_not(self):
    for size, words in ((256, "at least 257"), (5000, "expected at most")):
      with self.assertRaisesRegex(UserError, words):
        tokenizers.train_bpe(CORPUS, size)

  def test_fingerprint_is_of_the_content(self):
    prints = [
      tokenizers.train_bpe(CORPUS, 265).fingerprint,
      tokenizers.train_bpe(CORPUS, 266).fingerprint,
      tokenizers.of_bytes().fingerprint,
    ]
    self.assertLen(set(prints), 3)
    self.assertEqual(prints[2], tokenizers.of_bytes().fingerprint)


class FolderTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    backend = tokenizers.of_bytes().backend
    backend.add_special_tokens(["<s>", "<pad>", "<turn>"])
    backend.enable_truncation(3)
    backend.save(os.path.join(self.folder, "tokenizer.json"))

  def write(self, name, value):
    with open(os.path.join(self.folder, name), "w") as f:
      f.write(value if isinstance(value, str) else json.dumps(value))

  def test_special_ids_are_read_from_its_files(self):
    self.write(
      "tokenizer_config.json",
      {
        "bos_token": {"content": "<s>"},
        "eos_token": tokenizers.END,
        "pad_token": None,
        "chat_template": [{"name": "default", "template": "old"}],
      },
    )
    found = tokenizers.load(self.folder)
    self.assertEqual((found.bos, found.eos, found.pad), (257, 256, 256))
    self.assertEqual((found.stops, found.add_bos), ((256,), False))
    self.assertEqual(found.chat_template, "old")
    self.assertEndsWith(found.template_path, "tokenizer_config.json")
    self.assertLen(found.encode(["12345"])[0], 5)
    self.write("generation_config.json", {"eos_token_id": [259, 256]})
    self.write("chat_template.jinja", "new")
    found = tokenizers.load(self.folder)
    self.assertEqual((found.eos, found.stops), (256, (256, 259)))
    self.assertEqual(found.chat_template, "new")
    self.assertEndsWith(found.template_path, "chat_template.jinja")
    found.save(self.folder)
    again = tokenizers.load(self.folder)
    for name in ("fingerprint", "stops", "bos", "pad", "chat_template"):
      self.assertEqual(getattr(again, name), getattr(found, name), name)

  def test_bos_where_the_post_processor_adds_it(self):
    from tokenizers.processors import TemplateProcessing

    backend = tokenizers.of_bytes().backend
    backend.post_processor = TemplateProcessing(
      single=f"{tokenizers.END} $A", special_tokens=[(tokenizers.END, 256)]
    )
    backend.save(os.path.join(self.folder, "tokenizer.json"))
    ends = dict.fromkeys(("bos_token", "eos_token"), tokenizers.END)
    self.write("tokenizer_config.json", ends)
    found = tokenizers.load(self.folder)
    self.assertTrue(found.add_bos)
    ids = found.document(found.encode(["a"])[0])
    self.assertEqual(ids.tolist(), [256, 97, 256])

  def test_files_that_are_wrong(self):
    with self.assertRaisesRegex(
      UserError, r"tokenizer_config.json: no readable"
    ):
      tokenizers.load(self.folder)
    self.write("tokenizer_config.json", {"eos_token": "<eos>"})
    with self.assertRaisesRegex(UserError, "'<eos>', which is not in the voc"):
      tokenizers.load(self.folder)
    self.write("tokenizer_config.json", {})
    with self.assertRaisesRegex(UserError, "no EOS; expected"):
      tokenizers.load(self.folder)
    self.write("tokenizer.json", '{"version": "1.0"')
    with self.assertRaisesRegex(UserError, "no readable tokenizer"):
      tokenizers.load(self.folder)


if __name__ == "__main__":
  absltest.main()
