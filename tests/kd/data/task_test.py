"""Tasks: splits, reading, residency, other data sets, and mistakes."""

import collections
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import chex
import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from kd.data import inputs
from kd.data import task as tasks
from kd.data.order import positions, stream
from kd.data.registry import load
from kd.data.task import Split, Task
from kd.data.tfds_task import TfdsSplit
from kd.errors import UserError

ROOT = str(Path(__file__).resolve().parents[3])
SLICES = dict(
  train="train[:60%]", validation="train[60%:80%]", test="train[80%:]"
)
OFFICIAL = dict(
  train="train[:60%]", validation="train[60%:]", test="test[:50%]"
)
FOLDER = ""  # of the prepared data, shared by the tests


def setUpModule():
  global FOLDER
  FOLDER = tempfile.mkdtemp()
  task()


def tearDownModule():
  shutil.rmtree(FOLDER)


def folder_for(test: absltest.TestCase) -> str:
  """A folder that goes with the test; absl's own needs parsed flags."""
  return test.enter_context(tempfile.TemporaryDirectory())


def task(name="digits", **changes) -> Task:
  return load(dict(SLICES, name=name, data_dir=FOLDER) | changes)


def rows_of(split: Split) -> list[tuple[int, bytes]]:
  inputs, labels = split.arrays()
  return [(int(y), x.tobytes()) for x, y in zip(inputs, labels, strict=True)]


class LoadTest(parameterized.TestCase):
  def test_digits(self):
    digits = load(ConfigDict(dict(SLICES, name="digits", data_dir=FOLDER)))
    self.assertEqual(digits.name, "digits")
    self.assertEqual(digits.num_classes, 10)
    self.assertEqual(digits.class_names, tuple("0123456789"))
    self.assertEqual(digits.input_shape, (8, 8, 1))
    self.assertEqual(digits.scale, 1 / 255)
    self.assertIs(digits.resident, True)
    splits = (digits.train, digits.validation, digits.test)
    self.assertEqual([len(split) for split in splits], [1078, 360, 359])
    for split in splits:
      inputs, labels = split.arrays()
      chex.assert_shape(inputs, (len(split), 8, 8, 1))
      chex.assert_type([inputs, labels], [np.uint8, np.int32])
      self.assertIs(inputs, split.arrays()[0])
      self.assertFalse(inputs.flags.writeable or labels.flags.writeable)

  def test_splits_are_disjoint_and_complete(self):
    digits, whole = task(), task(train="train[:-2]", **_last_two())
    self.assertEqual(
      collections.Counter(
        itertools.chain(*map(rows_of, (digits.train, digits.validation)))
      )
      + collections.Counter(rows_of(digits.test)),
      collections.Counter(rows_of(whole.train))
      + collections.Counter(rows_of(whole.validation) + rows_of(whole.test)),
    )

  def test_shuffles_before_slicing(self):
    # The package's order is by digit: an unshuffled slice would hold six.
    subset = task("mnist_subset")
    counts = np.bincount(subset.train.labels(), minlength=10)
    self.assertGreater(counts.min(), 250)
    self.assertEqual(counts.sum(), 3000)

  def test_a_feature_says_what_belongs_together(self):
    made = task(group="label")
    np.testing.assert_array_equal(made.test_groups, made.test.labels())
    self.assertIsNone(task().test_groups)

  def test_seed_decides_the_shuffle(self):
    first, again, other = task(), task(), task(seed=1)
    np.testing.assert_array_equal(first.train.labels(), again.train.labels())
    self.assertNotEqual(
      first.train.labels().tolist(), other.train.labels().tolist()
    )

  def test_slices_may_be_joined(self):
    joined = task(train="train[:10]+train[90%:]", test="train[20:30]")
    apart = task(train="train[:10]", validation="train[90%:]", **_test())
    self.assertEqual(
      rows_of(joined.train), rows_of(apart.train) + rows_of(apart.validation)
    )

  @parameterized.parameters(
    ("auto", 1.0, True), ("auto", 0.1, False), (True, 0.1, True),
    (False, 1.0, False),
  )  # fmt: skip
  def test_residency(self, resident, limit, expected):
    # 1,797 images of 64 bytes are 0.11 MiB.
    with self.assertLogs("absl", "INFO") as logs:
      got = task(resident=resident, resident_mib=limit).resident
    self.assertIs(got, expected)
    self.assertRegex(
      "\n".join(logs.output), rf"1078 \+ 360 \+ 359 .*0\.1 MiB.*= {expected}"
    )

  def test_fingerprint(self):
    prints = {
      "same": task().fingerprint,
      "again": task().fingerprint,
      "streamed": task(resident=False).fingerprint,
    }
    cached = task()
    cached.train.arrays()
    prints["cached"] = cached.fingerprint
    self.assertLen(set(prints.values()), 1, prints)
    others = {
      prints["same"],
      task(seed=1).fingerprint,
      task(test="train[80%:99%]").fingerprint,
      task(image_size=4).fingerprint,
      task("mnist_subset").fingerprint,
    }
    self.assertLen(others, 5)

  def test_the_fingerprint_holds_a_chunk_of_inputs_at_most(self):
    streamed, most = task(resident=False), []
    expected = streamed.fingerprint
    load_rows = Split._load

    def counted(split, chunk):
      most.append(len(chunk))
      return load_rows(split, chunk)

    with (
      mock.patch.object(tasks, "CHUNK", 100),
      mock.patch.object(Split, "_load", counted),
    ):
      found = task(resident=False).fingerprint
    self.assertEqual((max(most), sum(most)), (100, 1024 + 360 + 359))
    self.assertEqual(found, expected)

  def test_processes_may_prepare_at_once(self):
    folder = folder_for(self)
    code = (
      "from kd.data.registry import load;"
      f"task = dict({SLICES!r}, name='digits', data_dir={folder!r});"
      "print('print', load(task).fingerprint)"
    )
    processes = [
      subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env=dict(os.environ, PYTHONPATH=ROOT, PYTHONHASHSEED=str(seed)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for seed in (1, 2)
    ]
    for process in processes:
      out, err = process.communicate(timeout=60)
      self.assertEqual(process.returncode, 0, err)
      self.assertIn(f"print {task().fingerprint}", out)
    self.assertEqual(os.listdir(os.path.join(folder, "digits")), ["1.0.0"])

  def test_takes_the_data_of_a_faster_process(self):
    folder = folder_for(self)
    prepare = tfds.core.DatasetBuilder.download_and_prepare

    def slower(builder, **options):
      prepare(tfds.builder("digits", data_dir=folder), **options)
      with mock.patch.object(
        type(builder.data_path), "exists", return_value=False
      ):
        prepare(builder, **options)

    with mock.patch.object(
      tfds.core.DatasetBuilder, "download_and_prepare", slower
    ):
      digits = task(data_dir=folder)
    self.assertLen(digits.train, 1078)


def _last_two():
  return dict(validation="train[-2:-1]", test="train[-1:]")


def _test():
  return dict(test="train[20:30]")


class ReadTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_read_equals_arrays(self, cached):
    split, other = task().train, task().train
    inputs, labels = other.arrays()
    if cached:
      split.arrays()
    rows = np.random.default_rng(0).integers(0, len(split), (2, 3, 50))
    got = split.read(rows)
    chex.assert_shape(got, (2, 3, 50, 8, 8, 1))
    np.testing.assert_array_equal(got, inputs[rows])
    np.testing.assert_array_equal(split.read(np.array(7)), inputs[7])
    self.assertEqual(split.read(np.zeros((0, 4), int)).shape, (0, 4, 8, 8, 1))
    np.testing.assert_array_equal(split.labels(), labels)

  @parameterized.parameters(-1, 1078)
  def test_refuses_positions_outside(self, position):
    with self.assertRaisesRegex(IndexError, "of a split of 1078"):
      task().train.read(np.array([0, position]))

  def test_large_splits_are_decoded_by_threads(self):
    with mock.patch.object(tasks, "PARALLEL", 100):
      inputs, labels = task().train.arrays()
    expected_inputs, expected_labels = task().train.arrays()
    np.testing.assert_array_equal(inputs, expected_inputs)
    np.testing.assert_array_equal(labels, expected_labels)

  def test_streaming_equals_residency_and_resumes(self):
    split = task().train
    inputs = task().train.arrays()[0]
    steps, seeds, batch = 5, (0, 1, 2), 300  # 5 x 300 passes an epoch's end

    def rows(interval):
      span = interval * steps, (interval + 1) * steps
      return np.stack(
        [positions(s, len(split), batch, *span) for s in seeds], axis=1
      )

    whole = list(stream(split.read, rows, stop=4))
    for interval, got in enumerate(whole):
      chex.assert_shape(got, (steps, len(seeds), batch, 8, 8, 1))
      np.testing.assert_array_equal(got, inputs[rows(interval)])
    resumed = list(stream(split.read, rows, start=2, stop=4))
    chex.assert_trees_all_equal(resumed, whole[2:])

  def test_refuses_missing_labels(self):
    record = dict(image=np.zeros((2, 2, 1), np.uint8), label=-1)
    source = types.SimpleNamespace(
      data_source=[record],
      dataset_info=types.SimpleNamespace(
        features=types.SimpleNamespace(
          deserialize_example_np=lambda record, decoders: record
        )
      ),
    )
    form = inputs.Form("image", "label", (2, 2, 1), np.uint8, 1.0, np.stack)
    row = np.zeros(1, np.int32)
    split = TfdsSplit([source], row, row, form, "task.test = 'test'")
    for read in (split.labels, split.arrays):
      with self.assertRaisesRegex(UserError, "task.test = 'test': 1 of 1"):
        read()


class OtherDataSetsTest(parameterized.TestCase):
  """Real data sets' features, with TFDS's made-up examples."""

  @parameterized.parameters(
    ("mnist", (28, 28, 1), np.uint8, 10, {}),
    ("cifar100", (32, 32, 3), np.uint8, 100, {}),
    ("cifar10:3.*.*", (32, 32, 3), np.uint8, 10, {}),
    ("cats_vs_dogs", (24, 24, 3), np.uint8, 2, dict(image_size=24)),
    ("imdb_reviews", (512,), np.float32, 2, dict(text_features=512)),
    ("imdb_reviews/plain_text", (4096,), np.float32, 2, {}),
    ("penguins/processed", (4,), np.float32, 3, {}),
  )
  def test_shapes(self, name, shape, dtype, classes, options):
    with tfds.testing.mock_data(num_examples=20):
      found = task(name, **OFFICIAL, **options)
      sizes = [len(s) for s in (found.train, found.validation, found.test)]
      self.assertEqual(sizes, [12, 8, 10])
      inputs, labels = found.train.arrays()
      streamed = found.train.read(np.arange(12).reshape(3, 4))
    self.assertEqual(found.num_classes, classes)
    self.assertLen(found.class_names, classes)
    self.assertEqual(found.input_shape, shape)
    self.assertEqual(found.scale, 1 / 255 if dtype == np.uint8 else 1.0)
    chex.assert_shape([inputs, labels], [(12, *shape), (12,)])
    chex.assert_type([inputs, labels], [dtype, np.int32])
    self.assertTrue(np.all((labels >= 0) & (labels < classes)))
    np.testing.assert_array_equal(streamed, inputs[:12].reshape(3, 4, *shape))
    if name.startswith("imdb"):
      np.testing.assert_allclose(np.linalg.norm(inputs, axis=-1), 1, rtol=1e-5)

  def test_metadata_names_the_splits(self):
    folder = folder_for(self)
    builder = tfds.builder("mnist", data_dir=folder)
    builder.info.set_splits(
      tfds.core.splits.SplitDict(
        [tfds.core.SplitInfo(name, [20], 0) for name in ("train", "test")]
      )
    )
    builder.data_path.mkdir(parents=True)
    builder.info.write_to_directory(builder.data_path)
    with tfds.testing.mock_data(num_examples=20, data_dir=folder):
      self.assertLen(task("mnist", **OFFICIAL).test, 10)
      with self.assertRaisesRegex(
        UserError, "task.test = 'dev': no split 'dev'; accepted: train, test"
      ):
        task("mnist", **OFFICIAL | dict(test="dev"))


class MistakesTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(name="digit"), "task.name = 'digit': no such .*mean digits"),
    (dict(name="cifar_100"), "task.name = 'cifar_100'.*mean .*cifar100"),
    (dict(name="qqqqqq"), "task.name = 'qqqqqq'.*accepted: digits, mnist_sub"),
    (dict(name="digits:9.9.9"), "task.name = 'digits:9.9.9'"),
    (dict(name="digits/nonsense"), "task.name = 'digits/nonsense'"),
    (dict(name=""), "task.name = ''"),
    (dict(name="lm1b"), "task.name = 'lm1b': .*keys are .*ClassLabel"),
    (dict(name="cats_vs_dogs"), "task.image_size = 0.*cats_vs_dogs.*None"),
    (dict(name="crema_d"), "task.name = 'crema_d': .*construct.*tensorflow"),
    (dict(name="smartwatch_gestures"), "its input 'features' is Seq.*accepted"),
    (dict(train="dev"), "task.train = 'dev': no split 'dev'; accepted: train"),
    (dict(train="train+dev[:3]"), r"task.train = .*no split 'dev'"),
    (dict(train="train[:6O%]"), r"task.train = 'train\[:6O%\]': .*such as"),
    (dict(train="train[:120%]"), r"task.train = 'train\[:120%\]': .*such as"),
    (dict(train="train[5]"), r"task.train = 'train\[5\]': .*such as"),
    (dict(train="train[:1shard]"), r"task.train = .*no shards.*such as"),
    (dict(train="train[1800:1900]"), r"task.train = .*1900.* 1797 examples"),
    (
      dict(train="train[50%:40%]"),
      "task.train = .*: holds no example of train .1797",
    ),
    (
      dict(train="train[:0]"),
      "task.train = .*: holds no example of train .1797",
    ),
    (
      dict(train="train[:65%]"),
      r"task.train = .* and task.validation = .* overlap in 90 examples, "
      r"train\[1078:1168\]",
    ),
    (dict(test="all"), "task.train = .* and task.test = 'all' overlap"),
    (dict(train="train[:9]+train[8:20]"), "^task.train = [^ ]* overlap in 1 "),
    (dict(group="writer"), "task.group = 'writer': expected one of label, or"),
    (dict(seed=-1), "task.seed = -1: expected a whole number from 0"),
    (dict(seed="0"), "task.seed = '0'"),
    (dict(text_features=0), "task.text_features = 0: expected .* from 1 to"),
    (
      dict(resident="yes"),
      "task.resident = 'yes': expected one of 'auto', True",
    ),
  )
  def test_names_the_key(self, changes, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      task(**changes)
    self.assertNotIn("\n", str(caught.exception))

  def test_missing_key(self):
    with self.assertRaisesRegex(UserError, "task.test = None"):
      load(dict(name="digits", train="train", validation="train"))

  def test_nothing_to_download_from(self):
    with (
      mock.patch.object(
        tfds.core.DatasetBuilder,
        "download_and_prepare",
        side_effect=ConnectionError("no route\nto host"),
      ),
      self.assertRaisesRegex(
        UserError,
        r"task.name = 'mnist': .*ConnectionError: no route\).*task.data_dir",
      ),
    ):
      task("mnist", **OFFICIAL)

  @parameterized.parameters("tfrecord", "parquet")
  def test_other_file_formats(self, kind):
    folder = folder_for(self)
    shutil.copytree(os.path.join(FOLDER, "digits"), f"{folder}/digits")
    for path in Path(folder, "digits", "1.0.0").iterdir():
      if path.name == "dataset_info.json":
        path.write_text(path.read_text().replace("array_record", kind))
      elif "array_record" in path.name:
        path.rename(str(path).replace("array_record", kind))
    with self.assertRaisesRegex(
      UserError, f"task.data_dir = .* holds {kind} files.*array_record"
    ):
      task(data_dir=folder)


if __name__ == "__main__":
  absltest.main()
