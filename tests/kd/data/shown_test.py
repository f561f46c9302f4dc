"""What a report shows of an example."""

import base64
import io

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from kd.data import memory, shown
from kd.data.inputs import Form, text_form

SLICES = {
  "train": "train[:50%]",
  "validation": "train[50%:75%]",
  "test": "train[75%:]",
  "name": "arrays",
  "seed": 0,
  "resident": "auto",
  "resident_mib": 1.0,
}


def task(inputs, form=None):
  classes = np.arange(len(inputs)) % 2
  return memory.task_of(SLICES, inputs, classes, ("cat", "dog"), form=form)


class ShownTest(parameterized.TestCase):
  @parameterized.product(channels=(1, 3), kind=(np.uint8, np.float32))
  def test_images_are_small_pngs(self, channels, kind):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 150, 200, channels)).astype(kind)
    pixels = pixels / np.float32(255) if kind is np.float32 else pixels
    found = shown.shown(task(pixels), 1)
    self.assertEqual(found["kind"], "image")
    image = Image.open(io.BytesIO(base64.b64decode(found["png"])))
    self.assertEqual(image.size, (shown.PIXELS, 72))
    self.assertEqual(image.mode, "L" if channels == 1 else "RGB")
    whole = task(pixels[:, :4, :5])
    found = shown.shown(whole, 0)
    image = Image.open(io.BytesIO(base64.b64decode(found["png"])))
    seen = np.asarray(image).reshape(4, 5, channels)
    first = whole.test.read(np.array([0]))[0]
    scale = 1 if kind is np.uint8 else 255
    np.testing.assert_allclose(seen, scale * first, atol=0.5)

  def test_texts_are_cut(self):
    texts = [f"text {i} " + "x" * 500 for i in range(8)]
    of = task(texts, text_form("text", "label", 16))
    found = shown.shown(of, 0)
    self.assertEqual(found["kind"], "text")
    self.assertStartsWith(found["text"], of.test.texts([0])[0][:30])
    self.assertLen(found["text"], shown.CHARACTERS + 4)

  def test_bytes(self):
    rows = np.full((8, 200), 256, np.float32)  # padding
    rows[:, 10:14] = [80, 75, 3, 4]
    form = Form(
      "bytes", "label", (200,), np.float32, 1.0,
      lambda x: np.asarray(x, np.float32),
    )  # fmt: skip
    found = shown.shown(task(rows, form), 0)
    self.assertEqual(found["text"], "PK" + 2 * "\N{MIDDLE DOT}")
    self.assertEqual(found["hex"], "50 4b 03 04")

  def test_numbers(self):
    found = shown.shown(task(np.arange(160.0).reshape(8, 20)), 0)
    self.assertEqual(found["kind"], "numbers")
    self.assertEndsWith(found["text"], ", ...")

  def test_names(self):
    self.assertEqual(shown.name(task(np.zeros((8, 3))), 1), "dog")


if __name__ == "__main__":
  absltest.main()
