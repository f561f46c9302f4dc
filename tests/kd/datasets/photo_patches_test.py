"""Patches are as many as they say, of both photographs, and the same again."""

import numpy as np
from absl.testing import absltest

from kd.datasets import photo_patches


class PhotoPatchesTest(absltest.TestCase):
  def test_patches(self):
    of = photo_patches.PhotoPatches._generate_examples
    found, again = (list(of(self)) for _ in range(2))
    self.assertLen(found, 1000)
    self.assertEqual([key for key, _ in found], list(range(1000)))
    labels = [example["label"] for _, example in found]
    self.assertEqual(labels, [0] * 500 + [1] * 500)
    images = [np.asarray(example["image"]) for _, example in found]
    self.assertEqual({x.shape for x in images}, {(32, 32, 3)})
    self.assertGreater(len({x.tobytes() for x in images}), 990)
    np.testing.assert_array_equal(images[-1], np.asarray(again[-1][1]["image"]))


if __name__ == "__main__":
  absltest.main()
