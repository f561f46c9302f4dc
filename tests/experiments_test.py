"""What experiments/ claims: every number is made of the results beside it."""

import json
import pathlib
import re

from absl.testing import absltest, parameterized

from kd.report import record
from kd.study import workdir

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "experiments"
READMES = sorted(FOLDER.glob("*/README.md"))
RECORDS = sorted(FOLDER.glob("*/results*.json"))
# What a reader is to believe; the protocol and what others published have
# numbers of their own.
CLAIMS = ("Claim", "Verdict", "Reading")


def name(path):
  return f"{path.parent.name}_{path.stem}"


def sections(text):
  """Returns what stands between a README's marks, by name."""
  found = re.findall(r"<!-- ([\w-]+) -->\n(.*?)<!-- /\1 -->", text, re.DOTALL)
  return dict(found)


def claims(text):
  """Returns the paragraphs outside of marks that claim something."""
  bare = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)
  parts = re.split(r"\n(?=\*\*[A-Z]|#)", bare)
  return [p for p in parts if p.startswith(tuple(f"**{c}" for c in CLAIMS))]


class RecordsTest(parameterized.TestCase):
  @parameterized.named_parameters((name(p), p) for p in RECORDS)
  def test_tables_and_sentences_are_made_of_the_results(self, path):
    section = path.stem.removeprefix("results").removeprefix("-") or "results"
    results = json.loads(path.read_text())
    words = {k: workdir.said(a["config"]) for k, a in results["arms"].items()}
    written = sections((path.parent / "README.md").read_text())[section]
    self.assertIn(record.table(results, words).strip(), written)
    rest = written.replace(record.table(results, words).strip(), "")
    self.assertRegex(rest, r"\A(\s*!\[\w+\]\([\w-]+\.png\)\s*)*\Z")

  @parameterized.named_parameters((p.parent.name, p) for p in READMES)
  def test_prose_claims_no_number(self, path):
    text = path.read_text()
    self.assertNotEmpty(claims(text))
    for claim in claims(text):
      plain = re.sub(r"`[^`]*`|arXiv:\S+|\(20\d\d[^)]*\)", "", claim)
      found = re.findall(r"\S*\d\S*", plain)
      self.assertEmpty(found, f"{found} in {claim[:70]!r}")

  @parameterized.named_parameters((p.parent.name, p) for p in READMES)
  def test_every_section_has_its_results(self, path):
    names = {
      "results" + (f"-{s}" if s != "results" else "") + ".json"
      for s in sections(path.read_text())
    }
    self.assertEqual(
      names, {p.name for p in RECORDS if p.parent == path.parent}
    )


if __name__ == "__main__":
  absltest.main()
