"""Reads metrics.jsonl, what training logged, as learning curves."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# (steps [T], values [S, T] with NaN where a seed has none)
Curve = tuple[np.ndarray, np.ndarray]

KEYS = ("loss", "validation_accuracy")


def read(
  path: Path, results: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Curve]], list[str]]:
  """Reads the curves of a finished study's arms.

  A later line for the same arm, seed and step replaces an earlier one, as a
  resumed study writes them. What is missing or broken is left out and said: a
  study's results do not depend on it.

  Args:
    path: of metrics.jsonl.
    results: what results.json holds.
    config: what config.json holds; its train.steps is where curves end.

  Returns:
    (arm -> quantity -> curve, sentences on what is wrong with the file).
  """
  seeds = {seed: i for i, seed in enumerate(results["seeds"])}
  try:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  except OSError as error:
    return {}, [f"There are no learning curves: {path.name}: {error.strerror}."]
  rows: dict[str, list[Mapping[str, Any]]] = {
    arm: []
    for arm, entry in results["arms"].items()
    if entry.get("trained", arm) == arm  # others have none of their own
  }
  broken = []
  for number, line in enumerate(lines, 1):
    row = _row(line)
    if row is None:
      broken.append(number)
    elif row["arm"] in rows and row["seed"] in seeds:
      rows[row["arm"]].append(row)
  curves = {arm: _curves(own, seeds) for arm, own in rows.items() if own}
  if not curves:
    return {}, [f"There are no learning curves: {path.name} holds none."]
  faults = []
  if broken:
    at = ", ".join(map(str, broken[:3])) + (", ..." if broken[3:] else "")
    faults.append(
      f"{path.name}: {len(broken)} line(s) cannot be read ({at}), and the "
      "learning curves are without them."
    )
  tree = config.get("config", config)
  ends = [curve["loss"][0][-1] for curve in curves.values()]
  last = tree.get("train", {}).get("steps") or max(ends)
  cut = [arm for arm in rows if not _reaches(rows[arm], last, seeds)]
  if cut:
    faults.append(
      f"{path.name} does not reach step {last} for {len(cut)} of {len(rows)} "
      "arms, so their learning curves are cut."
    )
  return curves, faults


def _row(line: str) -> dict[str, Any] | None:
  """Returns what a line says, or None where it cannot be read."""
  try:
    row = json.loads(line)
    step, values = row["step"], [row.get(key) for key in KEYS]
    known = isinstance(row["arm"], str) and isinstance(row["seed"], int)
    known = known and math.isfinite(step)
    for value in values:
      if value is not None:
        math.isfinite(value)
  except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
    return None
  return row if known else None


def _curves(rows, seeds: Mapping[int, int]) -> dict[str, Curve]:
  steps = np.unique([row["step"] for row in rows])
  i = [seeds[row["seed"]] for row in rows]
  j = np.searchsorted(steps, [row["step"] for row in rows])
  curves = {}
  for key in KEYS:
    values = np.full((len(seeds), len(steps)), np.nan)
    values[i, j] = np.array([row.get(key) for row in rows], np.float64)
    curves[key] = (steps, values)
  return curves


def _reaches(rows, last: int, seeds: Mapping[int, int]) -> bool:
  return {row["seed"] for row in rows if row["step"] >= last} == set(seeds)
