"""A report's tables of contrasts, of variance components and of a search."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from kd.evaluate import components, verdict
from kd.evaluate.design import Design
from kd.report import results_table, wording
from kd.report.blocks import Block, Cell, Heading, Table, code

Results = Mapping[str, Any]


def contrast_table(results: Results) -> list[Block]:
  """Lists the contrasts on the primary metric, and what each one says."""
  metric = results["metric"]
  asked = {
    text: c
    for text, c in (results.get("contrasts") or {}).items()
    if metric in c["metrics"]
  }
  if not asked:
    return []
  made = [c["metrics"][metric] for c in asked.values()]
  places = wording.decimals([wording.half_width(v) for v in made], metric)
  rows = []
  for contrast, versus in zip(asked.values(), made, strict=True):
    name = f"{code(contrast['arm'])} {wording.MINUS} {code(versus['baseline'])}"
    gap = wording.number(versus["difference"], metric, places, signed=True)
    said = claim(contrast, metric, places)
    lost = versus.get("lost")
    note = f"✕ {lost} run{'s' * (lost != 1)} lost" if lost else ""
    rows.append(
      [
        Cell(name, _within(contrast, metric, places)),
        Cell(
          gap, wording.interval(versus, metric, places), strong=said != "open"
        ),
        wording.p_value(versus["p"]),
        Cell(said, note) if note else said,
      ]
    )
  unit = f" ({wording.unit(metric)})" if wording.unit(metric) else ""
  columns = [
    "Contrast",
    Cell(f"Difference{unit}", "[95 % interval]"),
    "Holm p",
    "Says",
  ]
  caption = (
    f"{wording.metric_title(metric, unit=False)}: differences that the study "
    "means to claim, corrected together with those to the baseline. Of an "
    "equivalence, p is of two one-sided tests against its margin."
  )
  table = Table(caption, columns, rows, left=(0, 3))
  return [Heading("Contrasts"), table]


def claim(contrast: Mapping[str, Any], metric: str, places: int) -> str:
  """Says what a contrast shows: "higher", "lower", "equal within ...", "open".

  Args:
    contrast: of results.json.
    metric: the primary one.
    places: decimals of the margin.
  """
  if contrast["within"]:
    if not verdict.equivalent(contrast, metric):
      return "open"
    return f"equal {_within(contrast, metric, places)}"
  sign = verdict.told_apart(contrast["metrics"][metric])
  return {1: "higher", 0: "open", -1: "lower"}[sign]


def _within(contrast: Mapping[str, Any], metric: str, places: int) -> str:
  """Writes an equivalence's margin; '' where a difference is tested."""
  if not contrast["within"]:
    return ""
  margin = wording.number(contrast["within"], metric, places)
  return f"within {margin} {wording.unit(metric)}".rstrip()


def component_table(results: Results) -> list[Block]:
  """Sets out what the spread of each difference is made of."""
  metric, design = results["metric"], Design.of(results)
  found: dict[str, Mapping[str, Any]] = {}
  for arm, versus, _ in verdict.comparisons(results):
    if versus.get("components"):
      other = code(versus["baseline"])
      name = f"{code(arm)} {wording.MINUS} {other}"
      found.setdefault(name, versus["components"])
  names = list(dict.fromkeys(k for parts in found.values() for k in parts))
  names.sort(key=lambda k: k == components.TEST)
  if not names:
    return []
  known = [p["sd"] for parts in found.values() for p in parts.values()]
  places = wording.decimals(known, metric)
  rows = [
    [name, *(_sd(parts.get(k), metric, places) for k in names)]
    for name, parts in found.items()
  ]
  unit = f", in {wording.unit(metric)}" if wording.unit(metric) else ""
  caption = (
    f"{wording.metric_title(metric, unit=False)}: what moves a difference, as "
    f"standard deviations{unit} with 95 % intervals. Of one run's difference "
    "when that alone is drawn anew; of test examples, when as many others are."
  )
  if design.test_sets(2) > 1:
    caption += f" A {design.unit}'s part holds that of its test examples."
  columns = ["Difference", *(_title(k, design) for k in names)]
  table = Table(caption, columns, rows)
  return [Heading("Variance components"), table]


def search_table(results: Results) -> list[Block]:
  """Says what each arm's search chose, and how good that was on validation."""
  tune = results.get("tune")
  if not tune:
    return []
  criterion = tune.get("metric", "accuracy")
  metric, sign = f"validation_{criterion}", -1 if criterion == "nll" else 1
  scores = {
    arm: [own[i] for own, i in zip(tune["scores"][arm], chosen, strict=True)]
    for arm, chosen in tune["choices"].items()
  }
  word = "NLL" if sign < 0 else "accuracy"
  least = 0 if sign > 0 else -1e8  # below which a run diverged
  means = {
    a: sign * float(np.mean(x)) if min(x) >= least else None
    for a, x in scores.items()
  }
  spreads = [float(np.std(x, ddof=1)) for x in scores.values() if len(x) > 1]
  digits = wording.decimals(spreads, metric)
  rows = [
    [
      Cell(code(arm)),
      _chosen(results, arm),
      Cell(wording.number(means[arm], metric, digits), value=means[arm]),
    ]
    for arm, entry in results["arms"].items()
    if entry.get("trained", arm) == arm
  ]
  times = len(next(iter(scores.values())))
  each = f" in each of {times} replicates anew" if times > 1 else ""
  many = " In brackets: in how many replicates." if times > 1 else ""
  seeds = f"{tune['seeds']} seed" + ("" if tune["seeds"] == 1 else "s")
  caption = (
    f"What the search chose{each}, by validation {word}, "
    f"{wording.stopping_rule(results)}: {tune['budget']} trials of each arm, "
    f"of {seeds} that no run has, over {wording.space(tune['space'])}.{many} "
    f"The {word} is of the trials that were chosen, and so flatters them."
  )
  columns = ["Arm", "Chosen", wording.metric_title(metric)]
  return [Heading("Search"), Table(caption, columns, rows, left=(0, 1))]


def _chosen(results: Results, arm: str) -> str:
  """Lists the points that an arm's search chose, the most frequent first."""
  tune, keys = results["tune"], results_table.keys_tuned(results, arm)
  if not keys:
    return "has none of these"
  found = collections.Counter(
    ", ".join(
      f"{wording.key(k)} = {wording.plain(float(tune['points'][i][k]))}"
      for k in keys
    )
    for i in tune["choices"][arm]
  )
  if len(found) == 1:
    return next(iter(found))
  return "; ".join(f"{text} ({n})" for text, n in found.most_common())


def _title(name: str, design: Design) -> str:
  if name == components.TEST:
    return "Test examples"
  parts = name.split(" + ")
  if parts[-1] == components.SEED:
    parts[-1] = design.seed
  text = " + ".join(parts)
  return text[0].upper() + text[1:]


def _sd(part: Mapping[str, float] | None, metric: str, places: int) -> Cell:
  if part is None:
    return Cell(wording.DASH)
  sd, low, high = (
    wording.number(part[k], metric, places) for k in ("sd", "low", "high")
  )
  return Cell(sd, f"[{low}, {high}]")
