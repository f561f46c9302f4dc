"""Says in sentences what a study found, and how it is to be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd.evaluate import registry, stats
from kd.evaluate import verdict as verdicts
from kd.report.blocks import code
from kd.report.wording import (
  codes,
  decimals,
  half_width,
  interval,
  lost_runs,
  metric_name,
  number,
  p_value,
  seed_count,
  unit,
)


def verdict(results: Mapping[str, Any]) -> list[str]:
  """Says what `verdicts.winner` found, and what the study warns of.

  Returns:
    Paragraphs, in the dialect of kd.report.blocks; the first is the verdict.
  """
  metric, arms = results["metric"], results["arms"]
  v = verdicts.winner(results)
  what = metric_name(metric)
  said = []
  if v.best is None:
    said.append(f"**No arm is named best on {what}**: {v.reasons[0]}.")
  else:
    entry = arms[v.best]["metrics"][metric]
    versus = entry["versus_baseline"]
    if v.named:
      said.append(
        f"**{code(v.best)} is the best arm on {what}**: {_mean(entry, metric)} "
        f"on average over {seed_count(versus['n'])}, {_gap(versus, metric)}."
      )
      said += _moved(v)
    else:
      said += _unnamed(results, v)
    scored = [a["metrics"].get(metric, {}).get("mean") for a in arms.values()]
    others = sum(mean is not None for mean in scored) - 1
    if len(results["seeds"]) > 1 and len(v.tied) < others:
      said.append(
        f"Not told apart from {code(v.best)}: {codes(v.tied)}."
        if v.tied
        else f"Every other arm is told apart from {code(v.best)}."
      )
    elif len(results["seeds"]) > 1 and others:
      said.append(f"No other arm is told apart from {code(v.best)}.")
  for arm, entry in arms.items():
    if entry.get("diverged"):
      ahead = ", though its mean over the runs that it finished is better"
      said.append(
        f"{code(arm)} diverged ({lost_runs(entry['diverged'])}), so it cannot "
        f"be named{ahead if arm in v.set_aside else ''}."
      )
  return said + [f"**Mind:** {text}" for text in results.get("warnings", ())]


def _unnamed(results: Mapping[str, Any], v: verdicts.Verdict) -> list[str]:
  """Says why the arm of best mean is not named, and what is known."""
  metric, arms = results["metric"], results["arms"]
  entry = arms[v.best]["metrics"][metric]
  what, best, mean = (
    metric_name(metric),
    code(str(v.best)),
    _mean(entry, metric),
  )
  versus = entry["versus_baseline"]
  bases = {arm["baseline"] for arm in arms.values()} - {None}
  base = f"the baseline {codes(bases)}" if len(bases) == 1 else "its baseline"
  gap = ""
  if versus and versus["difference"] is not None:
    gap = f", {_gap(versus, metric)}"
  if len(results["seeds"]) == 1:
    return [
      f"**One seed tells no arm apart on {what}.** {best} has the best value, "
      f"{mean}{gap}; without other seeds there is no interval."
    ]
  moved = _moved(v)
  if versus is None:
    head = f"**No arm beats {base} on {what}.**"
    return [f"{head} {best} has the best mean, {mean}.", *moved]
  if v.better:
    head = f"**No arm is named best on {what}.**"
  elif v.worse:
    head = f"**No arm is told apart as better than {base} on {what}.**"
  else:
    head = f"**No arm is told apart from {base} on {what}.**"
  why = " and ".join(v.reasons)
  return [f"{head} {best} has the best mean, {mean}{gap}: {why}.", *moved]


def _moved(v: verdicts.Verdict) -> list[str]:
  """Lists the arms that are told apart from their baseline."""
  sides = {"better": [a for a in v.better if not v.named or a != v.best]}
  sides["worse"] = list(v.worse)
  also = "Also told" if v.named else "Told"
  return [
    f"{also} apart from the baseline as {side}: {codes(names)}."
    for side, names in sides.items()
    if names
  ]


def _mean(entry: Mapping[str, Any], metric: str) -> str:
  text = number(entry["mean"], metric, decimals([entry["std"]], metric))
  return f"{text} {registry.lookup(metric).unit.name}".rstrip()


def _gap(versus: Mapping[str, Any], metric: str) -> str:
  """Says a difference: '1.5 points above its baseline `hard` (...)'."""
  side = "above" if versus["difference"] >= 0 else "below"
  places = decimals([half_width(versus)], metric)
  size = number(abs(versus["difference"]), metric, places)
  size = f"{size} {unit(metric)}".rstrip()
  text = f"{size} {side} its baseline {code(versus['baseline'])}"
  within = interval(versus, metric, places)
  if not within:
    return text
  p = p_value(versus["p"])
  p = p if p.startswith("<") else f"= {p}"
  return f"{text} (95 % interval {within}, Holm-corrected p {p})"


def how_tested(results: Mapping[str, Any]) -> str:
  """Says what the intervals and p-values are of, and what names a winner."""
  versus = [
    a["metrics"].get(results["metric"], {}).get("versus_baseline")
    for a in results["arms"].values()
  ]
  reached = {stats.resampling_reaches(v["n"]) for v in versus if v}
  bootstrap = "the expanded percentile bootstrap (Hesterberg 2015)"
  student = "Student's t, as no resampling of so few seeds can cover 95 %"
  how = bootstrap if True in reached else student
  if len(reached) > 1:
    how = f"{bootstrap}, and below six seeds {student}"
  return (
    "Intervals and p-values are over **seeds**: they say how far a difference "
    "would move with other initialisations, batch orders and transfer-set "
    "draws. They are not over test examples: the test set and the teacher are "
    "taken as given. Arms are paired by seed. The interval is "
    + how
    + "; p is "
    "the paired t-test's, corrected by Holm's procedure over the arms compared "
    "on the metric. An arm is named best only if its interval excludes 0, its "
    "corrected p is below 0.05, at least three seeds were compared and none of "
    "its runs diverged. Not told apart means that the 95 % interval of the "
    "paired difference to the best arm, uncorrected except against its "
    "baseline, includes 0."
  )
