"""Shows what teacher and students do outside of the task they learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from kd.config.outside import TEST
from kd.evaluate import verdict
from kd.evaluate.outside_stats import CONFIDENT, LOST
from kd.report import tables, wording
from kd.report.blocks import Block, Cell, Details, Heading, Table, code
from kd.report.source import Source
from kd.report.style import INK, MUTED, RC, Style, with_legend

Results = Mapping[str, Any]
SHOWN = 4  # panels of a figure, and arms of a sentence
FEW = 10  # examples below which a bin is noise
COLUMNS = (
  *("accuracy", "nll", "nll_tempered", "ece", "ece_equal_mass"),
  *("ece_tempered", "brier", "aurc", "wrong_confident", "auroc", "fpr95"),
  *("auroc_energy", "fpr95_energy", "agreement"),
)


def section(source: Source) -> list[Block]:
  """Shows the verdict's two numbers, then curves, then each set."""
  results, look = source.results, source.look
  found = results.get("outside")
  if not found or not found["arms"]:
    return []
  look = {a: s for a, s in look.items() if a in found["arms"]}
  return [
    Heading("Outside the task"),
    *verdict_table(results),
    *source.picture(
      "outside_severity",
      severity(results, look),
      "Accuracy of the teacher and each arm against the severity of a shift",
      "**Accuracy against severity,** a mean over runs, and over the shifts of "
      "a set. Severity 0 is the test split, the dashed line the teacher.",
    ),
    *source.picture(
      "outside_curves",
      curves(results, look),
      "Selective accuracy and reliability of the teacher and each arm on the "
      "test split and outside",
      "**Inside and outside.** Above: accuracy over the surest answers, "
      "against the share that is answered; where no answer can be right, of "
      "test split and set together. Below: accuracy against confidence, in "
      f"bins of {FEW} and more examples. The dashed line is the teacher.",
    ),
    *set_tables(results),
  ]


def sentence(results: Results) -> str:
  """Says how much sooner and more surely students fail than their teacher, and
  what differs from the baseline; '' where the study looked at nothing."""
  found = results.get("outside")
  if not found or not found["arms"]:
    return ""
  own = found["verdict"]
  arms = list(own["arms"].items())
  said = [_told(own, metric, arms[:SHOWN]) for metric in own["over"]]
  rest = len(arms) - SHOWN
  more = f" {rest} more arms are in the table." if rest > 0 else ""
  return (
    f"**Outside the task.** {' '.join(said)}{more} Bold: told apart from 0 "
    "after Holm's correction."
  )


def _told(own: Mapping[str, Any], metric: str, arms) -> str:
  names = wording.codes(own["over"][metric])
  teacher = own["teacher"].get(metric)
  lost = metric == LOST
  head = "Accuracy lost" if lost else "Wrong with a confidence above 0.9"
  head += f" {'to' if lost else 'on'} {names}"
  if teacher is not None:
    unit = "points" if lost else "%"
    head += f": {wording.number(teacher, metric, 1)} {unit} by the teacher"
  parts = []
  for arm, entries in arms:
    both = [
      _versus(entries[metric].get(key), metric, whom)
      for key, whom in (("versus_teacher", "to it"), ("versus_baseline", ""))
    ]
    if text := " and ".join(filter(None, both)):
      parts.append(f"{code(arm)} {text}")
  return f"{head}; as differences in points, {', '.join(parts)}."


def _versus(versus: Mapping[str, Any] | None, metric: str, whom: str) -> str:
  """Writes a difference: '+3.1 [+2.0, +4.2] to it'."""
  if not versus or versus["difference"] is None:
    return ""
  places = wording.decimals([wording.half_width(versus)], metric)
  text = wording.number(versus["difference"], metric, places, signed=True)
  text = f"**{text}**" if verdict.told_apart(versus) else text
  between = wording.interval(versus, metric, places)
  return f"{text} {between} {whom or 'to ' + code(versus['baseline'])}"


def verdict_table(results: Results) -> list[Block]:
  """Sets out what is lost outside, beside teacher and baseline."""
  own = results["outside"]["verdict"]
  made: list[Block] = []
  for metric, names in own["over"].items():
    entries = {a: e[metric] for a, e in own["arms"].items()}
    gaps = [
      wording.half_width(e[k])
      for e in entries.values()
      for k in ("versus_teacher", "versus_baseline")
    ]
    places = wording.decimals(gaps, metric)
    rows = [
      [
        Cell(code(arm), value=i),
        _mean(entry, metric, places),
        *_gap(entry["versus_teacher"], metric, places),
        *_gap(entry["versus_baseline"], metric, places),
      ]
      for i, (arm, entry) in enumerate(entries.items())
    ]
    teacher = own["teacher"].get(metric)
    if teacher is not None:
      text = Cell(wording.number(teacher, metric, places), value=teacher)
      rows.insert(0, ["teacher", text, *[wording.DASH] * 4])
    unit = f" ({wording.unit(metric)})"
    caption = {
      LOST: "Accuracy on the test split less that on ",
      CONFIDENT: "Answers that are wrong with a confidence above 0.9 on ",
    }[metric] + (
      f"{wording.codes(names)}, a mean over these, each a mean over its "
      f"severities; over {wording.units(results)}. Differences are paired, to "
      "the teacher of the same replicate and to the baseline, with 95 % "
      "intervals; p is Holm's over both columns."
    )
    columns = [
      "Arm",
      wording.metric_title(metric),
      Cell(f"Less the teacher's{unit}", "[95 % interval]"),
      "Holm p",
      Cell(f"Less the baseline's{unit}", "[95 % interval]"),
      "Holm p",
    ]
    made.append(Table(caption, columns, rows, cards=True))
  return [*made, *_each_table(results)]


def _each_table(results: Results) -> list[Block]:
  """Sets the names side by side: where each arm differs from its teacher."""
  own = results["outside"]["verdict"]
  made: list[Block] = []
  for metric in own["over"] if own["teacher"] else ():
    each = {
      name: judged["arms"]
      for name, judged in own.get("each", {}).items()
      if metric in judged["over"]
    }
    if len(each) < 2:
      continue
    gaps = {
      arm: {n: entries[arm][metric] for n, entries in each.items()}
      for arm in own["arms"]
    }
    places = wording.decimals(
      [wording.half_width(e["versus_teacher"]) for g in gaps.values()
       for e in g.values()], metric,
    )  # fmt: skip
    rows = [
      [
        Cell(code(arm), value=i),
        *(_gap(e["versus_teacher"], metric, places)[0] for e in of.values()),
      ]
      for i, (arm, of) in enumerate(gaps.items())
    ]
    name = wording.metric_name(metric)
    caption = (
      f"By set: {name} less the teacher's ({wording.unit(metric)}), with 95 % "
      "intervals. Bold: told apart from 0, by Holm's procedure over the arms' "
      "comparisons on that set alone."
    )
    columns = ["Arm", *(code(n) for n in each)]
    made.append(Table(caption, columns, rows, cards=True))
  return made


def _mean(entry: Mapping[str, Any], metric: str, places: int) -> Cell:
  text = wording.number(entry["mean"], metric, places)
  note = wording.spread(entry, metric, places)
  return Cell(text, note, value=entry["mean"])


def _gap(versus: Mapping[str, Any] | None, metric: str, places: int):
  if not versus or versus["difference"] is None:
    return [wording.DASH, wording.DASH]
  text = wording.number(versus["difference"], metric, places, signed=True)
  told = bool(verdict.told_apart(versus))
  note = wording.interval(versus, metric, places)
  cell = Cell(text, note, strong=told, value=versus["difference"])
  return [cell, Cell(wording.p_value(versus["p"]), value=versus["p"])]


def set_tables(results: Results) -> list[Block]:
  """Lists every set's metrics, and each shift's accuracy; folded away."""
  found, made = results["outside"], []
  for name, facts in found["sets"].items():
    teacher = found["teacher"].get(name, {})
    first = next(iter(found["arms"].values()))[name]
    shown = [m for m in COLUMNS if m in first]
    digits = {
      m: wording.decimals(
        [e[name][m]["std"] for e in found["arms"].values()], m, 3
      )
      for m in shown
    }
    rows: list[list[Cell | str]] = []
    if teacher:
      rows.append(
        ["teacher", *(_value(teacher.get(m), m, digits[m]) for m in shown)]
      )
    rows += [
      [
        Cell(code(arm), value=i),
        *(_mean(entry[name][m], m, digits[m]) for m in shown),
      ]
      for i, (arm, entry) in enumerate(found["arms"].items())
    ]
    size = facts["examples"]
    count = size if isinstance(size, int) else f"{min(size)} to {max(size)}"
    note = "" if facts["labelled"] else "; any answer is wrong"
    caption = (
      f"{code(name)}: {facts['words']}; {count} examples{note}. Mean ± "
      f"standard deviation over {wording.units(results)}. AUROC and FPR tell "
      "the test split from the set."
    )
    columns = ["Arm", *(wording.metric_title(m) for m in shown)]
    made.append(Table(caption, columns, rows, cards=True))
  return [Details("Every set", [*made, *_part_table(found)])]


def _value(value: float | None, metric: str, places: int) -> Cell:
  return Cell(wording.number(value, metric, places), value=value)


def _part_table(found: Mapping[str, Any]) -> list[Block]:
  """Lists the accuracy under each shift, a mean over severities."""
  gathered: dict[str, dict[str, list[float]]] = {}
  models = {"teacher": found["parts"].get("teacher"), **found["parts"]["arms"]}
  for model, sets in models.items():
    for parts in (sets or {}).values():
      for part, value in parts.items():
        if value is not None:
          own = gathered.setdefault(part, {})
          own.setdefault(model, []).append(value)
  if len(gathered) < 2:
    return []
  shown = [m for m, sets in models.items() if sets]
  rows = [
    [
      part.replace("_", " "),
      *(_value(_average(own.get(m)), "accuracy", 1) for m in shown),
    ]
    for part, own in gathered.items()
  ]
  columns = ["Shift", *(m if m == "teacher" else code(m) for m in shown)]
  caption = "Accuracy (%) under each shift, a mean over severities and runs."
  return [Table(caption, columns, rows, cards=True)]


def _average(values: Sequence[float] | None) -> float | None:
  return float(np.mean(values)) if values else None


def severity(results: Results, look: Mapping[str, Style]) -> Figure | None:
  """Draws accuracy against severity, a panel for each shifted set."""
  found = results["outside"]
  names: dict[str, dict[int, str]] = {}
  for name, facts in found["sets"].items():
    if facts["severity"]:
      names.setdefault(facts["of"], {0: TEST})[facts["severity"]] = name
  names = {of: sets for of, sets in names.items() if len(sets) > 2}
  if not names:
    return None
  with mpl.rc_context(RC):
    fig = with_legend((3.6 * len(names) + 0.6, 3.6), look, "marker")
    axes = fig.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, (of, sets) in zip(axes, names.items(), strict=True):
      at = sorted(sets)
      for arm, style in look.items():
        mean = [found["arms"][arm][sets[s]]["accuracy"]["mean"] for s in at]
        y = 100 * tables.floats(mean)
        ax.plot(at, y, style.dash, color=style.colour, marker=style.marker)
      if found["teacher"]:
        mean = [found["teacher"][sets[s]]["accuracy"] for s in at]
        ax.plot(at, 100 * tables.floats(mean), "--", color=INK, lw=1.2)
      ax.set(title=of, xlabel="severity", xticks=at)
    axes[0].set_ylabel("accuracy (%)")
    return fig


def curves(results: Results, look: Mapping[str, Style]) -> Figure:
  """Draws selective accuracy above reliability, a column for each set."""
  found = results["outside"]
  hardest = {facts["of"]: name for name, facts in found["sets"].items()}
  shown = list(hardest.values())[: SHOWN + 1]
  coverage = found["curves"]["coverage"]
  lines = [(found["curves"]["arms"][a], found["reliability"]["arms"][a], s)
           for a, s in look.items()]  # fmt: skip
  if found["curves"].get("teacher"):
    both = found["curves"]["teacher"], found["reliability"]["teacher"]
    lines.append((*both, Style(INK, "--")))
  with mpl.rc_context(RC):
    fig = with_legend((1.95 * max(len(shown), 3), 4.6), look, "line")
    axes = fig.subplots(2, len(shown), sharex="row", sharey="row",
                        squeeze=False)  # fmt: skip
    for column, name in zip(axes.T, shown, strict=True):
      for curve, bins, style in lines:
        y = 100 * tables.floats(curve[name])
        column[0].plot(100 * np.asarray(coverage), y, style.dash,
                       color=style.colour, lw=1.3)  # fmt: skip
        x, y, count = (
          tables.floats(bins[name][k])
          for k in ("confidence", "accuracy", "count")
        )
        kept = count >= FEW
        column[1].plot(x[kept], y[kept], style.dash, color=style.colour, lw=1.3)
      column[1].plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (1, 3)))
      column[0].set_title(name, fontsize=9)
      column[0].set(ylim=(-3, 103), xlabel="answered (%)")
      column[1].set(xlim=(0, 1.03), ylim=(-0.03, 1.03), xlabel="confidence")
      column[1].set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axes[0, 0].set_ylabel("accuracy (%)")
    axes[1, 0].set_ylabel("accuracy")
    return fig
