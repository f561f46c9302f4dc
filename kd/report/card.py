"""A model card: what an exported model is, how good, and what it is not for.

Written from results.json, config.json and what model.json says of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kd.evaluate import registry, stats
from kd.evaluate.design import Design
from kd.report import (
  blocks,
  cost,
  limits,
  markdown,
  sentences,
  wording,
)
from kd.report.blocks import Block, Bullets, Code, Heading, Table, Text, code

Results = Mapping[str, Any]

OUTSIDE = ("accuracy", "ece", "wrong_confident", "auroc", "fpr95")
USE = """\
from predict import Model

model = Model()  # in this folder; needs jax alone
model.probabilities(inputs)  # {dtype} [N, {shape}]"""


def write(
  results: Results, config: Mapping[str, Any], about: Mapping[str, Any]
) -> str:
  """Writes a model card as Markdown.

  Args:
    results: what results.json holds.
    config: what config.json holds.
    about: what model.json holds.
  """
  study, arm = about["study"], results["arms"][about["study"]["arm"]]
  document: list[Block] = [
    Heading(f"{study['name']}: {study['arm']}, seed {study['seed']}", 1),
    *_what(results, config, about, arm),
    Heading("Use"),
    *_use(about),
    Heading("Data"),
    Bullets(_data(results, about, arm)),
    Heading("Teacher"),
    Bullets(_teacher(results)),
    Heading("Licences"),
    Bullets(
      [
        f"{name}: {text or 'not stated'}"
        for name, text in config["config"]["licence"].items()
      ]
    ),
    Heading("Measured"),
    *_measured(results, study, arm),
    Heading("Calibration"),
    *_calibration(results, arm),
    Heading("Outside the task"),
    *_outside(results, study),
    *_cost(results, study),
    Heading("Not to be used for"),
    Bullets(limits.said(results, about, arm)),
    Heading("How it was obtained"),
    *_obtained(results, about),
  ]
  return markdown.write(document)


def _what(results, config, about, arm) -> list[Block]:
  study, model = about["study"], about["model"]
  words = config.get("words") or {}
  seeds = results["seeds"]
  which = "last weights"
  if study["weights"] == "best":
    which = "weights that did best on validation"
  what = wording.objective(study["arm"], arm["config"], words)
  said = [
    f"A model of the study {code(study['name'])}: one of the {len(seeds)} runs "
    f"of its arm {code(study['arm'])} ({what}), with the {which}. "
    f"{code(model['name'])}, {model['parameters']:,} parameters."
  ]
  if arm.get("arithmetic"):
    said.append(f"Arithmetic: {arm['arithmetic']}.")
  verdict, *_ = sentences.verdict(results)
  return [Text(" ".join(said)), Text(verdict, "verdict")]


def _use(about) -> list[Block]:
  asked, onnx = about["input"], about["onnx"]
  shape = ", ".join(map(str, asked["shape"][1:]))
  checked = about["checked"]
  run = wording.listed(checked["compiled_and_run_on"])
  raw = asked["raw"]["kind"]
  said = [
    f"Inputs are of kind {code(raw)}; `model.json` says what was done to raw "
    "ones. Outputs are "
    + (
      "probabilities of the classes that it lists."
      if isinstance(about["classes"], list)
      else "probabilities of the next token at each position."
    ),
    f"Checked on {run} against the study's own program, on {checked['rows']} "
    "rows of the test split: probabilities differ by at most "
    f"{checked['largest_difference']['probabilities']:.1g}. Lowered for "
    f"{wording.listed(checked['lowered_for'])}; where it was not run, nobody "
    "has.",
    f"`{onnx['file']}` is the same model as ONNX, to "
    f"{onnx['largest_difference']:.1g} by onnxruntime."
    if onnx["file"]
    else f"There is no ONNX file: {onnx['why']}.",
  ]
  return [
    Code(USE.format(dtype=asked["dtype"], shape=shape), "python"),
    Code("python predict.py INPUTS.npy PROBABILITIES.npy", "sh"),
    Bullets(said),
  ]


def _data(results, about, arm) -> list[str]:
  task, signal = about["task"], results["signal"]
  version = f" {task['version']}" if task["version"] else ""
  said = [f"Task: {code(task['name'] + version)}. {task['about']}".strip()]
  *parts, shuffle = task["slices"]
  names = ("train", "validation", "test")
  cut = ", ".join(
    f"{name} {code(part)}" for name, part in zip(names, parts, strict=True)
  )
  said.append(f"Split: {cut}; {shuffle}.")
  sizes = [
    f"{wording.plain(signal[key])} {words}"
    for key, words in (
      ("pool", "in the train split"),
      ("validation", "to choose by"),
      ("test", "to test by"),
    )
    if signal.get(key) is not None
  ]
  said += [f"Examples: {', '.join(sizes)}."] if sizes else []
  if limits.is_trained(arm):
    said.append(_transfer_set(about, arm))
  if isinstance(about["classes"], list):
    every = ", ".join(about["classes"][:40])
    more = len(about["classes"]) - 40
    tail = f" and {more} more, in `model.json`" if more > 0 else ""
    said.append(f"Classes: {every}{tail}.")
  return said


def _transfer_set(about, arm) -> str:
  section = arm["config"]["signal"]
  own = [
    f"{section['size']:,} examples drawn for each seed"
    if section["size"]
    else "all examples of its pool"
  ]
  if left := limits.left_out(about, arm):
    own.append(f"without the classes {limits.some(left)}")
  if section["filter"]:
    own.append(f"filtered by {code(section['filter'])}")
  labels = "with" if section["labelled"] else "without"
  return f"Transfer set: {', '.join([*own, f'{labels} true labels'])}."


def _teacher(results) -> list[str]:
  model = (results.get("models") or {}).get("teacher")
  if model is None:
    said = ["A black box, of which answers are all that is known."]
  else:
    said = [f"{code(model['name'])}, {model['parameters']:,} parameters."]
  shared = Design.of(results).fixed
  if "teacher" not in shared:
    said.append("Each replicate has its own; its numbers below are means.")
  return said


def _measured(results, study, arm) -> list[Block]:
  design, seeds = Design.of(results), results["seeds"]
  run = seeds.index(study["seed"])
  teacher = results.get("teacher") or {}
  order = {name: i for i, name in enumerate(registry.METRICS)}
  known = [m for m in arm["metrics"] if registry.family(m) in order]
  rows = []
  for metric in sorted(known, key=lambda m: order[registry.family(m)]):
    entry = arm["metrics"][metric]
    if registry.lookup(metric).per_class or entry["mean"] is None:
      continue
    if not _of_weights(metric, arm["metrics"], study["weights"]):
      continue
    within = interval(entry, design)
    half = entry["std"] if within is None else (within[1] - within[0]) / 2
    places = wording.decimals([half], metric)
    show = lambda x, m=metric, p=places: wording.number(x, m, p)
    between = within and f"[{show(within[0])}, {show(within[1])}]"
    rows.append(
      [
        wording.metric_title(metric),
        show(entry["values"][run]),
        show(entry["mean"]),
        between or wording.DASH,
        show(teacher.get(registry.family(metric))),
      ]
    )
  caption = (
    "On the test split. Mean and 95 % interval (Student's t) are of the arm, "
    f"over {wording.units(results)}: {sentences.scope(design)}. The interval "
    "is of the mean, not of a single run."
  )
  columns = ["Metric", "This model", "Arm's mean", "95 % interval", "Teacher"]
  return [Table(caption, columns, rows)]


def _of_weights(metric: str, metrics: Mapping[str, Any], which: str) -> bool:
  """Whether a metric is of an arm's weights `which`, or of any."""
  if metric.endswith("_best"):
    return which == "best"
  has_both = f"{metric}_best" in metrics
  return not metric.endswith("_shifted") and (which == "last" or not has_both)


def interval(
  entry: Mapping[str, Any], design: Design
) -> tuple[float, float] | None:
  """Returns the 95 % interval of an arm's mean over units of evidence.

  Its spread counts as no less than what a test example is worth
  (`stats.standard_error`). None where fewer than two units have a value.
  """
  units = design.means(stats.floats(entry["values"]))
  units = units[np.isfinite(units)]
  if len(units) < 2:
    return None
  error = float(stats.standard_error(units, entry.get("worth", 0.0)))
  half = stats.quantile(len(units)) * error
  return float(units.mean()) - half, float(units.mean()) + half


def _calibration(results, arm) -> list[Block]:
  diagram = arm["reliability"]
  rows = [
    [f"{100 * c:.1f}", f"{100 * a:.1f}", f"{n:,}"]
    for c, a, n in zip(*(diagram[k] for k in _DIAGRAM), strict=True)
    if n
  ]
  caption = (
    "Predictions by their confidence, in bins of equal width, of all runs of "
    "the arm that finished: mean confidence, and the share that is right."
  )
  columns = ["Confidence (%)", "Right (%)", "Predictions"]
  return [Table(caption, columns, rows, left=())]


_DIAGRAM = ("confidence", "accuracy", "count")


def _outside(results, study) -> list[Block]:
  outside, arm = results.get("outside"), study["arm"]
  if not outside or arm not in outside["arms"]:
    return [
      Text(
        "Not measured: how it answers what is unlike its test split is not "
        "known."
      )
    ]
  own, of_teacher = outside["arms"][arm], outside["teacher"]
  columns = [m for m in OUTSIDE if any(m in found for found in own.values())]
  rows = [
    [
      blocks.Cell(code(name), outside["sets"][name]["words"]),
      *(_beside(found, of_teacher.get(name), m) for m in columns),
    ]
    for name, found in own.items()
  ]
  caption = (
    f"Means over {wording.units(results)}, and the teacher's in brackets. "
    "AUROC and FPR tell a set from the test split by confidence."
  )
  heads = ["Set", *map(wording.metric_title, columns)]
  return [Table(caption, heads, rows)]


def _beside(found, teacher, metric: str) -> blocks.Cell:
  """Makes the cell of an arm's mean on a set, with the teacher's value."""
  entry = found.get(metric) or {}
  places = wording.decimals([entry.get("std")], metric)
  text = wording.number(entry.get("mean"), metric, places)
  beside = wording.number((teacher or {}).get(metric), metric, places)
  return blocks.Cell(text, "" if beside == wording.DASH else f"({beside})")


def _cost(results, study) -> list[Block]:
  found = results["provenance"].get("cost")
  if not found or study["arm"] not in found["arms"]:
    return []
  making = found["arms"][study["arm"]]["making"]["total"]
  return [
    Heading("Cost"),
    Text(
      f"{cost.pays(results, study['arm'])} By the prices that the study was "
      f"given; made for {making:,.4g} {found['unit']}."
    ),
  ]


def _obtained(results, about) -> list[Block]:
  provenance, study = results["provenance"], about["study"]
  facts = [
    f"{key}: {wording.plain(provenance[key])}"
    for key in ("device", "host", "commit", "started")
    if key in provenance
  ]
  versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
  return [
    Code(str(provenance.get("command") or "not recorded"), "sh"),
    Bullets(
      [
        *facts,
        f"study {study['fingerprint']}, task {about['task']['fingerprint']}",
        f"exported with {versions}",
      ]
    ),
  ]
