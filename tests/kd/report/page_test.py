"""Reports of synthetic studies: pages, figures and words."""

import json
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.evaluate import stats, verdict
from kd.report import blocks, html, markdown, page
from kd.report.blocks import Text
from tests.kd.report.studies import (
  EIGHT,
  REPLICATES,
  Page,
  compressed,
  leave,
  synthetic,
  tables,
)

CASES = {
  "two": {"gains": {"hard": 0.0, "soft": 0.01}, "seeds": 1},
  "eight": {
    "gains": EIGHT, "omit": (3,), "diverged": {"dist": {"2": 140}},
  },
  "null": {
    "gains": {"hard": 0.0, "soft[T=1]": 0.0, "a|b <i> & *c*": 0.0},
    "seeds": 5,
  },
  "nested": {
    "gains": {"hard": 0.0, "soft": 0.02, "small": -0.1, "small soft": -0.05},
    "strata": {"hard": "", "soft": ""}
    | dict.fromkeys(("small", "small soft"), "90 examples"),
    "replicates": REPLICATES,
    "contrasts": ("small soft - small", "soft - hard within 0.03"),
  },
}  # fmt: skip


class ReportTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    temporary = tempfile.TemporaryDirectory()
    cls.addClassCleanup(temporary.cleanup)
    cls.root, cls.files, cls.seconds = Path(temporary.name), {}, {}
    for name, options in CASES.items():
      cls.files[name] = synthetic(**options)
      folder = leave(cls.root / name, *cls.files[name])
      start = time.perf_counter()
      page.write(folder)
      cls.seconds[name] = time.perf_counter() - start

  def text(self, name, kind):
    return (self.root / name / f"report.{kind}").read_text()

  @parameterized.parameters(*CASES)
  def test_page_is_well_formed_and_alone(self, name):
    text = self.text(name, "html")
    page = Page(text)
    self.assertEqual(page.open, [])
    self.assertLen(page.ids, len(set(page.ids)))
    ET.fromstring(text.split("\n", 1)[1])
    self.assertNotRegex(text, r"https?:|<script[^>]|<link|@import")
    for key, value in page.attributes:
      if key in ("src", "href") and not value.startswith("data:image/png;"):
        self.assertStartsWith(value, "#")
        self.assertIn(value[1:], page.ids)
    for reference in re.findall(r"url\(#([^)]*)\)", text):
      self.assertIn(reference, page.ids)
    self.assertIn("prefers-color-scheme: dark", text)

  @parameterized.parameters(*CASES)
  def test_markdown_tables_parse(self, name):
    found = tables(self.text(name, "md"))
    self.assertGreaterEqual(len(found), 5)
    for rows in found:
      self.assertLen({len(row) for row in rows}, 1)
      self.assertTrue(all(re.fullmatch(":--|--:", c) for c in rows[1]))

  @parameterized.parameters(*CASES)
  def test_both_outputs_hold_the_same_cells(self, name):
    page = "".join(Page(self.text(name, "html")).words).replace("\xa0", " ")
    page = re.sub(r"\s+", " ", page)
    for rows in tables(self.text(name, "md")):
      for cell in (c for row in [rows[0], *rows[2:]] for c in row):
        plain = re.sub(r"\\(.)", r"\1", cell.replace("&lt;", "<"))
        plain = plain.replace("**", "").replace("`", "").replace("<br>", " ")
        self.assertIn(plain, page)

  @parameterized.parameters(*CASES)
  def test_figures_are_left_and_linked(self, name):
    linked = re.findall(r"\]\((figures/[^)]*)\)", self.text(name, "md"))
    self.assertLen(linked, 5)
    for path in linked:
      self.assertStartsWith(
        str((self.root / name / path).read_bytes()), "b'\\x"
      )
      self.assertTrue((self.root / name / path).with_suffix(".svg").exists())

  def test_same_inputs_same_bytes(self):
    other = leave(self.root / "again", *self.files["eight"])
    page.write(other)
    left = sorted(p.relative_to(other) for p in other.rglob("*.*"))
    self.assertGreater(len(left), 10)
    for path in left:
      first = (self.root / "eight" / path).read_bytes()
      self.assertEqual((other / path).read_bytes(), first, path)

  def test_is_fast(self):
    self.assertLess(self.seconds["eight"], 10)  # 2 s when nothing else runs

  def test_main_table_holds_the_numbers(self):
    results = self.files["eight"][0]
    rows = tables(self.text("eight", "md"))[0]
    by_arm = {re.search("`(.*?)`", row[0])[1]: row for row in rows[2:]}
    self.assertEqual(set(by_arm), set(EIGHT))
    for arm, row in by_arm.items():
      entry = results["arms"][arm]["metrics"]["accuracy"]
      self.assertStartsWith(row[1], f"{100 * entry['mean']:.2f} ± ")
      versus = entry["versus_baseline"]
      if versus:
        gap = f"{100 * versus['difference']:+.2f} [".replace("-", "−")  # noqa: RUF001
        self.assertIn(gap, row[2].replace("**", ""))
    means = [float(row[1].split(" ")[0]) for row in rows[2:]]
    self.assertEqual(means, sorted(means, reverse=True))
    self.assertIn("diverged: seed 2 at step 140", by_arm["dist"][0])

  def test_replicates_are_the_units_everywhere(self):
    text = self.text("nested", "md")
    for said in (
      "for other splits and draws, and for this teacher",
      "on accuracy with 90 examples, for other splits",
      "mean ± standard deviation over 5 replicates of 2 seeds",
      "| Arm | Budget | Accuracy (%) |",
      "## Contrasts", "| equal within 3.00 points |", "### Every replicate",
      "| Arm | Replicate 1 | Replicate 2 |", "single replicates (pale)",
      "| units | 5 replicates of 2 seeds |", "## Variance components",
    ):  # fmt: skip
      self.assertIn(said, text)

  def test_provenance_and_signal_are_shown(self):
    text = self.text("eight", "md")
    for said in (
      "python main.py --config=configs/digits.py --workdir=/tmp/d",
      "0123abc", "cpu (2 cores)", "81.2 s", "| evidence | run |",
      "| `clean` | agreement | 1,078 | 971 | 90.1 | 4,312 | 3,884 |",
      "| `clean` | agreement | q7 | `route this` | `a`; `b` |",
      "teacher's samples teach",
    ):  # fmt: skip
      self.assertIn(said, text)
    self.assertNotIn("train_seconds", text)

  def test_order_of_contents(self):
    text = self.text("eight", "md")
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    self.assertEqual(
      heads,
      [
        "Arms", "Curves", "Signal", "Calibration", "How it was obtained",
      ],
    )  # fmt: skip

  @parameterized.parameters("results.json", "config.json")
  def test_missing_file(self, name):
    folder = leave(self.root / f"without {name}", *self.files["two"])
    (folder / name).unlink()
    with self.assertRaisesRegex(UserError, re.escape(name)):
      page.write(folder)

  @parameterized.parameters("results.json", "config.json")
  def test_broken_file(self, name):
    folder = leave(self.root / f"broken {name}", *self.files["two"])
    (folder / name).write_text('{"arm": 1}\n{"arm": ')
    with self.assertRaisesRegex(UserError, re.escape(name)):
      page.write(folder)

  @parameterized.parameters("report.md", "report.html", "figures/recall.png")
  def test_what_cannot_be_written(self, name):
    folder = leave(
      self.root / f"no {name}".replace("/", " "), *self.files["two"]
    )
    (folder / name).mkdir(parents=True)
    with self.assertRaisesRegex(UserError, rf"cannot be written \(.*{name}"):
      page.write(folder)

  def test_missing_key(self):
    results, config, lines = self.files["two"]
    results = {k: v for k, v in results.items() if k != "arms"}
    folder = leave(self.root / "no arms", results, config, lines)
    with self.assertRaisesRegex(UserError, "lacks 'arms'"):
      page.write(folder)

  def test_forty_arms_little_else(self):
    gains = {"hard": 0.0} | {f"soft[T={i}]": i / 2000 for i in range(39)}
    results, config, _ = synthetic(gains, seeds=3, classes=0)
    for arm in results["arms"].values():
      del arm["reliability"]
      for metric in ("agreement", "accuracy_best", "nll", "ece"):
        del arm["metrics"][metric]
    del results["signal"], results["teacher_reliability"], config["question"]
    page.write(leave(self.root / "forty", results, config, []))
    rows = tables(self.text("forty", "md"))[0]
    self.assertLen(rows, 42)

  def test_other_primary_metric_and_variants(self):
    results, config, lines = synthetic({"hard": 0.0, "soft": 0.02}, seeds=6)
    results["metric"] = "nll"
    for arm in results["arms"].values():
      m = arm["metrics"]
      m["nll_shifted"] = m["nll"]
      m |= {f"recall_{c}_shifted": m[f"recall_{c}"] for c in range(10)}
    page.write(leave(self.root / "nll", results, config, lines))
    text = self.text("nll", "md")
    self.assertIn("`soft` is the best arm on NLL, for other seeds", text)
    self.assertIn("nats below its baseline `hard`", text)
    self.assertIn("## With shifted biases", text)
    self.assertIn("| `soft, shifted` |", text)


class FaultyTest(parameterized.TestCase):
  """What a study may leave that is not as it should be."""

  def folder(self, *files):
    parent = self.enterContext(tempfile.TemporaryDirectory())
    return leave(Path(parent) / "study", *files)

  def written(self, folder):
    page.write(folder)
    text = (folder / "report.html").read_text()
    self.assertEqual(Page(text).open, [])
    ET.fromstring(text.split("\n", 1)[1])
    return text, (folder / "report.md").read_text()

  @parameterized.parameters("one value", "an arm", "a metric", "everything")
  def test_none_anywhere(self, what):
    gains = {"hard": 0.0, "soft": 0.02, "rank": 0.01}
    results, config, lines = synthetic(gains, seeds=6)
    values = {
      arm: {m: list(e["values"]) for m, e in entry["metrics"].items()}
      for arm, entry in results["arms"].items()
    }
    for arm, own in values.items():
      for metric, v in own.items():
        if what == "one value" and (arm, metric) == ("rank", "accuracy"):
          v[3] = None
        if what == "an arm" and arm == "hard":  # the baseline
          v[:] = [None] * 6
        if what == "a metric" and metric in ("accuracy", "agreement"):
          v[:] = [None] * 6
        if what == "everything":
          v[:] = [None] * 6
    baselines = {a: x["baseline"] for a, x in results["arms"].items()}
    summary, _ = stats.summarise(values, baselines)
    for arm, entry in results["arms"].items():
      entry["metrics"] = summary[arm]
      empty = {"confidence": [None], "accuracy": [None], "count": [0]}
      entry["reliability"] = empty if what == "everything" else None
    results["teacher"]["nll"] = None
    results["teacher_reliability"] = None
    for line in lines:
      line["loss"] = line["validation_accuracy"] = None
    results["warnings"] = verdict.warnings(results)
    text, markdown = self.written(self.folder(results, config, lines))
    self.assertIn("not finite, hence null", text)
    self.assertIn("**Mind:** The teacher: nll not finite", markdown)

  @parameterized.parameters(
    "\u202e\x00\x1b[31m\ud83d\ufffe\x85\u2028\U000e0041", "\r", "]]><!--&#0;"
  )
  def test_any_string(self, odd):
    gains = {"hard": 0.0, f"so{odd}ft": 0.02}
    results, config, lines = synthetic(gains, seeds=3)
    removed = results["signal"]["funnels"]["clean"][0]["removed"][0]
    removed.update(id=odd, prompt=f"a{odd}b", samples=[odd, f"`{odd}"])
    results["study"] = results["provenance"]["device"] = f"x{odd}"
    results["warnings"] = [f"mind {odd}"]
    config.update(question=f"why {odd}?", words={"hard": f"on {odd}"})
    config["config"]["note"] = odd
    folder = self.folder(results, config, lines)
    for text in self.written(folder):
      self.assertNotRegex(
        text, "[\x00-\x08\x0b-\x1f\x80-\x9f\u2028-\u202e\ufffe\U000e0041]"
      )
      if "<" not in odd:
        self.assertIn(f"so{blocks.visible(odd)}ft", text)
    for path in (folder / "figures").glob("*.svg"):
      ET.parse(path)

  def test_a_question_of_money(self):
    gains = {"hard": 0.0, "a$b": 0.01, "$x_1$": 0.02}
    text, _ = self.written(self.folder(*synthetic(gains, seeds=3)))
    self.assertIn(">$x_1$</text>", text)

  def test_a_fence_is_no_end_of_the_config(self):
    results, config, lines = synthetic({"hard": 0.0, "soft": 0.0}, seeds=2)
    config["config"]["system"] = "````"
    _, text = self.written(self.folder(results, config, lines))
    *_, body = text.split("`````json\n")
    inside, _, rest = body.partition("\n`````")
    self.assertEqual(json.loads(inside), config["config"])
    self.assertNotIn("`", rest)

  def test_metrics_are_gone(self):
    folder = self.folder(*synthetic({"hard": 0.0, "soft": 0.0}, seeds=2))
    (folder / "metrics.jsonl").unlink()
    text, markdown = self.written(folder)
    self.assertIn("There are no learning curves: metrics.jsonl", text)
    self.assertIn("There are no learning curves: metrics.jsonl", markdown)
    self.assertNotIn("figures/learning_curves.png", markdown)

  def test_metrics_are_cut(self):
    results, config, lines = synthetic({"hard": 0.0, "soft": 0.0}, seeds=2)
    config["config"]["train"] = {"steps": 380}
    folder = self.folder(results, config, lines)
    self.assertNotIn("metrics.jsonl", self.written(folder)[1])
    leave(folder, results, config, lines[:-1])
    said = "metrics.jsonl does not reach step 380 for 1 of 2 arms"
    self.assertIn(said, self.written(folder)[0])
    leave(folder, results, config, lines[:10])
    said = "metrics.jsonl does not reach step 380 for 2 of 2 arms"
    self.assertIn(said, self.written(folder)[1])

  def test_warnings_stand_in_the_verdict(self):
    results, config, lines = synthetic({"hard": 0.0, "soft": 0.0}, seeds=2)
    results["warnings"] = ["The teacher saw the test set."]
    text, markdown = self.written(self.folder(results, config, lines))
    box = text[text.index('class="verdict"') : text.index('id="arms"')]
    self.assertIn("The teacher saw the test set.", box)
    self.assertIn("> **Mind:** The teacher saw the test set.", markdown)

  def test_verdict_says_when_it_pays_and_what_to_take(self):
    results, config, lines = compressed(4)
    results["warnings"] = ["The teacher saw the test set."]
    text, markdown = self.written(self.folder(results, config, lines))
    box = text[text.index('class="verdict"') : text.index('class="tiles"')]
    order = ("best mean", "Where size or speed counts", "pays for itself",
             "Mind:")  # fmt: skip
    places = [box.index(said) for said in order]
    self.assertEqual(places, sorted(places))
    best = verdict.judge(results)[0].best
    mean = results["arms"][best]["metrics"]["accuracy"]["mean"]
    self.assertIn(f"- Best mean accuracy: **{100 * mean:.2f} %**", markdown)
    self.assertIn("- Evidence: **5 seeds** 4 arms, run", markdown)
    self.assertNotIn("cost.arms", markdown)

  def test_words_of_the_study_and_of_the_keys(self):
    results, config, lines = synthetic({"hard": 0.0, "soft": 0.0}, seeds=2)
    config["words"] = {"soft": "the teacher's distribution (T = 4)"}
    results["arms"]["soft"]["config"]["overrides"] = {"train": {"steps": 9}}
    text, markdown = self.written(self.folder(results, config, lines))
    said = "the teacher's distribution (T = 4); train.steps = 9"
    self.assertIn(f"`soft`<br>{said} |", markdown)
    self.assertIn("`hard`<br>hard |", markdown)
    said = said.replace("'", "&#39;").replace(" = ", "\xa0=\xa0")
    self.assertIn(f'<code>soft</code> <span class="note">{said}', text)

  def test_no_jax(self):
    code = "import sys, kd.report.page, kd.report.record, kd.report.comparison"
    code += "; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class DocumentTest(absltest.TestCase):
  def test_text_stands_for_itself(self):
    text = "a *b* <i>c</i> _d_ & `e<f|g` **h `i`**"
    page = html.write("t", [Text(text)], {})
    seen = "".join(Page(page).words)
    self.assertIn("a *b* <i>c</i> _d_ & e<f|g h i", seen)
    self.assertEqual(
      markdown.write([Text(text)]),
      "a \\*b\\* &lt;i>c&lt;/i> \\_d\\_ & `e<f|g` **h `i`**\n",
    )


if __name__ == "__main__":
  absltest.main()
