"""Patches of two photographs: images of nothing that a task asks about.

Importing this module registers the builder. The photographs come with
scikit-learn, which is required and pinned.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIZE, COUNT = 32, 500  # pixels; patches of each


class PhotoPatches(tfds.core.GeneratorBasedBuilder):
  """1,000 patches of 32 x 32 pixels from two photographs, 500 of each.

  Those of `sklearn.datasets.load_sample_images`, a temple and a flower, at
  places drawn once. Features: `image` uint8 [32, 32, 3] and `label`, temple or
  flower. One split, `train`.

  Source: Yuichiro Kanno and Mark Herrera by way of scikit-learn, CC BY.
  """

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    shape = (SIZE, SIZE, 3)
    return tfds.core.DatasetInfo(
      builder=self,
      description=(self.__doc__ or "").split("\n\n")[0],
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=shape, encoding_format="png"),
          "label": tfds.features.ClassLabel(names=["temple", "flower"]),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://scikit-learn.org/stable/datasets/loading_other_datasets.html",
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {"train": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    from sklearn.datasets import load_sample_images  # 1.5 s, once per data_dir

    for label, photo in enumerate(load_sample_images().images):
      most = np.array(photo.shape[:2]) - SIZE + 1
      places = np.random.default_rng(label).integers(0, most, (COUNT, 2))
      for i, (y, x) in enumerate(places.tolist()):
        patch = np.ascontiguousarray(photo[y : y + SIZE, x : x + SIZE])
        image = Image.fromarray(patch)
        yield label * COUNT + i, {"image": image, "label": label}
