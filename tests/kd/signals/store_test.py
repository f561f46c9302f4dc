"""A signal comes back as it was, or is refused with its cause."""

import json
import os
import pathlib
import shutil
import tempfile

import chex
import grain
import jax
import numpy as np
import scipy
from absl.testing import absltest, parameterized

from kd import signals
from kd.errors import UserError
from kd.signals import codec, label, schema, store
from tests.kd import labelling


def made(plan):
  """Returns the signal that a plan asks for, without a store."""
  signal = signals.make(
    labelling.logits(np.arange(plan.count), classes=plan.num_classes),
    labelling.truth_of(classes=plan.num_classes),
    samples=plan.section["samples"],
    temperature=plan.section["temperature"],
    seed=plan.section["seed"],
  )
  return signal


class Folder(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.parent = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = os.path.join(self.parent, "signal")

  def write(self, **options):
    plan = labelling.plan(**options)
    label.label(self.folder, plan)
    return plan

  def metadata(self):
    path = pathlib.Path(self.folder, "metadata.json")
    return json.loads(path.read_text())


class ReadTest(Folder):
  def test_a_dense_signal(self):
    plan = self.write()
    read, expected = store.read(self.folder, plan.kept), made(plan)
    chex.assert_trees_all_equal(read.dense, expected.dense)
    chex.assert_trees_all_equal(read.truth, expected.truth)
    chex.assert_trees_all_equal(read.answer, expected.answer)
    chex.assert_trees_all_equal(read.samples.ids, expected.samples.ids)
    p = scipy.special.softmax(expected.dense.logits, axis=-1)
    entropy = scipy.stats.entropy(p, axis=-1)
    np.testing.assert_allclose(read.entropy, entropy, rtol=1e-5)
    chex.assert_trees_all_close(
      read.samples.log_probs, expected.samples.log_probs, atol=1e-6, rtol=1e-5
    )
    self.assertEqual(os.listdir(self.parent), ["signal"])
    self.assertLen(self.metadata()["shards"], 6)

  def test_no_truth_where_it_is_not_to_be_seen(self):
    plan = self.write(truth=False)
    read = store.read(self.folder, plan.kept)
    self.assertTrue((np.asarray(read.truth.ids) == -1).all())

  @parameterized.parameters(1, 8, 40)
  def test_a_top_k_signal_is_exact_at_each_temperature(self, k):
    plan = self.write(keep="top_k", k=k, temperatures=(1.0, 4.0), samples=0)
    read = store.read(self.folder, plan.kept)
    top = read.dense
    z = np.float64(labelling.logits(np.arange(plan.count)))
    expected_ids = np.sort(np.argsort(-z, axis=-1)[:, :k], axis=-1)
    np.testing.assert_array_equal(top.ids, expected_ids)
    entropy = scipy.stats.entropy(scipy.special.softmax(z, axis=-1), axis=-1)
    np.testing.assert_allclose(read.entropy, entropy, rtol=1e-5)
    np.testing.assert_array_equal(top.answer, z.argmax(-1))
    z -= z.max(-1, keepdims=True)
    for m, t in enumerate((1.0, 4.0)):
      lse = np.log(np.exp(z / t).sum(-1))
      log_p = z / t - lse[:, None]
      inside = np.take_along_axis(log_p, expected_ids, -1)
      tail = 1 - np.exp(inside).sum(-1)
      np.testing.assert_allclose(top.lse[:, m], lse, rtol=1e-6, atol=1e-6)
      np.testing.assert_allclose(top.tail[:, m], tail, atol=1e-6)
      np.testing.assert_allclose(
        top.log_probs_at(t), inside, rtol=1e-5, atol=1e-6
      )

  def test_a_row_at_random_through_grain(self):
    plan = self.write(keep="top_k", dtype="bfloat16")
    opened = store.Store(self.folder, plan.kept)
    whole = opened.arrays()
    self.assertLen(opened, plan.count)
    shuffled = grain.MapDataset.source(opened).shuffle(seed=0)
    rows = [shuffled[i] for i in range(40)]
    keys = {int(k): i for i, k in enumerate(whole[schema.KEY])}
    for row in rows:
      at = keys[int(row[schema.KEY])]
      chex.assert_trees_all_equal(row, {k: x[at] for k, x in whole.items()})
    self.assertGreater(len({int(row[schema.KEY]) for row in rows}), 30)
    with self.assertRaises(IndexError):
      opened[plan.count]

  def test_more_than_is_asked_for(self):
    self.write(keep="top_k", k=16, samples=8, temperatures=(1.0, 2.0))
    asked = labelling.plan(keep="top_k", k=8, samples=4, temperatures=(2.0,))
    read = store.read(self.folder, asked.kept)
    self.assertEqual(read.dense.ids.shape[1], 16)
    narrow = read.dense.narrow(8)
    exact = signals.top_k(made(asked).dense, 8, (1.0, 2.0))
    np.testing.assert_array_equal(narrow.ids, exact.ids)
    np.testing.assert_allclose(narrow.tail, exact.tail, atol=1e-5)
    for t in (1.0, 2.0):
      np.testing.assert_allclose(
        narrow.log_probs_at(t), exact.log_probs_at(t), atol=1e-5
      )


class RefusalTest(Folder):
  """Each damage and each mismatch is refused, and its cause named."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.plan = labelling.plan(keep="top_k")
    rows = np.arange(cls.plan.count)
    cls.own = store.Keys(rows, store.keys(cls.plan.inputs(rows)))
    parent = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.whole = os.path.join(parent, "signal")
    label.label(cls.whole, cls.plan)

  def setUp(self):
    super().setUp()
    shutil.copytree(self.whole, self.folder)

  def refuse(self, words, plan=None, own=None):
    with self.assertRaisesRegex(UserError, words):
      store.read(self.folder, (plan or self.plan).kept, own)

  def test_the_right_one_is_read(self):
    store.read(self.folder, self.plan.kept, self.own)

  @parameterized.named_parameters(
    ("teacher", {"facts": {**labelling.FACTS, "teacher": "xyz"}},
     "teacher = 'abc', this study expects 'xyz'"),
    ("task", {"facts": {**labelling.FACTS, "task": "xyz"}}, "task = 'def'"),
    ("pool", {"facts": {**labelling.FACTS, "rows": [9, 700]}}, "rows = "),
    ("vocabulary", {"classes": 41}, "num_classes = 40, .* expects 41"),
    ("temperatures", {"temperatures": (1.0, 3.0)},
     r"signal.temperatures = \[1.0\], .* expects \[1.0, 3.0\]"),
    ("drawn at", {"temperature": 2.0}, "signal.temperature = 1.0, .* 2.0"),
    ("k", {"k": 9}, "signal.k = 8, this study expects 9"),
    ("kept", {"keep": "dense"}, "signal.keep = 'top_k', .* 'dense'"),
    ("dtype", {"dtype": "int8"}, "signal.dtype = 'float32', .* 'int8'"),
    ("seed", {"seed": 3}, "signal.seed = 0, .* 3"),
    ("count", {"count": 699}, "examples = 700, .* 699"),
  )  # fmt: skip
  def test_made_otherwise(self, options, words):
    self.refuse(words, labelling.plan(**{"keep": "top_k", **options}))

  def change(self, **values):
    path = pathlib.Path(self.folder, "metadata.json")
    path.write_text(json.dumps({**self.metadata(), **values}))

  def test_another_augmentation(self):
    self.change(augmentation={"jitter": 2, "seed": 0})
    self.refuse("augmentation.jitter = 2, this study expects 0")

  def test_another_version(self):
    self.change(format=1)
    self.refuse(f"format = 1, this version reads {store.FORMAT}")

  def test_a_damaged_description(self):
    pathlib.Path(self.folder, "metadata.json").write_text('{"schema": ')
    self.refuse("metadata.json: no readable")

  def test_no_store(self):
    shutil.rmtree(self.folder)
    self.refuse("metadata.json: no readable signal")

  def test_a_missing_shard(self):
    name = self.metadata()["shards"][2]["name"]
    os.remove(os.path.join(self.folder, name))
    self.refuse(f"{name}: the shard is missing")

  def test_any_flipped_byte(self):
    name = self.metadata()["shards"][1]["name"]
    path = pathlib.Path(self.folder, name)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for where in [0, len(content) - 1, *rng.integers(0, len(content), 40)]:
      with self.subTest(where):
        flipped = bytearray(content)
        flipped[where] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        self.refuse(f"{name}: damaged")

  def test_a_shard_cut_short(self):
    name = self.metadata()["shards"][-1]["name"]
    path = pathlib.Path(self.folder, name)
    path.write_bytes(path.read_bytes()[:-1])
    self.refuse(f"{name}: damaged")

  def test_two_shards_exchanged(self):
    first, second = self.metadata()["shards"][:2]
    self.change(shards=[second, first, *self.metadata()["shards"][2:]])
    self.refuse("row 0 is of another .* in another order", own=self.own)

  def test_another_order(self):
    keys = self.own.keys.copy()
    keys[[5, 9]] = keys[[9, 5]]
    own = store.Keys(self.own.rows, keys)
    self.refuse("row 5 is of another .* in another order.* 2 of 700", own=own)

  def test_other_data(self):
    own = store.Keys(np.arange(3), store.keys(np.ones((3, 6), np.float32)))
    self.refuse(r"row 0 is of another .*\(other data\)", own=own)


class CodecTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 1), (1, 9), (5, 5), (8, 1000), (128, 129), (128, 32000), (3, 2**24)
  )
  def test_ids_come_back(self, k, bound):
    rng = np.random.default_rng(k)
    rows = [np.sort(rng.choice(bound, k, replace=False)) for _ in range(20)]
    rows += [np.arange(k), np.arange(bound - k, bound)]
    ids = np.asarray(rows, np.int32)
    field = codec.Field("ids", "ids", (k,), "int32", bound)
    packed = field.pack(ids)
    self.assertEqual(packed.shape, (len(ids), field.width))
    np.testing.assert_array_equal(field.unpack(packed), ids)
    per_id = 8 * field.width / k
    self.assertLessEqual(per_id, np.log2(bound / k) + 2 + 16 / k)

  @parameterized.parameters([[3, 2]], [[2, 2]], [[0, 9]], [[-1, 2]])
  def test_ids_that_have_no_code(self, ids):
    field = codec.Field("ids", "ids", (2,), "int32", 9)
    with self.assertRaises(ValueError):
      field.pack(np.asarray([ids], np.int32))

  @parameterized.parameters(1, 63, 64, 65, 1000)
  def test_blocks_of_8_bits(self, size):
    rows = np.random.default_rng(0).normal(size=(9, size)).astype(np.float32)
    rows[:, -1] *= 100
    rows[0] = 3.5
    field = codec.Field("x", "int8", (size,), "float32")
    packed = field.pack(rows)
    self.assertEqual(packed.shape, (9, field.width))
    found = field.unpack(packed)
    for first in range(0, size, codec.BLOCK):
      block = rows[:, first : first + codec.BLOCK]
      step = np.ptp(block, axis=1, keepdims=True) / 255
      error = np.abs(found[:, first : first + codec.BLOCK] - block)
      self.assertTrue((error <= 0.501 * step + 1e-6).all())
    np.testing.assert_array_equal(found[0], 3.5)

  @parameterized.parameters(32_000, 151_936, 262_144)
  def test_a_token_takes_400_bytes_at_most(self, bound):
    section = {
      **labelling.plan().section,
      "keep": "top_k",
      "k": 128,
      "dtype": "int8",
      "samples": 0,
      "temperatures": (1.0, 2.0, 4.0),
    }
    fields = schema.fields(section, bound)
    rng = np.random.default_rng(0)
    rows = 4096
    ids = rng.integers(0, bound - 128, (rows, 128))
    ids = (np.sort(ids, axis=-1) + np.arange(128)).astype(np.int32)
    arrays = {
      f.name: rng.integers(0, 9, (rows, *f.shape)).astype(f.dtype)
      for f in fields
    } | {"ids": ids}
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, "shard")
      about = store.write_shard(path, fields, [arrays])
      self.assertEqual(os.path.getsize(path), about["bytes"])
    # The file format rounds a file up to 64 KiB, 16 bytes a row here.
    self.assertLessEqual(about["bytes"] - 2**16, 400 * rows)
    self.assertLessEqual(schema.row_bytes(section, bound), 400)


class ErrorTest(Folder):
  @parameterized.parameters(
    ("dense", "float32", 0.0, 0.0),
    ("dense", "bfloat16", 1e-4, 0.05),
    ("dense", "int8", 1e-3, 0.1),
    ("top_k", "bfloat16", 1e-4, 0.05),
    ("top_k", "int8", 1e-4, 0.05),
  )
  def test_what_fewer_bits_lose_is_measured(self, keep, dtype, mean, most):
    plan = self.write(keep=keep, dtype=dtype, temperatures=(1.0, 2.0))
    said = self.metadata()["error"]
    self.assertEqual(said["examples"], plan.count)
    dense = store.read(self.folder, plan.kept).dense
    z = np.float64(labelling.logits(np.arange(plan.count)))
    for t in (1.0, 2.0):
      log_p = z / t - np.log(np.exp(z / t).sum(-1, keepdims=True))
      if keep == "top_k":
        log_p = np.take_along_axis(log_p, np.asarray(dense.ids), -1)
        found = dense.log_probs_at(t)
      else:
        found = jax.nn.log_softmax(dense.logits / t)
      kl = (np.exp(log_p) * (log_p - np.float64(found))).sum(-1)
      note = said[f"T={t:g}"]
      self.assertAlmostEqual(note["mean_kl"], kl.mean(), delta=1e-6)
      self.assertAlmostEqual(note["max_kl"], kl.max(), delta=1e-5)
      error = np.abs(log_p - found).max()
      self.assertAlmostEqual(note["max_log_prob"], error, delta=1e-5)
      self.assertLessEqual(note["mean_kl"], mean)
      self.assertLessEqual(note["max_log_prob"], most)


if __name__ == "__main__":
  absltest.main()
