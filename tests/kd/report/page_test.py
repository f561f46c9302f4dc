"""Reports of synthetic studies: pages, figures and words."""

import html.parser
import json
import re
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.evaluate import stats
from kd.report import figures, page, wording
from kd.report.blocks import Text, to_html, to_markdown

BINS = 15


REMOVED = {"id": "q7", "prompt": "route this", "samples": ["a", "b"]}


def funnel_step(name, came, left, removed):
  """Makes a funnel's entry for examples of four samples each."""
  counts = {"in": came, "out": left}
  samples = {"samples_in": 4 * came, "samples_out": 4 * left}
  return {"step": name, **counts, **samples, "removed": removed}


def synthetic(
  gains, seeds=10, classes=10, diverged=None, omit=(), noise=0.004, steps=400
):
  """Makes the files of a study: arm -> gain in accuracy over the first arm."""
  rng = np.random.default_rng(0)
  diverged, names = diverged or {}, list(gains)
  shared = noise * rng.normal(size=seeds)
  values, arms = {}, {}
  for arm, gain in gains.items():
    lost = [int(s) for s in diverged.get(arm, {})]
    accuracy = 0.93 + gain + shared + noise * rng.normal(size=seeds)
    metrics = {
      "accuracy": accuracy,
      "accuracy_best": accuracy + 0.3 * noise * rng.normal(size=seeds),
      "agreement": accuracy + 0.01 + noise * rng.normal(size=seeds),
      "nll": 0.26 - 2 * gain + 0.01 * rng.normal(size=seeds),
      "kl_to_teacher": 0.2 - 2 * gain + 0.01 * rng.normal(size=seeds),
      "ece": 0.03 - 0.5 * gain + 0.003 * rng.normal(size=seeds),
      "brier": 0.1 - gain + 0.003 * rng.normal(size=seeds),
      "validation_accuracy": accuracy,
      "train_seconds": rng.uniform(1, 2, seeds),
    }
    for c in range(classes):
      low = 0.15 - 10 * min(gain, 0.02) if c in omit else 0.0
      metrics[f"recall_{c}"] = np.clip(accuracy - 3 * low, 0, 1)
    values[arm] = {
      m: [None if s in lost else float(v) for s, v in enumerate(x)]
      for m, x in metrics.items()
    }
  baselines = {a: None if a == names[0] else names[0] for a in names}
  summary = stats.summarise(values, baselines)
  for arm, gain in gains.items():
    config = {"objective": arm.split("[")[0], "temperature": 4.0}
    if arm == names[0]:
      config = {"objective": "hard"}
    arms[arm] = {
      "config": config,
      "baseline": baselines[arm],
      "diverged": diverged.get(arm, {}),
      "metrics": summary[arm],
      "reliability": _reliability(rng, 0.05 - gain, seeds),
    }
  teacher = {"accuracy": 0.972, "nll": 0.11, "ece": 0.012, "brier": 0.04}
  teacher |= {f"recall_{c}": 0.97 for c in range(classes)}
  results = {
    "study": "digits",
    "metric": "accuracy",
    "selection": "last",
    "teacher": teacher,
    "baseline": names[0],
    "seeds": list(range(seeds)),
    "arms": arms,
    "teacher_reliability": _reliability(rng, 0.01, 1),
    "signal": {
      "examples": 1078,
      "samples": 16,
      "funnels": {
        "clean": [
          funnel_step("agreement", 1078, 971, [REMOVED]),
          funnel_step("closed set", 971, 971, []),
        ]
      },
    },
    "provenance": {
      "command": "python main.py --config=configs/digits.py --workdir=/tmp/d",
      "device": "cpu (2 cores)",
      "versions": {"jax": "0.12.0", "flax": "0.15"},
      "commit": "0123abc",
      "wall_seconds": 81.25,
      "evidence": "run",
    },
  }
  config = {
    "config": {"study": "digits", "signal": {"omit_classes": list(omit)}},
    "question": "Does the *order* of a teacher's samples teach more than "
    "its answers?\n\nAsked of <10 classes & 1 teacher.",
  }
  lines = []
  for k, (arm, gain) in enumerate(gains.items()):
    for seed in range(seeds):
      for step in range(0, steps, 20):
        rise = 1 - np.exp(-(step + 20) / 60)
        lost = step >= diverged.get(arm, {}).get(str(seed), steps)
        accuracy = (0.93 + gain) * rise + 0.006 * rng.normal()
        loss = (1.2 + 0.2 * k) * (1.06 - rise) * np.exp(0.1 * rng.normal())
        lines.append(
          {
            "arm": arm,
            "seed": seed,
            "step": step,
            "loss": None if lost else float(loss),
            "grad_norm": None if lost else 1.0,
            "validation_accuracy": None if lost else float(accuracy),
            "validation_nll": None if lost else 0.3,
          }
        )
  return results, config, lines


def _reliability(rng, tilt, seeds):
  edges = (np.arange(BINS) + 0.5) / BINS
  count = np.round(360 * seeds * edges**6 / np.sum(edges**6)).astype(int)
  jitter = rng.normal(size=BINS) / np.sqrt(count + 1) / 2
  accuracy = np.clip(edges - tilt * (1 - edges) * 8 + jitter, 0, 1)
  empty = [int(c) == 0 for c in count]
  return {
    "confidence": _masked(edges, empty),
    "accuracy": _masked(accuracy, empty),
    "count": count.tolist(),
  }


def _masked(values, empty):
  return [None if e else float(v) for v, e in zip(values, empty, strict=True)]


def leave(folder, results, config, lines):
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "results.json").write_text(json.dumps(results))
  (folder / "config.json").write_text(json.dumps(config))
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)
  return folder


EIGHT = {
  "hard": 0.0, "soft": 0.012, "rank": 0.02, "dkd": 0.019, "dist": 0.004,
  "list_net": 0.0, "pairwise_logistic": -0.004, "plackett_luce": 0.01,
}  # fmt: skip


class Page(html.parser.HTMLParser):
  """Checks that tags nest, and collects what a reader would rely on."""

  VOID = ("meta", "br", "img", "link")

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.attributes, self.words = [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.attributes += attrs
    self.ids += [v for k, v in attrs if k == "id"]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.attributes += attrs
    self.ids += [v for k, v in attrs if k == "id"]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag

  def handle_data(self, data):
    self.words.append(data)


def tables(markdown):
  """Parses GitHub tables: lists of rows of cells."""
  found, rows = [], []
  for line in [*markdown.split("\n"), ""]:
    if line.startswith("|"):
      cells = re.split(r"(?<!\\)\|", line)[1:-1]
      rows.append([c.strip() for c in cells])
    elif rows:
      found.append(rows)
      rows = []
  return found


CASES = {
  "two": {"gains": {"hard": 0.0, "soft": 0.01}, "seeds": 1},
  "eight": {
    "gains": EIGHT, "omit": (3,), "diverged": {"dist": {"2": 140}},
  },
  "null": {
    "gains": {"hard": 0.0, "soft[T=1]": 0.0, "a|b <i> & *c*": 0.0},
    "seeds": 5,
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
    ET.fromstring(text.split("\n", 1)[1].replace("&#160;", " "))
    self.assertNotRegex(text, r"https?:|<script|<link|@import")
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
    for rows in tables(self.text(name, "md")):
      for cell in (c for row in [rows[0], *rows[2:]] for c in row):
        plain = re.sub(r"\\(.)", r"\1", cell.replace("&lt;", "<"))
        plain = plain.replace("**", "").replace("`", "")
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
      self.assertStartsWith(row[2], f"{100 * entry['mean']:.2f} ± ")
      versus = entry["versus_baseline"]
      if versus:
        gap = f"{100 * versus['difference']:+.2f} [".replace("-", "−")  # noqa: RUF001
        self.assertIn(gap, row[3])
    means = [float(row[2].split(" ")[0]) for row in rows[2:]]
    self.assertEqual(means, sorted(means, reverse=True))
    self.assertIn("diverged: seed 2 at step 140", by_arm["dist"][0])

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
        "Results", "Figures", "Recall per class",
        "Last against best-on-validation weights", "Teacher", "Signal",
        "How it was obtained",
      ],
    )  # fmt: skip

  @parameterized.parameters("results.json", "metrics.jsonl", "config.json")
  def test_missing_file(self, name):
    folder = leave(self.root / f"without {name}", *self.files["two"])
    (folder / name).unlink()
    with self.assertRaisesRegex(UserError, re.escape(name)):
      page.write(folder)

  @parameterized.parameters("results.json", "metrics.jsonl", "config.json")
  def test_broken_file(self, name):
    folder = leave(self.root / f"broken {name}", *self.files["two"])
    (folder / name).write_text('{"arm": 1}\n{"arm": ')
    with self.assertRaisesRegex(UserError, re.escape(name)):
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
    self.assertIn("`soft` is the best arm on NLL**", text)
    self.assertIn("nats below its baseline `hard`", text)
    self.assertIn("## With shifted biases", text)
    self.assertIn("| `soft, shifted` |", text)


class VerdictTest(absltest.TestCase):
  """The words must say what the numbers do."""

  def said(self, **options):
    results, _, _ = synthetic(**options)
    return results, "\n".join(wording.verdict(results))

  def test_winner(self):
    results, said = self.said(gains={"hard": 0.0, "soft": 0.03})
    versus = results["arms"]["soft"]["metrics"]["accuracy"]["versus_baseline"]
    self.assertStartsWith(said, "**`soft` is the best arm on accuracy**")
    self.assertIn("over 10 seeds", said)
    self.assertIn(f"{100 * versus['difference']:.2f} points above", said)
    for end in ("low", "high"):
      self.assertIn(f"{100 * versus[end]:+.2f}", said)
    self.assertIn("Every other arm is told apart from `soft`.", said)

  def test_no_difference(self):
    _, said = self.said(gains={"hard": 0.0, "soft": 0.0}, seeds=5)
    self.assertStartsWith(said, "**No arm")
    self.assertNotIn("is the best arm", said)
    self.assertIn("No other arm is told apart", said)

  def test_worse(self):
    _, said = self.said(gains={"hard": 0.0, "soft": -0.05})
    self.assertStartsWith(said, "**No arm beats the baseline `hard`")
    self.assertIn("as worse: `soft`", said)

  def test_one_seed(self):
    _, said = self.said(gains={"hard": 0.0, "soft": 0.05}, seeds=1)
    self.assertStartsWith(said, "**One seed tells no arm apart")
    self.assertNotIn("interval [", said)

  def test_diverged_cannot_win(self):
    results, said = self.said(
      gains={"hard": 0.0, "soft": 0.05}, diverged={"soft": {"4": 60}}
    )
    self.assertFalse(stats.winner(results).named)
    self.assertNotIn("is the best arm", said)
    self.assertIn("`soft` diverged (seed 4 at step 60)", said)
    self.assertIn("though its mean over the runs that it finished", said)

  def test_all_diverged(self):
    lost = {"0": 20}
    _, said = self.said(
      gains={"hard": 0.0, "soft": 0.05}, seeds=1,
      diverged={"hard": lost, "soft": lost},
    )  # fmt: skip
    self.assertStartsWith(said, "**No arm is named best on accuracy**")


class FiguresTest(parameterized.TestCase):
  @parameterized.parameters(2, 9, 10, 40)
  def test_styles_tell_arms_apart(self, n):
    gains = {"hard": 0.0} | {f"a{i}": i / 1000 for i in range(1, n)}
    results, _, _ = synthetic(gains, seeds=2, classes=0, steps=20)
    look = figures.styles(results)
    loud = [s for s in look.values() if not s.quiet]
    self.assertLen({(s.colour, s.dash, s.marker) for s in loud}, len(loud))
    self.assertLen(loud, n if n <= 9 else 8)
    self.assertEqual(look["hard"].colour, figures.INK)

  def test_curves_are_thinned_not_changed(self):
    steps = np.arange(5000)
    values = np.tile(0.5 + steps / 1e4, (3, 1))
    values[1, 4000:] = np.nan
    x, mean, std = figures._thin(steps, values)
    self.assertLessEqual(len(x), 160)
    np.testing.assert_allclose(mean, 0.5 + x / 1e4)
    np.testing.assert_allclose(std, 0, atol=1e-12)

  def test_curves_without_values(self):
    empty = (np.arange(3), np.full((2, 3), np.nan))
    curves = {"hard": {"loss": empty, "validation_accuracy": empty}}
    look = {"hard": figures.Style(figures.INK)}
    fig = figures.learning_curves(curves, look, {"hard": {"0": 1}})
    self.assertIn("not recorded", figures.to_svg(fig))

  def test_resumed_lines_replace(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    path = Path(folder.name) / "metrics.jsonl"
    row = {"arm": "a", "seed": 0, "step": 5, "validation_accuracy": None}
    lines = [row | {"loss": 1.0}, row | {"loss": 2.0}]
    path.write_text("\n".join(map(json.dumps, lines)))
    _, values = page.read_curves(path, [0])["a"]["loss"]
    np.testing.assert_array_equal(values, [[2.0]])


class DocumentTest(absltest.TestCase):
  def test_text_stands_for_itself(self):
    text = "a *b* <i>c</i> _d_ & `e<f|g` **h `i`**"
    page = to_html("t", [Text(text)], {})
    seen = "".join(Page(page).words)
    self.assertIn("a *b* <i>c</i> _d_ & e<f|g h i", seen)
    markdown = to_markdown([Text(text)])
    self.assertEqual(
      markdown, "a \\*b\\* &lt;i>c&lt;/i> \\_d\\_ & `e<f|g` **h `i`**\n"
    )


if __name__ == "__main__":
  absltest.main()
