"""What becomes of images and texts."""

import io

import chex
import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized
from PIL import Image

from kd.data import inputs

RNG = np.random.default_rng(0)


def form(name: str, **options) -> inputs.Form:
  info = tfds.builder(name).info
  task = dict(name=name, image_size=0, text_features=256) | options
  return inputs.form(info, task)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
  file = io.BytesIO()
  image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
  image.save(file, kind)
  return file.getvalue()


class ImagesTest(parameterized.TestCase):
  @parameterized.parameters(("mnist", 1), ("cifar10", 3))
  def test_png_is_lossless(self, name, channels):
    found = form(name)
    images = RNG.integers(0, 256, (4, *found.shape), np.uint8)
    self.assertEqual(found.shape[-1], channels)
    files = [encoded(x[..., 0] if channels == 1 else x) for x in images]
    np.testing.assert_array_equal(found.pack(files), images)
    np.testing.assert_array_equal(found.pack(list(images)), images)

  def test_grey_and_transparent_among_coloured_images(self):
    found = form("cats_vs_dogs", image_size=6)
    grey = RNG.integers(0, 256, (6, 6), np.uint8)
    colours = RNG.integers(0, 256, (6, 6, 3), np.uint8)
    clear = np.concatenate([colours, np.full((6, 6, 1), 9, np.uint8)], -1)
    got = found.pack(
      [encoded(grey), encoded(clear), encoded(colours), encoded(grey, "GIF")]
    )
    chex.assert_shape(got, (4, 6, 6, 3))
    chex.assert_type(got, np.uint8)
    for channel in range(3):
      np.testing.assert_array_equal(got[0, ..., channel], grey)
      np.testing.assert_array_equal(got[3, ..., channel], grey)
    np.testing.assert_array_equal(got[1], colours)
    np.testing.assert_array_equal(got[2], colours)

  @parameterized.parameters("mnist", "cats_vs_dogs")
  def test_resizing_keeps_flat_images_and_orientation(self, name):
    found = form(name, image_size=8)
    channels = found.shape[-1]
    self.assertEqual(found.shape, (8, 8, channels))
    flat = np.full((40, 24, channels), 77, np.uint8)
    halves = np.zeros((40, 24, channels), np.uint8)
    halves[20:] = 200  # dark above, light below
    got = found.pack([flat, halves])
    np.testing.assert_array_equal(got[0], np.full((8, 8, channels), 77))
    self.assertLess(got[1, :3].max(), 5)
    self.assertGreater(got[1, 5:].min(), 195)


class TextTest(absltest.TestCase):
  def test_texts(self):
    found = form("imdb_reviews")
    self.assertEqual((found.shape, found.scale), ((256,), 1.0))
    one, same, other = found.pack(["a fine film", b"a fine film", "dull \xff"])
    chex.assert_type(one, np.float32)
    np.testing.assert_array_equal(one, same)
    self.assertFalse(np.array_equal(one, other))
    self.assertAlmostEqual(np.linalg.norm(one), 1, places=5)
    # Pairs of words count, so order does.
    swapped = found.pack(["film fine a", b"broken \xff utf-8"])[0]
    self.assertFalse(np.array_equal(one, swapped))


if __name__ == "__main__":
  absltest.main()
