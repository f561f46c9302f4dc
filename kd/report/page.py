"""Writes a study's report from what the study left in its workdir.

One list of blocks (kd.report.blocks) makes both report.md and report.html, so
no table exists twice, and every number comes from results.json. The same inputs
give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd.errors import UserError
from kd.evaluate import stats
from kd.report import figures, tables, wording
from kd.report.blocks import (
  Block,
  Code,
  Details,
  Heading,
  Picture,
  Table,
  Text,
  to_html,
  to_markdown,
)

Results = Mapping[str, Any]

_REQUIRED = ("study", "metric", "seeds", "arms", "teacher", "provenance")


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
  page = to_html(title, blocks, figures.THEME)
  markdown = to_markdown(blocks)
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
) -> list[Block]:
  """Builds the report's blocks, leaving its figures in `folder`."""
  look = figures.styles(results)
  tree = config.get("config", config)
  question = config.get("question") or tree.get("question")
  blocks: list[Block] = [Heading(str(results["study"]), 1)]
  if question:
    blocks.append(Text(str(question).strip(), "question"))
  blocks.append(Text("\n\n".join(wording.verdict(results)), "verdict"))
  blocks += [Heading("Results"), tables.main_table(results, look)]
  blocks.append(Text(_interval_note(results), "note"))
  blocks.append(Heading("Figures"))
  omitted = _omitted(results, tree)
  blocks += _pictures(results, curves, look, omitted, folder)
  blocks += tables.recall_table(results)
  blocks += tables.variant_tables(results, look)
  blocks += tables.seed_table(results, look)
  blocks += tables.rest_table(results, look)
  blocks += tables.teacher_table(results)
  blocks += tables.cost_tables(results)
  blocks += tables.signal_tables(results)
  blocks += _provenance(results, config, tree)
  return blocks


def _interval_note(results: Results) -> str:
  versus = [
    tables.entry_of(a, results["metric"])["versus_baseline"]
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
      f"Each arm's difference to its baseline in {wording.metric_name(metric)}",
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
    blocks.append(Picture(name, alt, caption, svg))
  return blocks


def _provenance(results, config, tree) -> list[Block]:
  provenance = dict(results["provenance"])
  provenance.pop("latency_seconds", None)  # in a table of its own
  if isinstance(provenance.get("seconds"), Mapping):
    total = sum(provenance["seconds"].values())
    provenance["seconds"] = {**provenance["seconds"], "all": total}
  command = provenance.pop("command", None) or config.get("command")
  command = " ".join(command) if isinstance(command, list) else command
  seeds = ", ".join(map(str, results["seeds"]))
  facts = [["evidence", str(provenance.pop("evidence", "run"))]]
  facts += [["seeds", seeds], *([k, v] for k, v in wording.flat(provenance))]
  facts = [[k.replace("_", " "), v] for k, v in facts]
  blocks: list[Block] = [
    Heading("How it was obtained"),
    Table("", ["Fact", "Value"], facts, left=(0, 1)),
  ]
  text = command or "not recorded"
  blocks.append(Text("The exact command:"))
  blocks.append(Code(text, "sh" if command else ""))
  resolved = json.dumps(tree, indent=2, ensure_ascii=False)
  return [
    *blocks,
    Details("Resolved config", [Code(resolved, "json")]),
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
