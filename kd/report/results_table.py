"""Sets the arms' numbers side by side: of one study, or of several."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd.config.tuned import places
from kd.evaluate import registry, verdict
from kd.report import wording
from kd.report.blocks import Cell, Table, code
from kd.report.style import Style

Results = Mapping[str, Any]


def table(
  results: Results, look: Mapping[str, Style], words: Mapping[str, str]
) -> Table:
  """Sets the arms' numbers side by side, the best on the primary metric first.

  Args:
    results: what results.json holds.
    look: arm -> its style.
    words: arm -> its objective in words (`wording.objective`).
  """
  metric = results["metric"]
  found, others = verdict.judge(results), others_of([results], metric)
  named = {v.best for v in found if v.named}
  rows = arm_rows([results], [words], metric, others)
  strata: dict[str, list[list[Cell]]] = {v.stratum: [] for v in found}
  for row, (arm, entry) in zip(rows, results["arms"].items(), strict=True):
    row[0] = dataclasses.replace(
      row[0], chip=look[arm].colour, strong=arm in named
    )
    strata[verdict.stratum(entry)].append(row)
  columns = ["Arm", *heads(metric, others)]
  apart = ""
  if len(strata) > 1:
    columns.insert(1, "Budget")
    apart = " Arms of different budgets are not ranked against each other."
    for name, own in strata.items():
      for row in own:
        row.insert(1, Cell(name))
  ranked = columns.index(wording.metric_title(metric))
  caption = (
    f"Test set, {wording.stopping_rule(results)}; mean ± standard deviation "
    f"over {wording.units(results)}, best {wording.metric_name(metric)} first. "
    f"Differences in bold are told apart from 0.{apart}"
  )
  rows = [r for own in strata.values() for r in best_first(own, metric, ranked)]
  return Table(caption, columns, rows, cards=True)


def arm_rows(
  studies: Sequence[Results],
  words: Sequence[Mapping[str, str]],
  metric: str,
  others: Sequence[str],
) -> list[list[Cell]]:
  """Makes each arm's row: its name and words, then the columns of `heads`."""
  digits = {m: column_digits(studies, m, 3) for m in others}
  digits[metric] = column_digits(studies, metric)
  rows = []
  for results, said in zip(studies, words, strict=True):
    arms = results["arms"]
    several = len({a["baseline"] for a in arms.values()} - {None}) > 1
    for arm, entry in arms.items():
      note = wording.objective(arm, entry.get("config", {}), said)
      if tuned := keys_tuned(results, arm):
        note += f"; tuned: {', '.join(map(wording.key, tuned))}"
      if several and entry["baseline"]:
        note += f"; against {code(entry['baseline'])}"
      if steps := entry.get("diverged"):
        note += f" ✕ diverged: {wording.lost_runs(steps)}"
      row = [Cell(code(arm), note.removeprefix(" "), value=len(rows))]
      for m in (metric, *others):
        own = entry_of(entry, m)
        row.append(mean_cell(own, m, digits[m]))
        if m == metric or registry.lookup(m).per_class:
          row.append(_gap(own, m, _gap_digits(studies, m)))
        if m == metric:
          p = (own["versus_baseline"] or {}).get("p")
          row.append(Cell(wording.p_value(p), value=p))
      rows.append(row)
  return rows


def heads(metric: str, others: Sequence[str]) -> list[Cell | str]:
  """Returns the columns of `arm_rows` behind the first."""
  columns: list[Cell | str] = []
  for m in (metric, *others):
    columns.append(wording.metric_title(m))
    if m == metric or registry.lookup(m).per_class:
      unit = f" ({wording.unit(m)})" if wording.unit(m) else ""
      gap = f"Difference to baseline{unit}" if m == metric else f"Diff.{unit}"
      columns.append(Cell(gap, "[95 % interval]"))
    if m == metric:
      columns.append("Holm p")
  return columns


def best_first(rows: list[list[Cell]], metric: str, column: int):
  """Sorts rows by a metric's column, those without a value last."""
  sign = registry.direction(metric)

  def order(row):
    value = row[column].value
    return math.inf if value is None else -sign * value

  return sorted(rows, key=order)


def mean_cell(entry: Mapping[str, Any], metric: str, places: int) -> Cell:
  """Makes the cell of a mean, with its standard deviation below."""
  text = wording.number(entry["mean"], metric, places)
  note = wording.spread(entry, metric, places)
  return Cell(text, note, value=entry["mean"])


def _gap(entry: Mapping[str, Any], metric: str, places: int) -> Cell:
  versus = entry["versus_baseline"]
  if not versus:
    return Cell("baseline" if entry["values"] else wording.DASH)
  text = wording.number(versus["difference"], metric, places, signed=True)
  return Cell(
    text,
    wording.interval(versus, metric, places),
    strong=bool(verdict.told_apart(versus)),
    value=versus["difference"],
  )


def _gap_digits(studies: Sequence[Results], metric: str) -> int:
  entries = [entry_of(a, metric) for r in studies for a in r["arms"].values()]
  widths = [wording.half_width(e["versus_baseline"]) for e in entries]
  return wording.decimals(widths, metric)


def others_of(studies: Sequence[Results], metric: str) -> list[str]:
  """Lists what stands beside the primary metric, by importance."""
  suffix = "_best" if metric.endswith("_best") else ""
  classes = sorted({c for r in studies for c in omitted_classes(r)})
  names = [f"recall_{c}" for c in classes]
  names += [
    name + suffix
    for name, m in registry.METRICS.items()
    if m.shown != "rest" and name + suffix != metric
  ]
  found = {m for r in studies for a in r["arms"].values() for m in a["metrics"]}
  return [name for name in names if name in found]


def omitted_classes(results: Results, most: int = 3) -> list[int]:
  """Returns the classes that some arm's transfer set omits; none if many."""
  classes = {
    c
    for arm in results["arms"].values()
    for c in arm.get("config", {}).get("signal", {}).get("omit_classes", ())
  }
  return sorted(classes) if len(classes) <= most else []


def keys_tuned(results: Results, arm: str) -> list[str]:
  """Returns the keys that the study's search set of an arm."""
  points = (results.get("tune") or {}).get("points") or [{}]
  config = results["arms"][arm].get("config", {})
  if not results["arms"][arm].get("trained", arm):
    return []
  return [key for key in points[0] if any(True for _ in places(config, key))]


def entry_of(arm: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
  """Returns an arm's numbers on a metric, empty ones where it has none."""
  empty = {"values": [], "mean": None, "std": None, "versus_baseline": None}
  return arm["metrics"].get(metric, empty)


def column_digits(
  studies: Sequence[Results], metric: str, most: int = 5
) -> int:
  """Chooses a column's decimals by its spreads over units."""
  entries = [entry_of(a, metric) for r in studies for a in r["arms"].values()]
  return wording.decimals([e["std"] for e in entries], metric, most)
