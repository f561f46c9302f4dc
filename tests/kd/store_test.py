"""A signal comes back as it was, or is refused with its cause."""

import json
import os
import pathlib
import tempfile

import chex
import numpy as np
from absl.testing import absltest

from kd import signals, store
from kd.errors import UserError

FACTS = {"teacher": "abc", "rows": [0, 50], "signal": {"samples": 4}}


class StoreTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    parent = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = os.path.join(parent, "signal")
    rng = np.random.default_rng(0)
    self.signal = signals.make(
      rng.normal(size=(50, 7)).astype(np.float32),
      rng.integers(0, 7, 50),
      samples=4,
      temperature=2.0,
      seed=0,
    )
    store.write(self.folder, self.signal, FACTS)

  def test_the_same_bits(self):
    read = store.read(self.folder, FACTS)
    chex.assert_trees_all_equal(read, self.signal)

  def test_nothing_else_is_left_beside_it(self):
    self.assertEqual(os.listdir(os.path.dirname(self.folder)), ["signal"])

  def test_another_teacher(self):
    with self.assertRaisesRegex(
      UserError, "teacher = 'abc', this study expects 'xyz'"
    ):
      store.read(self.folder, {**FACTS, "teacher": "xyz"})

  def test_a_flipped_byte(self):
    path = pathlib.Path(self.folder, store.SHARD)
    content = bytearray(path.read_bytes())
    for where in range(100, len(content), 997):
      with self.subTest(where):
        flipped = content.copy()
        flipped[where] ^= 1
        path.write_bytes(flipped)
        try:
          read = store.read(self.folder, FACTS)
        except UserError as error:
          self.assertIn(self.folder, str(error))
        else:  # a byte of the file's padding
          chex.assert_trees_all_equal(read, self.signal)

  def test_a_missing_shard(self):
    os.remove(os.path.join(self.folder, store.SHARD))
    with self.assertRaisesRegex(UserError, "shards"):
      store.read(self.folder, FACTS)

  def test_a_damaged_description(self):
    path = pathlib.Path(self.folder, "metadata.json")
    path.write_text('{"schema": ')
    with self.assertRaisesRegex(UserError, "metadata.json: no readable"):
      store.read(self.folder, FACTS)

  def test_fewer_records_than_described(self):
    path = pathlib.Path(self.folder, "metadata.json")
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "examples": 51}))
    with self.assertRaisesRegex(UserError, "50 records .* says 51"):
      store.read(self.folder, FACTS)


class SampleTest(absltest.TestCase):
  def test_frequencies_approach_the_distribution(self):
    logits = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    made = signals.make(logits, None, samples=20_000, temperature=2.0, seed=1)
    expected = np.exp(logits / 2.0)
    expected /= expected.sum(-1, keepdims=True)
    for row in range(3):
      found = np.bincount(made.samples.ids[row], minlength=5) / 20_000
      np.testing.assert_allclose(found, expected[row], atol=0.015)
    picked = np.take_along_axis(
      np.log(expected), np.asarray(made.samples.ids), -1
    )
    np.testing.assert_allclose(made.samples.log_probs, picked, rtol=1e-4)
    self.assertTrue((np.asarray(made.truth.ids) == -1).all())

  def test_a_larger_pool_keeps_the_draws_of_a_smaller_one(self):
    logits = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    options = {"samples": 6, "temperature": 1.0, "seed": 3}
    large = signals.make(logits, None, **options)
    small = signals.make(logits[:4], None, **options)
    np.testing.assert_array_equal(large.samples.ids[:4], small.samples.ids)

  def test_top_k_is_exact(self):
    logits = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    top = signals.top_k(signals.Dense(logits), 3)
    np.testing.assert_array_equal(top.ids, np.argsort(-logits, -1)[:, :3])
    self.assertTrue((np.exp(top.log_probs).sum(-1) < 1).all())


if __name__ == "__main__":
  absltest.main()
