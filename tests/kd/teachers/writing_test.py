"""Texts that a decoder writes: the ids it has, the batch it is in, its end."""

import dataclasses

import jax
import numpy as np
from absl.testing import absltest

from kd.data import tokenizers, vocabulary
from kd.data.task import Task, Tokens
from kd.models import functional
from kd.teachers.writing import OTHER, Writer

KIND = {"name": "decoder", "layers": 1, "width": 8, "heads": 2}


def task_of(subset=None):
  tokenizer = tokenizers.of_bytes()
  view = Tokens(tokenizer, subset, {}, {}, {})
  none = {part: None for part in ("train", "validation", "test")}
  return Task(
    name="t",
    version="",
    num_classes=view.num_classes,
    class_names=(),
    input_shape=(2, 16),
    scale=None,
    resident=True,
    slices=(),
    positions=16,
    tokens=view,
    **none,
  )


def writer_of(task):
  params, rest = functional.define(KIND, task.signature)[1](jax.random.key(0))
  return Writer(KIND, {"params": params, "rest": rest}, task)


class WriterTest(absltest.TestCase):
  def test_draws_do_not_depend_on_the_batch(self):
    writer = writer_of(task_of())
    encode = writer.task.tokens.tokenizer.encode
    prompts = encode(["abc", "d", "efgh"])
    keys = jax.random.split(jax.random.key(1), 3)
    options = dict(length=4, max_new_tokens=5, samples=2, temperature=1.0)
    whole = writer.write(prompts, batch=2, keys=keys, **options)
    last = writer.write(prompts[2:], batch=2, keys=keys[2:], **options)
    self.assertEqual([len(each) for each in whole], [2, 2, 2])
    self.assertEqual([w.text for w in whole[2]], [w.text for w in last[0]])
    for one, other in zip(whole[2], last[0], strict=True):
      self.assertAlmostEqual(one.logprob, other.logprob, places=4)
    self.assertLess(max(w.logprob for each in whole for w in each), 0)

  def test_ends_at_a_stop_token(self):
    writer = writer_of(task_of())
    (stop,) = writer.task.tokens.tokenizer.stops
    ids = np.array([104, 105, stop, 0])
    ended = writer._written(ids, 3, -1.0, (stop,))
    self.assertEqual(dataclasses.astuple(ended), ("hi", -1.0, False))
    cut = writer._written(ids[:2], 2, 1e-7, (stop,))
    self.assertEqual(dataclasses.astuple(cut), ("hi", 0.0, True))

  def test_ids_that_a_student_knows(self):
    tokenizer = tokenizers.of_bytes()
    few = np.array(sorted({*b"abc", *tokenizer.stops, tokenizer.pad}), np.int32)
    subset = vocabulary.Subset(few, tokenizer.vocab_size)
    task = task_of(subset)
    writer = writer_of(task)
    (prompt,) = tokenizer.encode(["abxc"])
    ids = writer.ids(prompt)
    self.assertEqual(ids[2], task.num_classes - 1)
    self.assertEqual(writer.text(ids), f"ab{OTHER}c")
    checkpoint = dataclasses.replace(writer, kind={"name": "checkpoint"})
    np.testing.assert_array_equal(checkpoint.ids(prompt), prompt)


if __name__ == "__main__":
  absltest.main()
