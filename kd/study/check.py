"""What a study refuses, before any compute: one way through, once.

    config_alone -> the task is read -> with_the_task -> the teacher is loaded
    or trained -> with_the_teacher

What `config_alone` needs imports quickly: it says what is wrong while the rest
is still being loaded.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from kd import files, models
from kd.config import made, sections
from kd.errors import UserError, brief
from kd.models import adapters, checkpoints
from kd.objectives.registry import OBJECTIVES
from kd.study import replicates, students, tune, untrained
from kd.teachers import answers, funnel
from kd.train import arms

if TYPE_CHECKING:  # these take seconds to import
  from kd.data.task import Task, Tokens
  from kd.study.replicates import Replicate
  from kd.teachers.model import Teacher

PHASES = ("teacher", "label", "train", "evaluate", "report")


def phases(phase: str) -> tuple[int, int]:
  """Returns the first and the last phase that `--phase` asks for."""
  if not isinstance(phase, str):
    raise UserError(f"--phase={phase!r}: expected a text")
  first, colon, last = phase.partition(":")
  if not colon:
    first, last = "", phase
  for name in (first, last):
    if name and name not in PHASES:
      raise UserError(
        f"--phase={phase}: unknown phase {name!r}, expected one of "
        f"{', '.join(PHASES)}; P runs up to P, P: from P on, P:Q from P to Q; "
        "or export alone"
      )
  start = PHASES.index(first or PHASES[0])
  stop = PHASES.index(last or PHASES[-1])
  if start > stop:
    raise UserError(f"--phase={phase}: {first!r} comes after {last!r}")
  return start, stop


def config_alone(settings: Mapping[str, Any]) -> list[arms.Group]:
  """Checks what the config says of filters, models, objectives and teachers.

  Returns:
    The arms, gathered to train together.

  Raises:
    UserError: naming the key, or the file that `teacher.path` lacks.
  """
  asks = answers.is_black_box(settings["teacher"])
  writes = answers.writes(settings)
  for name, chain in settings["filters"].items():
    funnel.check(f"filters.{name}", chain, asks)
  models.check("student", settings["student"])
  trained = made.trained(settings["arms"])
  groups = arms.group(trained, black_box=asks, writes=writes)
  every = {f"arms.{k}.student": a["student"] for k, a in trained.items()}
  for path, student in {"student": settings["student"], **every}.items():
    students.check(path, student, settings["teacher"])
  parts = settings["train"]["accumulate"]
  for name, _ in (t for g in groups for p in g.parts for t in p.terms):
    if parts > 1 and OBJECTIVES[name].couples:
      raise UserError(
        f"train.accumulate = {parts}: {name!r} compares all examples of a "
        "batch, expected 1"
      )
  for name, arm in trained.items():
    section = arm["signal"]
    if section["live"] and (section["filter"] or asks):
      raise UserError(
        f"arms.{name}.signal.live = True: a signal that is filtered, or a "
        "black box's, is stored; expected False"
      )
    scores = writes and checkpoints.is_checkpoint(settings["teacher"]["path"])
    if section["calibrate"] != "none" and asks and not scores:
      raise UserError(
        f"arms.{name}.signal.calibrate = {section['calibrate']!r}: a black box "
        "leaves no logits; expected 'none'"
      )
  of_each = replicates.NUMBER in settings["teacher"]["path"]
  if not of_each:
    _teacher(settings["teacher"])
  replicates.check(settings)
  for one in replicates.of(settings, "") if of_each else ():
    _teacher(one.settings["teacher"])
  tune.check(made.of_training(settings), groups, asks)
  untrained.check(settings)
  if settings["evaluate"]["outside"]:
    from kd.data import outside

    outside.check(settings["evaluate"]["outside"], settings["task"])
  return groups


def _teacher(section: Mapping[str, Any]) -> None:
  path = section["path"]
  options = {k: v for k, v in section.items() if k not in sections.TEACHER}
  for key in ("from_teacher", *adapters.OPTIONS):
    if key in section:
      raise UserError(
        f"teacher.{key} = {section[key]!r}: an option of students; expected "
        "none"
      )
  if os.path.basename(path) == "teacher.json":
    raise UserError(
      f"teacher.path = {path!r}: expected its folder {os.path.dirname(path)!r}"
    )
  if checkpoints.is_checkpoint(path):
    models.check("teacher", {**options, "name": "checkpoint", "folder": path})
    return
  if path and answers.is_answers(path):
    if not os.path.isfile(path) and not answers.is_store(path):
      raise UserError(f"teacher.path = {path!r}: no such file")
    return
  if path:
    if section["pretrained"]:
      raise UserError(
        f"teacher.pretrained = True: expected False, since teacher.path = "
        f"{path!r} says where the teacher is"
      )
    if not os.path.exists(os.path.join(path, "teacher.json")):
      raise UserError(
        f"teacher.path = {path!r}: no teacher.json there; expected the "
        "teacher/ folder of an earlier study, or a black box's answers: "
        ".jsonl, .jsonl.gz, .jsonl.zst, .parquet or a store of them "
        "(kd.teachers.ingest)"
      )
    return
  if "name" not in section:
    raise UserError("teacher.name is missing: expected a model's name")
  models.check("teacher", options)
  sections.check_train("teacher.train", section["train"])


def with_the_task(
  replicate: "Replicate", groups: Sequence[arms.Group], task: "Task"
) -> None:
  """Checks all that the task's classes, inputs and examples decide.

  Raises:
    UserError: naming the key, or the split and row of a damaged input.
  """
  from kd.data import outside
  from kd.study import transfer_sets
  from kd.teachers import black_box, completions, model

  settings = replicate.settings
  asks = answers.is_black_box(settings["teacher"])
  arms.check_classes(groups, task.num_classes)
  if task.tokens and not settings["teacher"]["path"]:
    _reads_tokens("teacher", settings["teacher"])
  fraction = model.check(settings["teacher"], task)
  untrained.check_task(settings, task)
  for name, arm in made.trained(settings["arms"]).items():
    path, signal = f"arms.{name}.signal", arm["signal"]
    model.check_jitter(f"{path}.jitter", signal["jitter"], task)
    if signal["live"] and model.is_prompted(settings["teacher"], task):
      raise UserError(
        f"{path}.live = True: a teacher that reads prompts answers beforehand; "
        "expected False"
      )
    if signal["keep"] == "top_k" and signal["k"] > task.num_classes:
      raise UserError(
        f"{path}.k = {signal['k']}: expected at most the task's "
        f"{task.num_classes} classes"
      )
    if task.tokens:
      _reads_tokens(f"arms.{name}.student", arm["student"])
      _tokens(path, settings, signal, task.tokens)
  _evaluation(settings, task, asks)
  if sets := settings["evaluate"]["outside"]:
    outside.check_task(sets, task)
  _batches(settings, [] if asks else groups, task)
  if answers.writes(settings):
    completions.check(settings, task)
  elif asks:
    black_box.check(task)  # what there is to draw from isn't known yet
  else:
    starts = transfer_sets.first_rows(settings, task, fraction)
    for group in (*groups, *untrained.recovering(settings)):
      start = starts[group.signal["pool"]]
      transfer_sets.draw(group.signal, task, replicate.draws, start)
    transfer_sets.check_stores(groups, task, starts)
  # What is read whole later is read now, so that no training is lost to it.
  # A black box's answers bring train and validation splits of their own.
  splits = [task.test]
  if not model.has_answers(settings["teacher"]):
    splits += [task.validation, *((task.train,) if task.resident else ())]
  times, of_each = replicates.splits(settings), ""
  lower = ["task.text_features", "task.image_size", "the slices"]
  if times > 1:
    of_each = f", {times} times"
    lower.append("replicates.count")
  memory(
    sum(map(len, splits)) * task.train.form.bytes * times,
    f"what is read of the task's inputs ({len(splits)} splits{of_each})",
    lower,
  )
  for split in splits:
    split.arrays()


def _reads_tokens(path: str, kind: Mapping[str, Any]) -> None:
  """Raises UserError for a model that answers once an example."""
  if not issubclass(models.MODELS[kind["name"]], models.Decoder):
    raise UserError(
      f"{path}.name = {kind['name']!r}: reads no tokens, which the task has "
      "since task.tokens.length > 0; expected 'decoder'"
    )


def _tokens(
  path: str,
  settings: Mapping[str, Any],
  signal: Mapping[str, Any],
  tokens: "Tokens",
) -> None:
  """Checks an arm's signal on a task of tokens."""
  if signal["filter"] and not answers.writes(settings):
    raise UserError(
      f"{path}.filter = {signal['filter']!r}: filters look at examples with "
      "one answer each, or at completions; expected '', or teacher.black_box = "
      "True"
    )
  of_all = checkpoints.is_checkpoint(settings["teacher"]["path"])
  if signal["live"] and of_all and tokens.subset:
    raise UserError(
      f"{path}.live = True: the teacher knows {tokens.tokenizer.vocab_size} "
      f"ids, students the {len(tokens.subset)} of task.tokens.coverage = "
      f"{tokens.coverage}; expected None, or a stored signal"
    )


def _evaluation(settings: Mapping[str, Any], task: "Task", asks: bool) -> None:
  """Checks the keys that need the number of classes or of devices."""
  from kd.evaluate import registry

  options = settings["evaluate"]
  shift = options["shift_classes"]
  written = _generation(options["generate"], task)
  accepted = registry.names(task.num_classes, bool(shift), asks, written)
  if options["metric"] not in accepted:
    raise UserError(
      f"evaluate.metric = {options['metric']!r}: expected one of "
      f"{brief(accepted, 40)}"
    )
  for key, classes in {
    "evaluate.shift_classes": shift,
    "signal.omit_classes": settings["signal"]["omit_classes"],
    "signal.only_classes": settings["signal"]["only_classes"],
  }.items():
    if classes and task.positions > 1:
      raise UserError(
        f"{key} = {list(classes)}: expected (), since the examples of a task "
        "of tokens are of no class"
      )
    if any(c >= task.num_classes for c in classes):
      raise UserError(
        f"{key} = {list(classes)}: expected classes below {task.num_classes}"
      )
  devices = settings["mesh"]["seeds"]
  if devices > jax.device_count() or settings["seeds"] % devices:
    raise UserError(
      f"mesh.seeds = {devices}: expected a divisor of seeds = "
      f"{settings['seeds']} up to the {jax.device_count()} devices here"
    )


def _generation(options: Mapping[str, Any], task: "Task") -> tuple[str, ...]:
  """Checks what is said of evaluation by generation; returns its metrics."""
  from kd.data import documents
  from kd.evaluate import registry, text

  known = [name for name, m in registry.METRICS.items() if m.text]
  for name in options["metrics"]:
    if name not in known:
      raise UserError(
        f"evaluate.generate.metrics: {name!r}, expected some of "
        f"{', '.join(known)}"
      )
  if not options["prompts"]:
    return ()
  if task.tokens is None or not task.tokens.records["test"]:
    raise UserError(
      f"evaluate.generate.prompts = {options['prompts']}: expected 0, since "
      "the test split has no prompts"
    )
  if options["schema"]:
    try:
      text.json_valid([], files.read_json(options["schema"], "JSON Schema"))
    except ValueError as error:
      raise UserError(
        f"evaluate.generate.schema = {options['schema']!r}: {error}"
      ) from error
  if "field_accuracy" in options["metrics"]:
    for record in task.tokens.records["test"][: options["prompts"]]:
      truth = documents.completion_of(record) or ""
      try:
        text.field_accuracy([truth], [truth])
      except ValueError as error:
        raise UserError(
          "evaluate.generate.metrics: 'field_accuracy' compares JSON, and the "
          f"completion of {record.where} is none ({error})"
        ) from error
  return tuple(options["metrics"])


def _batches(
  settings: Mapping[str, Any], groups: Sequence[arms.Group], task: "Task"
) -> None:
  """Checks that the batches of an interval can lie in memory."""
  from kd.study import transfer_sets
  from kd.train import batches

  most = 2**20 * settings["task"]["resident_mib"]
  signal = transfer_sets.streamed_bytes(groups, task, most)
  trained = {"train": (settings["train"], settings["seeds"], signal)}
  if not settings["teacher"]["path"] and not settings["teacher"]["pretrained"]:
    trained["teacher.train"] = (settings["teacher"]["train"], 1, 0)
  for path, (train, seeds, streamed) in trained.items():
    memory(
      batches.interval_bytes(train, seeds, task, streamed),
      f"{path}.log_every = {train['log_every']} batches of {path}.batch_size "
      f"= {train['batch_size']} for each seed",
      (f"{path}.batch_size", f"{path}.log_every"),
    )


def with_the_teacher(
  settings: Mapping[str, Any], teacher: "Teacher | None"
) -> list[str]:
  """Checks what only the teacher itself can say.

  Returns:
    Sentences of what lessens the worth of the results; the report shows them
    with its verdict.
  """
  if teacher is None or not teacher.of_another_split:
    return []
  path = settings["teacher"]["path"]
  if any(a["signal"]["pool"] == "rest" for a in settings["arms"].values()):
    raise UserError(
      f"signal.pool = 'rest': the teacher of {path!r} learned from another "
      "task or split, so that nobody knows what it hasn't seen; expected "
      "'train', or a teacher of this split"
    )
  return [
    f"The teacher of {path} learned from another task or split: it may have "
    "seen examples that this study tests on."
  ]


def memory(bytes_needed: int, what: str, lower: Sequence[str]) -> None:
  """Raises UserError where a device has less memory than is needed.

  Args:
    bytes_needed: on one device.
    what: that needs them.
    lower: the keys to lower.
  """
  device = jax.local_devices()[0]
  there = (device.memory_stats() or {}).get("bytes_limit")
  if device.platform == "cpu":
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  if there and bytes_needed > there:
    raise UserError(
      f"{what} takes {bytes_needed / 2**30:,.1f} GiB, the {device.platform} "
      f"has {there / 2**30:,.1f}: lower {' or '.join(lower)}"
    )
