"""Says numbers, metrics and arms in words.

What the report's tables, captions and figures share. A missing number is a
dash, a minus is a true minus, and a rate is written in per cent, with its
differences in points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kd.config import leaves, made
from kd.config.sections import IN_ARMS
from kd.evaluate import registry
from kd.evaluate.design import Design
from kd.report.blocks import code

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

# Of an arm's config: what the words of its objective leave out.
_SECTIONS = ("objective", *IN_ARMS, *made.NOT_TRAINING)


def metric_name(metric: str) -> str:
  """Names a metric without its unit.

  >>> metric_name("nll_best"), metric_name("recall_3")
  ('NLL, best on validation', 'recall of class 3')
  """
  text = registry.lookup(metric).words
  if (c := registry.class_of(metric)) is not None:
    text = f"{text} of class {c}"
  text = f"validation {text}" if metric.startswith("validation_") else text
  said = [v for k, v in registry.VARIANTS.items() if metric.endswith(k)]
  return ", ".join([text, *said])


def metric_title(metric: str, unit: bool = True) -> str:
  """Names a metric with its unit, as a column's head.

  >>> metric_title("accuracy"), metric_title("nll_best")
  ('Accuracy (%)', 'NLL, best on validation (nats)')
  """
  text, name = metric_name(metric), registry.lookup(metric).unit.name
  text = text[0].upper() + text[1:]
  return f"{text} ({name})" if unit and name else text


def scale(metric: str) -> int:
  """Returns 100 for rates that are read in per cent, 1 for the rest."""
  return registry.lookup(metric).unit.scale


def objective(arm: str, config: Mapping[str, Any], words: Mapping) -> str:
  """Says what an arm trains on, and what it changes of the study's sections.

  Args:
    arm: its name.
    config: the arm's, of results.json.
    words: arm -> its objective in words, as the study wrote them; where they
      are absent the keys speak for themselves.

  >>> objective("a", {"objective": "soft", "temperature": 4.0}, {})
  'soft: temperature = 4'
  >>> objective("a", {"overrides": {"train": {"steps": 9}}}, {"a": "labels"})
  'labels; train.steps = 9'
  """
  own = {k: v for k, v in config.items() if k not in _SECTIONS}
  keys = ", ".join(f"{k} = {v}" for k, v in flat(own))
  name = str(config.get("objective", ""))
  said = words.get(arm) or (f"{name}: {keys}" if keys else name)
  changes = flat(config.get("overrides") or {})
  return said + "".join(f"; {k} = {v}" for k, v in changes)


def key(name: str) -> str:
  """Writes a config's key in words.

  >>> key("train.learning_rate"), key("hard.weight")
  ('learning rate', 'hard weight')
  """
  words = name.removeprefix("train.")
  return words.replace(".", " ").replace("_", " ")


def space(node: Mapping[str, Any]) -> str:
  """Says what a search is over, `tune.space` of a config.

  >>> rate = {"learning_rate": ["log", 1e-3, 0.01]}
  >>> space({"temperature": [1.0, 4.0], "train": rate})
  'temperature of 1, 4 and learning rate from 0.001 to 0.01 (log)'
  """
  said = []
  for name, values in leaves(node):
    if values[0] in ("log", "uniform"):
      how, low, high = values
      log = " (log)" if how == "log" else ""
      said.append(f"{key(name)} from {plain(low)} to {plain(high)}{log}")
    else:
      said.append(f"{key(name)} of {plain(values)}")
  return listed(said)


def unit(metric: str) -> str:
  """Names the unit of a metric's differences; '' where there is none."""
  return registry.lookup(metric).unit.of_differences


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


def amount(value: float, metric: str) -> str:
  """Writes bytes or seconds with three digits, in a unit of their size.

  >>> amount(31_250.0, "bytes"), amount(0.00042, "latency_seconds")
  ('31.2 kB', '420 µs')
  """
  unit, steps = ("s", "nµm") if registry.is_seconds(metric) else ("B", "kMG")
  names = [*steps, ""] if unit == "s" else ["", *steps]
  least = -9 if unit == "s" else 0
  size = math.floor(math.log10(value) / 3 + 1e-9) if value > 0 else least // 3
  at = min(max(size - least // 3, 0), len(names) - 1)
  scaled = value / 10.0 ** (3 * at + least)
  text = f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"
  return f"{text} {names[at]}{unit}"


def decimals(
  spreads: Sequence[float | None], metric: str, most: int = 5
) -> int:
  """Chooses decimals that give the median spread two significant digits."""
  known = [s for s in spreads if s]
  if not known:
    return min(registry.lookup(metric).unit.digits, most)
  middle = float(np.median(known)) * scale(metric)
  return min(max(1 - math.floor(math.log10(middle)), 1), most)


def half_width(versus: Mapping[str, Any] | None) -> float | None:
  """Returns half an interval's width, or None without an interval."""
  if not versus or versus["low"] is None:
    return None
  return (versus["high"] - versus["low"]) / 2


def spread(entry: Mapping[str, Any], metric: str, places: int) -> str:
  """Writes '± std', or nothing."""
  std = entry["std"]
  return "" if std is None else f"± {number(std, metric, places)}"


def interval(versus: Mapping[str, Any] | None, metric: str, places: int) -> str:
  """Writes '[low, high]', or nothing."""
  if not versus or versus["low"] is None:
    return ""
  low, high = (
    number(versus[k], metric, places, signed=True) for k in ("low", "high")
  )
  return f"[{low}, {high}]"


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


def units(results: Mapping[str, Any], n: int | None = None) -> str:
  """Counts a study's units of evidence: '12 replicates of 3 seeds'.

  Args:
    results: what results.json holds.
    n: how many of them are meant; all by default.

  >>> units({"seeds": [0, 1, 2]})
  '3 seeds'
  """
  design, runs = Design.of(results), len(results["seeds"])
  every = len(set(design.units(runs).tolist()))
  n = every if n is None else n
  text = f"{n} {design.unit}" + ("" if n == 1 else "s")
  if not design.levels:
    return text
  each = runs // every
  run = "run" if len(design.levels) > 1 else "seed"
  return f"{text} of {each} {run}" + ("" if each == 1 else "s")


def stopping_rule(results: Mapping[str, Any]) -> str:
  """Says whose weights the primary metric scores."""
  found = results.get("selection"), registry.selection(results["metric"])
  step = "best step on validation" if "best" in found else "last step"
  return f"weights of the {step}"


def listed(words: Iterable[str]) -> str:
  """Lists words.

  >>> listed(["splits", "teachers", "draws"])
  'splits, teachers and draws'
  """
  *first, last = [*words] or [""]
  return f"{', '.join(first)} and {last}" if first else last


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
  return [(k, plain(v, k)) for k, v in leaves(node)]


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
