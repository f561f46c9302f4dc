"""Common corruptions of images, at five severities, from plain formulas.

Hendrycks and Dietterich (2019), "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", 1903.12261. Formulas and strengths are
those of the authors' code for images of 32 pixels (make_cifar_c.py of
github.com/hendrycks/robustness, Apache-2.0), in NumPy and SciPy; lengths grow
with the image and stay those of 16 pixels below that. `frost`, which needs
photographs of it, is left out. Images are float64 [N, H, W, C] in 0..1 with
C = 1 or 3; every function draws from the generator it is given alone.
"""

import io
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

Images = Float[np.ndarray, "N H W C"]
Rng = np.random.Generator


def _scale(x: Images) -> float:
  return max(min(x.shape[1:3]) / 32, 0.5)


def gaussian_noise(x: Images, rng: Rng, s: int) -> Images:
  return x + (0.04, 0.06, 0.08, 0.09, 0.10)[s] * rng.normal(size=x.shape)


def shot_noise(x: Images, rng: Rng, s: int) -> Images:
  photons = (500, 250, 100, 75, 50)[s]
  return rng.poisson(x * photons) / photons


def impulse_noise(x: Images, rng: Rng, s: int) -> Images:
  hit = rng.random(x.shape) < (0.01, 0.02, 0.03, 0.05, 0.07)[s]
  return np.where(hit, rng.random(x.shape) < 0.5, x)


def speckle_noise(x: Images, rng: Rng, s: int) -> Images:
  return x + (0.06, 0.1, 0.12, 0.16, 0.2)[s] * x * rng.normal(size=x.shape)


def gaussian_blur(x: Images, rng: Rng, s: int) -> Images:
  del rng
  return _blurred(x, (0.4, 0.6, 0.7, 0.8, 1.0)[s] * _scale(x))


def defocus_blur(x: Images, rng: Rng, s: int) -> Images:
  """A disk, of which each pixel has its share, its edge smoothed."""
  del rng
  radius = (0.3, 0.4, 0.5, 1.0, 1.5)[s] * _scale(x)
  alias = (0.4, 0.5, 0.6, 0.2, 0.1)[s] * _scale(x)
  width = 2 * math.ceil(radius) + 5
  fine = (np.arange(8 * width) + 0.5) / 8 - width / 2
  inside = fine[:, None] ** 2 + fine**2 <= radius**2
  disk = inside.reshape(width, 8, width, 8).mean((1, 3))
  disk = ndimage.gaussian_filter(disk / disk.sum(), alias)
  return ndimage.convolve(x, disk[None, :, :, None], mode="reflect")


def glass_blur(x: Images, rng: Rng, s: int) -> Images:
  """Pixels swapped with near ones, between two blurs."""
  sigma = (0.05, 0.25, 0.4, 0.25, 0.4)[s] * _scale(x)
  times = (1, 1, 1, 2, 2)[s]
  most = max(1, round(_scale(x)))
  x = _blurred(x, sigma)
  every, (height, width) = np.arange(len(x)), x.shape[1:3]
  for _ in range(times):
    for h in range(height - most, most, -1):
      for w in range(width - most, most, -1):
        dy, dx = rng.integers(-most, most, size=(2, len(x)))
        swapped = x[every, h + dy, w + dx].copy()
        x[every, h + dy, w + dx] = x[:, h, w]
        x[:, h, w] = swapped
  return _blurred(np.clip(x, 0, 1), sigma)


def motion_blur(x: Images, rng: Rng, s: int) -> Images:
  radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[s]
  return _moved(x, radius, sigma, rng.uniform(-45, 45, len(x)))


def zoom_blur(x: Images, rng: Rng, s: int) -> Images:
  """The mean of the image and of enlargements of its middle."""
  del rng
  factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[s], 0.01)
  zoomed = sum(_zoomed(x, factor) for factor in factors)
  return (x + zoomed) / (len(factors) + 1)


def snow(x: Images, rng: Rng, s: int) -> Images:
  """Flakes that fall, of a thresholded noise, over a whitened image."""
  mean, sd, zoom, least, radius, sigma, kept = (
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
  )[s]
  flakes = _zoomed(rng.normal(mean, sd, (*x.shape[:3], 1)), zoom)
  flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
  flakes = _moved(flakes, radius, sigma, rng.uniform(-135, -45, len(x)))
  grey = x.mean(-1, keepdims=True)
  whiter = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
  return whiter + flakes + flakes[:, ::-1, ::-1]


def fog(x: Images, rng: Rng, s: int) -> Images:
  """A plasma fractal over the image, which keeps its highest value."""
  amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[s]
  height, width = x.shape[1:3]
  size = 2 ** math.ceil(math.log2(max(height, width, 2)))
  clouds = _plasma(rng, len(x), size, decay)[:, :height, :width, None]
  most = x.max(axis=(1, 2, 3), keepdims=True)
  scaled = np.divide(most, most + amount)
  return (x + amount * clouds) * scaled


def brightness(x: Images, rng: Rng, s: int) -> Images:
  """More of HSV's value, at the same hue and saturation."""
  del rng
  value = x.max(-1, keepdims=True)
  more = np.minimum(value + (0.05, 0.1, 0.15, 0.2, 0.3)[s], 1)
  return np.where(value > 0, x * more / np.maximum(value, 1e-12), more)


def contrast(x: Images, rng: Rng, s: int) -> Images:
  del rng
  mean = x.mean(axis=(1, 2), keepdims=True)
  return (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[s] + mean


def elastic_transform(x: Images, rng: Rng, s: int) -> Images:
  """A small affine map, and a smooth field of displacements."""
  height, width = x.shape[1:3]
  size = min(height, width)
  alpha, sigma, moved = (
    size * np.array(
      ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
       (0.1, 0.03, 0.03))[s]
    )
  )  # fmt: skip
  grid = np.indices((height, width)).astype(np.float64)
  middle = np.array([height, width]) // 2
  third = min(height, width) / 3
  corners = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
  found = np.empty_like(x)
  for i, image in enumerate(x):
    to = corners + rng.uniform(-moved, moved, corners.shape)
    # [y, x, 1] of the image that is made -> [y, x] of the one there is.
    to = np.concatenate([to, np.ones((3, 1))], 1)
    affine = np.linalg.solve(to, corners)
    field = rng.uniform(-1, 1, (2, height, width))
    field = alpha * np.stack([ndimage.gaussian_filter(f, sigma) for f in field])
    at = np.einsum("khw,kj->jhw", grid, affine[:2]) + affine[2][:, None, None]
    for c in range(image.shape[-1]):
      found[i, ..., c] = ndimage.map_coordinates(
        image[..., c], at + field, order=1, mode="reflect"
      )
  return found


def pixelate(x: Images, rng: Rng, s: int) -> Images:
  del rng
  share = (0.95, 0.9, 0.85, 0.75, 0.65)[s]

  def coarse(image):
    size = image.size
    small = tuple(max(1, int(n * share)) for n in size)
    return image.resize(small, Image.Resampling.BOX).resize(
      size, Image.Resampling.BOX
    )

  return _by_pillow(x, coarse)


def jpeg_compression(x: Images, rng: Rng, s: int) -> Images:
  del rng
  quality = (80, 65, 58, 50, 40)[s]

  def stored(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)

  return _by_pillow(x, stored)


CORRUPTIONS: dict[str, Callable[[Images, Rng, int], Images]] = {
  fn.__name__: fn
  for fn in (
    *(gaussian_noise, shot_noise, impulse_noise, speckle_noise),
    *(defocus_blur, glass_blur, motion_blur, zoom_blur, gaussian_blur),
    *(snow, fog, brightness, contrast),
    *(elastic_transform, pixelate, jpeg_compression),
  )
}


def _blurred(x: Images, sigma: float) -> Images:
  return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def _moved(x: Images, radius: float, sigma: float, degrees) -> Images:
  """Blurs each image along a line of its own angle, by a half-Gaussian."""
  scale, (height, width) = _scale(x), x.shape[1:3]
  steps = np.arange(max(2, round(radius * scale) + 1))
  weights = np.exp(-(steps**2) / (2 * (sigma * scale) ** 2))
  angle = np.deg2rad(degrees)[:, None]
  every = np.arange(len(x))[:, None, None]
  total = np.zeros_like(x)
  for step, weight in zip(steps, weights / weights.sum(), strict=True):
    down = np.rint(step * np.sin(angle)).astype(int)
    right = np.rint(step * np.cos(angle)).astype(int)
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    total += weight * x[every, rows[:, :, None], columns[:, None]]
  return total


def _zoomed(x: Images, factor: float) -> Images:
  """Enlarges the middle, bilinearly."""
  for axis in (1, 2):
    size = x.shape[axis]
    middle = (size - 1) / 2
    at = (np.arange(size) - middle) / factor + middle
    low = np.clip(np.floor(at).astype(int), 0, size - 1)
    high = np.minimum(low + 1, size - 1)
    part = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
    x = (1 - part) * x.take(low, axis) + part * x.take(high, axis)
  return x


def _plasma(rng: Rng, count: int, size: int, decay: float) -> np.ndarray:
  """Returns fractals in 0..1 [count, size, size] by diamond and square."""
  found = np.zeros((count, size, size))
  step, wobble = size, 100.0

  def near(total):
    return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape)

  while step >= 2:
    half = step // 2
    corners = found[:, ::step, ::step]
    total = corners + np.roll(corners, -1, 1)
    found[:, half::step, half::step] = near(total + np.roll(total, -1, 2))
    inner = found[:, half::step, half::step]
    rows = inner + np.roll(inner, 1, 1) + corners + np.roll(corners, -1, 2)
    found[:, ::step, half::step] = near(rows)
    columns = inner + np.roll(inner, 1, 2) + corners + np.roll(corners, -1, 1)
    found[:, half::step, ::step] = near(columns)
    step, wobble = half, wobble / decay
  found -= found.min(axis=(1, 2), keepdims=True)
  return found / np.maximum(found.max(axis=(1, 2), keepdims=True), 1e-12)


def _by_pillow(x: Images, change: Callable[[Image.Image], Image.Image]):
  """Applies a change of 8-bit pictures."""
  grey = x.shape[-1] == 1
  whole = np.rint(255 * x).astype(np.uint8)
  found = [
    np.asarray(change(Image.fromarray(image[..., 0] if grey else image)))
    for image in whole
  ]
  return np.stack(found).reshape(x.shape) / 255
