"""The corpus of file types: what is seen of a file, which files are chosen."""

import importlib.util
import io
import os
import pathlib
import re
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from kd import config
from kd.data.registry import load
from kd.datasets import file_types
from kd.errors import UserError
from kd.models import magika

ROOT = pathlib.Path(__file__).resolve().parents[3]
INSTALLED = importlib.util.find_spec("magika") is not None


class WindowTest(parameterized.TestCase):
  def test_by_hand(self):
    seen = file_types.window(b" \n ab c\n", b" \n ab c\n")
    self.assertEqual(bytes(seen[:5].astype(np.uint8)), b"ab c\n")
    self.assertTrue(np.all(seen[5:2041] == 256))
    self.assertEqual(bytes(seen[2041:].astype(np.uint8)), b" \n ab c")
    self.assertTrue(np.all(file_types.window(b"", b" \n") == 256))

  @parameterized.parameters(0, 3, 1023, 1024, 1025, 4095, 4096, 4097, 20_000)
  def test_is_what_the_package_extracts(self, size):
    if not INSTALLED:
      self.skipTest(magika.INSTALL)
    from magika import Magika
    from magika.types.seekable import Seekable

    folder = self.enterContext(tempfile.TemporaryDirectory())
    rng = np.random.default_rng(size)
    space, letters = b" \t\n\r\x0b\f", bytes(range(256))
    for alphabet in (letters, space + b"a", space):
      content = bytes(rng.choice(list(alphabet), size).astype(np.uint8))
      theirs = Magika._extract_features_from_seekable(
        Seekable(io.BytesIO(content)), 1024, 0, 1024, 256, 4096, False
      )
      path = pathlib.Path(folder, "file")
      path.write_bytes(content)
      np.testing.assert_array_equal(
        file_types.read(path), [*theirs.beg, *theirs.end]
      )


class GatherTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def package(self, name, **contents):
    """Writes files `stem.ending`, and returns them as `gather` takes them."""
    paths = []
    for key, text in contents.items():
      path = key.replace("__", "/").replace("_", ".")
      here = os.path.join(self.folder, name, path)
      os.makedirs(os.path.dirname(here), exist_ok=True)
      pathlib.Path(here).write_text(text)
      paths.append((path, here))
    return {name: paths}

  def numbered(self, name, ending, count):
    files = {f"f{i}_{ending}": f"{name} says {i:09}" for i in range(count)}
    return self.package(name, **files)

  def test_packages_keep_apart_and_the_same_file_is_taken_once(self):
    made = file_types.gather(
      {
        "train": self.numbered("a", "py", 5)
        | self.package("b", x_py="copied!"),
        "validation": self.package("c", y_py="copied!"),
        "test": self.numbered("d", "py", 3) | self.package("e", z_py="copied!"),
      }
    )
    names = {k: [path.split("/")[0] for path, *_ in v] for k, v in made.items()}
    self.assertEqual(names["train"], ["a"] * 5)
    self.assertEqual(names["test"], ["d"] * 3)  # 7 bytes are too few
    self.assertEqual(names["validation"], [])

  def test_a_copy_stays_in_the_test_split(self):
    text = "a file that several packages have"
    made = file_types.gather(
      {
        "train": self.numbered("a", "py", 3) | self.package("b", x_py=text),
        "validation": self.package("c", y_py=text),
        "test": self.numbered("d", "py", 3) | self.package("e", z_py=text),
      }
    )
    self.assertLen(made["train"], 3)
    self.assertEmpty(made["validation"])
    self.assertLen(made["test"], 4)
    again = [bytes(x) for rows in made.values() for *_, x in rows]
    self.assertLen(set(again), len(again))

  def test_caps_deal_from_packages_by_turns(self):
    most = file_types.PER_SPLIT["test"]
    made = file_types.gather(
      {
        "train": self.numbered("a", "css", file_types.PER_PACKAGE + 9),
        "validation": {},
        "test": self.numbered("d", "css", most) | self.numbered("e", "css", 4),
      }
    )
    self.assertLen(made["train"], file_types.PER_PACKAGE)
    names = [path.split("/")[0] for path, *_ in made["test"]]
    self.assertEqual((names.count("d"), names.count("e")), (most - 4, 4))

  def test_a_type_with_too_few_files_is_left_out_of_all(self):
    made = file_types.gather(
      {
        "train": self.numbered("a", "py", 3) | self.numbered("b", "css", 2),
        "validation": self.numbered("c", "css", 3),
        "test": self.numbered("d", "py", 2) | self.numbered("e", "css", 9),
      }
    )
    types = {label for rows in made.values() for _, label, _ in rows}
    self.assertEqual(types, {"python"})

  def test_labels_of_names(self):
    for path, label in {
      "a/b.py": "python",
      "a/B.PY": "python",
      "a/b.tar.gz": "gzip",
      "x.h": None,
      "README": None,
      "../../../bin/tool.py": None,
      "../../../help/a.html": "html",
      ".py": None,
      "a/CMakeLists.txt": None,
      "a-1.dist-info/entry_points.txt": None,
      "a/__pycache__/b.py": None,
    }.items():
      self.assertEqual(file_types.label_of(path), label, path)


class PackagesTest(absltest.TestCase):
  def test_every_package_is_pinned_and_in_one_split(self):
    pinned = set()
    for name in ("constraints.txt", "requirements-data.txt"):
      for line in (ROOT / name).read_text().splitlines():
        if match := re.match(r"([\w.-]+)==", line):
          pinned.add(match[1].lower().replace("_", "-"))
    names = [x for text in file_types.PACKAGES.values() for x in text.split()]
    self.assertLen(set(names), len(names))
    self.assertEmpty(set(names) - pinned)

  def test_other_versions_are_another_corpus(self):
    now = file_types.digest()
    self.assertEqual(file_types.digest(), now)
    with absltest.mock.patch.object(
      file_types.importlib.metadata, "version", return_value="9"
    ):
      self.assertNotEqual(file_types.digest(), now)

  def test_a_package_that_is_missing(self):
    with (
      absltest.mock.patch.dict(file_types.PACKAGES, train="no-such-package"),
      self.assertRaisesRegex(UserError, "no-such-package.*pip install"),
    ):
      file_types.installed()

  def test_the_corpus_that_is_installed(self):
    if not INSTALLED:
      self.skipTest(magika.INSTALL)
    try:
      file_types.installed()
    except UserError as error:
      self.skipTest(str(error))
    task = config.defaults().to_dict()["task"] | {
      "name": "file_types",
      "data_dir": self.enterContext(tempfile.TemporaryDirectory()),
    }
    splits = ("train", "validation", "test")
    loaded = load(task | {split: split for split in splits})
    self.assertEqual(loaded.class_names, magika.content_types())
    self.assertEqual(loaded.input_shape, (2048,))
    seen, types = [], {}
    for split in splits:
      inputs, labels = getattr(loaded, split).arrays()
      seen += [x.tobytes() for x in inputs]
      types[split] = np.bincount(labels, minlength=214)
      self.assertGreater(len(labels), 400)
      self.assertLess(types[split].max() / len(labels), 0.25)
    self.assertLen(set(seen), len(seen))
    np.testing.assert_array_equal(types["train"] >= 3, types["test"] >= 2)
    self.assertEqual(np.sum(types["train"] > 0), np.sum(types["train"] >= 3))
    self.assertGreaterEqual(np.sum(types["train"] > 0), 30)


if __name__ == "__main__":
  absltest.main()
