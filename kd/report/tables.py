"""A report's tables, from results.json."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd.evaluate import pareto, registry, stats
from kd.evaluate.design import Design
from kd.report import results_table, wording
from kd.report.blocks import Block, Cell, Details, Heading, Table, code
from kd.teachers import funnel

Results = Mapping[str, Any]

_MOST_CLASSES = 20  # columns of a table that is still read
# Metrics' suffix, column, heading, caption.
_VARIANTS = (
  (
    "_best",
    "Best on validation",
    "Last against best-on-validation weights",
    "the last weights and those that did best on validation, run by run.",
  ),
  (
    "_shifted",
    "Biases shifted",
    "With shifted biases",
    "as trained, and with the output biases of the configured classes shifted "
    "by an amount chosen on validation, run by run.",
  ),
)


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
  return np.array([floats(r) for r in rows]), names, classes


def recall_table(results: Results) -> list[Block]:
  values, names, classes = recall_rows(results)
  if not classes or len(classes) > _MOST_CLASSES:
    return []
  rows = [
    [
      n if n == "teacher" else code(n),
      *(wording.number(v, "recall", 1) for v in row),
    ]
    for n, row in zip(names, values, strict=True)
  ]
  columns = ["Arm", *map(str, classes)]
  table = Table("Recall per class (%), mean over runs.", columns, rows)
  return [Heading("Recall per class"), table]


def variant_tables(results: Results, look) -> list[Block]:
  """Sets the primary metric beside its _best and _shifted variants."""
  metric = results["metric"].removesuffix("_best").removesuffix("_shifted")
  blocks = []
  for suffix, short, head, caption in _VARIANTS:
    rows = _variant_rows(results, look, metric, metric + suffix)
    if rows:
      unit = f" ({wording.unit(metric)})" if wording.unit(metric) else ""
      gap = Cell(f"{short} {wording.MINUS} last{unit}", "[95 % interval]")
      columns = ["Arm", "Last step", short, gap]
      caption = f"Test {wording.metric_name(metric)}: {caption}"
      blocks += [Heading(head), Table(caption, columns, rows)]
  return blocks


def _variant_rows(results, look, metric: str, variant: str):
  pairs = {
    arm: (entry["metrics"][metric], entry["metrics"][variant])
    for arm, entry in results["arms"].items()
    if metric in entry["metrics"] and variant in entry["metrics"]
  }
  gaps = {
    arm: dataclasses.asdict(
      stats.compare(
        other["values"],
        last["values"],
        design=Design.of(results),
        worth=last.get("worth", 0.0),
      )
    )
    for arm, (last, other) in pairs.items()
  }
  digits = results_table.column_digits([results], metric)
  widths = [wording.half_width(gap) for gap in gaps.values()]
  places = wording.decimals(widths, metric)
  rows = []
  for arm, pair in pairs.items():
    cells = [results_table.mean_cell(m, metric, digits) for m in pair]
    text = wording.number(gaps[arm]["difference"], metric, places, signed=True)
    cells.append(Cell(text, wording.interval(gaps[arm], metric, places)))
    rows.append([Cell(code(arm), chip=look[arm].colour), *cells])
  return rows


def unit_table(results: Results, look) -> list[Block]:
  """Lists every unit of evidence: a seed's value, or a replicate's mean."""
  metric, design = results["metric"], Design.of(results)
  n = len(set(design.units(len(results["seeds"])).tolist()))
  if n > _MOST_CLASSES:
    return []
  digits = results_table.column_digits([results], metric)
  rows = []
  for arm, entry in results["arms"].items():
    values = floats(results_table.entry_of(entry, metric)["values"])
    values = design.means(values) if len(values) else np.full(n, np.nan)
    cells = [
      wording.number(v, metric, digits) if np.isfinite(v) else "✕"
      for v in values
    ]
    rows.append([Cell(code(arm), chip=look[arm].colour), *cells])
  ids = range(1, n + 1) if design.levels else results["seeds"]
  columns = ["Arm", *(f"{design.unit.capitalize()} {i}" for i in ids)]
  mean = ", mean over its runs" if design.levels else ""
  caption = (
    f"{wording.metric_title(metric)} of every {design.unit}{mean}; ✕ diverged, "
    "or not finite."
  )
  return [Details(f"Every {design.unit}", [Table(caption, columns, rows)])]


def rest_table(results: Results, look) -> list[Block]:
  """Lists the metrics that no other table shows."""
  found = [m for arm in results["arms"].values() for m in arm["metrics"]]
  rest = [
    m
    for m in dict.fromkeys(found)
    if m != results["metric"]
    and registry.lookup(m).shown == "rest"
    and not registry.lookup(m).per_class
    and not m.endswith(tuple(registry.VARIANTS))
    and not registry.is_seconds(m)
    and m not in ("parameters", *pareto.COSTS)
  ]
  if not rest:
    return []
  digits = {m: results_table.column_digits([results], m, 3) for m in rest}
  rows = [
    [Cell(code(arm), chip=look[arm].colour)]
    + [
      results_table.mean_cell(results_table.entry_of(entry, m), m, digits[m])
      for m in rest
    ]
    for arm, entry in results["arms"].items()
  ]
  columns = ["Arm", *(wording.metric_title(m) for m in rest)]
  caption = f"Mean ± standard deviation over {wording.units(results)}."
  return [Details("Other metrics", [Table(caption, columns, rows)])]


def teacher_table(results: Results) -> list[Block]:
  teacher = results["teacher"]
  shown = [m for m in teacher if not registry.lookup(m).per_class]
  if not shown:
    return []
  rows = []
  for m in shown:
    places = registry.lookup(m).unit.digits
    text = wording.number(teacher[m], m, places)
    rows.append([wording.metric_title(m), text])
  mean = ", mean over replicates" if Design.of(results).levels else ""
  caption = f"The teacher on the same test set{mean}."
  return [Heading("Teacher"), Table(caption, ["Metric", "Value"], rows)]


def cost_tables(results: Results) -> list[Block]:
  """Sets the models' sizes and latencies side by side, the teacher first."""
  models = results.get("models") or {}
  times = results["provenance"].get("latency_seconds") or {}
  if not models:
    return []
  whole = models.get("teacher", {}).get("parameters")
  rows, batches = [], set()
  writes = [own["prompt"] for own in times.values() if "prompt" in own]
  for name, model in models.items():
    own, size = times.get(name, {}), model["parameters"]
    batches |= {own["batch"]} if own else set()
    rows.append(
      [
        f"{name} ({code(model['name'])})",
        f"{size:,}",
        f"{whole / size:.1f}" if whole and size else wording.DASH,
        f"{1e3 * own['call']:.3g}" if own else wording.DASH,
        f"{1e3 * own['example']:.3g}" if own else wording.DASH,
      ]
    )
    if writes:
      rows[-1] += [
        f"{1e3 * own['prefill']:.3g}" if "prefill" in own else wording.DASH,
        f"{1 / own['token']:,.0f}" if own.get("token") else wording.DASH,
      ]
  many = "/".join(map(str, sorted(batches))) or "many"
  columns = ["Model", "Parameters", "Times smaller than the teacher"]
  columns += ["One example (ms)", f"Each of {many} (ms)"]
  caption = (
    "Median times of a compiled forward pass on the host of the study, one "
    "example at a time and in a batch; what else the host did is in them."
  )
  if writes:
    columns += ["Prefill (ms)", "Tokens/s"]
    caption += (
      f" Prefill reads {writes[0]} tokens of one prompt and chooses the next; "
      "then come tokens one by one."
    )
  return [Heading("Cost"), Table(caption, columns, rows)]


def signal_tables(results: Results) -> list[Block]:
  signal = dict(results.get("signal") or {})
  if not signal:
    return []
  funnels = signal.pop("funnels", {})
  blocks: list[Block] = [Heading("Signal")]
  rows = [[k.replace("_", " "), v] for k, v in wording.flat(signal)]
  if rows:
    caption = "What the teacher left on the transfer set."
    blocks.append(Table(caption, ["Quantity", "Value"], rows))
  if funnels:
    blocks += _funnel_tables(funnels)
  return blocks


def _funnel_tables(funnels: Mapping[str, Any]) -> list[Block]:
  """Shows what each filter kept, and examples of what it removed."""
  rows, shown = [], []
  for name, steps in funnels.items():
    for step in steps:
      kept = 100 * step["out"] / step["in"] if step["in"] else None
      rows.append(
        [
          code(name),
          step["step"].replace("_", " "),
          *(f"{step[side]:,}" for side in ("in", "out")),
          wording.DASH if kept is None else f"{kept:.1f}",
          *(f"{step[f'samples_{side}']:,}" for side in ("in", "out")),
        ]
      )
      for gone in step["removed"]:
        said = "; ".join(code(text) for text in gone["samples"])
        text = code(gone["prompt"]) if "prompt" in gone else ""
        shown.append([code(name), step["step"], gone["id"], text, said])
  columns = ["Filter", "Step", "In", "Out", "Kept (%)"]
  columns += ["Samples in", "Samples out"]
  caption = (
    "What the filters kept of the examples and of their samples, in order."
  )
  steps = (step["step"] for chain in funnels.values() for step in chain)
  if keeps := funnel.words(steps):
    caption += f" Here {keeps}.".replace("_", " ")
  blocks: list[Block] = [Table(caption, columns, rows, left=(0, 1))]
  if shown:
    columns = ["Filter", "Step", "Example", "Prompt", "Samples"]
    caption = "A few of the examples that each step removed."
    table = Table(caption, columns, shown, left=(0, 1, 2, 3, 4))
    blocks.append(Details("Removed examples", [table]))
  return blocks


def floats(values: Sequence[float | None]) -> np.ndarray:
  """Returns values as float64, NaN where there is none."""
  return np.array([np.nan if v is None else v for v in values], np.float64)
