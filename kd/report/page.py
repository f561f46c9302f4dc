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

from kd import files
from kd.errors import UserError, why
from kd.evaluate import registry
from kd.evaluate.design import Design
from kd.report import (
  curves,
  evidence,
  figures,
  html,
  markdown,
  results_table,
  sentences,
  style,
  tables,
  wording,
  written,
)
from kd.report.blocks import Block, Code, Details, Heading, Picture, Table, Text

Results = Mapping[str, Any]

_REQUIRED = ("study", "metric", "seeds", "arms", "teacher", "provenance")


def write(workdir: str | Path) -> Path:
  """Writes report.md, report.html and figures/ into a study's workdir.

  Args:
    workdir: holds results.json, config.json and, for the learning curves,
      metrics.jsonl.

  Returns:
    The path of report.html.

  Raises:
    UserError: naming the file that is missing, or cannot be read or written,
      or the key that it lacks.
  """
  workdir = Path(workdir)
  results, config = read(workdir)
  found, faults = curves.read(workdir / "metrics.jsonl", results, config)
  folder = workdir / "figures"
  try:
    folder.mkdir(exist_ok=True)
    document = build(results, found, config, folder, faults)
  except OSError as error:
    raise UserError(f"{folder}: cannot be written ({why(error)})") from error
  files.write_text(str(workdir / "report.md"), markdown.write(document))
  title = f"{results['study']}: a distillation study"
  page = html.write(title, document, style.THEME)
  files.write_text(str(workdir / "report.html"), page)
  return workdir / "report.html"


def read(workdir: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what results.json and config.json of a finished study hold.

  Raises:
    UserError: as of `write`.
  """
  workdir = Path(workdir)
  results = _read_json(workdir / "results.json")
  for key in _REQUIRED:
    if key not in results:
      raise UserError(f"{workdir / 'results.json'} lacks {key!r}")
  return results, _read_json(workdir / "config.json")


def build(
  results: Results,
  found: Mapping[str, Mapping[str, curves.Curve]],
  config: Mapping[str, Any],
  folder: Path,
  faults: Sequence[str] = (),
) -> list[Block]:
  """Builds the report's blocks, leaving its figures in `folder`.

  Args:
    results: what results.json holds.
    found: the learning curves (`curves.read`).
    config: what config.json holds.
    folder: of the figures.
    faults: what is to be said of the curves.
  """
  look = style.styles(results)
  words = config.get("words") or {}
  tree = config.get("config", config)
  question = config.get("question") or tree.get("question")
  blocks: list[Block] = [Heading(str(results["study"]), 1)]
  if question:
    blocks.append(Text(str(question).strip(), "question"))
  blocks.append(Text("\n\n".join(sentences.verdict(results)), "verdict"))
  blocks += [Heading("Results"), results_table.table(results, look, words)]
  blocks.append(Text(sentences.how_tested(results), "note"))
  blocks += evidence.contrast_table(results)
  blocks += evidence.component_table(results)
  blocks += evidence.search_table(results)
  blocks.append(Heading("Figures"))
  blocks += [Text(" ".join(faults), "note")] if faults else []
  omitted = _omitted(results, tree)
  blocks += _pictures(results, found, look, omitted, folder)
  blocks += tables.recall_table(results)
  blocks += tables.variant_tables(results, look)
  blocks += tables.unit_table(results, look)
  blocks += tables.rest_table(results, look)
  blocks += tables.teacher_table(results)
  blocks += written.word_tables(results, look)
  blocks += tables.cost_tables(results)
  blocks += written.budget_table(results, look)
  blocks += tables.signal_tables(results)
  blocks += _provenance(results, config, tree)
  return blocks


def _pictures(results, found, look, omitted, folder: Path):
  """Draws the figures; skips one whose data the study did not leave."""
  metric = results["metric"]
  present = {m for a in results["arms"].values() for m in a["metrics"]}
  first = [k for k, m in registry.METRICS.items() if m.shown == "first"]
  rows = [metric, *(m for m in first if m in present - {metric})][:3]
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
      f"single {Design.of(results).unit}s (pale). Filled: told apart from 0 "
      "after Holm's correction; open: not. Only the first panel decides the "
      "verdict." + part + rest,
    ),
    (
      "recall",
      figures.recall(results, omitted),
      "Recall per class of the teacher and of each arm",
      "**Recall per class** in per cent, mean over runs; the teacher on top. "
      "Dark cells are classes that were not learned." + frames,
    ),
    (
      "learning_curves",
      figures.learning_curves(found, look, lost) if found else None,
      "Training loss and validation accuracy against the step",
      "**Learning curves.** Mean over runs, with a band of one standard "
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
      "**Reliability,** pooled over runs. On the dashed line confidence is "
      "accuracy; below it the student is overconfident. Dots grow with the "
      "number of examples and are joined from 10 on; the grey line is the "
      "teacher.",
    ),
  ]
  blocks = []
  for name, fig, alt, caption in drawn:
    if fig is None:
      continue
    svg = style.to_svg(fig)
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    (folder / f"{name}.png").write_bytes(style.to_png(fig))
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
  if Design.of(results).levels:
    facts.append(["units", wording.units(results)])
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
  _, _, classes = tables.recall_rows(results)
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


def _read_json(path: Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(
      f"{path} is missing: a report needs a study that has finished there"
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
  except ValueError as error:
    raise UserError(f"{path} is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise UserError(f"{path} holds {type(value).__name__}; expected an object")
  return value
