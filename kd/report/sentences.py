"""Says in sentences what a study found, and how it is to be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kd.evaluate import registry
from kd.evaluate import verdict as verdicts
from kd.evaluate.design import Design
from kd.report.blocks import code
from kd.report.wording import (
  codes,
  decimals,
  half_width,
  interval,
  listed,
  lost_runs,
  metric_name,
  number,
  p_value,
  stopping_rule,
  unit,
  units,
)

_VARIED = {"split": "splits", "teacher": "teachers", "signal": "draws"}
_FIXED = {"split": "split and test set", "signal": "draw of the signal"}


def verdict(
  results: Mapping[str, Any], further: Iterable[str] = ()
) -> list[str]:
  """Says what `verdicts.judge` found, and what the study warns of.

  Args:
    results: what results.json holds.
    further: what else was found, said before the warnings; '' is nothing.

  Returns:
    Paragraphs, in the dialect of kd.report.blocks; the first is the verdict, of
    the first stratum where arms differ in a budget.
  """
  said = []
  for v in verdicts.judge(results):
    said += _stratum(results, v)
  said += filter(None, further)
  return said + [f"**Mind:** {text}" for text in results.get("warnings", ())]


def scope(design: Design) -> str:
  """Says what a verdict holds for: what was varied, and what was not.

  >>> scope(Design(vary=("split", "signal"), fixed=("teacher",)))
  'for other splits and draws, and for this teacher'
  >>> scope(Design())
  'for other seeds, for this split and test set, and for this teacher'
  >>> scope(Design(vary=("split",), fixed=("test set",)))
  'for other splits, and for this test set'
  """
  varied = listed(_VARIED.get(v, f"{v}s") for v in design.vary) or "seeds"
  *most, last = [f", for this {_FIXED.get(f, f)}" for f in design.fixed] or [""]
  return f"for other {varied}{''.join(most)}{last.replace(', ', ', and ', 1)}"


def _stratum(results: Mapping[str, Any], v: verdicts.Verdict) -> list[str]:
  metric, arms = results["metric"], results["arms"]
  what = metric_name(metric) + (f" with {v.stratum}" if v.stratum else "")
  where = f"{what}, {scope(Design.of(results))}"
  if v.best is None:
    said = [f"**No arm is named best on {what}**: {v.reasons[0]}."]
  else:
    said = [_headline(results, v, what, where), *_moved(v)]
    if v.tied and _units(arms[v.best]["metrics"][metric], results) > 2:
      said.append(
        f"Which arm is best stays open: {codes((v.best, *v.tied))} may be (95 "
        "% model confidence set)."
      )
    elif v.named:
      said.append(f"Every other arm is told apart from {code(v.best)}.")
  if v.fragile:
    said.append(
      "A single test example would turn what is said of " + codes(v.fragile)
      + "."
    )  # fmt: skip
  for arm in v.set_aside:
    lost = arms[arm].get("diverged")
    why = f"diverged ({lost_runs(lost)})" if lost else "has runs that are null"
    ahead = ", though its mean over the runs that it finished is better"
    said.append(
      f"{code(arm)} {why}, so nothing is claimed of it"
      f"{ahead if arm in v.ahead else ''}."
    )
  return said


def _headline(
  results: Mapping[str, Any], v: verdicts.Verdict, what: str, where: str
) -> str:
  """Says which arm is best, or why none is named and what is known."""
  metric, arms = results["metric"], results["arms"]
  best, entry = code(str(v.best)), arms[v.best]["metrics"][metric]
  versus, n = entry["versus_baseline"], _units(entry, results)
  gap = ""
  if versus and versus["difference"] is not None:
    gap = f", {_gap(versus, metric, v)}"
  text = number(entry["mean"], metric, decimals([entry["std"]], metric))
  text = f"{text} {registry.lookup(metric).unit.name}".rstrip()
  if n == 1:
    unit_of = Design.of(results).unit
    return (
      f"**One {unit_of} tells no arm apart on {what}.** {best} has the best "
      f"value, {text}{gap}; without other {unit_of}s there is no interval."
    )
  mean = f"{text} on average over {units(results, n)}"
  mean += f" ({stopping_rule(results)}){gap}"
  if v.named:
    return f"**{best} is the best arm on {where}**: {mean}."
  if v.beats_baseline:
    base = code(versus["baseline"])
    head = f"**{best} has the best mean on {what}, and is better than its "
    mean = mean.replace(f"its baseline {base}", "it")
    return f"{head}baseline {base}, {scope(Design.of(results))}**: {mean}."
  bases = {arms[a]["baseline"] for a in _ranked(results, v)} - {None}
  base = f"the baseline {codes(bases)}" if len(bases) == 1 else "its baseline"
  if versus is None:
    head = f"**No arm beats {base} on {where}.**"
  elif v.better:
    head = f"**No arm is named best on {where}.**"
  elif v.worse:
    head = f"**No arm is told apart as better than {base} on {where}.**"
  else:
    head = f"**No arm is told apart from {base} on {where}.**"
  why = "" if versus is None else f": {' and '.join(v.reasons)}"
  return f"{head} {best} has the best mean, {mean}{why}."


def _ranked(results: Mapping[str, Any], v: verdicts.Verdict) -> list[str]:
  arms = results["arms"].items()
  return [a for a, entry in arms if verdicts.stratum(entry) == v.stratum]


def _units(entry: Mapping[str, Any], results: Mapping[str, Any]) -> int:
  return len(set(Design.of(results).units(len(entry["values"])).tolist()))


def _moved(v: verdicts.Verdict) -> list[str]:
  """Lists the arms that are told apart from their baseline."""
  sides = {"better": [a for a in v.better if a != v.best], "worse": v.worse}
  also = "Also told" if v.beats_baseline else "Told"
  return [
    f"{also} apart from the baseline as {side}: {codes(names)}."
    for side, names in sides.items()
    if names
  ]


def _gap(versus: Mapping[str, Any], metric: str, v: verdicts.Verdict) -> str:
  """Says a difference: '1.5 points above its baseline `hard` (...)'."""
  side = "above" if versus["difference"] >= 0 else "below"
  wider = {**versus, "low": v.low, "high": v.high}
  places = decimals([half_width(wider)], metric)
  size = number(abs(versus["difference"]), metric, places)
  size = f"{size} {unit(metric)}".rstrip()
  text = f"{size} {side} its baseline {code(versus['baseline'])}"
  within = interval(wider, metric, places)
  if not within:
    return text
  p = p_value(versus["p"])
  p = p if p.startswith("<") else f"= {p}"
  chosen = f", corrected for the choice of {v.among}" if v.among > 1 else ""
  return f"{text} (95 % interval {within}{chosen}; Holm-corrected p {p})"


def how_tested(results: Mapping[str, Any]) -> str:
  """Says what the intervals and p-values are of, and what names an arm."""
  design = Design.of(results)
  of = design.unit
  nested = (
    "A replicate is a draw of the " + listed(design.vary) + "; its runs, which "
    f"differ in {design.seed}, count as one, their mean. "
    if design.levels
    else ""
  )
  if len(design.levels) > 1:
    nested = (
      f"Within each {of} are several of {listed(design.vary[1:])}, and runs "
      f"that differ in {design.seed}: it counts as one, a mean of means. "
    )
  test = (
    f"Each {of} has a test set of its own, of the same data. "
    if design.test_sets(2) > 1
    else "The test set is taken as given; what other test examples would move "
    "is among the components. "
  )
  return (
    f"The unit of evidence is the **{of}**: intervals and p-values are "
    f"{scope(design)}. {nested}{test}"
    "Arms are paired run by run. The interval is Student's t of the paired "
    "differences, their spread at least what one test example is worth; p is "
    "the same test's, corrected by Holm's procedure over all arms that have a "
    "baseline and all contrasts. Told apart means that the interval excludes "
    "0, the corrected p is below 0.05, at least three "
    f"{of}s were compared and neither side lost a run. The best arm is chosen "
    "from several: it is called best only if a 95 % model confidence set holds "
    "no other and it is told apart from its baseline, its interval in the "
    "verdict corrected for the choice. docs/evidence.md has the simulated "
    "error rates of all this."
  )
