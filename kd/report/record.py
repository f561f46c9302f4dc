"""Keep a study's outcome beside its claim: tables are made, never typed.

    python -m kd.report.record WORKDIR experiments/NAME [--section=SECTION]

Copies into the folder what a reader of the repository needs: results.json
(less the runs' bulk), the figures that show it, and in README.md the table
between the marks `<!-- SECTION -->` and `<!-- /SECTION -->`, with how it was
obtained. Run it again after running the study again.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Generator, Mapping

from absl import app, flags

from kd import files
from kd.errors import UserError
from kd.evaluate import registry
from kd.report import (
  cascade,
  compression,
  cost,
  evidence,
  markdown,
  outside,
  page,
  pareto,
  results_table,
  sentences,
  style,
  tables,
)
from kd.report.blocks import Text

_SECTION = flags.DEFINE_string("section", "results", "The marks in README.md.")


def kept(metric: str, results: dict) -> bool:
  """Whether a metric goes into the repository; the workdir has the rest."""
  c, omitted = registry.class_of(metric), results_table.omitted_classes(results)
  known = registry.family(metric) in registry.METRICS
  return known and (c is None or c in omitted)


def figures_of(results: dict) -> list[str]:
  """Returns the figures that are kept, without their ending."""
  has = {
    "recall": results_table.omitted_classes(results),
    "pareto": pareto.differ(results),
    "break_even": results["provenance"].get("cost"),
    "cascades": results.get("cascades"),
    "outside_severity": results.get("outside"),
    "outside_curves": results.get("outside"),
  }
  return ["differences", *(name for name, found in has.items() if found)]


def small(results: dict) -> dict:
  """Returns results.json with fewer metrics, and six digits of a number."""
  slim = {**results, "arms": {}}
  if "contrasts" in results:
    slim["contrasts"] = {
      text: {
        **c,
        "metrics": {m: v for m, v in c["metrics"].items() if kept(m, results)},
      }
      for text, c in results["contrasts"].items()
    }
  for key in ("teacher_reliability", "disagreements"):
    slim.pop(key, None)
  if own := results.get("outside"):
    slim["outside"] = {k: own[k] for k in ("sets", "teacher", "verdict")}
    slim["outside"]["arms"] = {
      arm: {name: _means(entries) for name, entries in sets.items()}
      for arm, sets in own["arms"].items()
    }
  for name, arm in results["arms"].items():
    metrics = {k: v for k, v in arm["metrics"].items() if kept(k, results)}
    slim["arms"][name] = {**arm, "metrics": metrics}
    slim["arms"][name].pop("reliability", None)
  return _rounded(slim)


def _means(entries: Mapping) -> dict:
  """Returns a set's metrics less the runs' values and their differences."""
  return {m: {k: e[k] for k in ("mean", "std")} for m, e in entries.items()}


def table(results: dict, words: Mapping[str, str]) -> str:
  """Returns the record in Markdown: verdict, tables, provenance.

  Args:
    results: what results.json holds.
    words: arm -> its objective in words.
  """
  look = style.styles(results)
  made = results["provenance"]
  seconds = sum(made["seconds"].values())
  blocks = [
    Text("\n\n".join(sentences.verdict(results, [outside.sentence(results)]))),
    results_table.table(results, look, words),
    *evidence.contrast_table(results),
    *evidence.component_table(results),
    *evidence.search_table(results),
    *tables.variant_tables(results, look),
    *tables.teacher_table(results),
    *pareto.recorded(results, look),
    *tables.cost_tables(results),
    *cost.tables(results),
    *cascade.tables(results),
    *(outside.verdict_table(results) if results.get("outside") else []),
    *compression.tables(results),
    Text(
      f"Evidence: {made['evidence']}, on {made['device']} ({made['host']}), "
      f"{seconds:.0f} s, jax {made['versions']['jax']}, commit "
      f"{made['commit']}: `{made['command']}`"
    ),
  ]
  return markdown.write(blocks)


def record(workdir: str, folder: str, section: str) -> None:
  """Writes a finished study's record into a folder of experiments/.

  Raises:
    UserError: no finished study, or no README.md with the section's marks.
  """
  found, config = page.read(workdir)
  results = small(found)  # what the table is made of can be seen beside it
  suffix = "" if section == "results" else f"-{section}"
  pictures = []
  for name in figures_of(results):
    source = os.path.join(workdir, "figures", f"{name}.png")
    if os.path.exists(source):
      target = f"{name}{suffix}.png"
      shutil.copyfile(source, os.path.join(folder, target))
      pictures.append(f"![{name}]({target})")
  body = "\n\n".join(
    [table(results, config.get("words") or {}).strip(), *pictures]
  )
  with _alone(folder):
    markdown.replace_section(os.path.join(folder, "README.md"), section, body)
  path = os.path.join(folder, f"results{suffix}.json")
  files.write_text(path, json.dumps(results, allow_nan=False) + "\n")


@contextlib.contextmanager
def _alone(folder: str) -> Generator[None]:
  """Waits for other records that are written into the same README."""
  opened = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(opened, fcntl.LOCK_EX)
    yield
  finally:
    os.close(opened)


def _rounded(node):
  if isinstance(node, dict):
    return {k: _rounded(v) for k, v in node.items()}
  if isinstance(node, list):
    return [_rounded(v) for v in node]
  return float(f"{node:.6g}") if isinstance(node, float) else node


def main(argv: list[str]) -> None:
  if len(argv) != 3:
    raise app.UsageError("expected a workdir and a folder of experiments/")
  try:
    record(argv[1], argv[2], _SECTION.value)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main)
