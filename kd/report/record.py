"""Keep a study's outcome beside its claim: tables are made, never typed.

    python -m kd.report.record WORKDIR experiments/NAME [--section=SECTION]

Copies into the folder what a reader of the repository needs: results.json
(less the runs' bulk), the figures that show it, and in README.md the table
between the marks `<!-- SECTION -->` and `<!-- /SECTION -->`, with how it was
obtained. Run it again after running the study again.
"""

import json
import os
import shutil

from absl import app, flags

from kd import files
from kd.errors import UserError
from kd.report import figures, tables, wording
from kd.report.blocks import Text, to_markdown

_SECTION = flags.DEFINE_string("section", "results", "The marks in README.md.")
# What is kept of each arm; the workdir has the rest.
METRICS = ("accuracy", "agreement", "nll", "ece", "brier", "kl_to_teacher")


def kept(metric: str, results: dict) -> bool:
  """Whether a metric goes into the repository."""
  base = metric.removesuffix("_best").removesuffix("_shifted")
  omitted = {f"recall_{c}" for c in tables.omitted_classes(results)}
  return base in METRICS or base in omitted or metric == "bias_shift"


def figures_of(results: dict) -> list[str]:
  """Returns the figures that are kept, without their ending."""
  omits = tables.omitted_classes(results)
  return ["differences", *(["recall"] if omits else [])]


def small(results: dict) -> dict:
  """Returns results.json with fewer metrics, and six digits of a number."""
  slim = {**results, "arms": {}}
  slim.pop("teacher_reliability", None)
  for name, arm in results["arms"].items():
    metrics = {k: v for k, v in arm["metrics"].items() if kept(k, results)}
    slim["arms"][name] = {**arm, "metrics": metrics}
    slim["arms"][name].pop("reliability", None)
  return _rounded(slim)


def table(results: dict) -> str:
  """Returns the record in Markdown: verdict, tables, provenance."""
  made = results["provenance"]
  seconds = sum(made["seconds"].values())
  blocks = [
    Text("\n\n".join(wording.verdict(results))),
    tables.main_table(results, figures.styles(results)),
    *tables.variant_tables(results, figures.styles(results)),
    *tables.cost_tables(results),
    Text(
      f"Evidence: {made['evidence']}, on {made['device']} ({made['host']}), "
      f"{seconds:.0f} s, jax {made['versions']['jax']}, commit "
      f"{made['commit']}: `{made['command']}`"
    ),
  ]
  return to_markdown(blocks)


def record(workdir: str, folder: str, section: str) -> None:
  """Writes a finished study's record into a folder of experiments/.

  Raises:
    UserError: no finished study, or no README.md with the section's marks.
  """
  try:
    with open(os.path.join(workdir, "results.json")) as f:
      results = json.load(f)
  except OSError as error:
    raise UserError(str(error)) from error
  suffix = "" if section == "results" else f"-{section}"
  pictures = []
  for name in figures_of(results):
    source = os.path.join(workdir, "figures", f"{name}.png")
    if os.path.exists(source):
      target = f"{name}{suffix}.png"
      shutil.copyfile(source, os.path.join(folder, target))
      pictures.append(f"![{name}]({target})")
  body = "\n\n".join([table(results).strip(), *pictures])
  files.replace_section(os.path.join(folder, "README.md"), section, body)
  path = os.path.join(folder, f"results{suffix}.json")
  files.write_text(path, json.dumps(small(results), allow_nan=False) + "\n")


def _rounded(node):
  if isinstance(node, dict):
    return {k: _rounded(v) for k, v in node.items()}
  if isinstance(node, list):
    return [_rounded(v) for v in node]
  return float(f"{node:.6g}") if isinstance(node, float) else node


def main(argv: list[str]) -> None:
  if len(argv) != 3:
    raise app.UsageError("expected a workdir and a folder of experiments/")
  record(argv[1], argv[2], _SECTION.value)


if __name__ == "__main__":
  app.run(main)
