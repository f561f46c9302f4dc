"""Cascades: how often the student hands on, and what accuracy that gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd.report import wording
from kd.report.blocks import Block, Cell, Heading, Table, code
from kd.report.source import Source
from kd.report.style import INK, MUTED, PAPER, RC, Style, with_legend

Results = Mapping[str, Any]
SHOWN = (0, 2, 4, 8, 12, 20)  # of the shares of kd.evaluate.cascade.GRID


def section(source: Source) -> list[Block]:
  """Shows what validation chose, and what other shares would have given."""
  results = source.results
  if not results.get("cascades"):
    return []
  heading, *rest = tables(results)
  return [
    heading,
    *source.picture(
      "cascades",
      figure(results, source.look),
      "Accuracy of each cascade against the share that it hands to the teacher",
      "**Cascades.** The student answers where it is surest, the teacher the "
      "rest: accuracy on the test split at every share handed on, with a 95 % "
      "band over the runs' units. Marks are what validation chose, the star is "
      "the teacher alone.",
    ),
    *rest,
  ]


def tables(results: Results) -> list[Block]:
  """Returns the section without its figure."""
  if not (found := results.get("cascades")):
    return []
  return [Heading("Cascades"), _table(results, found), _curve_table(found)]


def _table(results: Results, found: Mapping[str, Any]) -> Table:
  cost = (results["provenance"].get("cost") or {}).get("arms", {})
  rows = []
  for arm, own in found.items():
    metrics = results["arms"][arm]["metrics"]
    shares, accuracy = metrics["deferred"], metrics["accuracy"]
    digits = wording.decimals([shares["std"]], "accuracy", 1)
    places = wording.decimals([accuracy["std"]], "accuracy")
    versus = results["arms"][arm].get("versus_teacher")
    row = [
      Cell(code(arm), f"{code(own['of'])} first", value=len(rows)),
      f"{100 * own['margin']:g}",
      _with_spread(shares, digits),
      _with_spread(accuracy, places),
    ]
    if results["metric"] == "accuracy":
      gap = (versus or {}).get("difference")
      row.append(
        Cell(
          wording.number(gap, "accuracy", places, signed=True),
          wording.interval(versus, "accuracy", places),
          value=gap,
        )
      )
    if arm in cost:
      million = 1e6 * cost[arm]["request"]["value"]
      row.append(Cell(f"{million:,.3g}", value=million))
    rows.append(row)
  columns: list[Cell | str] = [
    "Cascade",
    "Margin (points)",
    "Handed on (%)",
    "Accuracy (%)",
  ]
  if results["metric"] == "accuracy":
    columns.append(Cell("Less the teacher's (points)", "[95 % interval]"))
  if cost:
    unit = results["provenance"]["cost"]["unit"]
    columns.append(f"A million requests ({unit})")
  caption = (
    "The student answers; where its confidence is below a threshold the "
    "teacher does. The threshold is chosen on validation, in each run: the "
    "lowest with which accuracy there is no further below the teacher's than "
    "the margin. Shares and accuracy are of the test split."
  )
  return Table(caption, columns, rows, cards=True)


def _with_spread(entry: Mapping[str, Any], places: int) -> Cell:
  return Cell(
    wording.number(entry["mean"], "accuracy", places),
    wording.spread(entry, "accuracy", places),
    value=entry["mean"],
  )


def _curve_table(found: Mapping[str, Any]) -> Table:
  """Shows a few points of each first arm's curve."""
  curves = {own["of"]: own["curve"] for own in found.values()}
  shares = next(iter(curves.values()))["deferred"]
  columns = ["First", *(f"{100 * shares[i]:g} % handed on" for i in SHOWN)]
  rows = []
  for of, curve in curves.items():
    ends = [
      (curve["high"][i] - curve["low"][i]) / 2
      for i in SHOWN
      if curve["low"][i] is not None
    ]
    places = wording.decimals(ends, "accuracy", 2)
    rows.append(
      [
        code(of),
        *(
          Cell(
            wording.number(curve["accuracy"][i], "accuracy", places),
            _interval(curve, i, places),
          )
          for i in SHOWN
        ),
      ]
    )
  caption = (
    "Test accuracy (%) at any share handed on, with its 95 % interval: the "
    "least sure first. No threshold was chosen by it."
  )
  return Table(caption, columns, rows)


def _interval(curve: Mapping[str, Any], i: int, places: int) -> str:
  low, high = (
    wording.number(curve[k][i], "accuracy", places) for k in ("low", "high")
  )
  return f"[{low}, {high}]"


def figure(results: Results, look: Mapping[str, Style]) -> Figure:
  """Draws accuracy against the share handed on."""
  found = results["cascades"]
  firsts = {own["of"]: own["curve"] for own in found.values()}
  look = {arm: look[arm] for arm in (*firsts, *found)}
  with mpl.rc_context(RC):
    fig = with_legend((5.8, 4.2), look, "marker")
    ax = fig.subplots()
    for of, curve in firsts.items():
      x, y, low, high = (
        100 * np.array(curve[k], np.float64)
        for k in ("deferred", "accuracy", "low", "high")
      )
      ax.fill_between(x, low, high, color=look[of].colour, alpha=0.15, lw=0)
      ax.plot(x, y, color=look[of].colour)
      ax.plot(x[0], y[0], look[of].marker, color=look[of].colour, ms=7)
    for arm in found:
      metrics = results["arms"][arm]["metrics"]
      at = [metrics[k]["mean"] for k in ("deferred", "accuracy")]
      if None not in at:
        ax.plot(
          *(100 * v for v in at),
          look[arm].marker,
          color=look[arm].colour,
          mec=PAPER,
          ms=9,
          zorder=4,
        )
    teacher = results["teacher"].get("accuracy")
    if teacher is not None:
      ax.axhline(100 * teacher, color=MUTED, lw=0.9, ls=(0, (3, 3)))
      ax.plot(100, 100 * teacher, "*", color=INK, ms=13, zorder=5)
    ax.set(xlabel="handed to the teacher (%)", ylabel="accuracy (%)")
    _prices(results, ax, next(iter(firsts)))
    return fig


def _prices(results: Results, ax: Axes, first: str) -> None:
  """Adds what a million requests cost at each share, c_S + share c_T."""
  cost = results["provenance"].get("cost")
  if not cost or first not in cost["arms"]:
    return
  student, teacher = (
    1e6 * own["request"]["value"]
    for own in (cost["arms"][first], cost["teacher"])
  )
  top = ax.secondary_xaxis(
    "top",
    functions=(
      lambda share: student + np.divide(share, 100) * teacher,
      lambda price: 100 * np.subtract(price, student) / teacher,
    ),
  )
  unit = str(cost["unit"]).replace("$", r"\$")
  top.set_xlabel(f"a million requests ({unit})")
