"""An example as a person sees it: an image, a text, bytes, tokens, numbers.

Small on purpose: it goes into a report with others.
"""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from kd.data.inputs import MODES
from kd.data.task import Task

PIXELS = 96  # of an image's longer side
CHARACTERS = 400  # of a text
BYTES = 96  # of a file
TOKENS = 48  # before the one that is predicted
NUMBERS = 12


def shown(task: Task, label: int) -> dict[str, Any]:
  """Returns what is to be seen of a label of the test split.

  Args:
    task: the task.
    label: its place among the labels, of which a row of tokens has several.

  Returns:
    `kind` and what that has: "image" a `png` in base64; "text" (its beginning),
    "tokens" (those before the one to predict) and "numbers" a `text`; "bytes" a
    `text` and `hex`, of the first ones.
  """
  row, position = divmod(label, task.positions)
  if task.tokens is not None:
    return {"kind": "tokens", "text": _tokens(task, row, position)}
  form = task.test.form
  if form.text:
    text = task.test.texts([row])[0]
    cut = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ..."
    return {"kind": "text", "text": cut}
  x = task.test.read(np.array([row]))[0]
  if x.ndim == 3 and x.shape[-1] in MODES:
    return {"kind": "image", "png": _png(x)}
  if form.input_key == "bytes":
    first = bytes(x[(x >= 0) & (x < 256)][:BYTES].astype(np.uint8))
    text = "".join(chr(b) if 32 <= b < 127 else "\N{MIDDLE DOT}" for b in first)
    return {"kind": "bytes", "text": text, "hex": first[:16].hex(" ")}
  numbers = ", ".join(f"{v:.4g}" for v in x.ravel()[:NUMBERS])
  more = ", ..." if x.size > NUMBERS else ""
  return {"kind": "numbers", "text": numbers + more}


def name(task: Task, c: int) -> str:
  """Names a class, or quotes a token."""
  if task.tokens is None:
    return task.class_names[c]
  subset = task.tokens.subset
  if subset is not None:
    if c == len(subset):
      return "(another token)"
    c = int(subset.to_teacher(np.asarray(c)))
  return repr(task.tokens.tokenizer.decode([c], special=True))


def _tokens(task: Task, row: int, position: int) -> str:
  """Returns the text up to a position; the last of a row's arrays are the ids
  as the tokenizer has them, or the first where those are no others."""
  assert task.tokens is not None
  x = task.test.read(np.array([row]))[0]
  ids = x[2] if len(x) > 2 else x[0]
  same = x[1][: position + 1] == x[1][position]
  of_text = ids[: position + 1][same][-TOKENS:]
  return task.tokens.tokenizer.decode(of_text)


def _png(x: np.ndarray) -> str:
  """Returns an image [H, W, C], uint8 or of 0 to 1, as a PNG in base64."""
  if x.dtype != np.uint8:
    x = np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)
  image = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
  image.thumbnail((PIXELS, PIXELS))
  buffer = io.BytesIO()
  image.save(buffer, "PNG", optimize=True)
  return base64.b64encode(buffer.getvalue()).decode()
