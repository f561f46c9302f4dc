"""Draws what arms are worth against what they ask of a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from kd.evaluate import registry
from kd.evaluate.pareto import Front
from kd.report import wording
from kd.report.style import (
  GREY,
  INK,
  LABEL,
  MUTED,
  PAPER,
  RC,
  THEME,
  Style,
  fit,
)

_KEY = LABEL + 0.4  # inches of the names beside a panel
_LINES = 9  # of names that a panel of least height has room for


def figure(
  results: Mapping[str, Any],
  look: Mapping[str, Style],
  fronts: Sequence[Front],
  titles: Mapping[str, str],
) -> Figure:
  """Draws a panel for each front: quality against cost, in a log scale.

  Arms that no other dominates are numbered from the cheapest, joined by the
  steps that they bound, and named beside the panel; dominated ones are open and
  grey. Bars are a standard deviation over units, of both axes.

  Args:
    results: what results.json holds.
    look: arm -> its style.
    fronts: of one quality.
    titles: cost -> its panel's title.
  """
  names = [_names(front) for front in fronts]
  lines = [sum(n.count("\n") + 1 for n in own) for own in names]
  heights = [max(2.5, 0.75 + 0.17 * max(n, _LINES)) for n in lines]
  with mpl.rc_context(RC):
    size = (5.9 + _KEY, sum(heights))
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(len(fronts), 1, squeeze=False, height_ratios=heights)[
      :, 0
    ]
    for ax, front, own in zip(axes, fronts, names, strict=True):
      _panel(ax, results, look, front, own)
      ax.set_title(titles[front.cost])
    return fig


def _on(colour: str) -> str:
  """Returns what is read on a colour, which no scheme of the page changes:
  white, or black where the colour's relative luminance (WCAG 2) is above the
  0.18 at which the two have the same contrast."""
  if colour in THEME:
    return PAPER  # both turn with the scheme
  c = np.array(to_rgb(colour))
  linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
  return "#000000" if linear @ [0.2126, 0.7152, 0.0722] > 0.18 else "#ffffff"


def _names(front: Front) -> list[str]:
  return [fit(arm, LABEL) for arm in front.arms]


def _panel(
  ax: Axes,
  results: Mapping[str, Any],
  look: Mapping[str, Style],
  front: Front,
  names: Sequence[str],
) -> None:
  quality, cost = front.quality, front.cost
  for d in front.dominated:
    x, y = _point(ax, results, d.arm, front, GREY)
    ax.plot(x, y, "o", ms=4.5, mfc=PAPER, mec=GREY, mew=1.1, zorder=2)
  points = [
    _point(ax, results, arm, front, look[arm].colour) for arm in front.arms
  ]
  x, y = np.array(points).T
  up = registry.direction(quality) > 0
  ax.step(x, np.maximum.accumulate(y) if up else np.minimum.accumulate(y),
          where="post", color=MUTED, lw=1.0, zorder=1)  # fmt: skip
  for i, (arm, at) in enumerate(zip(front.arms, points, strict=True), 1):
    colour = MUTED if look[arm].quiet else look[arm].colour
    ax.plot(*at, "o", ms=11, color=colour, mec=PAPER, zorder=4)
    ax.annotate(
      str(i), at, ha="center", va="center_baseline", fontsize=7.5,
      weight="bold", color=_on(colour), zorder=5,
    )  # fmt: skip
  teacher = results.get("teacher", {}).get(quality)
  if teacher is not None:
    height = wording.scale(quality) * teacher
    ax.axhline(height, color=MUTED, lw=0.9, ls=(0, (3, 3)))
    ax.annotate(
      "teacher", (1, height), (-4, -3), xycoords=("axes fraction", "data"),
      textcoords="offset points", ha="right", va="top", fontsize=8.5,
    )  # fmt: skip
  ax.set(xscale="log", ylabel=wording.metric_title(quality))
  ax.margins(0.08)
  ax.yaxis.set_major_locator(MaxNLocator(5))
  few = np.log10(ax.get_xlim()[1] / ax.get_xlim()[0]) < 1.2
  ax.xaxis.set_major_locator(
    LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if few else (1, 3), numticks=7)
  )
  ax.xaxis.set_major_formatter(
    FuncFormatter(lambda v, _: wording.amount(v, cost))
  )
  ax.xaxis.minorticks_off()
  key = "\n".join(f"{i}  {n}" for i, n in enumerate(names, 1))
  ax.annotate(
    key, (1.03, 1.0), xycoords="axes fraction", va="top",
    fontsize=8.5, color=INK, linespacing=1.35,
  )  # fmt: skip


def _point(ax: Axes, results, arm: str, front: Front, colour: str):
  """Draws an arm's spreads; returns its means."""
  own = results["arms"][arm]["metrics"]
  scale = wording.scale(front.quality)
  x, y = own[front.cost]["mean"], scale * own[front.quality]["mean"]
  dx = own[front.cost]["std"] or 0.0
  dy = scale * (own[front.quality]["std"] or 0.0)
  ax.plot([x, x], [y - dy, y + dy], color=colour, lw=0.9, alpha=0.6, zorder=1)
  ax.plot(
    [max(x - dx, 0.5 * x), x + dx], [y, y], color=colour, lw=0.9, alpha=0.6,
    zorder=1,
  )  # fmt: skip
  return x, y
