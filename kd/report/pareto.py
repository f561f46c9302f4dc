"""Shows what arms are worth against what they ask, and which to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd.evaluate import pareto, registry, stats, verdict
from kd.evaluate.pareto import Choice, Dominance, Front
from kd.report import fronts, tables, wording
from kd.report.blocks import (
  Block,
  Cell,
  Details,
  Heading,
  Table,
  Text,
  Tile,
  code,
)
from kd.report.source import Source, below
from kd.report.style import Style

Results = Mapping[str, Any]

PANELS = ("bytes", "latency_seconds", "peak_bytes")  # of a figure
_SCARCE = {  # what hurts, what an arm then is, and how two compare
  "bytes": ("Disk", "smallest on disk", "smaller"),
  "latency_seconds": ("Latency", "fastest for one example", "faster"),
  "throughput_seconds": ("Throughput", "fastest for each of many", "faster"),
  "peak_bytes": ("Memory", "least at its peak", "less"),
}


def section(source: Source) -> list[Block]:
  """Shows choices and fronts where arms differ in what they ask; and sizes."""
  results, blocks = source.results, []
  if differ(results):
    margin = margin_of(results)
    blocks += choice_table(results, pareto.choices(results, margin), margin)
    blocks += _fronts(source)
  blocks += size_table(results, source.look)
  blocks += below(tables.cost_tables(results))
  return [Heading("Size and speed"), *blocks] if blocks else []


def differ(results: Results) -> bool:
  """Tells whether arms leave models of different sizes. Times alone differ by
  chance, and a front of one model's would say which was timed luckily."""
  for metric in ("bytes", "parameters", "peak_bytes"):
    entries = [a["metrics"].get(metric) for a in results["arms"].values()]
    means = [e["mean"] for e in entries if e and e["mean"]]
    if means and max(means) > 1.01 * min(means):
      return True
  return False


def recorded(results: Results, look: Mapping[str, Style]) -> list[Block]:
  """Returns what a record keeps: choices, who is dominated, and sizes."""
  if not differ(results):
    return []
  margin, metric = margin_of(results), results["metric"]
  made = _fronts_of(results, metric)
  name = wording.metric_name(metric)
  said = _dominated(results, made, name)[:1] if made else []
  (sizes,) = size_table(results, look)
  return [
    *choice_table(results, pareto.choices(results, margin), margin),
    *said,
    *sizes.blocks,
  ]


def margin_of(results: Results) -> float:
  """Returns `evaluate.margin` of the study's config."""
  return results.get("margin", pareto.MARGIN)


def _fronts_of(results: Results, quality: str) -> list[Front]:
  found = [pareto.front(results, quality, cost) for cost in PANELS]
  return [front for front in found if front]


def sentence(results: Results) -> str:
  """Says which arms to take, for the verdict; '' where there is no choice."""
  margin = margin_of(results)
  made = pareto.choices(results, margin) if differ(results) else []
  if len(made) < 2:
    return ""
  best = made[0].arm
  taken: dict[str, list[str]] = {}
  for choice in made[1:]:
    words = _SCARCE[choice.scarce][1]
    if choice.arm != best:
      words += f" ({_less(results, choice.scarce, choice.arm, best)})"
    taken.setdefault(choice.arm, []).append(words)
  said = "; ".join(
    f"{code(arm)} is {wording.listed(words)}" for arm, words in taken.items()
  )
  return (
    f"**Where size or speed counts,** of the arms shown to lose at most "
    f"{_margin(results, margin)} to {code(best)}: {said}."
  )


def tiles(results: Results) -> list[Tile]:
  """Shows the smallest and the fastest arm that lose at most the margin."""
  margin = margin_of(results)
  if not differ(results):
    return []
  heads = {"bytes": "Smallest", "latency_seconds": "Fastest"}
  return [
    Tile(
      f"{heads[choice.scarce]} within {_margin(results, margin)}",
      _amount(results, choice.scarce, choice.arm),
      code(choice.arm),
    )
    for choice in pareto.choices(results, margin)
    if choice.scarce in heads
  ]


def choice_table(
  results: Results, made: Sequence[Choice], margin: float
) -> list[Block]:
  """Says in a table: if this is scarce, take that."""
  if len(made) < 2:
    return []
  best, metric = made[0].arm, results["metric"]
  judged = verdict.judge(results)[0]
  gaps = {
    a: pareto.compare(results, metric, a, best)
    for choice in made
    for a in (choice.arm, choice.least, choice.open)
    if a not in (None, best)
  }
  places = wording.decimals([wording.half_width(g) for g in gaps.values()],
                            metric)  # fmt: skip
  own = results["arms"][best]["metrics"][metric]
  digits = wording.decimals([own["std"]], metric)
  unit = registry.lookup(metric).unit.name
  value = f"{wording.number(own['mean'], metric, digits)} {unit}".rstrip()
  name = wording.metric_name(metric)
  rows: list[list[Cell | str]] = [
    [
      Cell(name[0].upper() + name[1:], "best mean"),
      Cell(code(best), strong=True),
      Cell(value, wording.spread(own, metric, digits)),
      wording.DASH,
      Cell("the same"),
    ]
  ]
  for choice in made[1:]:
    head, words, _ = _SCARCE[choice.scarce]
    note = ""
    if choice.open:
      note = f"{code(choice.open)} asks less, within it by its mean alone"
    rows.append(
      [
        Cell(head, words),
        Cell(code(choice.arm), note, strong=True),
        _asks(results, choice.scarce, choice.arm, best),
        _lost(gaps, choice.arm, metric, places),
        Cell("the same")
        if choice.least == choice.arm
        else Cell(
          f"{code(choice.least)}: "
          + _amount(results, choice.scarce, choice.least),
          _said(gaps[choice.least], metric, places)
          if choice.least in gaps
          else "the best arm",
        ),
      ]
    )
  unit = f" ({wording.unit(metric)})" if wording.unit(metric) else ""
  among = f" of {judged.stratum}" if judged.stratum else ""
  caption = (
    f"If this hurts, take that: of the arms{among} shown to lose at most "
    f"{_margin(results, margin)} of {name} to {code(best)}, the one of best "
    f"{name} (the 95 % interval of the paired difference excludes more), the "
    "one that asks least; and the one that does of all, whatever it loses. By "
    f"measured means, over {wording.units(results)}."
  )
  columns = [
    "What is scarce",
    "Take",
    Cell("It asks for", f"against {code(best)}"),
    Cell(f"{name[0].upper()}{name[1:]} less the best's{unit}",
         "[95 % interval]"),
    Cell("Least of all", f"its {name}{unit}"),
  ]  # fmt: skip
  return [
    Heading("If your constraint is this, take that", 3),
    Table(caption, columns, rows, left=(0, 1, 2, 4), cards=True),
  ]


def size_table(results: Results, look: Mapping[str, Style]) -> list[Details]:
  """Lists what each arm asks of a device."""
  asked = (*pareto.COSTS, "parameters")
  arms = results["arms"].items()
  have = [m for m in asked if any(m in e["metrics"] for _, e in arms)]
  if not have:
    return []
  rows = [
    [
      Cell(
        code(arm),
        entry.get("arithmetic", ""),
        chip=look[arm].colour,
        value=i,
      ),
      *(_size(entry["metrics"].get(m), m) for m in have),
    ]
    for i, (arm, entry) in enumerate(arms)
  ]
  heads = {m: words[0] for m, words in _SCARCE.items()}
  columns = ["Arm", *(heads.get(m, "Parameters") for m in have)]
  caption = (
    "What an arm's model asks for: its folder on disk, the time of one example "
    "alone and of each at the batch of best throughput, memory at the peak of "
    f"a compiled call. Mean ± standard deviation over {wording.units(results)}."
  )
  table = Table(caption, columns, rows, cards=True)
  return [Details("What each arm asks for", [table])]


def _size(entry: Mapping[str, Any] | None, metric: str) -> Cell:
  if not entry or entry["mean"] is None:
    return Cell(wording.DASH)
  mean, std = entry["mean"], entry["std"]
  if metric == "parameters":
    return Cell(f"{mean:,.0f}", value=mean)
  spreads = std is not None and std > stats.ROUNDING * mean
  note = f"± {wording.amount(std, metric)}" if spreads else ""
  return Cell(wording.amount(mean, metric), note, value=mean)


def _fronts(source: Source) -> list[Block]:
  """Shows the fronts of each quality, and names who is dominated."""
  results, blocks = source.results, []
  titles = {cost: words[0] for cost, words in _SCARCE.items()}
  for quality in _qualities(results):
    made = _fronts_of(results, quality)
    if not made:
      continue
    name = wording.metric_name(quality)
    picture = source.picture(
      "pareto" + ("" if quality == results["metric"] else f"_{quality}"),
      fronts.figure(results, source.look, made, titles),
      f"{name} against {_costs(made)}, with the arms that no other dominates",
      f"**{name[0].upper()}{name[1:]} against what an arm asks.** Numbered: no "
      "other arm is as good and asks as little, from the one that asks least. "
      "Open grey: dominated. Bars are a standard deviation over units, the "
      "dashed line is the teacher.",
    )
    shown = [*picture, *_dominated(results, made, name)]
    if quality == results["metric"]:
      blocks += [Heading(f"Fronts of {name}", 3), *shown]
    else:
      blocks.append(Details(f"Fronts of {name}", shown))
  return blocks


def _qualities(results: Results) -> list[str]:
  """Returns the primary metric, and how near students are to the teacher."""
  have = {m for arm in results["arms"].values() for m in arm["metrics"]}
  near = [m for m in ("kl_to_teacher", "agreement") if m in have][:1]
  return list(dict.fromkeys([results["metric"], *near]))


def _dominated(
  results: Results, made: Sequence[Front], name: str
) -> list[Block]:
  """Says which arms are dominated on all fronts, and by whom on each."""
  by = {f.cost: {d.arm: d for d in f.dominated} for f in made}
  every = [a for a in results["arms"] if all(a in own for own in by.values())]
  some = [a for a in results["arms"] if any(a in own for own in by.values())]
  if not some:
    return [Text(f"No arm is dominated in {name} against {_costs(made)}.")]
  said = (
    f"**Dominated on every front:** {wording.codes(every, most=40)}."
    if every
    else "No arm is dominated on every front."
  )
  gaps = [wording.half_width(d.quality) for f in made for d in f.dominated]
  places = wording.decimals(gaps, made[0].quality)
  rows = [
    [
      Cell(code(arm), value=i),
      *(_by(by[f.cost].get(arm), f, places) for f in made),
    ]
    for i, arm in enumerate(some)
  ]
  columns = ["Arm", *(_SCARCE[f.cost][0] for f in made)]
  quality = made[0].quality
  unit = f" ({wording.unit(quality)})" if wording.unit(quality) else ""
  caption = (
    "Dominated arms, and by which: of the arms that are as good and ask as "
    f"little, the one of best {name}. The difference in {name}{unit} to it has "
    "a 95 % interval, and is told apart by Holm's procedure over all pairs of "
    "which one dominates; then how much less the other asks for, a ratio of "
    "means, and whether the interval of that difference holds 0."
  )
  table = Table(caption, columns, rows, left=range(len(columns)), cards=True)
  return [Text(said), Details(f"Dominated arms ({len(some)})", [table])]


def _by(d: Dominance | None, front: Front, places: int) -> Cell:
  if d is None:
    return Cell("on the front")
  worse = _said(d.quality, front.quality, places)
  apart = "told apart" if verdict.told_apart(d.quality) else "not told apart"
  less = f"{d.times:.3g} times {_SCARCE[front.cost][2]}{_chance(d.cost)}"
  note = f"{worse}, {apart}; {less if d.times > 1 else 'asks the same'}"
  return Cell(f"by {code(d.by)}", note, value=-d.times)


def _asks(results: Results, cost: str, arm: str, best: str) -> Cell:
  """Says what an arm asks for, and how much less than the best one."""
  text = _amount(results, cost, arm)
  if arm == best:
    return Cell(text, "the best arm")
  chance = _chance(pareto.compare(results, cost, arm, best))
  return Cell(text, _less(results, cost, arm, best) + chance)


def _chance(gap: Mapping[str, Any]) -> str:
  """Says where an interval holds 0; of sizes that do not vary there is none."""
  low, high = gap["low"], gap["high"]
  return ", may be chance" if low is not None and low <= 0 <= high else ""


def _amount(results: Results, cost: str, arm: str) -> str:
  return wording.amount(results["arms"][arm]["metrics"][cost]["mean"], cost)


def _less(results: Results, cost: str, arm: str, best: str) -> str:
  """Says how much less an arm asks for: '3.2 times smaller'."""
  own, other = (
    results["arms"][a]["metrics"][cost]["mean"] for a in (arm, best)
  )
  return f"{other / own if own else 1.0:.3g} times {_SCARCE[cost][2]}"


def _lost(gaps, arm: str, metric: str, places: int) -> Cell:
  if arm not in gaps:
    return Cell(wording.DASH)
  text = wording.number(gaps[arm]["difference"], metric, places, signed=True)
  return Cell(text, wording.interval(gaps[arm], metric, places))


def _said(versus: Mapping[str, Any], metric: str, places: int) -> str:
  text = wording.number(versus["difference"], metric, places, signed=True)
  return f"{text} {wording.interval(versus, metric, places)}".rstrip()


def _margin(results: Results, margin: float) -> str:
  """Writes a margin of the primary metric: '1 point'."""
  metric = results["metric"]
  size = f"{wording.scale(metric) * margin:g}"
  unit = wording.unit(metric)
  unit = unit.removesuffix("s") if size == "1" else unit
  return f"{size} {unit}".rstrip()


def _costs(made: Sequence[Front]) -> str:
  return wording.listed(_SCARCE[f.cost][0].lower() for f in made)
