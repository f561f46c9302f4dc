"""What the model sees of a record: images, texts and tensors as arrays.

`form` decides it from a TFDS data set's features. Images stay uint8 until the
step scales them, a quarter of the memory and of the transfer.
"""

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kd.errors import UserError, brief

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by channels


@dataclasses.dataclass(frozen=True)
class Form:
  """How one record becomes what the model sees.

  Attributes:
    input_key: the record's key of the input.
    label_key: the record's key of the label.
    shape: of one packed input.
    dtype: of packed inputs: uint8 or float32; int32 of tokens.
    scale: what the step multiplies inputs with, to get them to about 0..1; None
      leaves them as they are.
    pack: stacks n inputs to an array [n, *shape].
    encoded: whether `pack` takes the bytes of an image file, not what TFDS
      decodes from them: TFDS leaves grey images among coloured ones.
    text: whether inputs are texts.
    recipe: what `pack` does, for others to do again.
  """

  input_key: str
  label_key: str
  shape: tuple[int, ...]
  dtype: type[np.generic]
  scale: float | None
  pack: Callable[[Sequence[Any]], np.ndarray]
  encoded: bool = False
  text: bool = False
  recipe: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"kind": "numbers"}
  )

  @property
  def bytes(self) -> int:
    """Of one packed input."""
    return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def form(info: Any, task: Mapping[str, Any]) -> Form:
  """Decides from the data set's features what the model sees.

  Args:
    info: a `tfds.core.DatasetInfo`, of a data set that need not be prepared.
    task: `name`, for errors; `image_size` and `text_features`.

  Raises:
    UserError: if this code can't make arrays of the data set's examples.
  """
  where = f"task.name = {task['name']!r}"
  keys, features = info.supervised_keys, info.features
  if not (
    isinstance(keys, tuple)
    and len(keys) == 2
    and all(isinstance(key, str) and key in features for key in keys)
    and isinstance(features[keys[1]], tfds.features.ClassLabel)
  ):
    raise UserError(
      f"{where}: no input with a class label; its supervised keys are {keys} "
      f"among the features {brief(list(features))}; accepted: (input, "
      "ClassLabel)"
    )
  feature = features[keys[0]]
  if isinstance(feature, tfds.features.Image):
    shape, dtype, scale, pack, bits = _image_form(
      feature, where, task["image_size"]
    )
    recipe = {
      "kind": "image",
      "resized": "to this height and width by Pillow's BILINEAR, if others",
      **({"mode": MODES.get(shape[-1])} if bits else {}),
    }
    return Form(*keys, shape, dtype, scale, pack, bits, recipe=recipe)
  if isinstance(feature, tfds.features.Text) and feature.shape == ():
    return text_form(*keys, task["text_features"])
  numeric = isinstance(feature, tfds.features.Tensor) and np.issubdtype(
    feature.np_dtype, np.number
  )
  if numeric and feature.shape and None not in feature.shape:
    pack = functools.partial(np.asarray, dtype=np.float32)
    return Form(*keys, tuple(feature.shape), np.float32, 1.0, pack)
  raise UserError(
    f"{where}: its input {keys[0]!r} is {' '.join(repr(feature).split())}; "
    "accepted: an Image, a Text, or a numeric Tensor of fixed shape"
  )


def text_form(input_key: str, label_key: str, width: int) -> Form:
  """Returns the form of texts, which become `width` hashed counts."""
  pack = _TextPacker(width)
  recipe = {
    "kind": "hashed n-grams",
    "of": "sklearn.feature_extraction.text.HashingVectorizer, as an array",
    "arguments": pack.arguments,
  }
  return Form(
    input_key,
    label_key,
    (width,),
    np.float32,
    1.0,
    pack,
    text=True,
    recipe=recipe,
  )


def _image_form(feature: Any, where: str, size: int) -> tuple[Any, ...]:
  """Returns shape, dtype, scale, packer and whether it takes encoded images."""
  shape, dtype = tuple(feature.shape), feature.np_dtype
  if dtype not in (np.uint8, np.float32) or len(shape) != 3:
    raise UserError(
      f"{where}: its images are {np.dtype(dtype)} of shape {shape}; accepted: "
      "uint8 or float32 of shape (height, width, channels)"
    )
  if size:
    shape = (size, size, shape[-1])
  elif None in shape:
    raise UserError(
      f"task.image_size = 0 keeps the images' sizes, but those of {where} "
      f"vary, {shape}; accepted: a fixed size in pixels, such as 64"
    )
  bits = dtype == np.uint8
  pack = functools.partial(_pack_images, shape=shape)
  return shape, dtype, 1 / 255 if bits else 1.0, pack, bits


def _pack_images(
  images: Sequence[bytes | np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
  """Stacks images, resized where theirs is another size."""
  height, width, channels = shape

  def fit(image):
    if isinstance(image, bytes):
      pil = Image.open(io.BytesIO(image))
      if pil.mode != MODES[channels]:
        pil = pil.convert(MODES[channels])
    else:
      pil = Image.fromarray(image[..., 0] if channels == 1 else image)
    if pil.size != (width, height):
      # Pillow widens the filter when it shrinks an image: nothing aliases.
      pil = pil.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(pil).reshape(shape)

  return np.stack([fit(image) for image in images])


@dataclasses.dataclass(frozen=True)
class _TextPacker:
  """Turns texts into hashed counts of words and pairs of words, L2 norm 1."""

  width: int

  @functools.cached_property
  def vectorizer(self) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer  # 1.5 s

    return HashingVectorizer(**self.arguments, dtype=np.float32)

  @property
  def arguments(self) -> dict[str, Any]:
    return {
      "n_features": self.width,
      "ngram_range": (1, 2),
      "decode_error": "replace",
    }

  def __call__(self, texts: Sequence[str | bytes]) -> np.ndarray:
    return self.vectorizer.transform(texts).toarray()
