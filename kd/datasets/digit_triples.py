"""A task of a thousand classes from what is installed: three digits in a row.

Importing this module registers the builder with TFDS, as `digit_triples`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NOISE = 72.0  # standard deviation, of pixels in 0..255
# Of the 1,797 images that make up each split, and how many triples are made.
SPLITS = {
  "train": (0, 1080, 16_000),
  "validation": (1080, 1440, 1_000),
  "test": (1440, 1797, 4_000),
}


class DigitTriples(tfds.core.GeneratorBasedBuilder):
  """21,000 noisy images of three handwritten digits, in 1,000 classes.

  Three images of scikit-learn's `load_digits`, drawn at random, side by side,
  with Gaussian noise of 72 grey levels that blurs which digits they are, so
  that a good model's distribution is spread over tens of classes. The splits
  are made of different images of digits. Features: `image` uint8 [8, 24, 1] and
  `label` in 0..999, the digits read as a number. Splits `train` (16,000),
  `validation` (1,000) and `test` (4,000).

  Source of the digits: Alpaydin and Kaynak (1998), doi:10.24432/C50P49,
  CC BY 4.0.
  """

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(self.__doc__ or "").split("\n\n")[1],
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 24, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=1000),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://doi.org/10.24432/C50P49",
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {name: self._generate_examples(name) for name in SPLITS}

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, (image, label) in enumerate(zip(*arrays(split), strict=True)):
      yield key, {"image": Image.fromarray(image), "label": int(label)}


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns a split's uint8 images [N, 8, 24] and labels [N]."""
  from sklearn.datasets import load_digits  # 1.5 s, once per data_dir

  images, digits = load_digits(return_X_y=True)
  first, end, count = SPLITS[split]
  own = np.random.RandomState(0).permutation(len(digits))[first:end]
  # RandomState, whose streams NumPy keeps as they are.
  rng = np.random.RandomState(first + 1)
  chosen = own[rng.randint(0, len(own), (count, 3))]
  squares = images.reshape(-1, 8, 8)[chosen] * (255 / 16)  # [N, 3, 8, 8]
  clean = squares.transpose(0, 2, 1, 3).reshape(count, 8, 24)
  noisy = clean + NOISE * rng.standard_normal(clean.shape)
  return (
    np.clip(np.rint(noisy), 0, 255).astype(np.uint8),
    digits[chosen] @ np.array([100, 10, 1]),
  )
