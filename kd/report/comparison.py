"""Puts several studies into one table.

    python -m kd.report WORKDIR [WORKDIR ...] [--metric=NAME] [--out=FILE.html]
    python -m kd.report --table=FILE.parquet [--skip] WORKDIR [WORKDIR ...]

Prints Markdown, or writes it, or a page, into the file. The workdirs are only
read. Without --metric the first study's primary metric orders the arms. What is
tested is within each study; between studies nothing is, since their data,
teachers and seeds may differ. With --table every run's numbers go into a long
table instead (kd.report.long_table).
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kd import files
from kd.errors import UserError
from kd.evaluate import registry
from kd.report import (
  html,
  long_table,
  markdown,
  page,
  results_table,
  style,
  wording,
)
from kd.report.blocks import Cell, Table


def table(
  studies: Mapping[str, Mapping[str, Any]],
  words: Sequence[Mapping[str, str]],
  metric: str = "",
) -> Table:
  """Sets the arms of several studies side by side, the best first.

  Args:
    studies: name -> what its results.json holds.
    words: each study's words for its arms (`wording.objective`).
    metric: what they are ordered by; "" is the first study's primary metric.

  Raises:
    UserError: a study does not have the metric.
  """
  every = list(studies.values())
  metric = metric or every[0]["metric"]
  registry.direction(metric)
  for name, results in studies.items():
    have = {m for arm in results["arms"].values() for m in arm["metrics"]}
    if metric not in have:
      raise UserError(
        f"--metric={metric}: study {name} has none; it has "
        f"{', '.join(sorted(m for m in have if registry.lookup(m).better))}"
      )
  others = results_table.others_of(every, metric)
  rows = results_table.arm_rows(every, words, metric, others)
  of = [name for name, results in studies.items() for _ in results["arms"]]
  for row, name in zip(rows, of, strict=True):
    row.insert(1, Cell(name))
  units = ", ".join(
    f"{name}: {wording.units(results)}" for name, results in studies.items()
  )
  caption = (
    f"Test sets; mean ± standard deviation ({units}), best "
    f"{wording.metric_name(metric)} first. Differences are to the baseline of "
    "the arm's own study, those in bold are told apart from 0; between studies "
    "nothing is tested."
  )
  return Table(
    caption,
    ["Arm", "Study", *results_table.heads(metric, others)],
    results_table.best_first(rows, metric, 2),
    left=(0, 1),
    cards=True,
  )


def compare(workdirs: Sequence[str], metric: str = "") -> Table:
  """Reads studies and makes their table; see `table`.

  A study is called by its own name, and by its folder where two share one.

  Raises:
    UserError: a folder has no finished study.
  """
  read = [page.read(folder) for folder in workdirs]
  names = [str(results["study"]) for results, _ in read]
  names = [
    name if names.count(name) == 1 else os.path.normpath(folder)
    for name, folder in zip(names, workdirs, strict=True)
  ]
  studies = {
    name: results for name, (results, _) in zip(names, read, strict=True)
  }
  if len(studies) < len(read):
    raise UserError(f"{' '.join(workdirs)}: the same folder twice")
  return table(studies, [c.get("words") or {} for _, c in read], metric)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(prog="python -m kd.report")
  parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
  parser.add_argument("--metric", default="", help="what orders the arms")
  parser.add_argument("--out", default="", help="a file, .md or .html")
  parser.add_argument("--table", default="", help="a file, .parquet or .csv")
  parser.add_argument(
    "--skip",
    action="store_true",
    help="leave out unfinished studies of --table",
  )
  args = parser.parse_args(argv)
  try:
    if args.table:
      if args.metric or args.out:
        raise UserError("--table: expected no --metric and no --out")
      path = os.path.expanduser(args.table)
      print(long_table.write(path, args.workdirs, args.skip))
      return
    if args.skip:
      raise UserError("--skip: expected --table beside it")
    made = compare(args.workdirs, args.metric)
    out = os.path.expanduser(args.out)
    if not out:
      print(markdown.write([made]), end="")
    elif pathlib.Path(out).suffix == ".html":
      files.write_text(out, html.write("Studies", [made], style.THEME))
    else:
      files.write_text(out, markdown.write([made]))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
