"""The cost of a study's students beside their teacher's, and when they pay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from kd.evaluate import verdict
from kd.evaluate.break_even import Estimate
from kd.report import wording
from kd.report.blocks import Block, Cell, Heading, Table, Text, code
from kd.report.source import Source
from kd.report.style import INK, PAPER, RC, Style, with_legend

Results = Mapping[str, Any]
MILLION = 1e6


def section(source: Source) -> list[Block]:
  """Says what every arm costs, when it pays and what quality it loses."""
  if not (found := tables(source.results)):
    return []
  heading, said, *rest = found
  return [
    heading,
    said,
    *source.picture(
      "break_even",
      figure(source.results, source.look),
      "Cost of a month against the traffic, of the teacher and of each arm",
      "**Break-even.** A month's cost, with the making spread over the months "
      "of service. Where an arm's line crosses the teacher's, at its mark, it "
      "begins to pay; the dashed line is the traffic given.",
    ),
    *rest,
  ]


def tables(results: Results) -> list[Block]:
  """Returns the section without its figure."""
  cost = results["provenance"].get("cost")
  if not cost or not cost["arms"]:
    return []
  return [
    Heading("Break-even"),
    Text(sentence(results)),
    _table(results, cost),
    *_makings(cost),
    *_samples(results, cost),
  ]


def _table(results: Results, cost: Mapping[str, Any]) -> Table:
  unit, metric = cost["unit"], results["metric"]
  known = [results["arms"][a].get("versus_teacher") for a in cost["arms"]]
  places = wording.decimals([wording.half_width(v) for v in known], metric)
  request = cost["teacher"]["request"]
  blank = Cell(wording.DASH)
  rows = [
    [
      Cell("the teacher"),
      _estimate(request, MILLION),
      blank,
      blank,
      blank,
      _money(cost["teacher"]["a_month"]),
      blank,
    ]
  ]
  for arm, own in cost["arms"].items():
    versus = results["arms"][arm].get("versus_teacher") or {}
    lost = versus.get("difference")
    rows.append(
      [
        Cell(code(arm), value=len(rows)),
        _estimate(own["request"], MILLION),
        _money(own["making"]["total"]),
        _estimate(own["requests_a_month"]),
        _estimate(own["payback_months"]),
        _money(own["a_month"]),
        Cell(
          wording.number(lost, metric, places, signed=True),
          wording.interval(versus, metric, places) if versus else "",
          value=lost,
        ),
      ]
    )
  change = f" ({wording.unit(metric)})" if wording.unit(metric) else ""
  columns = [
    "Asked",
    Cell(f"A million requests ({unit})", "[95 % interval]"),
    f"Making ({unit})",
    Cell("Pays from (requests a month)", "[95 % interval]"),
    Cell("Paid back after (months)", "[95 % interval]"),
    f"A month ({unit})",
    Cell(
      f"{wording.metric_title(metric, unit=False)} less the teacher's{change}",
      "[95 % interval]",
    ),
  ]
  per = "the whole study" if cost["count"] == "study" else "a run's share"
  caption = (
    f"A month has {cost['requests']:,.0f} requests; the making "
    f"({per} counts of the measured seconds) is spread over "
    f"{cost['months']:g} months for the traffic from which a student pays. "
    "Intervals carry the spread of the measured latency alone; of the quality, "
    "that of the runs."
  )
  return Table(caption, columns, rows, cards=True)


def sentence(results: Results) -> str:
  """Says when the best arm pays, and what it loses."""
  cost = results["provenance"]["cost"]
  best = next((v.best for v in verdict.judge(results)), None)
  if best is None or best not in cost["arms"]:
    return "No arm is named, so that nothing is said of when it pays."
  text = pays(results, best)
  never = [
    arm for arm, x in cost["arms"].items() if x["requests"]["value"] == "never"
  ]
  if never:
    text += f" Never, at any traffic: {wording.codes(never)}."
  text += _lost(results, best)
  cheap = min(cost["arms"], key=lambda a: cost["arms"][a]["a_month"])
  if cheap != best:
    month = _number(cost["arms"][cheap]["a_month"])
    text += f" {code(cheap)} costs least, {month} {cost['unit']} a month."
    text += _lost(results, cheap)
  return text


def pays(results: Results, arm: str) -> str:
  """Says when an arm pays, by the prices of the study's config."""
  cost = results["provenance"]["cost"]
  own = cost["arms"][arm]
  after = Estimate.read(own["payback_months"])
  traffic = Estimate.read(own["requests_a_month"])
  text = f"At {cost['requests']:,.0f} requests a month {code(arm)} "
  if math.isinf(after.value):
    text = f"**{text}never pays for itself.**"
  else:
    text = f"**{text}pays for itself after {_number(after.value)} months**"
    text += f"{_interval(own['payback_months'])}."
  if math.isinf(traffic.value):
    return text + (
      " No traffic changes that: a request costs no less than before."
    )
  return text + (
    f" Within {cost['months']:g} months it pays from "
    f"{_number(traffic.value)} requests a month on"
    f"{_interval(own['requests_a_month'])}."
  )


def _lost(results: Results, arm: str) -> str:
  """Says an arm's quality beside the teacher's, if that is known."""
  metric, versus = results["metric"], results["arms"][arm].get("versus_teacher")
  if not versus or versus["difference"] is None:
    return ""
  places = wording.decimals([wording.half_width(versus)], metric)
  gap = wording.number(versus["difference"], metric, places, signed=True)
  within = wording.interval(versus, metric, places)
  text = f" Its {wording.metric_name(metric)} less the teacher's is {gap}"
  text = f"{text} {wording.unit(metric)}".rstrip()
  return text + (f", 95 % interval {within}." if within else ".")


def figure(results: Results, look: Mapping[str, Style]) -> Figure:
  """Draws the cost of a month against the traffic.

  n c_T   of the teacher,   n c_S + Y / 12 + M / months   of an arm
  """
  cost = results["provenance"]["cost"]
  met = [
    Estimate.read(own["requests_a_month"]).value
    for own in cost["arms"].values()
  ]
  # Two decades to either side of the traffic given are enough to decide by.
  given = cost["requests"]
  near = [x for x in (*met, given) if given / 100 <= x <= 100 * given]
  low, high = math.log10(min(near)) - 1, math.log10(max(near)) + 1
  n = np.logspace(low, high, 60)
  look = {arm: look[arm] for arm in cost["arms"]}
  with mpl.rc_context(RC):
    fig = with_legend((5.8, 4.2), look, "line")
    ax = fig.subplots()
    for arm in sorted(look, key=lambda a: not look[a].quiet):
      own, style = cost["arms"][arm], look[arm]
      fixed = own["making"]["total"] / cost["months"] + cost["yearly"] / 12
      y = n * own["request"]["value"] + fixed
      ax.plot(n, y, color=style.colour, ls=style.dash)
      at = Estimate.read(own["requests_a_month"]).value
      if n[0] <= at <= n[-1] and not style.quiet:
        height = at * own["request"]["value"] + fixed
        ax.plot(
          at,
          height,
          style.marker,
          color=style.colour,
          mec=PAPER,
          ms=7,
          zorder=4,
        )
    ax.plot(n, n * cost["teacher"]["request"]["value"], color=INK, lw=2.4)
    ax.annotate(
      "teacher",
      (n[-1], n[-1] * cost["teacher"]["request"]["value"]),
      (-14, -2),
      textcoords="offset points",
      ha="right",
      va="bottom",
      weight="bold",
    )
    ax.axvline(cost["requests"], color=INK, lw=0.9, ls=(0, (3, 3)))
    ax.set(xscale="log", yscale="log", xlabel="requests a month")
    ax.set_ylabel(f"cost of a month ({cost['unit']})".replace("$", r"\$"))
    return fig


def _makings(cost: Mapping[str, Any]) -> list[Block]:
  """Shows what the making is made of."""
  parts = [k for k in next(iter(cost["arms"].values()))["making"]]
  rows = [
    [code(arm), *(_money(own["making"][k]) for k in parts)]
    for arm, own in cost["arms"].items()
  ]
  columns = ["Arm", *(k[0].upper() + k[1:] for k in parts)]
  caption = (
    f"What it costs to make each arm's student, in {cost['unit']}: what the "
    "teacher said of the transfer set, people's labels, the study's measured "
    "seconds and people's work. The teacher is taken to be there."
  )
  return [Table(caption, columns, rows)]


def _samples(results: Results, cost: Mapping[str, Any]) -> list[Block]:
  """Shows what one more sampled answer costs and brings."""
  if not cost["samples"]:
    return []
  metric = results["metric"]
  gaps = [row.get("brings") for row in cost["samples"]]
  places = wording.decimals([wording.half_width(g) for g in gaps], metric)
  rows = []
  for row in cost["samples"]:
    more, brings = row.get("more"), row.get("brings") or {}
    gap, each = brings.get("difference"), wording.DASH
    if gap and (brings["low"] or 0) > 0:
      each = _number(more / (wording.scale(metric) * gap))
    rows.append(
      [
        code(row["arm"]),
        str(row["samples"]),
        _money(row["cost"]),
        wording.number(row["mean"], metric, places),
        Cell(wording.DASH) if more is None else _money(more),
        Cell(
          wording.number(gap, metric, places, signed=True),
          wording.interval(brings, metric, places) if brings else "",
        ),
        each,
      ]
    )
  unit = wording.unit(metric)
  columns = [
    "Arm",
    "Samples of a prompt",
    f"Their cost ({cost['unit']})",
    wording.metric_title(metric),
    f"More than the row above ({cost['unit']})",
    Cell(f"Brings{f' ({unit})' if unit else ''}", "[95 % interval]"),
    f"{cost['unit']} for one of these",
  ]
  caption = (
    "What more sampled answers of a prompt cost and bring, paired with the "
    "arm of the row above, not corrected for being several. Without a price "
    "where the interval holds 0."
  )
  return [Table(caption, columns, rows)]


def _number(value: float) -> str:
  """Writes a number with three digits, four of a large one.

  >>> _number(1234567.0), _number(3.333), _number(math.inf)
  ('1,235,000', '3.33', 'never')
  """
  if math.isinf(value):
    return "never"
  large = abs(value) >= 1000
  text = f"{float(f'{value:.4g}'):,.0f}" if large else f"{value:.3g}"
  return text.replace("-", wording.MINUS)


def _money(value: float) -> Cell:
  return Cell(_number(value), value=value)


def _estimate(said: Mapping[str, Any], factor: float = 1.0) -> Cell:
  """Makes the cell of an Estimate, with its interval below."""
  value, low, high = (factor * x for x in Estimate.read(said))
  ends = _number(low), _number(high)
  note = "" if len({*ends}) == 1 else f"[{ends[0]}, {ends[1]}]"
  return Cell(_number(value), note, value=value)


def _interval(said: Mapping[str, Any]) -> str:
  note = _estimate(said).note
  return f" (95 % interval {note})" if note else ""
