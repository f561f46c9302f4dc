"""Three digits in a row: their labels, and splits that share no image."""

import tempfile

import numpy as np
from absl.testing import absltest
from sklearn.datasets import load_digits

from kd import config
from kd.data.registry import load
from kd.datasets import digit_triples


class TriplesTest(absltest.TestCase):
  def test_a_label_is_the_digits_read_as_a_number(self):
    digits, labels = load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8) * (255 / 16)
    images, found = digit_triples.arrays("validation")
    self.assertEqual(images.shape, (1000, 8, 24))
    first, end, _ = digit_triples.SPLITS["validation"]
    own = np.random.RandomState(0).permutation(len(digits))[first:end]
    right = 0
    for image, label in zip(images[:100], found[:100], strict=True):
      # The nearest clean image of the split says which digit it was.
      parts = [image[:, 8 * i : 8 * i + 8].astype(float) for i in range(3)]
      far = [np.square(digits[own] - part).sum((1, 2)) for part in parts]
      read = [labels[own][f.argmin()] for f in far]
      right += int("".join(map(str, read))) == label
    self.assertEqual(right, 100)

  def test_splits_share_no_digit(self):
    spans = sorted(s[:2] for s in digit_triples.SPLITS.values())
    self.assertEqual(spans, [(0, 1080), (1080, 1440), (1440, 1797)])

  def test_as_a_task(self):
    task = config.defaults().task.to_dict() | {
      "name": "digit_triples",
      "data_dir": self.enterContext(tempfile.TemporaryDirectory()),
      "train": "validation",
      "validation": "test[:10%]",
      "test": "test[10%:]",
    }
    made = load(task)
    self.assertEqual((made.num_classes, made.input_shape), (1000, (8, 24, 1)))
    _, labels = digit_triples.arrays("validation")
    self.assertEqual(sorted(made.train.labels()), sorted(labels))


if __name__ == "__main__":
  absltest.main()
