"""The store's bench writes its table into a page."""

import pathlib
import tempfile

from absl import flags
from absl.testing import absltest

from kd.bench import store as bench_store


class BenchTest(absltest.TestCase):
  def test_a_page(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    page = pathlib.Path(folder, "p.md")
    page.write_text("<!-- store -->\n<!-- /store -->\n")
    small = ["store", "--tokens=8192", "--vocabularies=1000,32000"]
    bench_store.main(flags.FLAGS([*small, str(page)]))
    rows = [x for x in page.read_text().splitlines() if x.startswith("| 32000")]
    self.assertLen(rows, 1)
    self.assertBetween(float(rows[0].split("|")[2]), 320, 350)


if __name__ == "__main__":
  absltest.main()
