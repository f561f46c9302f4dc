"""Sets several studies side by side: verdicts, all arms, and those they share.

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
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kd import files
from kd.errors import UserError
from kd.evaluate import registry, verdict
from kd.report import (
  html,
  long_table,
  markdown,
  page,
  results_table,
  sentences,
  style,
  wording,
)
from kd.report.blocks import Block, Bullets, Cell, Heading, Table, code


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


def shared(
  studies: Mapping[str, Mapping[str, Any]], metric: str
) -> list[Block]:
  """Sets the differences of arms that several studies have side by side.

  Args:
    studies: name -> what its results.json holds.
    metric: whose differences, each to the baseline of the arm's own study.
  """
  found: dict[str, dict[str, Mapping[str, Any]]] = {}
  for name, results in studies.items():
    for arm, entry in results["arms"].items():
      versus = results_table.entry_of(entry, metric)["versus_baseline"]
      if versus and versus["difference"] is not None:
        found.setdefault(arm, {})[name] = versus
  found = {arm: own for arm, own in found.items() if len(own) > 1}
  if not found:
    return []
  every = [v for own in found.values() for v in own.values()]
  places = wording.decimals([wording.half_width(v) for v in every], metric)
  rows = [
    [
      Cell(code(arm), value=i),
      *(_difference(own.get(name), metric, places) for name in studies),
      _above(own.values()),
    ]
    for i, (arm, own) in enumerate(found.items())
  ]
  unit = f" ({wording.unit(metric)})" if wording.unit(metric) else ""
  caption = (
    f"Differences in {wording.metric_name(metric)}{unit} to the baseline of "
    "the arm's own study, with 95 % intervals; those in bold are told apart "
    "from 0 there. They are not averaged: studies may differ in more than "
    "chance."
  )
  columns = ["Arm", *studies, "Above in"]
  return [
    Heading("Arms that several studies have"),
    Table(caption, columns, rows, cards=True),
  ]


def _difference(versus, metric: str, places: int) -> Cell:
  if versus is None:
    return Cell(wording.DASH)
  text = wording.number(versus["difference"], metric, places, signed=True)
  note = wording.interval(versus, metric, places)
  apart = bool(verdict.told_apart(versus))
  return Cell(text, note, strong=apart, value=versus["difference"])


def _above(versus: Collection[Mapping[str, Any]]) -> Cell:
  """Counts the studies in which an arm is above its baseline."""
  above = sum(v["difference"] > 0 for v in versus)
  return Cell(f"{above} of {len(versus)}", value=above / len(versus))


def compare(workdirs: Sequence[str], metric: str = "") -> list[Block]:
  """Reads studies, and sets their verdicts and their arms side by side.

  A study is called by its own name, and by its folder where two share one.

  Args:
    workdirs: of finished studies.
    metric: of `table`.

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
  made = table(studies, [c.get("words") or {} for _, c in read], metric)
  metric = metric or read[0][0]["metric"]
  said = [
    f"{code(name)}: {sentences.verdict(results)[0]}"
    for name, results in studies.items()
  ]
  return [Heading("Studies", 1), Bullets(said), made, *shared(studies, metric)]


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
      print(markdown.write(made), end="")
    elif pathlib.Path(out).suffix == ".html":
      files.write_text(out, html.write("Studies", made, style.THEME))
    else:
      files.write_text(out, markdown.write(made))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
