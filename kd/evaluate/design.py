"""The design of a study's runs: what is varied, and what is evidence.

Runs are nested: a replicate (a split of the data, the teacher trained on it,
its signal) holds several runs, which differ in their seed. Runs of a replicate
share what was varied, so they are no independent evidence of it: the *unit of
evidence* is the replicate, the outermost level's group, and the seed where a
study has no replicates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Level:
  """Holds a level of the nesting.

  Attributes:
    name: what is varied from group to group, as "split + teacher".
    of: the group of each run.
  """

  name: str
  of: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Design:
  """Says how the runs of a study are nested.

  Attributes:
    levels: outermost first; none where the seed is the unit.
    vary: what differs between replicates: "split", "teacher", "signal".
    fixed: what the study holds fast, of the same words, and "test set" where
      the splits have one in common.
    seed: what differs between the runs of one group, in words.
  """

  levels: tuple[Level, ...] = ()
  vary: tuple[str, ...] = ()
  fixed: tuple[str, ...] = ("split", "teacher")
  seed: str = "initialisation and order"

  @classmethod
  def of(cls, results: Mapping[str, Any]) -> Design:
    """Reads `replicates` of results.json; a file without it has no levels."""
    said = results.get("replicates")
    if not said:
      return cls()
    return cls(
      levels=tuple(
        Level(level["name"], tuple(level["of"]))
        for level in said.get("levels", ())
      ),
      vary=tuple(said.get("vary", ())),
      fixed=tuple(said.get("fixed", ())),
      seed=said.get("seed", cls.seed),
    )

  @property
  def unit(self) -> str:
    """The unit of evidence, in a word: of nested levels the outermost."""
    if len(self.levels) > 1:
      return self.levels[0].name
    return "replicate" if self.levels else "seed"

  def test_sets(self, units: int) -> int:
    """Counts the different test sets that `units` units were scored on."""
    one = "split" not in self.vary or "test set" in self.fixed
    return 1 if one else units

  @functools.cached_property
  def paths(self) -> tuple[Int[np.ndarray, " U"], ...]:
    """Numbers each level's groups, [U] each, within all the levels around."""
    found, outer = [], None
    for level in self.levels:
      of = np.asarray(level.of)
      key = of if outer is None else np.stack([outer, of], 1)
      outer = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
      found.append(outer)
    return tuple(found)

  def units(self, runs: int) -> Int[np.ndarray, " U"]:
    """Returns each run's unit of evidence, 0 ... n-1."""
    return self.paths[0] if self.levels else np.arange(runs)

  def means(self, values: Float[np.ndarray, "... U"]) -> np.ndarray:
    """Averages runs to units [..., n]: nested means, each group of a level of
    equal weight; NaN is left out, and is what a group of NaN alone gives."""
    values = np.asarray(values, np.float64)
    kept = np.arange(values.shape[-1])  # one run of each group
    for of in reversed(self.paths):
      group = of[kept]
      ids, first = np.unique(group, return_index=True)
      share = (group[:, None] == ids).astype(np.float64)
      finite = np.isfinite(values)
      count = finite @ share
      total = np.where(finite, values, 0.0) @ share
      values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
      kept = kept[first]
    return values
