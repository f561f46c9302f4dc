"""How many replicates and seeds a difference needs, from a finished study.

    python -m kd.evaluate.power RESULTS [--difference=0.01] [--power=0.8]

RESULTS is a results.json or a workdir. For each difference of the study, on its
primary metric and in that metric's own unit (0.01 of accuracy is a point), it
prints the replicates of 1, 2, 5 or 10 seeds with which a true difference of
that size is told apart so often. The levels within a replicate stay as they
were. Imports no jax.
"""

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from kd import files
from kd.errors import UserError
from kd.evaluate import components, stats, verdict
from kd.evaluate.design import Design

SEEDS = (1, 2, 5, 10)
FEWEST, MOST = 3, 10_000  # units
_QUANTILES = (np.arange(2000) + 0.5) / 2000


def comparisons(
  results: Mapping[str, Any],
) -> tuple[list[tuple[str, float, Mapping[str, Any]]], int]:
  """Returns (arm, worth of a test example, comparison) of every two arms that
  are compared on the primary metric, and how many hypotheses are corrected
  together: an equivalence is one beside the difference of its arms."""
  metric, found, family = results["metric"], {}, set()
  for arm, versus, within in verdict.comparisons(results):
    two = frozenset((arm, versus["baseline"]))
    worth = results["arms"][arm]["metrics"][metric].get("worth", 0.0)
    found.setdefault(two, (arm, worth, versus))
    family.add((two, within))
  return list(found.values()), len(family)


def spreads(
  parts: Mapping[str, Mapping[str, float]], design: Design
) -> dict[int, float]:
  r"""Returns S -> the standard deviation of a unit's difference with S seeds.

      sd^2 = \sum_k \sigma_k^2 / n_k + \sigma_seed^2 / (n_seed S)

  with n_k groups of level k, and n_seed of the innermost one, in a unit; 1
  where a study has no levels, hence no S. Where there was one seed in a group
  its part cannot be told from the level's: then S = 1 alone.

  Args:
    parts: the components of a difference.
    design: of the study that they are from.
  """
  groups = [
    len(np.unique(p)) / len(np.unique(design.paths[0])) for p in design.paths
  ]
  fixed, seed = 0.0, None
  for name, part in parts.items():
    if name == components.TEST:
      continue
    if name == components.SEED:
      seed = part["sd"] ** 2 / (groups[-1] if groups else 1)
      continue
    k = next(
      k
      for k, level in enumerate(design.levels)
      if f"{name} + ".startswith(f"{level.name} + ")
    )
    fixed += part["sd"] ** 2 / groups[k]
  if not groups or seed is None:
    return {1: math.sqrt(fixed + (seed or 0.0))}
  return {s: math.sqrt(fixed + seed / s) for s in SEEDS}


def power(n: int, difference: float, sd: float, level: float) -> float:
  r"""Returns how often n units tell a true difference apart at a level.

  The noncentral t beyond Student's quantile t,

      E \Phi(\delta - t s) + \Phi(-\delta - t s)

  with \delta = \sqrt{n} difference / sd and s^2 = \chi^2_{n-1} / (n - 1), a
  mean over quantiles of s: scipy's own is NaN for large n.
  """
  if sd == 0:
    return 1.0
  spread = np.sqrt(special.chdtri(n - 1, _QUANTILES) / (n - 1))
  limit = special.stdtrit(n - 1, 1 - level / 2) * spread
  shift = difference / sd * math.sqrt(n)
  return float(
    (special.ndtr(shift - limit) + special.ndtr(-shift - limit)).mean()
  )


def units(
  difference: float, sd: float, level: float, wanted: float
) -> int | None:
  """Returns the fewest units of that power; None beyond 10,000."""
  if power(MOST, difference, sd, level) < wanted:
    return None
  low, high = FEWEST - 1, MOST
  while high - low > 1:
    middle = (low + high) // 2
    enough = power(middle, difference, sd, level) >= wanted
    low, high = (low, middle) if enough else (middle, high)
  return high


def report(
  results: Mapping[str, Any], difference: float = 0.01, wanted: float = 0.8
) -> str:
  """Returns the table, and how it is meant.

  Args:
    results: what results.json holds.
    difference: in the primary metric's unit.
    wanted: the power.

  Raises:
    UserError: no difference has components, or a number is out of its range.
  """
  if not (math.isfinite(difference) and difference > 0):
    raise UserError(f"--difference={difference:g}: expected a number above 0")
  if not 0 < wanted < 1:
    raise UserError(f"--power={wanted:g}: expected a number between 0 and 1")
  design, metric = Design.of(results), results["metric"]
  every, family = comparisons(results)
  level = stats.LEVEL / max(family, 1)
  rows = []
  for arm, worth, versus in every:
    parts = versus.get("components") or {}
    if not set(parts) - {components.TEST}:
      continue
    cells = {
      s: units(difference, max(sd, worth), level, wanted)
      for s, sd in spreads(parts, design).items()
    }
    rows.append((f"{arm} - {versus['baseline']}", versus["n"], cells))
  if not rows:
    raise UserError(
      f"no difference of {metric} has variance components; expected a study "
      "with arms that have a baseline, over at least two units that finished"
    )
  shown = list(dict.fromkeys(s for *_, cells in rows for s in cells))
  each = [f"S = {s}" for s in shown] if design.levels else ["needed"]
  lines = [("difference", "had", *each)]
  for name, n, cells in rows:
    found = (cells[s] for s in shown)
    words = (f"> {MOST}" if n is None else str(n) for n in found)
    lines.append((name, str(n), *words))
  of = f"{design.unit.capitalize()}s" + " of S seeds" * bool(design.levels)
  words = (
    f"{of} with which a true difference of {difference:g} in {metric} is told "
    f"apart in {100 * wanted:g} % of studies: by the noncentral t, at level "
    f"{stats.LEVEL:g} / {family} since {family} hypotheses are corrected "
    "together. From estimates of the components, whose intervals are wide."
  )
  return f"{_aligned(lines)}\n\n{textwrap.fill(words, 80)}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(w) if i else cell.ljust(w)
      for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  )


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(prog="python -m kd.evaluate.power")
  parser.add_argument("results", help="results.json, or a workdir")
  parser.add_argument("--difference", type=float, default=0.01)
  parser.add_argument("--power", type=float, default=0.8)
  args = parser.parse_args(argv)
  path = os.path.expanduser(args.results)
  if os.path.isdir(path):
    path = os.path.join(path, "results.json")
  try:
    results = files.read_json(path, "study's results")
    print(report(results, args.difference, args.power))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
