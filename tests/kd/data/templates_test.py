"""Checks that chat templates give transformers' texts, and whose words."""

import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from kd.data import templates, tokenizers
from kd.errors import UserError

HERE = pathlib.Path(__file__).parent
# What transformers renders; `source` says with what.
GOLDEN = json.loads((HERE / "templates.json").read_text())
SMOLLM2 = json.loads((HERE.parent / "models" / "smollm2.json").read_text())
CHATML = (
  "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [
  {"role": "user", "content": "2+2?"},
  {"role": "assistant", "content": "4"},
  {"role": "user", "content": "é?"},
  {"role": "assistant", "content": "É 🙂"},
]


def written(template, chat):
  """Returns the text that the tokens counted spell, and all of it."""
  tokenizer = tokenizers.of_bytes()
  ids, wrote = templates.encode_chat(template, tokenizer, chat)
  return tuple(tokenizer.decode(i, special=True) for i in (ids[wrote], ids))


class TemplatesTest(parameterized.TestCase):
  @parameterized.parameters(*GOLDEN["templates"])
  def test_text_is_that_of_transformers(self, name):
    golden = GOLDEN["templates"][name]
    template = templates.Template(
      golden["template"], name, {"bos_token": "<s>", "eos_token": "</s>"}
    )
    more = {"tools": GOLDEN["tools"]} if name == "json" else {}
    chat, spans = GOLDEN["messages"], golden["spans"]
    text = template.render(chat, prompt=spans is None, **more)
    self.assertEqual(text, golden["text"])
    if spans is not None:
      found, ours = template.spans(chat)
      self.assertEqual((found, ours), (text, [tuple(s) for s in spans]))

  def test_chats_of_smollm2(self):
    template = templates.Template(SMOLLM2["template"], "smollm2")
    for chat, prompt, text, _ in SMOLLM2["chats"]:
      self.assertEqual(template.render(chat, prompt=prompt), text)
    chat = SMOLLM2["chats"][2][0]
    self.assertEqual(written(template, chat)[0], "Hello!<|im_end|>\n")

  def test_counts_the_assistant_alone_up_to_its_stop(self):
    template = templates.Template(CHATML, "chat")
    answers, text = written(template, CHAT)
    self.assertEqual(answers, "4<|endoftext|>É 🙂<|endoftext|>")
    self.assertEqual(text, template.render(CHAT))

  def test_the_tag_says_what_counts(self):
    source = CHATML.replace(
      "{{ m.content }}",
      "{% if m.role == 'user' %}{{ m.content }}{% else %}"
      "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}",
    )
    self.assertEqual(written(templates.Template(source, ""), CHAT)[0], "4É 🙂")

  def test_a_prompt_has_no_completion(self):
    ids, wrote = templates.encode_chat(
      templates.Template(CHATML, ""), tokenizers.of_bytes(), CHAT[:1]
    )
    self.assertFalse(np.any(wrote))
    self.assertNotEmpty(ids)

  def test_history_that_is_rewritten(self):
    source = (
      "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}"
    )
    with self.assertRaisesRegex(
      UserError, "rewrites what stands before message"
    ):
      templates.Template(source, "m").spans(CHAT)

  @parameterized.parameters(
    ("{% for %}", "TemplateSyntaxError"),
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ messages[0].content + 1 }}", "TypeError"),
    ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ("{% set x = messages.append(1) %}", "SecurityError"),
    ("{{ range(10 ** 9) | list }}", "OverflowError"),
    ("{% include 'file' %}", "no loader"),
  )
  def test_what_fails_is_named(self, source, words):
    with self.assertRaisesRegex(UserError, f"^m/folder: the chat .*{words}"):
      templates.Template(source, "m/folder").render(list(CHAT))

  def test_a_tokenizer_without_one(self):
    with self.assertRaisesRegex(UserError, "bytes: no chat template"):
      templates.of(tokenizers.of_bytes())


if __name__ == "__main__":
  absltest.main()
