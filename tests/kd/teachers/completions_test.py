"""Answers as rows of completions: what is there, counts and is refused."""

import json
import os
import tempfile

import msgspec
import numpy as np
from absl.testing import absltest, parameterized

from kd.config import sections
from kd.data import token_task
from kd.errors import UserError
from kd.signals import Kind
from kd.teachers import completion_rows, completions

L = 24
TASK = [
  {"prompt": f"say {word} ", "completion": word}
  for word in ("one", "two", "three", "four", "five", "six")
]
ANSWERS = [
  {
    "id": "a",
    "prompt": "say one ",
    "samples": [
      {"text": "one", "logprob": -1.0, "score": 2.0, "rationale": "it is"},
      {"text": "one", "logprob": -1.0},
      {"text": "eins", "logprob": -3.0, "truncated": True},
    ],
    "rejected": ["two"],
    "reference": "one",
  },
  {"id": "b", "prompt": "new ", "samples": [{"text": "x"}]},
]


class CompletionsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.task = token_task.load(self.section())
    self.settings = {
      name: sections.fill(name, {}) for name in ("task", "signal", "teacher")
    }

  def path(self, name, rows):
    path = os.path.join(self.folder, name)
    with open(path, "w", encoding="utf-8") as f:
      f.writelines(json.dumps(row) + "\n" for row in rows)
    return path

  def section(self):
    own = {
      "name": "texts",
      "path": self.path("task.jsonl", TASK),
      "train": "train[:2]",
      "validation": "train[2:4]",
      "test": "train[4:]",
      "tokens": {"length": L, "pack": False},
    }
    return sections.fill("task", own)

  def obtain(self, rows):
    path = self.path("answers.jsonl", rows)
    self.settings["teacher"]["path"] = path
    os.makedirs(os.path.join(self.folder, "signals"), exist_ok=True)
    return completions.obtain(self.settings, self.task, self.folder, None)

  def held(self, part):
    return self.task.tokens.records[part][0].prompt

  def asked(self):
    """Returns ANSWERS with prompts that are not held out."""
    first = {**ANSWERS[0], "prompt": self.held("train")}
    return [first, ANSWERS[1]]

  def pool(self, reads=(), chain=(), **signal):
    section = {**self.settings["signal"], "samples": 3, **signal}
    box = self.obtain(self.asked())
    return completion_rows.pool(box, chain, section, reads)

  def text(self, pool, row, place):
    ids = pool.split.arrays()[0][row, place, 0]
    there = pool.split.arrays()[0][row, place, 1] > 0
    return self.task.tokens.tokenizer.decode(ids[there], special=True)

  def test_kinds_and_rows(self):
    pool = self.pool(
      ["rejected", "rationales"], labelled=True, rationale="why? "
    )
    of = pool.signal.completions
    self.assertEqual(pool.split.arrays()[0].shape, (2, 8, 2, L))
    first, second = np.asarray(of.kinds)
    kinds = [Kind.SAMPLE, Kind.REPEAT, Kind.SAMPLE, Kind.REJECTED]
    kinds += [Kind.RATIONALE, Kind.NONE, Kind.NONE, Kind.TRUTH]
    self.assertEqual(first.tolist(), kinds)
    self.assertEqual(second.tolist(), [Kind.SAMPLE] + 7 * [Kind.NONE])
    prompt, end = self.held("train"), "<|endoftext|>"
    said = [self.text(pool, 0, i) for i in (0, 2, 3, 4, 7)]
    wanted = [f"{prompt}one{end}", f"{prompt}eins", f"{prompt}two{end}"]
    wanted += [f"why? {prompt}it is{end}", f"{prompt}one{end}"]
    self.assertEqual(said, wanted)

  def test_what_counts(self):
    pool = self.pool(labelled=True)
    signal, of = pool.signal, pool.signal.completions
    tokens = np.asarray(of.tokens).reshape(2, 4, L)
    counts = (tokens >= 0).sum(-1)
    # The letters and the stop token; of one that was cut off, the letters.
    self.assertEqual(counts.tolist(), [[4, 4, 4, 4], [2, 0, 0, 0]])
    self.assertEqual(np.asarray(of.lengths).tolist(), counts.tolist())
    answer = np.asarray(signal.answer.ids).reshape(2, 4, L)
    truth = np.asarray(signal.truth.ids).reshape(2, 4, L)
    np.testing.assert_array_equal(answer[:, :3], tokens[:, :3])
    np.testing.assert_array_equal(truth[:, 3], tokens[:, 3])
    self.assertTrue((answer[:, 3] < 0).all() and (truth[:, :3] < 0).all())
    inputs = pool.split.arrays()[0]
    at = np.argwhere(tokens >= 0)
    np.testing.assert_array_equal(
      tokens[tuple(at.T)], inputs[at[:, 0], at[:, 1], 0, at[:, 2] + 1]
    )
    np.testing.assert_array_equal(
      np.asarray(of.scores)[0], np.float32([2, np.nan, np.nan, np.nan])
    )

  def test_filters_drop_samples_whose_price_is_kept(self):
    whole = self.pool()
    pool = self.pool(chain=({"name": "length", "low": 2, "high": 99},))
    self.assertEqual(pool.kept.tolist(), [True, False])
    self.assertEqual(pool.bought[1], 0)
    self.assertAlmostEqual(pool.bought.sum(), whole.bought.sum())
    prompt = len(self.held("train"))
    # One prompt, three completions, one rationale; two of them had ended.
    self.assertEqual(whole.bought[0], prompt + 3 + 3 + 4 + 5 + 2)

  def test_one_teacher_writes_for_all_arms(self):
    self.settings["teacher"].update(path=self.folder, black_box=True)
    for key, value, message in (
      ("calibrate", "uniform", "a teacher that writes leaves no logits"),
      ("temperature", 2.0, "expected signal.temperature = 1.0"),
      ("pool", "rest", "expected 'train'"),
    ):
      signal = {**self.settings["signal"], key: value}
      arm = {"objective": "sequence_kd", "signal": signal}
      with self.assertRaisesRegex(UserError, f"arms.a.signal.{key}.*{message}"):
        completions.check({**self.settings, "arms": {"a": arm}}, self.task)

  def test_held_out_prompts_teach_nobody(self):
    held = [
      {"id": part, "prompt": self.held(part), "samples": [{"text": part}]}
      for part in ("validation", "test")
    ]
    box = self.obtain([*self.asked(), *held])
    self.assertEqual([a.id for a in box.asked], ["a", "b"])
    self.assertEqual(box.test, ["test", None])

  @parameterized.parameters(
    ({"text": " "}, "say ", "line 2: .*empty completion"),
    ({"text": "x"}, "p" * L, "line 2: a prompt of 24 tokens"),
  )
  def test_refuses_a_line(self, sample, prompt, message):
    bad = {"id": "c", "prompt": prompt, "samples": [sample]}
    with self.assertRaisesRegex(UserError, f"answers.jsonl, {message}"):
      self.obtain([ANSWERS[1], bad])

  def test_long_completions_are_cut(self):
    long = msgspec.json.decode(json.dumps(ANSWERS[1]))
    long["samples"] = [{"text": "y" * 100}]
    box = self.obtain([long])
    section = {**self.settings["signal"], "samples": 1}
    pool = completion_rows.pool(box, (), section, ())
    self.assertEqual(self.text(pool, 0, 0), "new " + "y" * (L - 4))
    self.assertEqual(pool.cut, 1)

  def test_nothing_to_learn_from(self):
    with self.assertRaisesRegex(UserError, "signal.samples = 0"):
      self.pool(samples=0)


if __name__ == "__main__":
  absltest.main()
