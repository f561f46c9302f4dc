"""Tasks of one's own: arrays, and builders that a config brings along."""

import os
import pathlib
import tempfile
import textwrap

import numpy as np
from absl.testing import absltest, parameterized

from kd.config import command_line
from kd.data import memory
from kd.data.registry import load
from kd.errors import UserError

SLICES = dict(
  train="train[:50%]", validation="train[50%:70%]", test="train[70%:]"
)


def arrays(n=40):
  rng = np.random.default_rng(0)
  return rng.normal(size=(n, 3)).astype(np.float32), np.arange(n) % 4


class ArraysTest(parameterized.TestCase):
  def file(self, **given):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(folder, "mine.npz")
    np.savez(path, **given)
    return dict(SLICES, name="arrays", path=path)

  def test_what_is_in_a_file(self):
    inputs, classes = arrays()
    task = load(self.file(inputs=inputs, classes=classes))
    self.assertEqual(task.num_classes, 4)
    self.assertEqual(task.class_names, ("0", "1", "2", "3"))
    self.assertEqual(task.input_shape, (3,))
    found = {}
    for split in (task.train, task.validation, task.test):
      x, y = split.arrays()
      found |= {tuple(row): int(c) for row, c in zip(x, y, strict=True)}
    expected = zip(map(tuple, inputs), classes.tolist(), strict=True)
    self.assertEqual(found, dict(expected))
    self.assertLen(task.train, 20)

  def test_bytes_are_scaled_and_names_are_kept(self):
    _, classes = arrays()
    images = np.zeros((40, 4, 4, 1), np.uint8)
    names = np.array(["a", "b", "c", "d"])
    task = load(self.file(inputs=images, classes=classes, class_names=names))
    self.assertEqual(task.scale, 1 / 255)
    self.assertEqual(task.train.arrays()[0].dtype, np.uint8)
    self.assertEqual(task.class_names, ("a", "b", "c", "d"))

  def test_examples_that_belong_together(self):
    inputs, classes = arrays()
    names = np.array([f"of {i // 10}" for i in range(40)])
    task = load(self.file(inputs=inputs, classes=classes, groups=names))
    rows = [
      np.flatnonzero((inputs == x).all(1))[0] for x in task.test.arrays()[0]
    ]
    found = dict(zip(names[rows], task.test_groups, strict=True))
    self.assertEqual([found[n] for n in names[rows]], task.test_groups.tolist())
    self.assertLen(set(task.test_groups.tolist()), len(set(names[rows])))
    alone = load(self.file(inputs=inputs, classes=classes))
    self.assertIsNone(alone.test_groups)

  @parameterized.parameters(
    (dict(groups=np.zeros(7)), "one name for each example"),
    (dict(classes=np.arange(40) % 4), "lacks the array 'inputs'"),
    (dict(inputs=np.zeros((40, 3), complex)), "inputs are complex128"),
    (dict(inputs=np.zeros(40)), r"of shape \(40,\)"),
    (dict(classes=np.ones(40)), "classes are float64"),
    (dict(classes=np.arange(39)), r"expected whole numbers of shape \(40,\)"),
    (dict(classes=np.arange(40) - 1), "example 0 has class -1, expected 0 to"),
    (dict(classes=np.zeros(40, int)), "two or more class names"),
    (dict(class_names=np.array(["a", "a"])), "class names, each once"),
    (dict(class_names=np.array(["a", "b "] * 2)), "class name 'b ', expected"),
    (dict(class_names=np.array([b"a", b"b"])), r"class_names are \|S1"),
    (dict(class_names=np.array("a")), "class_names are"),
    (dict(inputs=np.array(3.0)), r"inputs are float64 of shape \(\)"),
    (dict(inputs=np.zeros((40, 0))), r"of shape \(40, 0\)"),
    (dict(classes=np.full(40, 2**62)), "expected below 1048576"),
    (dict(classes=np.full(40, 2**64 - 1, np.uint64)), "expected below 1048576"),
    (dict(inputs=np.array([["a"]] * 40)), "inputs are <U1"),
  )
  def test_what_is_wrong_with_them(self, change, message):
    inputs, classes = arrays()
    given = {"inputs": inputs, "classes": classes, **change}
    if "lacks" in message:
      del given["inputs"]
    with self.assertRaisesRegex(UserError, message):
      load(self.file(**given))

  def test_a_file_that_is_none(self):
    with self.assertRaisesRegex(UserError, "task.path is missing"):
      load(dict(SLICES, name="arrays"))
    with self.assertRaisesRegex(UserError, "task.path = '/nowhere'.*npz"):
      load(dict(SLICES, name="arrays", path="/nowhere"))
    whole = self.file(x=np.zeros(3))
    path = pathlib.Path(whole["path"])
    text = path.read_bytes()
    np.save(path.with_suffix(".npy"), np.zeros(3))
    for broken in (
      b"PK nonsense",
      b"",
      text[:-10],
      path.with_suffix(".npy").read_bytes(),
    ):
      path.write_bytes(broken)
      with self.assertRaisesRegex(UserError, "expected a file .npz"):
        load(whole)

  def test_a_function_of_ones_own(self):
    inputs, classes = arrays()
    section = dict(SLICES, name="mine", seed=0, resident="auto")
    section["resident_mib"] = 1.0
    task = memory.task_of(section, inputs, classes, list("abcd"))
    self.assertTrue(task.resident)
    self.assertEqual(task.signature.input_shape, (3,))


class BuilderTest(absltest.TestCase):
  def test_a_builder_that_a_config_defines(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(folder, "mine.py")
    path.write_text(
      textwrap.dedent("""
        import numpy as np
        import tensorflow_datasets as tfds
        from kd.config import defaults

        class MineOfTheTest(tfds.core.GeneratorBasedBuilder):
          VERSION = tfds.core.Version("1.0.0")
          def _info(self):
            return tfds.core.DatasetInfo(
              builder=self,
              features=tfds.features.FeaturesDict({
                "x": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                "y": tfds.features.ClassLabel(num_classes=2),
              }),
              supervised_keys=("x", "y"))
          def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}
          def _generate_examples(self):
            for i in range(20):
              yield i, {"x": np.full(3, i, np.float32), "y": i % 2}

        def get_config():
          config = defaults()
          config.task.name = "mine_of_the_test"
          return config
      """)
    )
    task = command_line.read(str(path)).task.to_dict()
    task["data_dir"] = folder
    self.assertLen(load(task).train, 12)


if __name__ == "__main__":
  absltest.main()
