"""A teacher that writes completions: its answers, as a task and a signal.

All that is known of it is a file of prompts with completions
(kd.teachers.answers), which a black box gave or one of our own language models
writes here; or says how likely each class's name is, where those are what may
follow (kd.teachers.prompted). Prompts of the validation and of the test split
teach nobody. A student reads a prompt with each of its C completions, a row
each:

    answers -> filters -> rows and a signal (kd.teachers.completion_rows)
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import msgspec
import numpy as np

from kd import files
from kd.config import made
from kd.data import documents
from kd.data.documents import Record
from kd.data.task import Task, Tokens, is_resident
from kd.errors import UserError
from kd.lines import lines
from kd.signals import calibrate
from kd.teachers import (
  answers,
  black_box,
  ingest,
  model,
  prompted,
  targets,
)
from kd.teachers import completion_rows as rows
from kd.teachers.answers import Answers, Sample
from kd.teachers.model import Teacher
from kd.teachers.writing import Writer

PART = 256  # prompts; what a kill can cost at most


def check(settings: Mapping[str, Any], task: Task) -> None:
  """Raises UserError where the task has no prompts, or arms ask a teacher of
  our own for what it is asked once."""
  view = rows.view_of(task)
  for part in ("validation", "test"):
    if not view.records[part]:
      raise UserError(
        f"task.{part} = {settings['task'][part]!r}: holds texts, and a teacher "
        "that writes completions needs prompts; expected records of prompt and "
        "completion, or messages"
      )
  if answers.is_answers(settings["teacher"]["path"]):
    return
  if not view.records["train"]:
    raise UserError(
      f"task.train = {settings['task']['train']!r}: holds texts; expected "
      "prompts, which the teacher completes"
    )
  scored = model.is_prompted(settings["teacher"], task)
  shared = "temperature", "seed", "calibrate", *(("pool",) if scored else ())
  for name, arm in made.trained(settings["arms"]).items():
    if arm["signal"]["calibrate"] != "none" and not scored:
      raise UserError(
        f"arms.{name}.signal.calibrate = {arm['signal']['calibrate']!r}: a "
        "teacher that writes leaves no logits of classes; expected 'none'"
      )
    for key in shared:
      if arm["signal"][key] != settings["signal"][key]:
        raise UserError(
          f"arms.{name}.signal.{key} = {arm['signal'][key]!r}: expected "
          f"signal.{key} = {settings['signal'][key]!r}, since the teacher "
          "writes its completions once"
        )
    if arm["signal"]["pool"] == "rest" and not scored:
      raise UserError(
        f"arms.{name}.signal.pool = 'rest': expected 'train', whose prompts a "
        "teacher that writes is asked"
      )


def obtain(
  settings: Mapping[str, Any],
  task: Task,
  folder: str,
  teacher: Teacher | None,
) -> rows.Completed:
  """Reads what the teacher wrote, or lets one of our own write.

  Args, raises: as kd.teachers.black_box.obtain, and UserError for a prompt that
  leaves no room in a row, or an empty completion, naming its file and line.
  """
  section, path = settings["teacher"], settings["teacher"]["path"]
  if teacher is not None:
    path = os.path.join(folder, "teacher", "answers.jsonl")
    if not os.path.exists(path):
      _write(settings, task, teacher, path)
  store = path
  if not answers.is_store(path):
    store = os.path.join(folder, "signals", "answers")
    if not os.path.exists(store):
      _check_lines(path, rows.view_of(task), task.positions)
      ingest.ingest([path], store, section["max_bad"])
    ingest.check_source(store, path)
  box = load(store, task, settings)
  if teacher is not None and os.path.exists(_biases(path)):
    biases = files.read_json(_biases(path), "a teacher's biases")
    box = dataclasses.replace(box, biases=np.array(biases, np.float32))
  return box


def _write(
  settings: Mapping[str, Any], task: Task, teacher: Teacher, path: str
) -> None:
  """Lets a model complete the train split's prompts; those that follow its own
  examples, where pools are the rest."""
  view, signal = rows.view_of(task), settings["signal"]
  records, first = view.records["train"], 0
  if signal["pool"] == "rest":
    first = prompted.may_show(settings["teacher"], task)
  prompts = documents.encode_prompts(records, view.tokenizer, view.template)
  for record, prompt in zip(records, prompts, strict=True):
    rows.check_prompt(record.where, len(prompt), task.positions)
  asked = range(first, len(records))
  said = (
    _written(settings, task, teacher, prompts, asked, path)
    if teacher.reader is None
    else _chosen(settings, task, teacher.reader, asked, path)
  )
  made = (
    Answers(
      f"train-{i}",
      documents.prompt_of(records[i], view.template),
      [sample for sample in each if sample.text.strip()],
      reference=documents.completion_of(records[i]),
    )
    for i, each in zip(asked, said, strict=True)
  )
  lines_ = [msgspec.json.encode(a).decode() + "\n" for a in made if a.samples]
  if not lines_:
    raise UserError(
      "teacher.black_box = True: all that the teacher wrote is empty; expected "
      "a teacher that completes prompts"
    )
  files.write_text(path, "".join(lines_))


def _most(settings: Mapping[str, Any]) -> int:
  """Returns how many completions of a prompt some arm reads."""
  every = made.trained(settings["arms"]).values()
  return max(1, *(arm["signal"]["samples"] for arm in every))


def _in_parts(
  path: str, asked: range, form: Any, make: Callable[[range], list[Any]]
) -> list[Any]:
  """Makes a list with something for each row; what is made of a part of them is
  kept as JSON of that `form`, so that a kill costs no more than one."""
  folder, found = f"{path}.parts", []
  os.makedirs(folder, exist_ok=True)
  for start in asked[::PART]:
    part = os.path.join(folder, f"{start:09d}.json")
    if not os.path.exists(part):
      made = make(range(start, min(start + PART, asked.stop)))
      files.write_text(part, msgspec.json.encode(made).decode())
    with open(part, "rb") as f:
      found += msgspec.json.decode(f.read(), type=form)
  return found


def _chosen(
  settings: Mapping[str, Any],
  task: Task,
  reader: prompted.Reader,
  asked: range,
  path: str,
) -> list[list[Sample]]:
  """Returns completions by a teacher that says how likely each class is."""
  signal = settings["signal"]

  def score(own):
    return reader.logits(prompted.texts(task, "train", own), len(own)).tolist()

  logits = np.array(
    _in_parts(path, asked, list[list[float]], score), np.float32
  )
  if signal["calibrate"] != "none":
    biases = calibrate.biases(logits).astype(np.float32)
    logits += biases
    files.write_json(_biases(path), biases.tolist())
  return prompted.completions(
    logits,
    task,
    asked,
    samples=_most(settings),
    temperature=signal["temperature"],
    seed=signal["seed"],
  )


def _biases(path: str) -> str:
  """Returns the file of what was added to a prompted teacher's logits."""
  return os.path.join(os.path.dirname(path), "biases.json")


def _written(
  settings: Mapping[str, Any],
  task: Task,
  teacher: Teacher,
  prompts: Sequence[np.ndarray],
  asked: range,
  path: str,
) -> list[list[Sample]]:
  """Returns completions that a teacher writes."""
  signal, samples = settings["signal"], _most(settings)
  batch = settings["evaluate"]["batch_size"] // samples
  writer = Writer(teacher.model, teacher.weights, task)
  key = jax.random.key(signal["seed"])

  def say(own):
    written = writer.write(
      [prompts[i] for i in own],
      length=max(map(len, prompts)),
      batch=max(1, min(batch, PART, len(prompts))),
      samples=samples,
      temperature=signal["temperature"],
      keys=jax.vmap(lambda i: jax.random.fold_in(key, i))(np.array(own)),
      **settings["teacher"]["generate"],
    )
    return [
      [Sample(w.text, logprob=w.logprob, truncated=w.truncated) for w in each]
      for each in written
    ]

  return _in_parts(path, asked, list[list[Sample]], say)


def _check_lines(path: str, view: Tokens, length: int) -> None:
  """Checks what only a line's texts say; others are kd.teachers.ingest's."""
  for line in lines(path):
    where = f"{path}, line {line.number}"
    try:
      example = answers.of_line(line)
    except ValueError:
      continue
    for i, sample in enumerate(example.samples):
      if not sample.text.strip():
        raise UserError(
          f"{where}: $.samples[{i}].text is an empty completion; expected text"
        )
    record = Record(prompt=example.prompt, completion="", where=where)
    (prompt,) = documents.encode_prompts(
      [record], view.tokenizer, view.template
    )
    rows.check_prompt(where, len(prompt), length)


def load(store: str, task: Task, settings: Mapping[str, Any]) -> rows.Completed:
  """Reads a store of answers as the teacher of a task.

  Raises:
    UserError: the store is damaged, or all of its prompts are of the validation
      or test split.
  """
  view, extract = rows.view_of(task), settings["teacher"]["extract"]
  named = {part: _by_key(own, view) for part, own in view.records.items()}
  wrote: dict[str, str] = {}
  asked = []
  for example in ingest.read(store):
    example = black_box.extracted(example, extract)
    if example.key in named["test"]:
      wrote[example.key] = _commonest(example)
    elif example.key not in named["validation"]:
      asked.append(example)
  if not asked:
    raise UserError(
      f"teacher.path = {store!r}: all prompts are of the validation or the "
      "test split; expected others, to train on"
    )
  texts = [documents.prompt_of(r, view.template) for r in view.records["test"]]
  keys = [Answers("", text, []).key for text in texts]
  box = rows.Completed(
    task=task,
    asked=asked,
    records=named["train"],
    test=[wrote.get(key) for key in keys],
    evaluation=texts,
    fingerprint=ingest.fingerprint(store),
    store=store,
  )
  train = rows.pool(box, (), settings["signal"] | {"labelled": False}, ()).split
  splits = {"train": train, "validation": task.validation, "test": task.test}
  fits = is_resident(settings["task"], train.form, splits)
  task = dataclasses.replace(task, train=train, resident=fits)
  return dataclasses.replace(box, task=task)


def _by_key(records: Sequence[Record], view: Tokens) -> dict[str, Record]:
  texts = [documents.prompt_of(r, view.template) for r in records]
  return {
    Answers("", text, []).key: r for text, r in zip(texts, records, strict=True)
  }


def _commonest(example: Answers) -> str:
  """Returns the first of the samples that are alike most often."""
  best = targets.frequencies(example)[0][0]
  return next(s.text for s in example.samples if targets.normal(s.text) == best)
