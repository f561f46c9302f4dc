"""Checks of where texts come from, and of what of them counts."""

import json
import os
import tempfile

import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized
from pyarrow import parquet

from kd.data import documents, templates, tokenizers
from kd.data.documents import Record
from kd.errors import UserError

TEMPLATE = templates.Template(
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}",
  "folder",
)
LINES = [
  {"text": "plain é", "id": 3},
  {"prompt": "2+2=", "completion": "4"},
  {"messages": [{"role": "user", "content": "hi", "name": "x"}]},
]
TASK = {"seed": 0, "train": "train[:60%]", "validation": "train[60%:80%]"}
TASK |= {"test": "train[80%:]"}


class SourcesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def write(self, name, text):
    path = os.path.join(self.folder, name)
    with open(path, "w", encoding="utf-8") as f:
      f.write(text)
    return path

  def test_files_by_name(self):
    self.write("b.txt", "second\n\nlast")
    self.write("a.txt", "first\n")
    pattern = os.path.join(self.folder, "*.txt")
    found = documents.of_files(pattern)
    self.assertEqual([r.text for r in found], ["first\n", "second\n\nlast"])
    found = documents.of_files(pattern, unit="line")
    self.assertEqual([r.text for r in found], ["first", "second", "last"])
    self.assertEndsWith(found[2].where, "b.txt:3")
    with self.assertRaisesRegex(UserError, "none.txt: no text"):
      documents.of_files(os.path.join(self.folder, "none.txt"))
    with open(os.path.join(self.folder, "c.txt"), "wb") as f:
      f.write(b"\xff")
    with self.assertRaisesRegex(UserError, "c.txt: cannot be read as text"):
      documents.of_files(pattern)

  @parameterized.parameters("jsonl", "parquet")
  def test_lines_of_three_kinds(self, ending):
    if ending == "jsonl":
      path = self.write("x.jsonl", "\n".join(map(json.dumps, LINES)))
    else:
      path = os.path.join(self.folder, "x.parquet")
      keys = {key for line in LINES for key in line}
      rows = [{key: line.get(key) for key in keys} for line in LINES]
      parquet.write_table(pa.Table.from_pylist(rows), path)
    text, pair, chat = documents.of_lines(path)
    self.assertEqual(text, Record(text="plain é", where=f"{path}:1"))
    self.assertEqual((pair.prompt, pair.completion), ("2+2=", "4"))
    self.assertEqual(chat.messages, LINES[2]["messages"])

  @parameterized.parameters(
    ({"text": "a", "prompt": "b", "completion": "c"}, "holds text and prompt"),
    ({"prompt": "b"}, "holds prompt of"),
    ({"id": 1}, "holds none of text"),
    ({"prompt": "b", "completion": " \n"}, "an empty completion"),
    ({"messages": []}, "messages without a role"),
    ({"messages": [{"content": "x"}]}, "messages without a role"),
    ({"text": 3}, "schema: Expected `str"),
  )
  def test_lines_that_are_wrong(self, line, words):
    path = self.write("x.jsonl", '{"text": "fine"}\n' + json.dumps(line))
    with self.assertRaisesRegex(UserError, f"x.jsonl:2: {words}"):
      documents.of_lines(path)


class EncodeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.tokenizer = tokenizers.of_bytes()

  def spell(self, document):
    """Returns a document as text, and what of it counts."""
    ids, counts, _ = document
    return tuple(
      self.tokenizer.decode(i, special=True) for i in (ids, ids[counts])
    )

  def test_what_counts(self):
    records = [Record(text="plain é"), Record(prompt="2+2=", completion="4")]
    text, pair = documents.encode(records, self.tokenizer)
    end = tokenizers.END
    self.assertEqual(self.spell(text), ("plain é" + end, "plain é" + end))
    self.assertEqual(self.spell(pair), ("2+2=4" + end, "4" + end))
    (prompt,) = documents.encode_prompts(records[1:], self.tokenizer)
    np.testing.assert_array_equal(pair.ids[~pair.counts], prompt)

  def test_a_pair_is_a_chat_where_there_is_a_template(self):
    chat = [
      {"role": "user", "content": "a"},
      {"role": "assistant", "content": "b"},
    ]
    records = [
      Record(prompt="a", completion="b"),
      Record(text="c"),
      Record(messages=chat),
    ]
    pair, text, chat = documents.encode(records, self.tokenizer, TEMPLATE)
    self.assertEqual(self.spell(pair), ("<user>a<assistant>b", "b"))
    self.assertEqual(self.spell(pair), self.spell(chat))
    self.assertEqual(self.spell(text)[0], "c" + tokenizers.END)
    for found in documents.encode_prompts(
      [records[0], records[2]], self.tokenizer, TEMPLATE
    ):
      self.assertEqual(self.tokenizer.decode(found), "<user>a<assistant>")

  def test_what_cannot_be_encoded_is_named(self):
    chat = Record(messages=LINES[2]["messages"], where="f:2")
    with self.assertRaisesRegex(UserError, "^f:2: .*has no chat template"):
      documents.encode([chat], self.tokenizer)
    failing = templates.Template("{{ raise_exception('no') }}", "folder")
    with self.assertRaisesRegex(UserError, "^f:2: folder: .*fails.*no"):
      documents.encode([chat], self.tokenizer, failing)
    with self.assertRaisesRegex(UserError, "f:3: a text; expected a prompt"):
      documents.encode_prompts([Record(text="a", where="f:3")], self.tokenizer)

  def test_splits_are_by_record(self):
    records = [Record(text=str(i), where=f"docs {i}") for i in range(50)]
    parts = documents.split(TASK, records)
    self.assertEqual([len(parts[p]) for p in parts], [30, 10, 10])
    together = [r.text for part in parts.values() for r in part]
    self.assertCountEqual(together, [r.text for r in records])
    self.assertNotEqual(together, [r.text for r in records])
    self.assertEqual(documents.split(TASK, records), parts)
    self.assertNotEqual(documents.split(TASK | {"seed": 1}, records), parts)


if __name__ == "__main__":
  absltest.main()
