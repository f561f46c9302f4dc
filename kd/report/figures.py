"""Draws a study's figures: one function per figure, each returns a Figure.

Object-oriented matplotlib on Agg, no pyplot. An arm keeps its colour, dash and
marker in every figure; the baseline is the colour of the text. Above
`_MOST_COLOURS` arms only the best are coloured and the rest are drawn in grey:
nobody tells forty hues apart.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from kd.evaluate import stats
from kd.report import wording

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
_GREY = "#a7aeb9"
_FEW = 10  # examples below which a bin is noise

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
# Dark is low, so that a forgotten class stands out of a pale map.
_RECALL = LinearSegmentedColormap.from_list(
  "recall", ["#08306b", "#2171b5", "#6baed6", "#c6dbef", "#f4f8fc"]
)
_FONTS = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

# (steps [T], values [S, T] with NaN where a seed has none)
Curve = tuple[np.ndarray, np.ndarray]


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
    sign = stats.direction(metric)

    def score(arm):
      mean = arms[arm]["metrics"].get(metric, {}).get("mean")
      return -math.inf if mean is None else sign * mean

    best = set(sorted(others, key=score, reverse=True)[: _MOST_COLOURS - 1])
    loud = [a for a in others if a in best]
  look = dict.fromkeys(arms, Style(_GREY, quiet=True))
  for i, arm in enumerate(loud):
    look[arm] = Style(_COLOURS[i], _DASHES[i], _MARKERS[i])
  if baseline in look:
    look[baseline] = Style(INK, "-", "o")
  return look


def learning_curves(
  curves: Mapping[str, Mapping[str, Curve]],
  look: Mapping[str, Style],
  diverged: Mapping[str, Mapping[str, int]],
) -> Figure:
  """Draws training loss and validation accuracy against the step.

  Args:
    curves: arm -> "loss" and "validation_accuracy" -> (steps, [S, T] values).
    look: arm -> its style.
    diverged: arm -> seed -> step; marked by a cross.

  Returns:
    The mean over seeds in a band of one standard deviation.
  """
  with mpl.rc_context(RC):
    fig = Figure(figsize=(9.6, 4.0), layout="constrained")
    keys = ("loss", "validation_accuracy")
    titles = ("Training loss", "Validation accuracy (%)")
    for ax, key, title in zip(fig.subplots(1, 2), keys, titles, strict=True):
      means, ends = [], []
      for arm in sorted(look, key=lambda a: not look[a].quiet):
        if arm not in curves or key not in curves[arm]:
          continue
        steps, mean, std = _thin(*curves[arm][key], factor=wording.scale(key))
        if not len(steps):
          continue
        _band(ax, steps, mean, std, look[arm])
        for step in diverged.get(arm, {}).values():
          height = np.interp(step, steps, mean)
          ax.plot(step, height, "x", color=look[arm].colour, ms=8, mew=2)
        means.append(mean)
        late = slice(len(mean) // 2, None)
        ends.append((np.min((mean - std)[late]), np.max((mean + std)[late])))
      ax.set(title=title, xlabel="step")
      ax.margins(x=0.02)
      _whole_steps(ax)
      if not means:
        _absent(ax, "not recorded")
      elif key == "loss" and min(m.min() for m in means) > 0:
        ax.set_yscale("log")
      elif key != "loss":
        # The climb from chance would flatten the part that tells arms apart.
        low, high = min(e[0] for e in ends), max(e[1] for e in ends)
        margin = 0.06 * max(high - low, 0.5)
        ax.set_ylim(low - margin, min(high + margin, 100.4))
    _legend(fig, look, "line")
    return fig


def forest(
  results: Mapping[str, Any],
  look: Mapping[str, Style],
  metrics: Sequence[str],
) -> Figure:
  """Draws each arm's paired difference to its baseline, with its interval.

  Pale dots are the single seeds. A filled marker is told apart from the
  baseline (`stats.told_apart`), an open one is not; a cross says that the arm
  lost a run. Rows are sorted by the first metric, best on top.
  """
  arms, first = results["arms"], metrics[0]
  rows = [a for a in arms if _versus(arms[a], first)]
  sign = stats.direction(first)
  rows.sort(key=lambda a: sign * _versus(arms[a], first)["difference"])
  with mpl.rc_context(RC):
    size = (9.6, 1.35 + 0.3 * max(len(rows), 2))
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(
      1,
      len(metrics),
      sharey=True,
      squeeze=False,
      width_ratios=[1.7] + [1] * (len(metrics) - 1),
    )[0]
    for ax, metric in zip(axes, metrics, strict=True):
      for y, arm in enumerate(rows):
        _forest_row(ax, y, arms, arm, metric, look[arm])
      ax.axvline(0, color=INK, lw=1.1, zorder=1)
      title = wording.label(metric)[0].upper() + wording.label(metric)[1:]
      ax.set_title(title.replace(" (%)", ""))
      unit = "points" if wording.scale(metric) == 100 else "nats"
      unit = f"{unit}, " if "(" in wording.label(metric) else ""
      better = "right" if stats.direction(metric) > 0 else "left"
      arrow = "better →" if better == "right" else "← better"
      ax.set_xlabel(f"difference ({unit}{arrow})")
      ax.xaxis.set_major_locator(
        MaxNLocator(5 if ax is axes[0] else 3, prune="both")
      )
      ax.grid(axis="y", visible=False)
      if not rows:
        _absent(ax, "nothing to compare")
    several = len({arms[a]["baseline"] for a in rows}) > 1
    names = [f"{a}  vs  {arms[a]['baseline']}" if several else a for a in rows]
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].set_ylim(-0.7, max(len(rows), 1) - 0.3)
    return fig


def reliability(
  results: Mapping[str, Any], look: Mapping[str, Style]
) -> Figure | None:
  """Draws accuracy against confidence for each coloured arm, or None.

  Pooled over seeds; a dot's area follows the number of examples in its bin.
  The teacher's curve is drawn behind every arm's.
  """
  arms = results["arms"]
  shown = [a for a in arms if arms[a].get("reliability") and not look[a].quiet]
  if not shown:
    return None
  columns = len(shown) if len(shown) <= 5 else math.ceil(len(shown) / 2)
  lines = math.ceil(len(shown) / columns)
  with mpl.rc_context(RC):
    size = (1.1 + 1.78 * max(columns, 3), 0.75 + 1.95 * lines)
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(shown) :]:
      ax.set_axis_off()
    for ax, arm in zip(axes.flat, shown, strict=False):
      ax.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=(0, (3, 3)))
      if results.get("teacher_reliability"):
        x, y, count = _bins(results["teacher_reliability"])
        x, y = x[count >= _FEW], y[count >= _FEW]
        ax.plot(x, y, color=_GREY, lw=2.6, solid_capstyle="round")
      x, y, count = _bins(arms[arm]["reliability"])
      colour = look[arm].colour
      ax.plot(x[count >= _FEW], y[count >= _FEW], color=colour, lw=1.3)
      area = 90 * np.sqrt(count / max(count.sum(), 1)) + 3
      ax.scatter(x, y, s=area, color=colour, lw=0, zorder=3)
      ax.set_title(arm, fontsize=9.5, color=colour)
      ax.set(xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
      ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
      ax.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    fig.supxlabel("confidence", fontsize=9.5)
    fig.supylabel("accuracy", fontsize=9.5)
    return fig


def student_teacher(
  results: Mapping[str, Any], look: Mapping[str, Style]
) -> Figure | None:
  """Draws accuracy against agreement with the teacher, or None.

  Small dots are runs, large markers arms' means, the star is the teacher,
  which agrees with itself.
  """
  arms = results["arms"]
  needed = ("accuracy", "agreement")
  shown = [a for a in arms if all(m in arms[a]["metrics"] for m in needed)]
  if not shown:
    return None
  with mpl.rc_context(RC):
    fig = Figure(figsize=(7.4, 4.4), layout="constrained")
    ax = fig.subplots()
    for arm in sorted(shown, key=lambda a: not look[a].quiet):
      style = look[arm]
      y, x = (100 * _floats(arms[arm]["metrics"][m]["values"]) for m in needed)
      kept = np.isfinite(x) & np.isfinite(y)
      if not kept.any():
        continue
      x, y, on_top = x[kept], y[kept], 2 if style.quiet else 4
      ax.scatter(x, y, s=11, color=style.colour, alpha=0.4, lw=0, zorder=2)
      ax.scatter(
        x.mean(),
        y.mean(),
        s=36 if style.quiet else 80,
        marker=style.marker,
        color=style.colour,
        edgecolor=PAPER,
        lw=0.9,
        zorder=on_top,
      )
    accuracy = results.get("teacher", {}).get("accuracy")
    if accuracy is not None:
      ax.axhline(100 * accuracy, color=MUTED, lw=0.9, ls=(0, (3, 3)))
      ax.scatter(100, 100 * accuracy, s=170, marker="*", color=INK, zorder=5)
      ax.annotate(
        "teacher",
        (100, 100 * accuracy),
        (-8, 7),
        textcoords="offset points",
        ha="right",
      )
    ax.set(xlabel="agreement with the teacher (%)", ylabel="accuracy (%)")
    ax.margins(0.07)
    _legend(fig, {a: look[a] for a in shown}, "marker")
    return fig


def recall(
  results: Mapping[str, Any], omitted: Mapping[str, Sequence[int]]
) -> Figure | None:
  """Draws recall per class, arms x classes with the teacher on top, or None.

  Args:
    results: what results.json holds.
    omitted: arm -> classes absent from its transfer set, which are framed.
  """
  rows, names, classes = recall_rows(results)
  if not classes:
    return None
  low = np.nanmin(rows) if np.isfinite(rows).any() else 0.0
  floor = 0.0 if low < 0.5 else 0.5  # a good recall must not look dark
  with mpl.rc_context(RC):
    width = min(max(5.4, 2.6 + 0.62 * len(classes)), 13)
    size = (width, 1.25 + 0.32 * max(len(names), 2))
    fig = Figure(figsize=size, layout="constrained")
    ax = fig.subplots()
    norm = Normalize(floor, 1)
    mesh = ax.pcolormesh(
      np.ma.masked_invalid(rows),
      cmap=_RECALL,
      norm=norm,
      edgecolors=PAPER,
      linewidth=1.2,
    )
    if len(classes) <= 20:
      for (i, j), value in np.ndenumerate(rows):
        dark = value < floor + 0.36 * (1 - floor)
        ax.text(
          j + 0.5,
          i + 0.5,
          f"{100 * value:.0f}" if np.isfinite(value) else wording.DASH,
          ha="center",
          va="center_baseline",
          fontsize=8.5,
          color="#ffffff" if dark else "#1f2531",
        )
    for i, name in enumerate(names):
      for c in omitted.get(name.removesuffix(", shifted"), ()):
        if c in classes:
          at = (classes.index(c) + 0.06, i + 0.1)
          ax.add_patch(
            Rectangle(at, 0.88, 0.8, fill=False, ec="#d55e00", lw=1.7, zorder=3)
          )
    if names[0] == "teacher":
      ax.axhline(1, color=PAPER, lw=6)
    every = math.ceil(len(classes) / 25)
    ticks = range(0, len(classes), every)
    ax.set_xticks([t + 0.5 for t in ticks], [str(classes[t]) for t in ticks])
    ax.set_yticks(np.arange(len(names)) + 0.5, names)
    ax.set(xlabel="class")
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    bar = fig.colorbar(mesh, ax=ax, pad=0.02, aspect=14, shrink=0.95)
    bar.outline.set_visible(False)
    ticks = np.linspace(floor, 1, 3)
    bar.set_ticks(ticks.tolist(), labels=[f"{100 * t:.0f} %" for t in ticks])
    return fig


def recall_rows(
  results: Mapping[str, Any],
) -> tuple[np.ndarray, list[str], list[int]]:
  """Collects mean recall: ([rows, classes], row names, classes).

  The teacher comes first if it was scored by class, then each arm, followed by
  the same arm with shifted biases ("ARM, shifted") where the study has that.
  NaN where there is no value.
  """
  arms, teacher = results["arms"], results.get("teacher", {})
  found = {
    m for a in arms.values() for m in a["metrics"] if re.match(r"recall_\d", m)
  }
  classes = sorted({int(m.split("_")[1]) for m in found})
  names, rows = [], []
  if any(f"recall_{c}" in teacher for c in classes):
    names.append("teacher")
    rows.append([teacher.get(f"recall_{c}") for c in classes])
  for arm, entry in arms.items():
    for suffix, name in (("", arm), ("_shifted", f"{arm}, shifted")):
      cells = [entry["metrics"].get(f"recall_{c}{suffix}") for c in classes]
      if not suffix or any(cells):
        rows.append([cell and cell["mean"] for cell in cells])
        names.append(name)
  return np.array([_floats(r) for r in rows]), names, classes


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


def _thin(steps, values, factor=1, most=160):
  """Averages over seeds, then over bins of steps: (step, mean, std) [P]."""
  seen = np.isfinite(values).any(axis=0)
  steps, values = steps[seen], factor * values[:, seen]
  if not len(steps):
    return steps, steps, steps
  finite = np.isfinite(values)
  count = finite.sum(axis=0)
  filled = np.where(finite, values, 0.0)
  mean = filled.sum(axis=0) / count
  square = np.where(finite, (values - mean) ** 2, 0.0).sum(axis=0)
  std = np.sqrt(square / np.maximum(count - 1, 1))
  if len(steps) <= most:
    return steps, mean, std
  cuts = np.linspace(0, len(steps), most + 1).astype(int)
  sums = [np.add.reduceat(x, cuts[:-1]) for x in (steps, mean, std)]
  return tuple(s / np.diff(cuts) for s in sums)


def _band(ax: Axes, steps, mean, std, style: Style) -> None:
  width = 0.9 if style.quiet else 1.7
  alone = "o" if len(steps) == 1 else None
  ax.plot(steps, mean, style.dash, color=style.colour, lw=width, marker=alone)
  if np.any(std > 0) and not style.quiet:
    low, high = mean - std, mean + std
    low = np.where((low <= 0) & (mean > 0), mean, low)  # for a log axis
    ax.fill_between(steps, low, high, color=style.colour, alpha=0.14, lw=0)


def _forest_row(ax: Axes, y, arms, arm, metric, style: Style) -> None:
  versus, factor = _versus(arms[arm], metric), wording.scale(metric)
  if not versus:
    return
  own = _floats(arms[arm]["metrics"][metric]["values"])
  base = _floats(arms[versus["baseline"]]["metrics"][metric]["values"])
  d = factor * (own - base)
  jitter = 0.09 * np.where(np.arange(len(d)) % 2, 1, -1)
  ax.scatter(d, y - 0.2 + jitter, s=9, color=style.colour, alpha=0.35, lw=0)
  if versus["low"] is not None:
    ends = [factor * versus["low"], factor * versus["high"]]
    ax.plot(ends, [y, y], color=style.colour, lw=2, solid_capstyle="round")
  ax.scatter(
    factor * versus["difference"],
    y,
    s=46,
    marker="X" if arms[arm].get("diverged") else "o",
    facecolor=style.colour if stats.told_apart(versus) else PAPER,
    edgecolor=style.colour,
    lw=1.6,
    zorder=3,
  )


def _versus(arm: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
  versus = arm["metrics"].get(metric, {}).get("versus_baseline")
  return versus if versus and versus["difference"] is not None else {}


def _legend(fig: Figure, look: Mapping[str, Style], kind: str) -> None:
  quiet = sum(s.quiet for s in look.values())
  handles = []
  for arm, s in [*look.items(), (f"{quiet} other arms", Style(_GREY))]:
    if s.quiet or (arm not in look and not quiet):
      continue
    line = Line2D([], [], color=s.colour, label=arm, lw=2, ls=s.dash)
    if kind == "marker":
      line.set(linestyle="none", marker=s.marker, markersize=7)
    handles.append(line)
  fig.legend(handles=handles, loc="outside right upper", handlelength=1.8)


def _bins(bins: Mapping[str, Sequence[Any]]):
  x, y = _floats(bins["confidence"]), _floats(bins["accuracy"])
  count = _floats(bins["count"])
  kept = np.isfinite(x) & np.isfinite(y) & (count > 0)
  return x[kept], y[kept], count[kept]


def _floats(values) -> np.ndarray:
  return np.array([np.nan if v is None else v for v in values], np.float64)


def _whole_steps(ax: Axes) -> None:
  ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _absent(ax: Axes, words: str) -> None:
  ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", color=MUTED)
