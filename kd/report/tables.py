"""A report's tables, from results.json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from kd.evaluate import stats
from kd.report import figures, wording
from kd.report.blocks import Block, Cell, Details, Heading, Table, code
from kd.teachers import funnel

Results = Mapping[str, Any]

_SECONDARY = ("accuracy", "agreement", "nll", "ece", "kl_to_teacher")
_MOST_CLASSES = 20  # columns of a table that is still read
# Metrics' suffix, column, heading, caption.
_VARIANTS = (
  (
    "_best",
    "Best on validation",
    "Last against best-on-validation weights",
    "the last weights and those that did best on validation, paired by seed.",
  ),
  (
    "_shifted",
    "Biases shifted",
    "With shifted biases",
    "as trained, and with the output biases of the configured classes shifted "
    "by an amount chosen on validation, paired by seed.",
  ),
)


def main_table(results: Results, look) -> Table:
  metric, arms = results["metric"], results["arms"]
  v, sign = stats.winner(results), stats.direction(metric)
  suffix = "_best" if metric.endswith("_best") else ""
  others = [m + suffix for m in _SECONDARY if m + suffix != metric]
  others = [*(f"recall_{c}" for c in omitted_classes(results)), *others]
  others = [m for m in others if any(m in a["metrics"] for a in arms.values())]
  digits = {m: _column_digits(results, m, 3) for m in others}
  digits[metric] = _column_digits(results, metric)
  versus = {a: entry_of(arms[a], metric)["versus_baseline"] for a in arms}
  widths = [wording.half_width(x) for x in versus.values()]
  gap_digits = wording.decimals(widths, metric)
  several = len({a["baseline"] for a in arms.values()} - {None}) > 1

  def order(arm):
    mean = entry_of(arms[arm], metric)["mean"]
    return math.inf if mean is None else -sign * mean

  rows = []
  for arm in sorted(arms, key=order):
    strong = v.named and arm == v.best
    steps = arms[arm].get("diverged")
    lost = f" ✕ diverged: {wording.lost_runs(steps)}" if steps else ""
    x = versus[arm]
    gap = wording.interval(x, metric, gap_digits) if x else "baseline"
    gap += f" vs {code(x['baseline'])}" if x and several else ""
    cells = [
      Cell(code(arm) + lost, look[arm].colour, strong),
      Cell(wording.objective(arms[arm].get("config", {}))),
      Cell(
        wording.mean_std(entry_of(arms[arm], metric), metric, digits[metric])
      ),
      Cell(gap, strong=bool(stats.told_apart(x))),
      Cell(wording.p_value(x["p"]) if x else wording.DASH),
    ]
    for m in others:
      entry = entry_of(arms[arm], m)
      text = wording.mean_std(entry, m, digits[m])
      if m.startswith("recall") and entry["versus_baseline"]:
        text += f" ({wording.interval(entry['versus_baseline'], m, digits[m])})"
      cells.append(Cell(text))
    rows.append(cells)
  unit = f" ({wording.unit(metric)})" if wording.unit(metric) else ""
  columns = ["Arm", "Objective", wording.metric_title(metric)]
  columns += [f"Difference to baseline{unit} [95 % interval]", "Holm p"]
  columns += [wording.metric_title(m) for m in others]
  caption = (
    f"Test set, weights of the {_selection(results)}; mean ± standard "
    f"deviation over {wording.seed_count(len(results['seeds']))}, best "
    f"{wording.metric_name(metric)} first. Differences in bold are told apart "
    "from 0."
  )
  if any(m.startswith("recall") for m in others):
    caption += " In round brackets: the difference in recall, likewise."
  return Table(caption, columns, rows, left=(0, 1))


def omitted_classes(results: Results, most: int = 3) -> list[int]:
  """Returns the classes that some arm's transfer set omits; none if many."""
  classes = {
    c
    for arm in results["arms"].values()
    for c in arm.get("config", {}).get("signal", {}).get("omit_classes", ())
  }
  return sorted(classes) if len(classes) <= most else []


def recall_table(results: Results) -> list[Block]:
  values, names, classes = figures.recall_rows(results)
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
  table = Table("Recall per class (%), mean over seeds.", columns, rows)
  return [Heading("Recall per class"), table]


def variant_tables(results: Results, look) -> list[Block]:
  """Sets the primary metric beside its _best and _shifted variants."""
  metric = results["metric"].removesuffix("_best").removesuffix("_shifted")
  blocks = []
  for suffix, short, head, caption in _VARIANTS:
    rows = _variant_rows(results, look, metric, metric + suffix)
    if rows:
      unit = f" ({wording.unit(metric)})" if wording.unit(metric) else ""
      gap = f"{short} {wording.MINUS} last{unit} [95 % interval]"
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
    arm: dataclasses.asdict(stats.compare(other["values"], last["values"]))
    for arm, (last, other) in pairs.items()
  }
  digits = _column_digits(results, metric)
  widths = [wording.half_width(gap) for gap in gaps.values()]
  places = wording.decimals(widths, metric)
  rows = []
  for arm, pair in pairs.items():
    cells = [wording.mean_std(m, metric, digits) for m in pair]
    cells.append(wording.interval(gaps[arm], metric, places))
    rows.append([Cell(code(arm), look[arm].colour), *cells])
  return rows


def seed_table(results: Results, look) -> list[Block]:
  metric, seeds = results["metric"], results["seeds"]
  if len(seeds) > _MOST_CLASSES:
    return []
  digits = _column_digits(results, metric)
  rows = []
  for arm, entry in results["arms"].items():
    values = entry_of(entry, metric)["values"]
    cells = [
      wording.number(v, metric, digits) if v is not None else "✕"
      for v in values
    ]
    rows.append([Cell(code(arm), look[arm].colour), *cells])
  columns = ["Arm", *(f"Seed {s}" for s in seeds)]
  caption = f"{wording.metric_title(metric)} of every run; ✕ diverged."
  return [Details("Every run", [Table(caption, columns, rows)])]


def rest_table(results: Results, look) -> list[Block]:
  """Lists the metrics that no other table shows."""
  shown = {*_SECONDARY, results["metric"]}
  found = [m for arm in results["arms"].values() for m in arm["metrics"]]
  rest = [
    m
    for m in dict.fromkeys(found)
    if m not in shown
    and stats.family(m) != "recall"
    and not m.endswith(("_best", "_shifted"))
    and not stats.is_seconds(m)
  ]
  if not rest:
    return []
  rows = [
    [Cell(code(arm), look[arm].colour)]
    + [
      Cell(
        wording.mean_std(entry_of(entry, m), m, _column_digits(results, m, 3))
      )
      for m in rest
    ]
    for arm, entry in results["arms"].items()
  ]
  columns = ["Arm", *(wording.metric_title(m) for m in rest)]
  caption = "Mean ± standard deviation over seeds."
  return [Details("Other metrics", [Table(caption, columns, rows)])]


def teacher_table(results: Results) -> list[Block]:
  teacher = {
    m: v for m, v in results["teacher"].items() if not m.startswith("recall_")
  }
  if not teacher:
    return []
  rows = []
  for m, v in teacher.items():
    places = 2 if wording.scale(m) == 100 else 4
    rows.append([wording.metric_title(m), wording.number(v, m, places)])
  caption = "The teacher on the same test set."
  return [Heading("Teacher"), Table(caption, ["Metric", "Value"], rows)]


def cost_tables(results: Results) -> list[Block]:
  """Sets the models' sizes and latencies side by side, the teacher first."""
  models = results.get("models") or {}
  times = results["provenance"].get("latency_seconds") or {}
  if not models:
    return []
  whole = models.get("teacher", {}).get("parameters")
  rows, batches = [], set()
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
  many = "/".join(map(str, sorted(batches))) or "many"
  columns = ["Model", "Parameters", "Times smaller than the teacher"]
  columns += ["One example (ms)", f"Each of {many} (ms)"]
  caption = (
    "Median times of a compiled forward pass on the host of the study, one "
    "example at a time and in a batch; what else the host did is in them."
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


def entry_of(arm: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
  empty = {"values": [], "mean": None, "std": None, "versus_baseline": None}
  return arm["metrics"].get(metric, empty)


def _column_digits(results: Results, metric: str, most: int = 5) -> int:
  spreads = [entry_of(a, metric)["std"] for a in results["arms"].values()]
  return wording.decimals(spreads, metric, most)


def _selection(results: Results) -> str:
  last = results.get("selection", "last") == "last"
  last = last and not results["metric"].endswith("_best")
  return "last step" if last else "best step on validation"
