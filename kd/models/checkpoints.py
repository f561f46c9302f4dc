"""Where language models are: a Hugging Face folder, a GGUF file, or by name.

A GGUF file is converted once to a folder in the user's cache.
"""

import os

from kd import files
from kd.errors import UserError
from kd.models import gguf


def is_checkpoint(path: str) -> bool:
  """Whether a path is of a language model, published or on disk."""
  return (
    path in gguf.PUBLISHED
    or path.endswith(".gguf")
    or (
      os.path.isfile(os.path.join(path, "config.json"))
      and not os.path.exists(os.path.join(path, "teacher.json"))
    )
  )


def folder(path: str) -> str:
  """Returns the Hugging Face folder of a language model.

  Args:
    path: that folder; a .gguf file; or the name of a published model that comes
      as a package, as "smollm2".

  Raises:
    UserError: there is none, or the file can't be converted.
  """
  if path in gguf.PUBLISHED and not os.path.exists(path):
    path = gguf.find(path)
  if path.endswith(".gguf"):
    return gguf.convert(path, os.path.join(files.cache(), "models"))
  if not os.path.isfile(os.path.join(path, "config.json")):
    raise UserError(
      f"{path!r}: no language model; expected a Hugging Face folder with a "
      f"config.json, a .gguf file, or one of {', '.join(gguf.PUBLISHED)}"
    )
  return path
