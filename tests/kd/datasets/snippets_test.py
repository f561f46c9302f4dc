"""Checks of the snippets with human ratings."""

import io
import pathlib
import tarfile
import tempfile

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest

from kd.datasets import snippets
from kd.errors import UserError

LINES = (
  "1\t2.5\tA joy.\r\n2\t-0.5\tSo so. \r\n3\t-0.6\tDé bad.\r\n4\t3\tA joy.\r\n"
)


def packed(name, content):
  """Returns a .tar.gz that holds one file."""
  made = io.BytesIO()
  with tarfile.open(fileobj=made, mode="w:gz") as archive:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
  return made.getvalue()


class SnippetsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / f"{snippets.SDIST}.tar.gz"

  def write(self, inner):
    self.path.write_bytes(packed(snippets.INNER, inner))

  def test_clear_ones_once_with_the_sign_of_their_rating(self):
    self.write(packed(snippets.RATINGS, LINES.encode()))
    with absltest.mock.patch.object(
      snippets, "folder", return_value=self.folder
    ):
      builder = tfds.builder("snippets", data_dir=str(self.folder / "made"))
      builder.download_and_prepare(file_format="array_record")
    found = list(builder.as_data_source("train"))
    self.assertEqual(
      [(row["text"].decode(), row["label"]) for row in found],
      [("A joy.", 1), ("Dé bad.", 0)],
    )
    np.testing.assert_allclose([row["rating"] for row in found], [2.5, -0.6])

  def test_other_files(self):
    with self.assertRaisesRegex(UserError, "pip download .*vaderSentiment==3"):
      snippets.read(self.path)
    whole = packed(snippets.RATINGS, LINES.encode())
    for inner in (b"no archive", whole[:60], packed("other", b""), b""):
      self.write(inner)
      with self.assertRaisesRegex(UserError, "not the source package"):
        snippets.read(self.path)
    self.write(packed(snippets.RATINGS, b"1\tno number\ttext\n"))
    with self.assertRaisesRegex(UserError, "not the source package"):
      snippets.read(self.path)

  def test_the_package_that_is_installed(self):
    path = snippets.folder() / self.path.name
    if not path.exists():
      self.skipTest(snippets.install())
    found = snippets.read(path)
    signs = [r > 0 for _, r, _ in found if abs(r) > snippets.UNCLEAR]
    self.assertLen(found, 10_603)
    self.assertLen(signs, 10_041)
    self.assertAlmostEqual(np.mean(signs), 0.496, delta=0.001)


if __name__ == "__main__":
  absltest.main()
