"""Says numbers, metrics, objectives and verdicts in words.

What the report's tables, captions and figures share. A missing number is a
dash, a minus is a true minus, and a rate is written in per cent, with its
differences in points.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kd.evaluate import stats
from kd.report.blocks import code

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

_LABELS = {
  "nll": "NLL (nats)",
  "kl_to_teacher": "KL to teacher (nats)",
  "ece": "ECE",
  "auroc": "AUROC",
}
_POINTS = {"accuracy", "agreement", "recall", "coverage"}
_OBJECTIVES = {
  "hard": "cross-entropy on labels",
  "soft": "teacher's distribution",
  "dkd": "decoupled KD",
  "dist": "relations within and between classes",
  "frequencies": "frequencies of the teacher's samples",
  "acceptable": "equal shares of the teacher's answers",
  "preference": "the teacher's samples against its rejected",
  "list_net": "ListNet on the teacher's samples",
  "plackett_luce": "Plackett-Luce on the teacher's samples",
  "pairwise_logistic": "pairwise order of the teacher's samples",
  "partial_plackett_luce": "order of the teacher's top k",
  "top_k": "the teacher's top k",
}
_TARGETS = {
  "answer": "teacher's answers",
  "best": "teacher's best-scored answers",
  "truth": "true labels",
}
_SYMBOLS = {"temperature": "T", "samples": "K"}
_SECTIONS = ("objective", "signal", "student", "train", "overrides", "baseline")


def label(metric: str) -> str:
  """Names a metric for people, with its unit.

  >>> label("nll_best"), label("recall_3"), label("accuracy")
  ('NLL (nats)', 'recall of class 3', 'accuracy (%)')
  """
  name = stats.family(metric)
  if match := re.search(r"_(\d+)(_best|_shifted)?$", metric):
    return f"{name} of class {match[1]}"
  text = _LABELS.get(name, name.replace("_", " "))
  text = text[0].upper() + text[1:] if name == "brier" else text
  text = f"{text} (%)" if scale(metric) == 100 else text
  return f"validation {text}" if metric.startswith("validation_") else text


def scale(metric: str) -> int:
  """Returns 100 for rates that are read in per cent, 1 for the rest."""
  return 100 if stats.family(metric) in _POINTS else 1


def verdict(results: Mapping[str, Any]) -> list[str]:
  """Says what `stats.winner` found; one paragraph per string."""
  metric, arms = results["metric"], results["arms"]
  v = stats.winner(results)
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
  return said


def _unnamed(results: Mapping[str, Any], v: stats.Verdict) -> list[str]:
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


def _moved(v: stats.Verdict) -> list[str]:
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
  return text + {"points": " %", "nats": " nats", "": ""}[unit(metric)]


def _gap(versus: Mapping[str, Any], metric: str) -> str:
  """Says a difference: '1.5 points above its baseline `hard` (...)'."""
  side = "above" if versus["difference"] >= 0 else "below"
  places = decimals([half_width(versus)], metric)
  size = number(abs(versus["difference"]), metric, places)
  size = f"{size} {unit(metric)}".rstrip()
  text = f"{size} {side} its baseline {code(versus['baseline'])}"
  if versus["low"] is None:
    return text
  low, high = (
    number(versus[k], metric, places, signed=True) for k in ("low", "high")
  )
  p = p_value(versus["p"])
  p = p if p.startswith("<") else f"= {p}"
  return f"{text} (95 % interval [{low}, {high}], Holm-corrected p {p})"


def objective(config: Mapping[str, Any]) -> str:
  """Says an arm's objective, a single one or a weighted sum.

  >>> objective({"objective": "soft", "temperature": 4.0})
  "teacher's distribution (T = 4)"
  >>> objective(
  ...   {
  ...     "objective": "hard + dkd",
  ...     "hard": {"weight": 0.1, "target": "truth"},
  ...     "dkd": {"weight": 0.9},
  ...   }
  ... )
  '0.1 x cross-entropy on true labels + 0.9 x decoupled KD'
  """
  name = config.get("objective", "")
  if isinstance(name, Mapping):
    config = {**config, **name, "objective": name.get("name", "")}
    name = config["objective"]
  parts = [part.strip() for part in str(name).split("+")]
  own = {
    k: v for k, v in config.items() if k not in (*_SECTIONS, *parts, "name")
  }
  changes = flat(config.get("overrides") or {})
  changed = "".join(f"; {_key(k)} = {v}" for k, v in changes)
  if len(parts) == 1:
    return _part(parts[0], {**own, **_section(config, parts[0])}) + changed
  terms = []
  for part in parts:
    keys = dict(_section(config, part))
    weight = keys.pop("weight", None)
    times = "" if weight is None else f"{plain(weight)} x "
    terms.append(times + _part(part, keys))
  return " + ".join(terms) + changed


def _part(name: str, keys: Mapping[str, Any]) -> str:
  keys = dict(keys)
  said = _OBJECTIVES.get(name, name.replace("_", " "))
  target = keys.pop("target", None)
  if target and name == "hard":
    said = said.replace("labels", _TARGETS.get(target, str(target)))
  elif target:
    keys["on"] = _TARGETS.get(target, str(target))
  details = []
  for key, value in flat(keys):
    named = key == "divergence"
    details.append(
      value.replace("_", " ") if named else f"{_key(key)} = {value}"
    )
  return f"{said} ({', '.join(details)})" if details else said


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  section = config.get(name)
  return section if isinstance(section, Mapping) else {}


def _key(key: str) -> str:
  return _SYMBOLS.get(key, key.replace("_", " "))


def metric_name(metric: str) -> str:
  """Names a metric without its unit."""
  text = label(metric).replace(" (%)", "").replace(" (nats)", "")
  return text + _variant(metric)


def metric_title(metric: str) -> str:
  """Names a metric with its unit, as a column's head."""
  text = label(metric)
  text = text[0].upper() + text[1:]
  return text + _variant(metric)


def _variant(metric: str) -> str:
  suffixes = {"_best": "best on validation", "_shifted": "biases shifted"}
  said = [v for k, v in suffixes.items() if metric.endswith(k)]
  return f", {said[0]}" if said else ""


def unit(metric: str) -> str:
  """Names the unit of a metric's differences; '' where there is none."""
  if scale(metric) == 100:
    return "points"
  return "nats" if "(nats)" in label(metric) else ""


def number(
  value: float | None, metric: str, places: int, signed: bool = False
) -> str:
  """Writes a metric's value or difference.

  >>> number(0.9731, "accuracy", 1), number(None, "nll", 3) == DASH
  ('97.3', True)
  """
  if value is None or not math.isfinite(value):
    return DASH
  text = f"{scale(metric) * value:{'+' if signed else ''}.{places}f}"
  if float(text) == 0:
    text = text.lstrip("+-")
  return text.replace("-", MINUS)


def decimals(
  spreads: Sequence[float | None], metric: str, most: int = 5
) -> int:
  """Chooses decimals that give the median spread two significant digits."""
  known = [s for s in spreads if s]
  if not known:
    return min(2 if scale(metric) == 100 else 4, most)
  middle = float(np.median(known)) * scale(metric)
  return min(max(1 - math.floor(math.log10(middle)), 1), most)


def half_width(versus: Mapping[str, Any] | None) -> float | None:
  """Returns half an interval's width, or None without an interval."""
  if not versus or versus["low"] is None:
    return None
  return (versus["high"] - versus["low"]) / 2


def mean_std(entry: Mapping[str, Any], metric: str, places: int) -> str:
  """Writes 'mean ± std', or the mean alone."""
  mean = number(entry["mean"], metric, places)
  if entry["std"] is None:
    return mean
  return f"{mean} ± {number(entry['std'], metric, places)}"


def interval(versus: Mapping[str, Any], metric: str, places: int) -> str:
  """Writes 'difference [low, high]', or the difference alone."""
  text = number(versus["difference"], metric, places, signed=True)
  if versus["low"] is None:
    return text
  low, high = (
    number(versus[k], metric, places, signed=True) for k in ("low", "high")
  )
  return f"{text} [{low}, {high}]"


def p_value(p: float | None) -> str:
  """Writes a p-value.

  >>> p_value(0.0), p_value(0.0312), p_value(0.311)
  ('< 0.001', '0.031', '0.31')
  """
  if p is None:
    return DASH
  if p < 0.001:
    return "< 0.001"
  # Rounding must not lift a p over the level that judges it.
  return f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def lost_runs(steps: Mapping[str, int]) -> str:
  """Lists the runs that diverged: 'seed 2 at step 140'."""
  return ", ".join(f"seed {s} at step {n}" for s, n in steps.items())


def seed_count(n: int) -> str:
  """Counts seeds in words."""
  return "1 seed" if n == 1 else f"{n} seeds"


def codes(names: Iterable[str], most: int = 8) -> str:
  """Lists arms' names, the first ones of many.

  >>> codes(["a", "b", "c"], most=2)
  '`a`, `b` and 1 more'
  """
  names = list(names)
  text = ", ".join(code(str(n)) for n in names[:most])
  return text + (f" and {len(names) - most} more" if names[most:] else "")


def flat(node: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Lists a tree's leaves as (dotted key, words).

  >>> flat({"versions": {"jax": "0.12"}, "wall_seconds": 61.24})
  [('versions.jax', '0.12'), ('wall_seconds', '61.2 s')]
  """
  return [(k, plain(v, k)) for k, v in _leaves(node)]


def plain(value: Any, key: str = "") -> str:
  """Writes a config's or provenance's value."""
  if isinstance(value, bool) or value is None:
    return {True: "yes", False: "no", None: "none"}[value]
  timed = key.endswith("seconds") or "seconds" in key.split(".")
  if isinstance(value, int | float) and timed:
    return f"{value:,.1f} s"
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:g}"
  if isinstance(value, list | tuple):
    return ", ".join(plain(v) for v in value) or "none"
  return str(value) or "none"


def _leaves(
  node: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any]]:
  for key, value in node.items():
    at = f"{path}.{key}" if path else str(key)
    if isinstance(value, Mapping):
      yield from _leaves(value, at)
    else:
      yield at, value
