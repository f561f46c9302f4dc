"""Many studies in one long table: python -m kd.report --table."""

import pathlib
import subprocess
import sys
import tempfile
import time

import pandas as pd
from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.report import long_table
from tests.kd.report.studies import REPLICATES, leave, synthetic


class LongTableTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    temporary = tempfile.TemporaryDirectory()
    cls.addClassCleanup(temporary.cleanup)
    cls.root = pathlib.Path(temporary.name)
    gains = {"hard": 0.0, "soft": 0.02}
    cls.first = synthetic(gains, seeds=3, diverged={"soft": {"1": 40}})[0]
    cls.second = synthetic({"hard": 0.0}, replicates=REPLICATES)[0]
    cls.second["study"] = "other"
    arm = cls.second["arms"]["hard"]
    arm["config"] |= {"signal": {"size": 90, "omit_classes": [1, 2]}}
    for name, results in (("a", cls.first), ("b", cls.second)):
      leave(cls.root / name, results, {}, [])
    leave(cls.root / "broken", {"study": "x"}, {}, [])
    cls.folders = [str(cls.root / name) for name in "ab"]

  def out(self, name):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    return str(pathlib.Path(folder) / name)

  @parameterized.parameters("t.parquet", "t.csv")
  def test_a_row_for_each_run_and_metric(self, name):
    path = self.out(name)
    long_table.write(path, self.folders)
    found = (pd.read_csv if "csv" in name else pd.read_parquet)(path)
    for folder, results in zip(
      self.folders, (self.first, self.second), strict=True
    ):
      own = found[found.workdir == folder]
      self.assertEqual(set(own.study), {results["study"]})
      for arm, entry in results["arms"].items():
        for metric, m in entry["metrics"].items():
          rows = own[(own.arm == arm) & (own.metric == metric)]
          self.assertEqual(rows.seed.tolist(), results["seeds"])
          values = [None if pd.isna(v) else v for v in rows.value]
          self.assertEqual(values, m["values"])
    self.assertEqual(
      found[found.study == "other"].unit.unique().tolist(), list(range(5))
    )
    hard = found[found.arm == "hard"]
    self.assertTrue(hard["config.temperature"].isna().all())
    soft = found[found.arm == "soft"]
    self.assertEqual(set(soft["config.temperature"]), {4.0})
    self.assertEqual(set(soft["config.objective"]), {"soft"})
    other = found[found.study == "other"]
    self.assertEqual(set(other["config.signal.omit_classes"]), {"1, 2"})
    self.assertEqual(set(other["config.signal.size"]), {90})

  def test_a_key_that_all_share_is_no_column(self):
    path = self.out("t.parquet")
    long_table.write(path, self.folders[1:])
    columns = pd.read_parquet(path).columns
    self.assertEmpty([c for c in columns if c.startswith("config.")])

  def test_damaged_folders_are_named_or_skipped(self):
    path = self.out("t.parquet")
    folders = [*self.folders, str(self.root / "broken"), str(self.root / "no")]
    with self.assertRaisesRegex(
      UserError,
      r"2 of 4 folders .*broken \(.*'seeds'\); .*no \(results.json is missing"
      r"\); expected others, or --skip",
    ):
      long_table.write(path, folders)
    self.assertFalse(pathlib.Path(path).exists())
    said = long_table.write(path, folders, skip=True)
    self.assertRegex(said, r"rows of 2 studies; left out: 2 of 4 folders")
    with self.assertRaisesRegex(UserError, "2 of 2 folders"):
      long_table.write(path, folders[2:], skip=True)

  def test_mistakes(self):
    with self.assertRaisesRegex(UserError, r"expected \.parquet or \.csv"):
      long_table.write("t.xlsx", self.folders)
    with self.assertRaisesRegex(UserError, "the same folder twice"):
      long_table.write("t.csv", [self.folders[0], self.folders[0] + "/"])
    with self.assertRaisesRegex(UserError, "cannot be written"):
      long_table.write(str(self.root / "no" / "t.csv"), self.folders)

  def test_command(self):
    command = [sys.executable, "-m", "kd.report", *self.folders]
    path = self.out("t.csv")
    done = subprocess.run(
      [*command, f"--table={path}"], capture_output=True, text=True, check=False
    )
    self.assertRegex(done.stdout, r"t\.csv: \d+ rows of 2 studies\n$")
    done = subprocess.run(
      [*command, "--skip"], capture_output=True, text=True, check=False
    )
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r"\Aerror: --skip: .*\n\Z")

  def test_hundreds_of_studies_are_quick(self):
    studies = {str(i): self.first for i in range(300)}
    began = time.perf_counter()
    made = long_table.table(studies)
    self.assertLess(time.perf_counter() - began, 10)  # 0.2 s
    rows = sum(
      len(m["values"])
      for entry in self.first["arms"].values()
      for m in entry["metrics"].values()
    )
    self.assertEqual(made.num_rows, 300 * rows)


if __name__ == "__main__":
  absltest.main()
