"""Shifts keep form and type, are functions of their seed, and grow."""

import numpy as np
from absl.testing import absltest, parameterized

from kd.data import shifts
from kd.data.corruptions import CORRUPTIONS

RNG = np.random.default_rng(0)
# Smooth, so that a blur of little takes little.
WAVES = np.sin(np.arange(32) / 3)
IMAGES = np.uint8(
  120
  + 60 * WAVES[None, :, None, None] * WAVES[None, None, :, None]
  + RNG.integers(0, 40, (6, 32, 32, 3))
)
# At other severities pixels go elsewhere, and no further.
SHIFTING = ("elastic_transform",)


def moved(name, images, severity, seed=0):
  found = shifts.apply("images", name, images, severity, seed)
  return np.abs(np.float64(found) - images).mean()


class ImagesTest(parameterized.TestCase):
  @parameterized.parameters(*CORRUPTIONS)
  def test_every_corruption(self, name):
    before = IMAGES.copy()
    found = shifts.apply("images", name, IMAGES, 3, 0)
    np.testing.assert_array_equal(IMAGES, before)
    self.assertEqual((found.shape, found.dtype), (IMAGES.shape, np.uint8))
    again = shifts.apply("images", name, IMAGES, 3, 0)
    np.testing.assert_array_equal(found, again)
    weak, strong = (moved(name, IMAGES, s) for s in (1, 5))
    self.assertGreater(weak, 0.1)
    if name not in SHIFTING:
      self.assertGreater(strong, weak)
    grey = np.float32(IMAGES[..., :1] / 255)[:, :8, :10]
    small = shifts.apply("images", name, grey, 5, 0)
    self.assertEqual((small.shape, small.dtype), (grey.shape, np.float32))
    self.assertBetween(float(small.min()), 0, 1)
    self.assertBetween(float(small.max()), 0, 1)

  def test_draws_by_seed(self):
    one, other = (
      shifts.apply("images", "gaussian_noise", IMAGES, 3, s) for s in (0, 1)
    )
    self.assertGreater(np.mean(one != other), 0.5)

  def test_noise_is_as_strong_as_it_says(self):
    flat = np.full((4, 64, 64, 1), 0.5, np.float32)
    of = lambda name, s: np.float64(shifts.apply("images", name, flat, s, 0))
    self.assertAlmostEqual(of("gaussian_noise", 5).std(), 0.10, 2)
    self.assertAlmostEqual(of("speckle_noise", 5).std(), 0.10, 2)
    # Photons: the variance of Poisson(25) / 50.
    self.assertAlmostEqual(of("shot_noise", 5).std(), 5 / 50, 2)
    self.assertAlmostEqual(np.mean(of("impulse_noise", 5) != 0.5), 0.07, 2)

  @parameterized.parameters(
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("gaussian_blur", "elastic_transform", "pixelate", "contrast"),
  )
  def test_what_only_moves_pixels_keeps_a_flat_image(self, name):
    flat = np.full((2, 16, 16, 1), 90, np.uint8)
    self.assertLess(moved(name, flat, 5), 1)

  def test_contrast_and_brightness(self):
    grey = IMAGES[..., :1]
    flatter = shifts.apply("images", "contrast", grey, 5, 0)
    self.assertAlmostEqual(flatter.mean(), grey.mean(), delta=1)
    self.assertAlmostEqual(flatter.std() / grey.std(), 0.15, delta=0.03)
    lighter = shifts.apply("images", "brightness", grey, 1, 0)
    self.assertAlmostEqual(
      np.mean(np.float64(lighter) - grey), 0.05 * 255, delta=1
    )


class TextsTest(absltest.TestCase):
  TEXTS = ("the quick brown fox jumps over it " * 20, "one", "")

  def test_truncation_keeps_the_first_words(self):
    found = shifts.apply("texts", "truncation", self.TEXTS, 2, 0)
    words = [len(t.split()) for t in (*self.TEXTS, *found)]
    self.assertEqual(words, [140, 1, 0, 70, 1, 0])
    self.assertStartsWith(self.TEXTS[0], found[0])

  def test_typos_grow_and_keep_what_is_no_letter(self):
    changed = []
    for severity in (1, 5):
      found = shifts.apply("texts", "typos", self.TEXTS, severity, 0)
      same = set(found[0].split()) & set(self.TEXTS[0].split())
      words = found[0].split()
      changed.append(sum(w not in same for w in words) / len(words))
    self.assertLess(changed[0], 0.2)
    self.assertGreater(changed[1], 0.5)
    digits = ["1 2 3 4 5 6 7 8 9"] * 5
    self.assertEqual(shifts.apply("texts", "typos", digits, 5, 0), digits)

  def test_case(self):
    found = shifts.apply("texts", "case", self.TEXTS, 5, 0)
    self.assertEqual(found, [t.upper() for t in self.TEXTS])
    some = shifts.apply("texts", "case", self.TEXTS, 1, 0)[0]
    share = np.mean([w.isupper() for w in some.split()])
    self.assertAlmostEqual(share, 0.2, delta=0.1)


class BytesTest(absltest.TestCase):
  ROWS = np.float32(
    np.concatenate(
      [RNG.integers(0, 256, (4, 60)), np.full((4, 40), 256)], axis=1
    )
  )

  def test_truncation_pads_the_end(self):
    found = shifts.apply("bytes", "truncation", self.ROWS, 3, 0)
    self.assertEqual(found.dtype, np.float32)
    self.assertEqual(np.sum(found != 256, axis=1).tolist(), [15] * 4)
    np.testing.assert_array_equal(found[:, :15], self.ROWS[:, :15])

  def test_noise_keeps_padding(self):
    found = shifts.apply("bytes", "byte_noise", self.ROWS, 5, 0)
    np.testing.assert_array_equal(found == 256, self.ROWS == 256)
    share = np.mean(found[:, :60] != self.ROWS[:, :60])
    self.assertAlmostEqual(share, 0.2, delta=0.08)


if __name__ == "__main__":
  absltest.main()
