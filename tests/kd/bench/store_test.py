"""The store's bench writes its table into a page."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest

from kd.bench import store as bench_store


class BenchTest(absltest.TestCase):
  def test_a_page(self):
    page = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory()), "p.md"
    )
    page.write_text("<!-- store -->\n<!-- /store -->\n")
    with (
      mock.patch.object(bench_store, "TOKENS", 8192),
      mock.patch.object(bench_store, "VOCABULARIES", (1000, 32_000)),
    ):
      bench_store.main(["store_bench", str(page)])
    rows = [x for x in page.read_text().splitlines() if x.startswith("| 32000")]
    self.assertLen(rows, 1)
    self.assertBetween(float(rows[0].split("|")[2]), 320, 350)


if __name__ == "__main__":
  absltest.main()
