"""Draws a study's figures: one function per figure, each returns a Figure.

Object-oriented matplotlib on Agg, no pyplot. A figure is as wide as its panels
and its labels need, so that no long name takes a panel's room.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from kd.evaluate import registry, verdict
from kd.evaluate.design import Design
from kd.report import tables, wording
from kd.report.curves import KEYS, Curve
from kd.report.style import (
  GREY,
  INK,
  LABEL,
  MUTED,
  PAPER,
  RC,
  Style,
  fit,
  room,
  with_legend,
)

_FEW = 10  # examples below which a bin is noise
# Dark is low, so that a forgotten class stands out of a pale map.
_RECALL = LinearSegmentedColormap.from_list(
  "recall", ["#08306b", "#2171b5", "#6baed6", "#c6dbef", "#f4f8fc"]
)


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
    fig = with_legend((8.2, 4.0), look, "line")
    titles = ("Training loss", "Validation accuracy (%)")
    for ax, key, title in zip(fig.subplots(1, 2), KEYS, titles, strict=True):
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
    return fig


def forest(
  results: Mapping[str, Any],
  look: Mapping[str, Style],
  metrics: Sequence[str],
) -> Figure:
  """Draws each arm's paired difference to its baseline, with its interval.

  Pale dots are the single units of evidence. A filled marker is told apart from
  the baseline (`verdict.told_apart`), an open one is not; a cross says that the
  arm lost a run. Rows are sorted by the first metric, best on top.
  """
  arms, first = results["arms"], metrics[0]
  rows = [a for a in arms if _versus(arms[a], first)]
  sign = registry.direction(first)
  rows.sort(key=lambda a: sign * _versus(arms[a], first)["difference"])
  several = len({arms[a]["baseline"] for a in rows}) > 1
  names = [
    fit(a, LABEL)
    + (f"\nvs {fit(arms[a]['baseline'], LABEL)}" if several else "")
    for a in rows
  ]
  label, height = room(names)
  panels = [4.0] + [2.45] * (len(metrics) - 1)
  with mpl.rc_context(RC):
    height = 1.35 + max(height + 0.12, 0.3) * max(len(rows), 2)
    size = (label + sum(panels) + 0.3, height)
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(
      1, len(metrics), sharey=True, squeeze=False, width_ratios=panels
    )[0]
    for ax, metric in zip(axes, metrics, strict=True):
      for y, arm in enumerate(rows):
        _forest_row(ax, y, results, arm, metric, look[arm])
      ax.axvline(0, color=INK, lw=1.1, zorder=1)
      ax.set_title(wording.metric_title(metric, unit=False))
      unit = registry.lookup(metric).unit.of_differences
      unit = f"{unit}, " if unit else ""
      better = "right" if registry.direction(metric) > 0 else "left"
      arrow = "better →" if better == "right" else "← better"
      ax.set_xlabel(f"difference ({unit}{arrow})")
      ax.xaxis.set_major_locator(
        MaxNLocator(5 if ax is axes[0] else 3, prune="both")
      )
      ax.grid(axis="y", visible=False)
      if not rows:
        _absent(ax, "nothing to compare")
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
  titles = [fit(a, 1.55, 8.5, "bold") for a in shown]
  _, title = room(titles, 8.5)
  with mpl.rc_context(RC):
    size = (1.1 + 1.78 * max(columns, 3), 0.75 + (1.75 + title) * lines)
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(shown) :]:
      ax.set_axis_off()
    for ax, arm, name in zip(axes.flat, shown, titles, strict=False):
      ax.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=(0, (3, 3)))
      if results.get("teacher_reliability"):
        x, y, count = _bins(results["teacher_reliability"])
        x, y = x[count >= _FEW], y[count >= _FEW]
        ax.plot(x, y, color=GREY, lw=2.6, solid_capstyle="round")
      x, y, count = _bins(arms[arm]["reliability"])
      colour = look[arm].colour
      ax.plot(x[count >= _FEW], y[count >= _FEW], color=colour, lw=1.3)
      area = 90 * np.sqrt(count / max(count.sum(), 1)) + 3
      ax.scatter(x, y, s=area, color=colour, lw=0, zorder=3)
      ax.set_title(name, fontsize=8.5)
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
    look = {a: look[a] for a in shown}
    fig = with_legend((5.8, 4.4), look, "marker")
    ax = fig.subplots()
    for arm in sorted(shown, key=lambda a: not look[a].quiet):
      style = look[arm]
      own = arms[arm]["metrics"]
      y, x = (100 * tables.floats(own[m]["values"]) for m in needed)
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
    return fig


def recall(
  results: Mapping[str, Any], omitted: Mapping[str, Sequence[int]]
) -> Figure | None:
  """Draws recall per class, arms x classes with the teacher on top, or None.

  Args:
    results: what results.json holds.
    omitted: arm -> classes absent from its transfer set, which are framed.
  """
  rows, names, classes = tables.recall_rows(results)
  if not classes:
    return None
  low = np.nanmin(rows) if np.isfinite(rows).any() else 0.0
  floor = 0.0 if low < 0.5 else 0.5  # a good recall must not look dark
  labels = [fit(name, LABEL) for name in names]
  label, height = room(labels)
  with mpl.rc_context(RC):
    width = label + min(max(2.8, 0.62 * len(classes)), 10.4) + 1.3
    size = (width, 1.25 + max(height + 0.1, 0.32) * max(len(names), 2))
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
    ax.set_yticks(np.arange(len(names)) + 0.5, labels)
    ax.set(xlabel="class")
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    bar = fig.colorbar(mesh, ax=ax, pad=0.02, aspect=14, shrink=0.95)
    bar.outline.set_visible(False)
    ticks = np.linspace(floor, 1, 3)
    bar.set_ticks(ticks.tolist(), labels=[f"{100 * t:.0f} %" for t in ticks])
    return fig


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


def _forest_row(ax: Axes, y, results, arm, metric, style: Style) -> None:
  arms = results["arms"]
  versus, factor = _versus(arms[arm], metric), wording.scale(metric)
  if not versus:
    return
  own = tables.floats(arms[arm]["metrics"][metric]["values"])
  base = tables.floats(arms[versus["baseline"]]["metrics"][metric]["values"])
  d = factor * Design.of(results).means(own - base)
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
    facecolor=style.colour if verdict.told_apart(versus) else PAPER,
    edgecolor=style.colour,
    lw=1.6,
    zorder=3,
  )


def _versus(arm: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
  versus = arm["metrics"].get(metric, {}).get("versus_baseline")
  return versus if versus and versus["difference"] is not None else {}


def _bins(bins: Mapping[str, Sequence[Any]]):
  x, y = tables.floats(bins["confidence"]), tables.floats(bins["accuracy"])
  count = tables.floats(bins["count"])
  kept = np.isfinite(x) & np.isfinite(y) & (count > 0)
  return x[kept], y[kept], count[kept]


def _whole_steps(ax: Axes) -> None:
  ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _absent(ax: Axes, words: str) -> None:
  ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", color=MUTED)
