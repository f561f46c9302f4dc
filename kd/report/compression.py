"""Sets what was compressed beside what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd.config.compression import STRUCTURES
from kd.evaluate import pareto
from kd.report import wording
from kd.report.blocks import Block, Cell, Heading, Table, Text, code
from kd.report.source import Source

Results = Mapping[str, Any]
TIMES = ("latency_seconds", "throughput_seconds")


def section(source: Source) -> list[Block]:
  """Shows what compression did to each arm; nothing where none was measured."""
  return tables(source.results)


def tables(results: Results) -> list[Block]:
  """Compares each compressed arm with the one that has its training, or with
  the teacher's."""
  found = {
    arm: other
    for arm, entry in results["arms"].items()
    if (other := original(results, arm)) and "bytes" in entry["metrics"]
  }
  if not found:
    return []
  rows = [_row(results, arm, other) for arm, other in found.items()]
  heads = {m: f"{wording.metric_title(m, unit=False)} (%)" for m in TIMES}
  columns = [
    "Arm",
    "Made of",
    "Bytes (%)",
    *(Cell(head, "[95 % interval]") for head in heads.values()),
    "Products",
  ]
  caption = (
    "Bytes of what it was made of, and how much longer or shorter it takes, in "
    "per cent of that. Times are of compiled programs on the host of the study."
  )
  table = Table(caption, columns, rows, left=(0, 1, 5), cards=True)
  said = _structured(results, found)
  notes: list[Block] = [Text(said, "note")] if said else []
  return [Heading("Compression"), table, *notes]


def original(results: Results, arm: str) -> str | None:
  """Returns the arm that one was made of: the same training, or the teacher,
  and nothing done to it; None where the study has none."""
  arms = results["arms"]
  if not arms[arm].get("config", {}).get("compress"):
    return None
  leader = arms[arm].get("trained", arm)
  for other, entry in arms.items():
    config = entry.get("config", {})
    alike = other == leader and other != arm
    if leader is None:
      alike = config.get("objective") == "teacher"
    if alike and not config.get("compress"):
      return other
  return None


def _row(results: Results, arm: str, other: str) -> list[Cell | str]:
  own, base = (results["arms"][a] for a in (arm, other))
  mean = lambda entry, metric: entry["metrics"][metric]["mean"]
  share = 100 * mean(own, "bytes") / mean(base, "bytes")
  cells: list[Cell | str] = [
    Cell(code(arm)),
    Cell(code(other)),
    Cell(f"{share:.1f}", value=share),
  ]
  for metric in TIMES:
    cells.append(_change(results, metric, arm, other))
  return [*cells, Cell(own.get("arithmetic", wording.DASH))]


def _change(results: Results, metric: str, arm: str, other: str) -> Cell:
  versus = pareto.compare(results, metric, arm, other)
  whole = results["arms"][other]["metrics"][metric]["mean"]
  percent = {
    k: None if versus[k] is None else 100 * versus[k] / whole
    for k in ("difference", "low", "high")
  }
  say = lambda x: f"{x:+.0f}".replace("-", wording.MINUS)
  if percent["difference"] is None:
    return Cell(wording.DASH)
  note = ""
  if percent["low"] is not None:
    note = f"[{say(percent['low'])}, {say(percent['high'])}]"
  return Cell(say(percent["difference"]), note, value=percent["difference"])


def _structured(results: Results, found: Mapping[str, str]) -> str:
  """Says whether models that lost whole parts are faster than what they were
  made of, by measurement."""
  faster, rest = [], []
  for arm, other in found.items():
    chain = results["arms"][arm]["config"]["compress"]
    if not any(step.get("what") in STRUCTURES for step in chain):
      continue
    versus = pareto.compare(results, "latency_seconds", arm, other)
    sure = versus["high"] is not None and versus["high"] < 0
    (faster if sure else rest).append(arm)
  said = []
  if faster:
    said.append(
      "Structured pruning made one example be answered sooner, by measurement, "
      f"in {wording.codes(faster)}."
    )
  if rest:
    said.append(
      "As far as was measured, structured pruning made it no sooner in "
      f"{wording.codes(rest)}: the interval holds 0, or is above it."
    )
  return " ".join(said)
