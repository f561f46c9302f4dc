"""The sections of every study's report; others have modules of their own.

A record of a study shows some of their parts too, under headings of its own
level; here these are a level down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kd.evaluate import registry
from kd.evaluate.design import Design
from kd.evaluate.verdict import judge
from kd.report import (
  cost,
  evidence,
  figures,
  outside,
  pareto,
  results_table,
  sentences,
  tables,
  wording,
  written,
)
from kd.report.blocks import (
  Block,
  Code,
  Details,
  Heading,
  Table,
  Text,
  Tile,
  Tiles,
  code,
)
from kd.report.source import Source, below


def verdict(source: Source) -> list[Block]:
  """Says what was asked and what was found."""
  results = source.results
  question = source.config.get("question") or source.tree.get("question")
  blocks: list[Block] = [Heading(str(results["study"]), 1)]
  if question:
    blocks.append(Text(str(question).strip(), "question"))
  best = judge(results)[0].best
  further = [outside.sentence(results), pareto.sentence(results)]
  prices = results["provenance"].get("cost") or {}
  if best is not None and best in prices.get("arms", ()):
    further.append(cost.pays(results, best))
  said = sentences.verdict(results, further)
  return [*blocks, Text("\n\n".join(said), "verdict"), *_tiles(source)]


def _tiles(source: Source) -> list[Block]:
  """Shows at a glance what the verdict is made of."""
  results = source.results
  metric, arms = results["metric"], results["arms"]
  best = judge(results)[0].best
  if best is None:
    return []
  unit = registry.lookup(metric).unit.name
  digits = wording.decimals([arms[best]["metrics"][metric]["std"]], metric)
  say = lambda v: f"{wording.number(v, metric, digits)} {unit}".rstrip()
  own = {a: entry["metrics"][metric]["mean"] for a, entry in arms.items()
         if metric in entry["metrics"]}  # fmt: skip
  name = wording.metric_name(metric)
  tiles = [Tile(f"Best mean {name}", say(own[best]), code(best))]
  if (base := arms[best]["baseline"]) is not None:
    tiles.append(Tile("Its baseline", say(own.get(base)), code(base)))
  if results["teacher"].get(metric) is not None:
    tiles.append(Tile("Teacher", say(results["teacher"][metric])))
  tiles += pareto.tiles(results)
  units, of, each = wording.units(results).partition(" of ")
  made = f"{len(arms)} arms, {results['provenance'].get('evidence', 'run')}"
  tiles.append(Tile("Evidence", units, f"{of}{each}, {made}".lstrip(" ,")))
  return [Tiles(tiles)]


def arms(source: Source) -> list[Block]:
  """Sets the arms side by side, with what is tested and what it rests on."""
  results, look = source.results, source.look
  omitted = _omitted(results, source.tree)
  frames = " Frames: classes left out of the transfer set." if omitted else ""
  parts = [
    *evidence.contrast_table(results),
    *source.picture(
      "recall",
      figures.recall(results, omitted),
      "Recall per class of the teacher and of each arm",
      "**Recall per class** in per cent, mean over runs; the teacher on top. "
      "Dark cells are classes that were not learned." + frames,
    ),
    *tables.recall_table(results),
    *tables.variant_tables(results, look),
    *tables.teacher_table(results),
    *evidence.component_table(results),
    *evidence.search_table(results),
    *tables.unit_table(results, look),
    *tables.rest_table(results, look),
  ]
  return [
    Heading("Arms"),
    results_table.table(results, look, source.words),
    Details("What is tested, and how", [Text(sentences.how_tested(results))]),
    *_differences(source),
    *below(parts),
  ]


def _differences(source: Source) -> list[Block]:
  results = source.results
  metric, entries = results["metric"], results["arms"].values()
  present = {m for a in entries for m in a["metrics"]}
  first = [k for k, m in registry.METRICS.items() if m.shown == "first"]
  rows = [metric, *(m for m in first if m in present - {metric})][:3]
  lost = any(a.get("diverged") for a in entries)
  part = " A cross: without the runs that diverged." if lost else ""
  return source.picture(
    "differences",
    figures.forest(results, source.look, rows),
    f"Each arm's difference to its baseline in {wording.metric_name(metric)}",
    "**Differences.** Paired, to the baseline: mean, 95 % interval and "
    f"single {Design.of(results).unit}s (pale). Filled: told apart from 0 "
    "after Holm's correction; open: not. Only the first panel decides the "
    "verdict." + part + _rest(source),
  )


def curves(source: Source) -> list[Block]:
  """Shows how the arms learned, and what became of the teacher in them."""
  results, look = source.results, source.look
  lost = {a: x.get("diverged", {}) for a, x in results["arms"].items()}
  marks = " A cross marks a run that diverged." if any(lost.values()) else ""
  faults = source.faults
  blocks: list[Block] = [Text(" ".join(faults), "note")] if faults else []
  if source.found:
    blocks += source.picture(
      "learning_curves",
      figures.learning_curves(source.found, look, lost),
      "Training loss and validation accuracy against the step",
      "**Learning curves.** Mean over runs, with a band of one standard "
      "deviation. Losses are each arm's own objective: compare shapes, not "
      "heights. The accuracy axis starts where the second half of training "
      "does." + marks,
    )
  blocks += source.picture(
    "student_teacher",
    figures.student_teacher(results, look),
    "Accuracy against agreement with the teacher",
    "**Student against teacher.** Does a better copy make a better student? "
    "Small dots are runs, large markers the arms' means, the star and the "
    "line the teacher." + _rest(source),
  )
  return [Heading("Curves"), *blocks] if blocks else []


def signal(source: Source) -> list[Block]:
  """Shows what the teacher left, what filters kept of it, and its price."""
  return [
    *tables.signal_tables(source.results),
    *below(written.budget_table(source.results, source.look)),
  ]


def calibration(source: Source) -> list[Block]:
  """Shows whether confidence is accuracy."""
  blocks = source.picture(
    "reliability",
    figures.reliability(source.results, source.look),
    "Accuracy against confidence for each arm",
    "**Reliability,** pooled over runs. On the dashed line confidence is "
    "accuracy; below it the student is overconfident. Dots grow with the "
    "number of examples and are joined from 10 on; the grey line is the "
    "teacher.",
  )
  return [Heading("Calibration"), *blocks] if blocks else []


def words(source: Source) -> list[Block]:
  """Shows what is written after test prompts."""
  return written.word_tables(source.results, source.look)


def provenance(source: Source) -> list[Block]:
  """Says how the numbers were obtained, to the exact command."""
  results = source.results
  said = dict(results["provenance"])
  for key in ("latency_seconds", "cost"):  # in tables of their own
    said.pop(key, None)
  if isinstance(said.get("seconds"), Mapping):
    said["seconds"] = {**said["seconds"], "all": sum(said["seconds"].values())}
  command = said.pop("command", None) or source.config.get("command")
  command = " ".join(command) if isinstance(command, list) else command
  seeds = ", ".join(map(str, results["seeds"]))
  facts = [["evidence", str(said.pop("evidence", "run"))]]
  if Design.of(results).levels:
    facts.append(["units", wording.units(results)])
  facts += [["seeds", seeds], *([k, v] for k, v in wording.flat(said))]
  facts = [[k.replace("_", " "), v] for k, v in facts]
  resolved = json.dumps(source.tree, indent=2, ensure_ascii=False)
  return [
    Heading("How it was obtained"),
    Text("The exact command:"),
    Code(command or "not recorded", "sh" if command else ""),
    Table("Versions, device and times.", ["Fact", "Value"], facts, left=(0, 1)),
    Details("Resolved config", [Code(resolved, "json")]),
  ]


def _rest(source: Source) -> str:
  grey = any(s.quiet for s in source.look.values())
  return " The arms of best mean are coloured, the rest grey." if grey else ""


def _omitted(
  results: Mapping[str, Any], tree: Mapping[str, Any]
) -> dict[str, list[int]]:
  """Finds the classes that each arm's transfer set leaves out."""
  _, _, classes = tables.recall_rows(results)
  omitted: dict[str, list[int]] = {}
  for arm, entry in results["arms"].items():
    if not entry.get("trained", arm):
      continue
    planned = (tree.get("arms") or {}).get(arm) or {}
    own = entry.get("config", {}).get("signal") or planned.get("signal")
    section = {**(tree.get("signal") or {}), **(own or {})}
    out: set[int] = set(section.get("omit_classes") or ())
    if only := section.get("only_classes"):
      out |= set(classes) - set(only)
    if out:
      omitted[arm] = sorted(out)
  return omitted
