"""Gives figures their looks: an arm's colour, the room that its name takes.

An arm keeps its colour, dash and marker in every figure; the baseline is the
colour of the text. Above `_MOST_COLOURS` arms only the best are coloured and
the rest are drawn in grey: nobody tells forty hues apart.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

from kd.evaluate import registry
from kd.report.blocks import visible

INK, MUTED, RULE, PAPER = "#1f2530", "#68707e", "#dde1e7", "#fefefe"
# Theme colours in inlined SVG become CSS variables, for dark pages.
THEME = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"}

# Okabe & Ito 2008 without black and yellow, then two that carry a dash.
_COLOURS = (
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#cc79a7",
  "#e69f00",
  "#56b4e9",
  "#7a5ac8",
  "#8c6239",
)
_DASHES = ["-"] * 6 + ["--"] * 2
_MARKERS = "os^DvPXh"
_MOST_COLOURS = len(_COLOURS)
GREY = "#a7aeb9"
LABEL = 2.7  # inches that a line of an arm's name may take
_MOST_LINES = 5  # of a name

RC: dict[Any, Any] = {
  "font.size": 9.5,
  "text.color": INK,
  "axes.edgecolor": MUTED,
  "axes.labelcolor": INK,
  "axes.titlesize": 10.5,
  "axes.titlelocation": "left",
  "axes.titleweight": "bold",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.linewidth": 0.8,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": RULE,
  "grid.linewidth": 0.8,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "xtick.labelcolor": INK,
  "ytick.labelcolor": INK,
  "xtick.major.size": 0,
  "ytick.major.size": 0,
  "ytick.minor.size": 0,
  "legend.frameon": False,
  "lines.linewidth": 1.7,
  "svg.fonttype": "none",
  "svg.hashsalt": "kd",
  "figure.facecolor": PAPER,
  "axes.facecolor": "none",
}
_FONTS = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclasses.dataclass(frozen=True)
class Style:
  """Says how one arm looks; `quiet` arms are the grey rest."""

  colour: str
  dash: str = "-"
  marker: str = "o"
  quiet: bool = False


def styles(results: Mapping[str, Any]) -> dict[str, Style]:
  """Gives every arm its look, in the order of the study's arms."""
  arms = results["arms"]
  baseline, metric = results.get("baseline"), results["metric"]
  others = [a for a in arms if a != baseline]
  loud = others
  if len(others) > _MOST_COLOURS:
    sign = registry.direction(metric)

    def score(arm):
      mean = arms[arm]["metrics"].get(metric, {}).get("mean")
      return -math.inf if mean is None else sign * mean

    best = set(sorted(others, key=score, reverse=True)[: _MOST_COLOURS - 1])
    loud = [a for a in others if a in best]
  look = dict.fromkeys(arms, Style(GREY, quiet=True))
  for i, arm in enumerate(loud):
    look[arm] = Style(_COLOURS[i], _DASHES[i], _MARKERS[i])
  if baseline in look:
    look[baseline] = Style(INK, "-", "o")
  return look


def fit(name: str, inches: float, size: float = 9.5, weight: str = "normal"):
  """Breaks a name into lines that are no wider than that.

  Lines end behind a comma, bracket or the like where they can. Of more than
  `_MOST_LINES` lines the middle is left out.

  Args:
    name: an arm's.
    inches: the most that a line may take.
    size: of the font, in points.
    weight: of the font.

  Returns:
    The lines, joined by line feeds.
  """
  font = FontProperties(family="DejaVu Sans", size=size, weight=weight)

  def fits(line):
    width, _, _ = text_to_path.get_text_width_height_descent(line, font, False)
    return width <= 72 * inches

  lines = [""]
  text = visible(name).replace("$", r"\$")  # or it would be mathematics
  for part in re.findall(r"[^][,;=_./ -]+[][,;=_./ -]?|.", text):
    if fits(lines[-1] + part):
      lines[-1] += part
      continue
    lines += [part] if fits(part) else [""]
    for letter in part if not fits(part) else "":
      lines += [] if fits(lines[-1] + letter) else [""]
      lines[-1] += letter
  lines = [line for line in lines if line]
  if len(lines) > _MOST_LINES:
    half = _MOST_LINES // 2
    lines = [*lines[:half], "\N{HORIZONTAL ELLIPSIS}", *lines[-half:]]
  return "\n".join(lines)


def room(labels: list[str], size: float = 9.5) -> tuple[float, float]:
  """Returns the widest label's width and the tallest's height, in inches."""
  font = FontProperties(family="DejaVu Sans", size=size)
  lines = [label.split("\n") for label in labels] or [[""]]
  widths = [
    text_to_path.get_text_width_height_descent(line, font, False)[0]
    for label in lines
    for line in label
  ]
  return max(widths) / 72, _line(size) * max(map(len, lines))


def with_legend(
  size: tuple[float, float], look: Mapping[str, Style], kind: str
) -> Figure:
  """Makes a figure of that size beside its key, in inches.

  Args:
    size: what the axes take.
    look: arm -> its style.
    kind: "line" or "marker".
  """
  quiet = sum(s.quiet for s in look.values())
  entries = [(fit(a, LABEL), s) for a, s in look.items() if not s.quiet]
  entries += [(f"{quiet} other arms", Style(GREY))] if quiet else []
  handles = []
  for label, s in entries:
    line = Line2D([], [], color=s.colour, label=label, lw=2, ls=s.dash)
    if kind == "marker":
      line.set(linestyle="none", marker=s.marker, markersize=7)
    handles.append(line)
  width, _ = room([label for label, _ in entries])
  height = sum(room([label])[1] + 0.07 for label, _ in entries)
  whole = size[0] + width + 0.6, max(size[1], height + 0.4)
  fig = Figure(figsize=whole, layout="constrained")
  fig.legend(handles=handles, loc="outside right upper", handlelength=1.8)
  return fig


def to_svg(fig: Figure) -> str:
  """Writes a figure as SVG, the same bytes for the same figure."""
  buffer = io.StringIO()
  with mpl.rc_context(RC):
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
  return buffer.getvalue().replace("'DejaVu Sans'", _FONTS)


def to_png(fig: Figure) -> bytes:
  """Writes a figure as PNG, the same bytes for the same figure."""
  buffer = io.BytesIO()
  with mpl.rc_context(RC):
    fig.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
  return buffer.getvalue()


def _line(size: float) -> float:
  return 1.45 * size / 72  # matplotlib's, of DejaVu Sans
