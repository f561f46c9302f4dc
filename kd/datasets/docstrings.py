"""The docstrings of NumPy and SciPy: a TFDS data set of text, for no download.

Both packages are required and pinned, so everybody has the text. Importing this
module registers the builder.
"""

import ast
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

PACKAGES = ("numpy", "scipy")
# Files that the build writes; they differ between platforms.
BUILT = ("__config__.py", "_distributor_init.py")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def gather(files: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
  """Returns the distinct docstrings of Python files, by what they document.

  Files are parsed and never imported; an equal text is taken once, where it
  stands first in the order of the names.

  Args:
    files: (name, path) of each.

  Returns:
    [("package/module.py:Class.method", docstring without its indent)], sorted
    by the name.
  """
  found: dict[str, str] = {}
  for name, path in sorted(files):
    with open(path, "rb") as f:
      module = ast.parse(f.read(), name)
    for qualified, text in sorted(_docstrings(module, name + ":")):
      found.setdefault(text, qualified)
  return sorted((name, text) for text, name in found.items())


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
  if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
    yield name, text
  for child in ast.iter_child_nodes(node):
    inner = getattr(child, "name", "") if isinstance(child, DOCUMENTED) else ""
    joint = "" if not inner or name.endswith(":") else "."
    yield from _docstrings(child, name + joint + inner)


def installed() -> list[tuple[str, str]]:
  """Returns name and path of the Python files of PACKAGES, without tests."""
  return [
    (str(file), str(file.locate()))
    for package in PACKAGES
    for file in importlib.metadata.distribution(package).files or ()
    if file.suffix == ".py"
    and file.name not in BUILT
    and "tests" not in file.parts
  ]


def versions() -> str:
  """Returns a hash of the installed versions, the config's name."""
  facts = [(p, importlib.metadata.version(p)) for p in PACKAGES]
  return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


class Docstrings(tfds.core.GeneratorBasedBuilder):
  """Docstrings of NumPy and SciPy, each once, from their installed source.

  Features: `text`, and `id`, the file and what in it is documented; for tasks
  of text, there is no label. One split, `train`, sorted by `id`. The text
  depends on the versions that are installed, those of constraints.txt: the name
  of the builder's config is a hash of them, so that none is taken for another.

  Both are under the BSD licence.
  """

  VERSION = tfds.core.Version("1.0.0")  # of the code that gathers them

  def __init__(self, *, config: Any = None, **kwargs: Any):
    config = config or tfds.core.BuilderConfig(
      name=versions(), version=self.VERSION, description="by installed versions"
    )
    super().__init__(config=config, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(self.__doc__ or "").rpartition("\n\n")[0],
      features=tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "id": tfds.features.Text()}
      ),
      homepage="https://numpy.org/doc/",
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {"train": self._generate_examples(gather(installed()))}

  def _generate_examples(
    self, rows: Iterable[tuple[str, str]]
  ) -> Iterator[tuple[int, dict[str, str]]]:
    for key, (name, text) in enumerate(rows):
      yield key, {"text": text, "id": name}
