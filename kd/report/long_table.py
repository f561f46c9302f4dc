"""Puts many studies into one long table, which pandas or duckdb read.

    python -m kd.report --table=OUT.parquet [--skip] WORKDIR [WORKDIR ...]

A row for each study, arm, run and metric. Of a workdir only results.json is
read. Columns:

    study, workdir    its name, its folder
    arm, baseline     the arm, and the one it is compared with
    stratum           the budget that it is ranked in
    run, seed         the run's number within the study, and its seed
    unit              the unit of evidence that the run belongs to
    metric, value     null where the run diverged, or it is not finite
    config.KEY        of the arm, each key in which any two arms here differ

A column of the config holds numbers where all its values are numbers, truths
where all are, else texts; null where an arm has no such key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from kd.config import leaves
from kd.errors import UserError, why
from kd.evaluate.design import Design
from kd.report import wording

ENDINGS = (".parquet", ".csv")
_TEXTS = ("study", "workdir", "arm", "baseline", "stratum", "metric")
_SHOWN = 3  # folders that cannot be read, by name


def write(path: str, workdirs: Sequence[str], skip: bool = False) -> str:
  """Writes the table of studies into a file.

  Args:
    path: of the file, .parquet or .csv.
    workdirs: of finished studies, each once.
    skip: leave out what cannot be read.

  Returns:
    A line on what was written, and what was left out.

  Raises:
    UserError: the path has another ending, or cannot be written; or a folder
      is named twice or, without `skip`, has no finished study; or none has.
  """
  if not path.endswith(ENDINGS):
    raise UserError(f"--table={path}: expected {' or '.join(ENDINGS)}")
  folders = [os.path.normpath(folder) for folder in workdirs]
  if len({os.path.realpath(folder) for folder in folders}) < len(folders):
    raise UserError(f"--table={path}: the same folder twice")
  read, faults = {}, []
  for folder in folders:
    try:
      read[folder] = _read(folder)
    except ValueError as error:
      faults.append(f"{folder} ({error})")
  said = f"{len(faults)} of {len(folders)} folders have no finished study: "
  said += "; ".join(faults[:_SHOWN])
  said += f"; and {len(faults) - _SHOWN} more" if faults[_SHOWN:] else ""
  if faults and not (skip and read):
    raise UserError(f"--table: {said}; expected others, or --skip")
  made = table(read)
  _write(made, path)
  left = f"; left out: {said}" if faults else ""
  return f"{path}: {made.num_rows:,} rows of {len(read):,} studies{left}"


def table(studies: Mapping[str, Mapping[str, Any]]) -> pa.Table:
  """Returns the table of studies, by folder."""
  columns: dict[str, list[np.ndarray]] = {}
  configs: list[dict[str, Any]] = []
  which: list[np.ndarray] = []  # row -> its arm's place in configs
  words: dict[str, int] = {}
  code = lambda text: words.setdefault(text, len(words))
  for folder, results in studies.items():
    seeds = np.array(results["seeds"], np.int64)
    runs, unit = len(seeds), Design.of(results).units(len(seeds))
    for arm, entry in results["arms"].items():
      metrics = {
        m: own["values"]
        for m, own in entry["metrics"].items()
        if len(own["values"]) == runs
      }
      n = len(metrics)
      texts = {
        "study": str(results["study"]),
        "workdir": folder,
        "arm": arm,
        "baseline": entry.get("baseline") or "",
        "stratum": entry.get("stratum") or "",
      }
      made = {k: np.full(n * runs, code(v)) for k, v in texts.items()}
      made["metric"] = np.repeat([code(m) for m in metrics], runs)
      made["run"] = np.tile(np.arange(runs), n)
      made["seed"], made["unit"] = np.tile(seeds, n), np.tile(unit, n)
      values = [v for own in metrics.values() for v in own]
      made["value"] = np.array(values, np.float64)  # None is NaN
      which.append(np.full(n * runs, len(configs)))
      configs.append(_config(entry))
      for name, column in made.items():
        columns.setdefault(name, []).append(column)
  return _assembled(columns, configs, which, list(words))


def _assembled(columns, configs, which, words: Sequence[str]) -> pa.Table:
  """Puts columns together; texts are of a dictionary."""
  joined = {k: np.concatenate(v) for k, v in columns.items()}
  dictionary = pa.array(words)
  order = ("study", "workdir", "arm", "baseline", "stratum", "run", "seed",
           "unit", "metric", "value")  # fmt: skip
  made = {}
  for name in order:
    x = joined[name]
    if name in _TEXTS:
      own, index = np.unique(x, return_inverse=True)
      names = dictionary.take(pa.array(own))
      made[name] = pa.DictionaryArray.from_arrays(
        pa.array(index.astype(np.int32)), names
      )
    else:
      made[name] = pa.array(x, from_pandas=True)
  arm = pa.array(np.concatenate(which))
  for key in dict.fromkeys(k for own in configs for k in own):
    values = [own.get(key) for own in configs]
    if any(v != values[0] for v in values):
      made[f"config.{key}"] = _column(values).take(arm)
  return pa.table(made)


def _config(entry: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the leaves of an arm's config, lists as texts."""
  tree = entry.get("config") or {}
  own = {k: v for k, v in tree.items() if k not in ("overrides", "baseline")}
  return {
    k: v if isinstance(v, str | bool | int | float | None) else wording.plain(v)
    for k, v in leaves(own)
  }


def _column(values: Sequence[Any]) -> pa.Array:
  known = [v for v in values if v is not None]
  for kind, to in ((bool, pa.bool_()), (str, pa.string())):
    if all(isinstance(v, kind) for v in known):
      return pa.array(values, to)
  if all(isinstance(v, int | float) and v is not True and v is not False
         for v in known):  # fmt: skip
    return pa.array([None if v is None else float(v) for v in values])
  return pa.array([None if v is None else wording.plain(v) for v in values])


def _read(folder: str) -> dict[str, Any]:
  """Reads results.json.

  Raises:
    ValueError: saying in a few words what is wrong with it.
  """
  try:
    with open(os.path.join(folder, "results.json"), "rb") as f:
      results = msgspec.json.decode(f.read())
  except FileNotFoundError:
    raise ValueError("results.json is missing") from None
  except OSError as error:
    raise ValueError(f"results.json: {why(error)}") from error
  except msgspec.DecodeError as error:
    raise ValueError(f"results.json: {error}") from error
  try:
    for key in ("study", "seeds"):
      results[key]
    for entry in results["arms"].values():
      for own in entry["metrics"].values():
        np.array(own["values"], np.float64)
    np.array(results["seeds"], np.int64)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(f"results.json is none of a study: {error}") from error
  return results


def _write(made: pa.Table, path: str) -> None:
  scratch = f"{path}.tmp"
  try:
    if path.endswith(".csv"):
      pyarrow.csv.write_csv(made, scratch)
    else:
      pyarrow.parquet.write_table(made, scratch)
    os.replace(scratch, path)
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({why(error)})") from error
