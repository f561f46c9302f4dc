"""The corpus of docstrings: which are taken, and that it is a data set."""

import pathlib
import tempfile

from absl.testing import absltest

from kd.data import tfds_task
from kd.datasets import docstrings
from kd.errors import UserError

SOURCE = '''"""A module."""
raise RuntimeError("nobody imports this")
class A:
  """A class,
     with two lines.
  """
  def f(self):
    """A method."""
    def inner():
      """Inner."""
async def g():
  """A method."""
def h():
  x = """No docstring."""
'''


class DocstringsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.files = []
    for name, text in (("p/b.py", SOURCE), ("p/a.py", '"""A module."""')):
      path = pathlib.Path(self.folder, name.replace("/", "-"))
      path.write_text(text)
      self.files.append((name, str(path)))

  def test_each_text_once_by_what_it_documents(self):
    self.assertEqual(
      docstrings.gather(self.files),
      [
        ("p/a.py:", "A module."),
        ("p/b.py:A", "A class,\nwith two lines."),
        ("p/b.py:A.f", "A method."),
        ("p/b.py:A.f.inner", "Inner."),
      ],
    )
    self.assertEqual(
      docstrings.gather(self.files[::-1]), docstrings.gather(self.files)
    )

  def test_files_that_are_installed(self):
    names = [name for name, _ in docstrings.installed()]
    self.assertIn("numpy/linalg/_linalg.py", names)
    self.assertIn("scipy/stats/_distn_infrastructure.py", names)
    for name in names:
      self.assertNotIn("/tests/", name)

  def test_its_texts_are_split_by_document(self):
    task = {
      "name": "docstrings",
      "seed": 0,
      "data_dir": self.folder,
      "train": "train[:2]",
      "validation": "train[2:3]",
      "test": "train[3:]",
    }
    with absltest.mock.patch.object(
      docstrings, "installed", return_value=self.files
    ):
      with self.assertRaisesRegex(
        UserError, "has the texts text, id; expected"
      ):
        tfds_task.read_texts(task, "body")
      found = tfds_task.read_texts(task)
    self.assertEqual([len(x) for x in found.values()], [2, 1, 1])
    texts = [text for of in found.values() for _, text, _ in of]
    self.assertCountEqual(texts, [t for _, t in docstrings.gather(self.files)])
    name, _, label = found["train"][0]
    self.assertRegex(name, r"^train \d$")
    self.assertEqual(label, -1)  # they have no classes


if __name__ == "__main__":
  absltest.main()
