"""Records are made of results, and a bench of the code that studies run."""

import json
import os
import pathlib
import tempfile

from absl.testing import absltest

from kd import study
from kd.report import record
from tests.kd import small
from tests.kd.study.phases_test import options


class RecordTest(absltest.TestCase):
  def test_a_record_of_a_study(self):
    parent = self.enterContext(tempfile.TemporaryDirectory())
    workdir, folder = os.path.join(parent, "run"), os.path.join(parent, "kept")
    made = options(hard=small.HARD, soft=small.SOFT)
    made.signal.omit_classes = (3,)
    results = study.run(made, workdir)
    os.makedirs(folder)
    readme = pathlib.Path(folder, "README.md")
    readme.write_text(
      "before <!-- results -->stale words<!-- /results --> after"
    )
    record.record(workdir, folder, "results")
    record.record(workdir, folder, "results")  # the marks are still there
    text = readme.read_text()
    self.assertTrue(text.startswith("before ") and text.endswith(" after"))
    self.assertNotIn("stale words", text)
    mean = results["arms"]["soft"]["metrics"]["accuracy"]["mean"]
    self.assertIn(f"{100 * mean:.1f}"[:4], text)
    kept = json.loads(pathlib.Path(folder, "results.json").read_text())
    self.assertIn("recall_3", kept["arms"]["soft"]["metrics"])
    self.assertNotIn("recall_4", kept["arms"]["soft"]["metrics"])
    for name in record.figures_of(results):
      self.assertTrue(os.path.exists(os.path.join(folder, f"{name}.png")))


if __name__ == "__main__":
  absltest.main()
