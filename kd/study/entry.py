"""The way into a study: what the config alone tells, then the phases."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from kd import config
from kd.study import check


def run(
  study_config: Mapping[str, Any] | ConfigDict,
  folder: str | None = None,
  phase: str = "",
) -> dict[str, Any] | None:
  """Runs a study, or continues it.

  Args:
    study_config: a config (kd.config).
    folder: the workdir; None is runs/STUDY-HASH.
    phase: "P" runs up to phase P, "P:" from it on, "P:Q" from P to Q; "" runs
      all. Phases before the first must have been run. From "evaluate:" on, the
      sections `evaluate` and `cost` may differ from the one of the training.

  Returns:
    What is in results.json (docs/results.md), or None where the phases end
    before "evaluate".

  Raises:
    UserError: a mistake in the config, the workdir or a file; before any
      compute where that is possible.
  """
  settings = config.resolve(study_config)
  first, last = check.phases(phase or "")
  reports = check.PHASES[first] == "report"  # from results.json alone
  groups = [] if reports else check.config_alone(settings)
  from kd.study import phases  # seconds, that a mistake need not wait for

  return phases.run(settings, groups, folder, first, last)


def write_export(
  study_config: Mapping[str, Any] | ConfigDict,
  folder: str | None = None,
  *,
  arm: str = "",
  seed: int | None = None,
  out: str = "",
) -> str:
  """Writes a run of a finished study as a folder of its own.

  Args:
    study_config: its config.
    folder: its workdir; None is runs/STUDY-HASH.
    arm, seed, out: see kd.study.export.write.

  Returns:
    The folder.

  Raises:
    UserError: likewise.
  """
  settings = config.resolve(study_config)
  check.config_alone(settings)
  from kd.study import export, workdir  # seconds, as in `run`

  return export.write(
    settings, folder or workdir.default(settings), arm, seed, out
  )


def verdict(results: Mapping[str, Any]) -> str:
  """Says in a line what the study found."""
  from kd.report import blocks, sentences

  first, *_ = sentences.verdict(results)
  return f"{results['study']}: {blocks.plain(first)}"
