"""Snippets of film reviews with human ratings, from VADER's source package.

Importing this module registers the builder, so that `task.name = "snippets"`
finds it.
"""

import io
import pathlib
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kd.errors import UserError, why

SDIST = "vaderSentiment-3.3.2"
INNER = f"{SDIST}/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
UNCLEAR = 0.5  # mean ratings up to this, of -4 to 4, are left out
FAULTS = (OSError, KeyError, ValueError, EOFError, tarfile.TarError, zlib.error)
_VADER = """
@inproceedings{hutto2014vader,
  title = {{VADER}: A Parsimonious Rule-Based Model for Sentiment Analysis of
    Social Media Text},
  author = {Hutto, C. J. and Gilbert, Eric},
  booktitle = {International AAAI Conference on Weblogs and Social Media},
  year = {2014},
}
"""


def folder() -> pathlib.Path:
  """Returns where the source package is kept: in the environment."""
  return pathlib.Path(sys.prefix, "share", "kd")


def install() -> str:
  """Returns the command that puts it there."""
  package = SDIST.replace("-", "==")
  return f"pip download --no-binary :all: --no-deps --dest {folder()} {package}"


def read(path: pathlib.Path) -> list[tuple[str, float, str]]:
  """Returns (id, mean rating, text) of the snippets, by id, each text once.

  Args:
    path: of the source package, a .tar.gz with another in it.

  Raises:
    UserError: there is none, or it is another package.
  """
  try:
    with (
      tarfile.open(path) as outer,
      tarfile.open(fileobj=_member(outer, INNER)) as inner,
    ):
      lines = _member(inner, RATINGS).read().decode().splitlines()
    rows = [line.split("\t") for line in lines if line]
    found: dict[str, tuple[str, float, str]] = {}
    for name, rating, text in rows:
      found.setdefault(text.strip(), (name, float(rating), text.strip()))
  except FileNotFoundError as error:
    raise UserError(
      f"snippets are in a source package that is not there: {install()}"
    ) from error
  except FAULTS as error:
    raise UserError(
      f"{path}: not the source package {SDIST} ({why(error)})"
    ) from error
  return list(found.values())


def _member(archive: tarfile.TarFile, name: str) -> io.BytesIO:
  file = archive.extractfile(name)
  if file is None:
    raise KeyError(f"{name} is no file")
  return io.BytesIO(file.read())


class Snippets(tfds.core.GeneratorBasedBuilder):
  """Snippets of film reviews, a sentence or so, that people found clear.

  10,605 snippets of rottentomatoes.com (Pang and Lee 2004), each rated from -4
  to 4 by 15 to 29 people (Hutto and Gilbert 2014). Features: `text`; `label`,
  negative or positive, the sign of the mean rating; `rating`, that mean; `id`.
  Snippets of a mean within -0.5 to 0.5 are left out, and texts that stood
  before. One split, `train`. The package is an optional install.

  Source: Hutto and Gilbert (2014), VADER, ICWSM; MIT licence.
  """

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(self.__doc__ or "").rpartition("\n\n")[0],
      features=tfds.features.FeaturesDict(
        {
          "text": tfds.features.Text(),
          "label": tfds.features.ClassLabel(names=["negative", "positive"]),
          "rating": tfds.features.Scalar(dtype=np.float32),
          "id": tfds.features.Text(),
        }
      ),
      supervised_keys=("text", "label"),
      homepage="https://github.com/cjhutto/vaderSentiment",
      citation=_VADER,
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # pip has downloaded it
    return {"train": self._generate_examples(folder() / f"{SDIST}.tar.gz")}

  def _generate_examples(
    self, path: pathlib.Path
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, (name, rating, text) in enumerate(read(path)):
      if abs(rating) > UNCLEAR:
        label = "positive" if rating > 0 else "negative"
        yield key, {"text": text, "label": label, "rating": rating, "id": name}
