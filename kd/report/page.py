"""Writes a study's report from what the study left in its workdir.

One list of blocks (kd.report.blocks) makes both report.md and report.html, so
no table exists twice, and every number comes from results.json. The same inputs
give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd import files
from kd.errors import UserError, why
from kd.report import (
  cascade,
  compression,
  cost,
  curves,
  disagreements,
  html,
  markdown,
  outside,
  pareto,
  sections,
  style,
)
from kd.report.blocks import Block
from kd.report.source import Section, Source

# In the order of the page: first what was found, last how it was obtained.
SECTIONS: tuple[Section, ...] = (
  sections.verdict,
  sections.arms,
  sections.curves,
  sections.signal,
  pareto.section,
  compression.section,
  cost.section,
  cascade.section,
  sections.calibration,
  outside.section,
  sections.words,
  disagreements.section,
  sections.provenance,
)

_REQUIRED = ("study", "metric", "seeds", "arms", "teacher", "provenance")


def write(workdir: str | Path) -> Path:
  """Writes report.md, report.html and figures/ into a study's workdir.

  Args:
    workdir: holds results.json, config.json and, for the learning curves,
      metrics.jsonl.

  Returns:
    The path of report.html.

  Raises:
    UserError: naming the file that is missing, or cannot be read or written,
      or the key that it lacks.
  """
  workdir = Path(workdir)
  results, config = read(workdir)
  found, faults = curves.read(workdir / "metrics.jsonl", results, config)
  folder = workdir / "figures"
  try:
    folder.mkdir(exist_ok=True)
    source = Source(results, config, folder, found, faults)
    document = build(source)
  except OSError as error:
    raise UserError(f"{folder}: cannot be written ({why(error)})") from error
  files.write_text(str(workdir / "report.md"), markdown.write(document))
  title = f"{results['study']}: a distillation study"
  page = html.write(title, document, style.THEME)
  files.write_text(str(workdir / "report.html"), page)
  return workdir / "report.html"


def read(workdir: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what results.json and config.json of a finished study hold.

  Raises:
    UserError: as of `write`.
  """
  workdir = Path(workdir)
  results = _read_json(workdir / "results.json")
  for key in _REQUIRED:
    if key not in results:
      raise UserError(f"{workdir / 'results.json'} lacks {key!r}")
  return results, _read_json(workdir / "config.json")


def build(source: Source) -> list[Block]:
  """Builds the report's blocks, leaving its figures in the source's folder."""
  return [block for section in SECTIONS for block in section(source)]


def _read_json(path: Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(
      f"{path} is missing: a report needs a study that has finished there"
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
  except ValueError as error:
    raise UserError(f"{path} is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise UserError(f"{path} holds {type(value).__name__}; expected an object")
  return value
