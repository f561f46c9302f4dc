"""Writes a study's report from what the study left in its workdir.

One list of blocks (kd.document) makes both report.md and report.html, so no
table exists twice, and every number comes from results.json. The same inputs
give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd import document, figures, stats, words
from kd.document import Cell, Details, Heading, Table, Text, code
from kd.errors import UserError

Results = Mapping[str, Any]

_SECONDARY = ("accuracy", "agreement", "nll", "ece", "kl_to_teacher")
_REQUIRED = ("study", "metric", "seeds", "arms", "teacher", "provenance")
_MOST_CLASSES = 20  # columns of a table that is still read
# Metrics' suffix, column, heading, caption.
_VARIANTS = (
  (
    "_best",
    "Best on validation",
    "Last against best-on-validation weights",
    "the last weights and those that did best on validation, paired by seed.",
  ),
  (
    "_shifted",
    "Biases shifted",
    "With shifted biases",
    "as trained, and with the output biases of the configured classes shifted "
    "by an amount chosen on validation, paired by seed.",
  ),
)


def write(workdir: str | Path) -> Path:
  """Writes report.md, report.html and figures/ into a study's workdir.

  Args:
    workdir: holds results.json, metrics.jsonl and config.json.

  Returns:
    The path of report.html.

  Raises:
    UserError: naming the file that is missing or cannot be read, or the key
      that it lacks.
  """
  workdir = Path(workdir)
  results = _read_json(workdir / "results.json")
  for key in _REQUIRED:
    if key not in results:
      raise UserError(f"{workdir / 'results.json'} lacks {key!r}")
  config = _read_json(workdir / "config.json")
  curves = read_curves(workdir / "metrics.jsonl", results["seeds"])
  folder = workdir / "figures"
  folder.mkdir(exist_ok=True)
  blocks = build(results, curves, config, folder)
  title = f"{results['study']}: a distillation study"
  page = document.to_html(title, blocks, figures.THEME)
  markdown = document.to_markdown(blocks)
  (workdir / "report.md").write_text(markdown, encoding="utf-8")
  (workdir / "report.html").write_text(page, encoding="utf-8")
  return workdir / "report.html"


def read_curves(
  path: Path, seeds: Sequence[int]
) -> dict[str, dict[str, figures.Curve]]:
  """Reads metrics.jsonl as arm -> quantity -> (steps [T], values [S, T]).

  A later line for the same arm, seed and step replaces an earlier one, as a
  resumed study writes them.

  Raises:
    UserError: naming the file, and the line that is no JSON.
  """
  lines = _read(path).splitlines()
  try:
    rows = json.loads("[" + ",".join(line for line in lines if line) + "]")
  except json.JSONDecodeError:
    rows = [_read_line(path, i, line) for i, line in enumerate(lines, 1)]
  place = {seed: i for i, seed in enumerate(seeds)}
  by_arm: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    if row and row["seed"] in place:
      by_arm.setdefault(row["arm"], []).append(row)
  curves = {}
  for arm, own in by_arm.items():
    steps = np.unique([row["step"] for row in own])
    i = [place[row["seed"]] for row in own]
    j = np.searchsorted(steps, [row["step"] for row in own])
    curves[arm] = {}
    for key in ("loss", "validation_accuracy"):
      values = np.full((len(seeds), len(steps)), np.nan)
      values[i, j] = np.array([row.get(key) for row in own], np.float64)
      curves[arm][key] = (steps, values)
  return curves


def build(
  results: Results,
  curves: Mapping[str, Mapping[str, figures.Curve]],
  config: Mapping[str, Any],
  folder: Path,
) -> list[document.Block]:
  """Builds the report's blocks, leaving its figures in `folder`."""
  look = figures.styles(results)
  tree = config.get("config", config)
  question = config.get("question") or tree.get("question")
  blocks: list[document.Block] = [Heading(str(results["study"]), 1)]
  if question:
    blocks.append(Text(str(question).strip(), "question"))
  blocks.append(Text("\n\n".join(words.verdict(results)), "verdict"))
  blocks += [Heading("Results"), main_table(results, look)]
  blocks.append(Text(_interval_note(results), "note"))
  blocks.append(Heading("Figures"))
  omitted = _omitted(results, tree)
  blocks += _pictures(results, curves, look, omitted, folder)
  blocks += _recall_table(results)
  blocks += variant_tables(results, look)
  blocks += _seed_table(results, look)
  blocks += _rest_table(results, look)
  blocks += _teacher_table(results)
  blocks += _signal_tables(results)
  blocks += _provenance(results, config, tree)
  return blocks


def main_table(results: Results, look) -> Table:
  metric, arms = results["metric"], results["arms"]
  v, sign = stats.winner(results), stats.direction(metric)
  suffix = "_best" if metric.endswith("_best") else ""
  others = [m + suffix for m in _SECONDARY if m + suffix != metric]
  others = [*(f"recall_{c}" for c in omitted_classes(results)), *others]
  others = [m for m in others if any(m in a["metrics"] for a in arms.values())]
  digits = {m: _column_digits(results, m, 3) for m in others}
  digits[metric] = _column_digits(results, metric)
  versus = {a: _entry(arms[a], metric)["versus_baseline"] for a in arms}
  widths = [words.half_width(x) for x in versus.values()]
  gap_digits = words.decimals(widths, metric)
  several = len({a["baseline"] for a in arms.values()} - {None}) > 1

  def order(arm):
    mean = _entry(arms[arm], metric)["mean"]
    return math.inf if mean is None else -sign * mean

  rows = []
  for arm in sorted(arms, key=order):
    strong = v.named and arm == v.best
    steps = arms[arm].get("diverged")
    lost = f" ✕ diverged: {words.lost_runs(steps)}" if steps else ""
    x = versus[arm]
    gap = words.interval(x, metric, gap_digits) if x else "baseline"
    gap += f" vs {code(x['baseline'])}" if x and several else ""
    cells = [
      Cell(code(arm) + lost, look[arm].colour, strong),
      Cell(words.objective(arms[arm].get("config", {}))),
      Cell(words.mean_std(_entry(arms[arm], metric), metric, digits[metric])),
      Cell(gap, strong=bool(stats.told_apart(x))),
      Cell(words.p_value(x["p"]) if x else words.DASH),
    ]
    for m in others:
      entry = _entry(arms[arm], m)
      text = words.mean_std(entry, m, digits[m])
      if m.startswith("recall") and entry["versus_baseline"]:
        text += f" ({words.interval(entry['versus_baseline'], m, digits[m])})"
      cells.append(Cell(text))
    rows.append(cells)
  unit = f" ({words.unit(metric)})" if words.unit(metric) else ""
  columns = ["Arm", "Objective", words.metric_title(metric)]
  columns += [f"Difference to baseline{unit} [95 % interval]", "Holm p"]
  columns += [words.metric_title(m) for m in others]
  caption = (
    f"Test set, weights of the {_selection(results)}; mean ± standard "
    f"deviation over {words.seed_count(len(results['seeds']))}, best "
    f"{words.metric_name(metric)} first. Differences in bold are told apart "
    "from 0."
  )
  if any(m.startswith("recall") for m in others):
    caption += " In round brackets: the difference in recall, likewise."
  return Table(caption, columns, rows, left=(0, 1))


def omitted_classes(results: Results, most: int = 3) -> list[int]:
  """Returns the classes that some arm's transfer set omits; none if many."""
  classes = {
    c
    for arm in results["arms"].values()
    for c in arm.get("config", {}).get("signal", {}).get("omit_classes", ())
  }
  return sorted(classes) if len(classes) <= most else []


def _interval_note(results: Results) -> str:
  versus = [
    _entry(a, results["metric"])["versus_baseline"]
    for a in results["arms"].values()
  ]
  reached = {stats.resampling_reaches(v["n"]) for v in versus if v}
  bootstrap = "the expanded percentile bootstrap (Hesterberg 2015)"
  student = "Student's t, as no resampling of so few seeds can cover 95 %"
  how = bootstrap if True in reached else student
  if len(reached) > 1:
    how = f"{bootstrap}, and below six seeds {student}"
  return (
    "Intervals and p-values are over **seeds**: they say how far a difference "
    "would move with other initialisations, batch orders and transfer-set "
    "draws. They are not over test examples: the test set and the teacher are "
    "taken as given. Arms are paired by seed. The interval is "
    + how
    + "; p is "
    "the paired t-test's, corrected by Holm's procedure over the arms compared "
    "on the metric. An arm is named best only if its interval excludes 0, its "
    "corrected p is below 0.05, at least three seeds were compared and none of "
    "its runs diverged. Not told apart means that the 95 % interval of the "
    "paired difference to the best arm, uncorrected except against its "
    "baseline, includes 0."
  )


def _pictures(results, curves, look, omitted, folder: Path):
  """Draws the figures; skips one whose data the study did not leave."""
  metric = results["metric"]
  present = {m for a in results["arms"].values() for m in a["metrics"]}
  rows = [metric, *(m for m in ("nll", "ece") if m in present - {metric})]
  lost = {a: x.get("diverged", {}) for a, x in results["arms"].items()}
  crossed = any(lost.values())
  marks = " A cross marks a run that diverged." if crossed else ""
  part = " A cross: without the runs that diverged." if crossed else ""
  frames = " Frames: classes left out of the transfer set." if omitted else ""
  grey = any(s.quiet for s in look.values())
  rest = " The arms of best mean are coloured, the rest grey." if grey else ""
  drawn = [
    (
      "differences",
      figures.forest(results, look, rows),
      f"Each arm's difference to its baseline in {words.metric_name(metric)}",
      "**Differences.** Paired, to the baseline: mean, 95 % interval and "
      "single seeds (pale). Filled: told apart from 0 after Holm's "
      "correction; open: not. Only the first panel decides the verdict."
      + part
      + rest,
    ),
    (
      "recall",
      figures.recall(results, omitted),
      "Recall per class of the teacher and of each arm",
      "**Recall per class** in per cent, mean over seeds; the teacher on top. "
      "Dark cells are classes that were not learned." + frames,
    ),
    (
      "learning_curves",
      figures.learning_curves(curves, look, lost),
      "Training loss and validation accuracy against the step",
      "**Learning curves.** Mean over seeds, with a band of one standard "
      "deviation. Losses are each arm's own objective: compare shapes, not "
      "heights. The accuracy axis starts where the second half of training "
      "does." + marks,
    ),
    (
      "student_teacher",
      figures.student_teacher(results, look),
      "Accuracy against agreement with the teacher",
      "**Student against teacher.** Does a better copy make a better student? "
      "Small dots are runs, large markers the arms' means, the star and the "
      "line the teacher." + rest,
    ),
    (
      "reliability",
      figures.reliability(results, look),
      "Accuracy against confidence for each arm",
      "**Reliability,** pooled over seeds. On the dashed line confidence is "
      "accuracy; below it the student is overconfident. Dots grow with the "
      "number of examples and are joined from 10 on; the grey line is the "
      "teacher.",
    ),
  ]
  blocks = []
  for name, fig, alt, caption in drawn:
    if fig is None:
      continue
    svg = figures.to_svg(fig)
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    (folder / f"{name}.png").write_bytes(figures.to_png(fig))
    blocks.append(document.Picture(name, alt, caption, svg))
  return blocks


def _recall_table(results: Results) -> list[document.Block]:
  values, names, classes = figures.recall_rows(results)
  if not classes or len(classes) > _MOST_CLASSES:
    return []
  rows = [
    [code(n) if i else n, *(words.number(v, "recall", 1) for v in row)]
    for i, (n, row) in enumerate(zip(names, values, strict=True))
  ]
  columns = ["Arm", *map(str, classes)]
  table = Table("Recall per class (%), mean over seeds.", columns, rows)
  return [Heading("Recall per class"), table]


def variant_tables(results: Results, look) -> list[document.Block]:
  """Sets the primary metric beside its _best and _shifted variants."""
  metric = results["metric"].removesuffix("_best").removesuffix("_shifted")
  blocks = []
  for suffix, short, head, caption in _VARIANTS:
    rows = _variant_rows(results, look, metric, metric + suffix)
    if rows:
      unit = f" ({words.unit(metric)})" if words.unit(metric) else ""
      gap = f"{short} {words.MINUS} last{unit} [95 % interval]"
      columns = ["Arm", "Last step", short, gap]
      caption = f"Test {words.metric_name(metric)}: {caption}"
      blocks += [Heading(head), Table(caption, columns, rows)]
  return blocks


def _variant_rows(results, look, metric: str, variant: str):
  pairs = {
    arm: (entry["metrics"][metric], entry["metrics"][variant])
    for arm, entry in results["arms"].items()
    if metric in entry["metrics"] and variant in entry["metrics"]
  }
  gaps = {
    arm: dataclasses.asdict(stats.compare(other["values"], last["values"]))
    for arm, (last, other) in pairs.items()
  }
  digits = _column_digits(results, metric)
  widths = [words.half_width(gap) for gap in gaps.values()]
  places = words.decimals(widths, metric)
  rows = []
  for arm, pair in pairs.items():
    cells = [words.mean_std(m, metric, digits) for m in pair]
    cells.append(words.interval(gaps[arm], metric, places))
    rows.append([Cell(code(arm), look[arm].colour), *cells])
  return rows


def _seed_table(results: Results, look) -> list[document.Block]:
  metric, seeds = results["metric"], results["seeds"]
  if len(seeds) > _MOST_CLASSES:
    return []
  digits = _column_digits(results, metric)
  rows = []
  for arm, entry in results["arms"].items():
    values = _entry(entry, metric)["values"]
    cells = [
      words.number(v, metric, digits) if v is not None else "✕" for v in values
    ]
    rows.append([Cell(code(arm), look[arm].colour), *cells])
  columns = ["Arm", *(f"Seed {s}" for s in seeds)]
  caption = f"{words.metric_title(metric)} of every run; ✕ diverged."
  return [Details("Every run", [Table(caption, columns, rows)])]


def _rest_table(results: Results, look) -> list[document.Block]:
  """Lists the metrics that no other table shows."""
  shown = {*_SECONDARY, results["metric"]}
  found = [m for arm in results["arms"].values() for m in arm["metrics"]]
  rest = [
    m
    for m in dict.fromkeys(found)
    if m not in shown
    and stats.family(m) != "recall"
    and not m.endswith(("_best", "_shifted"))
    and not stats.is_seconds(m)
  ]
  if not rest:
    return []
  rows = [
    [Cell(code(arm), look[arm].colour)]
    + [
      Cell(words.mean_std(_entry(entry, m), m, _column_digits(results, m, 3)))
      for m in rest
    ]
    for arm, entry in results["arms"].items()
  ]
  columns = ["Arm", *(words.metric_title(m) for m in rest)]
  caption = "Mean ± standard deviation over seeds."
  return [Details("Other metrics", [Table(caption, columns, rows)])]


def _teacher_table(results: Results) -> list[document.Block]:
  teacher = {
    m: v for m, v in results["teacher"].items() if not m.startswith("recall_")
  }
  if not teacher:
    return []
  rows = []
  for m, v in teacher.items():
    places = 2 if words.scale(m) == 100 else 4
    rows.append([words.metric_title(m), words.number(v, m, places)])
  caption = "The teacher on the same test set."
  return [Heading("Teacher"), Table(caption, ["Metric", "Value"], rows)]


def _signal_tables(results: Results) -> list[document.Block]:
  signal = dict(results.get("signal") or {})
  if not signal:
    return []
  funnel = signal.pop("funnel", None)
  blocks: list[document.Block] = [Heading("Signal")]
  rows = [[k.replace("_", " "), v] for k, v in words.flat(signal)]
  if rows:
    caption = "What the teacher left on the transfer set."
    blocks.append(Table(caption, ["Quantity", "Value"], rows))
  if funnel:
    rows = [
      [
        str(s["step"]),
        f"{s['in']:,}",
        f"{s['out']:,}",
        f"{100 * s['out'] / s['in']:.1f}" if s["in"] else words.DASH,
      ]
      for s in funnel
    ]
    columns = ["Step", "In", "Out", "Kept (%)"]
    blocks.append(Table("What the filters kept, in order.", columns, rows))
  return blocks


def _provenance(results, config, tree) -> list[document.Block]:
  provenance = dict(results["provenance"])
  if isinstance(provenance.get("seconds"), Mapping):
    total = sum(provenance["seconds"].values())
    provenance["seconds"] = {**provenance["seconds"], "all": total}
  command = provenance.pop("command", None) or config.get("command")
  command = " ".join(command) if isinstance(command, list) else command
  seeds = ", ".join(map(str, results["seeds"]))
  facts = [["evidence", str(provenance.pop("evidence", "run"))]]
  facts += [["seeds", seeds], *([k, v] for k, v in words.flat(provenance))]
  facts = [[k.replace("_", " "), v] for k, v in facts]
  blocks: list[document.Block] = [
    Heading("How it was obtained"),
    Table("", ["Fact", "Value"], facts, left=(0, 1)),
  ]
  text = command or "not recorded"
  blocks.append(Text("The exact command:"))
  blocks.append(document.Code(text, "sh" if command else ""))
  resolved = json.dumps(tree, indent=2, ensure_ascii=False)
  return [
    *blocks,
    Details("Resolved config", [document.Code(resolved, "json")]),
  ]


def _omitted(results: Results, tree) -> dict[str, list[int]]:
  """Finds the classes that each arm's transfer set leaves out."""
  _, _, classes = figures.recall_rows(results)
  omitted: dict[str, list[int]] = {}
  for arm, entry in results["arms"].items():
    planned = (tree.get("arms") or {}).get(arm) or {}
    own = entry.get("config", {}).get("signal") or planned.get("signal")
    signal = {**(tree.get("signal") or {}), **(own or {})}
    out: set[int] = set(signal.get("omit_classes") or ())
    if only := signal.get("only_classes"):
      out |= set(classes) - set(only)
    if out:
      omitted[arm] = sorted(out)
  return omitted


def _entry(arm: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
  empty = {"values": [], "mean": None, "std": None, "versus_baseline": None}
  return arm["metrics"].get(metric, empty)


def _column_digits(results: Results, metric: str, most: int = 5) -> int:
  spreads = [_entry(a, metric)["std"] for a in results["arms"].values()]
  return words.decimals(spreads, metric, most)


def _selection(results: Results) -> str:
  last = results.get("selection", "last") == "last"
  last = last and not results["metric"].endswith("_best")
  return "last step" if last else "best step on validation"


def _read(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except FileNotFoundError:
    raise UserError(
      f"{path} is missing: a report needs a study that has finished there"
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
  try:
    return json.loads(_read(path))
  except json.JSONDecodeError as error:
    raise UserError(f"{path} is not JSON: {error}") from error


def _read_line(path: Path, number: int, line: str) -> Any:
  try:
    return json.loads(line) if line else None
  except json.JSONDecodeError as error:
    raise UserError(f"{path}, line {number}, is not JSON: {error}") from error
