"""A black-box teacher: its answers, as a study's task and signal.

All that is known of it is a file of prompts with sampled answers
(kd.teachers.answers), kept by kd.teachers.ingest. The prompts are the students'
inputs and the task's class names the closed set of answers. A prompt that is an
example of the test split teaches nobody: its answers measure the teacher and
the students' agreement with it. One of the validation split is labelled by the
teacher's commonest answer, so that true labels serve the test alone; where the
file has none, a tenth of the prompts is held out.

    BlackBox -> filters -> closed set -> Signal without logits
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import msgspec
import numpy as np

from kd import files, signals
from kd.data.memory import InMemory
from kd.data.task import PARTS, Task, is_resident
from kd.errors import UserError, brief
from kd.signals import Labels, Samples, Signal
from kd.teachers import answers, funnel, ingest, targets
from kd.teachers.answers import Answers, Sample
from kd.teachers.model import Teacher, first_unseen

HELD_OUT = 10  # one prompt of so many, where validation has no answers


@dataclasses.dataclass(frozen=True)
class BlackBox:
  """What a study knows of its teacher.

  Attributes:
    task: the study's, whose train split is the prompts that teach, and whose
      validation split has the teacher's labels.
    asked: the answers to the train split's prompts, in its order.
    test: int [N of test], the teacher's commonest answer, -1 where not asked.
    evaluation: the texts of the test split, for the filter `leakage`.
    classes: {normalised answer: class}.
    fingerprint: a hash of all answers.
  """

  task: Task
  asked: Sequence[Answers]
  test: np.ndarray
  evaluation: Sequence[str]
  classes: Mapping[str, int]
  fingerprint: str


def obtain(
  settings: Mapping[str, Any],
  task: Task,
  folder: str,
  teacher: Teacher | None,
) -> BlackBox:
  """Reads what the teacher answered, or asks the one that was trained.

  Args:
    settings: the resolved config.
    task: of texts.
    folder: the workdir; a trained teacher's answers go to teacher/, and all
      answers, as a store, to signals/.
    teacher: the trained one; None where `teacher.path` has answers.

  Raises:
    UserError: as kd.teachers.ingest and `load`.
  """
  section, path = settings["teacher"], settings["teacher"]["path"]
  if teacher is not None:
    path = os.path.join(folder, "teacher", "answers.jsonl")
    if not os.path.exists(path):
      spoken = _spoken(settings, task, teacher)
      lines = (msgspec.json.encode(a).decode() + "\n" for a in spoken)
      files.write_text(path, "".join(lines))
  store = path
  if not answers.is_store(path):
    store = os.path.join(folder, "signals", "answers")
    if not os.path.exists(store):
      ingest.ingest([path], store, section["max_bad"])
    ingest.check_source(store, path)
  box = load(store, task, section["extract"])
  splits = {name: getattr(box.task, name) for name in PARTS}
  fits = is_resident(settings["task"], task.train.form, splits)
  return dataclasses.replace(
    box, task=dataclasses.replace(box.task, resident=fits)
  )


def _spoken(settings, task: Task, teacher: Teacher) -> Iterator[Answers]:
  """Asks a model about a task's texts: its sampled classes, as an API would
  say them, without probabilities."""
  signal, batch = settings["signal"], settings["evaluate"]["batch_size"]
  unseen = first_unseen(teacher.fraction, task)
  for name in PARTS:
    split = getattr(task, name)
    start = unseen if name == "train" and signal["pool"] == "rest" else 0
    made = signals.make(
      teacher.ask(split, np.arange(start, len(split)), task, batch),
      None,
      samples=signal["samples"],
      temperature=signal["temperature"],
      seed=signal["seed"] + PARTS.index(name),
    )
    texts, ids = split.texts()[start:], np.asarray(made.samples.ids).tolist()
    for i, (text, row) in enumerate(zip(texts, ids, strict=True)):
      said = [Sample(task.class_names[c]) for c in row]
      yield Answers(f"{name}-{i}", text, said)


def load(folder: str, task: Task, extract: str = "") -> BlackBox:
  """Reads a store of answers as the teacher of a task.

  Args:
    folder: of kd.teachers.ingest.
    task: of texts; its class names are the answers that count.
    extract: a regular expression whose first group, or all of it where that
      takes no part, is the answer in a longer text; "" takes the text.

  Raises:
    UserError: the task has no texts, its class names are alike, the store is
      damaged, or no prompt has an answer that is a class.
  """
  check(task)
  classes = {targets.normal(n): i for i, n in enumerate(task.class_names)}
  if len(classes) < task.num_classes:
    raise UserError(
      f"task.name = {task.name!r}: {task.num_classes} class names, of which "
      f"{len(classes)} differ in more than case, spaces and punctuation"
    )
  texts = {k: getattr(task, k).texts() for k in ("test", "validation")}
  places = {k: _positions(of) for k, of in texts.items()}
  asked: list[Answers] = []
  votes = {k: np.full(len(of), -1, np.int32) for k, of in texts.items()}
  for example in ingest.read(folder):
    example = extracted(example, extract)
    held = [k for k in places if example.key in places[k]]
    for part in held:
      votes[part][places[part][example.key]] = _vote(example, classes)
    if not held:
      asked.append(example)
  if np.any(votes["validation"] >= 0):
    held = zip(texts["validation"], votes["validation"], strict=True)
  else:
    held = [(a.prompt, _vote(a, classes)) for a in asked if _is_held_out(a)]
    asked = [a for a in asked if not _is_held_out(a)]
  held = [(text, c) for text, c in held if c >= 0]
  labels = np.array([_vote(a, classes) for a in asked], np.int32)
  known = {"train on": np.sum(labels >= 0), "hold out": len(held)}
  for use, count in known.items():
    if not count:
      raise UserError(
        f"teacher.path: of {len(asked)} prompts to train on and those held "
        f"out, none to {use} is answered by one of the task's classes "
        f"({brief(task.class_names, 5)}); see teacher.extract"
      )
  form = task.train.form
  task = dataclasses.replace(
    task,
    train=InMemory([a.prompt for a in asked], labels, form, "the prompts"),
    validation=InMemory(*map(list, zip(*held, strict=True)), form, "held out"),
  )
  return BlackBox(
    task=task,
    asked=asked,
    test=votes["test"],
    evaluation=texts["test"],
    classes=classes,
    fingerprint=ingest.fingerprint(folder),
  )


def check(task: Task) -> None:
  """Raises UserError unless a task's inputs are texts."""
  if not task.train.form.text:
    raise UserError(
      f"task.name = {task.name!r}: its inputs are no texts, of which a black "
      "box is asked; expected a task of texts, or teacher.black_box = False"
    )


def signal(
  box: BlackBox, chain: Sequence[Mapping[str, Any]], section: Mapping[str, Any]
) -> tuple[Signal, np.ndarray, list[dict[str, Any]]]:
  """Filters the answers and makes them a signal.

  Args:
    box: the teacher.
    chain: of filters, checked.
    section: the config's `signal`: samples (K; of more answers the first K are
      taken, so that all arms stand on equally many), rank_by, rubric, labelled.

  Returns:
    (signal of the N prompts, which of them are kept bool [N], funnel). The
    last of the funnel is the closed set: samples that are no class go.
  """
  k, n = section["samples"], len(box.asked)
  ids = np.full((n, k), -1, np.int32)
  numbers = np.full((2, n, k), np.nan, np.float32)
  truth, answer = np.full((2, n), -1, np.int32)
  rejected: list[list[int]] = [[] for _ in range(n)]
  row_of = {a.id: i for i, a in enumerate(box.asked)}
  asked = (msgspec.structs.replace(a, samples=a.samples[:k]) for a in box.asked)
  kept, counts = funnel.run(asked, chain, box.evaluation)
  closed = funnel.entry("closed set")

  def known(example: Answers) -> Answers | None:
    inside = [s for s in example.samples if _class(box, s.text) >= 0]
    return msgspec.structs.replace(example, samples=inside) if inside else None

  for example in kept:
    row = row_of[example.id]
    example = funnel.apply(known, example, closed)
    if example is None:
      continue
    m = len(example.samples)
    ids[row, :m] = [_class(box, s.text) for s in example.samples]
    numbers[0, row, :m] = targets.numbers(example, "logprob")
    by, weights = section["rank_by"], section["rubric"]
    numbers[1, row, :m] = targets.numbers(example, by, weights)
    answer[row] = _vote(example, box.classes)
    if section["labelled"] and example.reference is not None:
      truth[row] = _class(box, example.reference)
    bad = (_class(box, text) for text in example.rejected)
    rejected[row] = list(dict.fromkeys(c for c in bad if c >= 0))
  width = max(map(len, rejected), default=0)
  worse = [row + [-1] * (width - len(row)) for row in rejected]
  made = Signal(
    truth=Labels(jnp.asarray(truth)),
    answer=Labels(jnp.asarray(answer)),
    dense=None,
    samples=Samples(*map(jnp.asarray, (ids, *numbers))),
    rejected=jnp.asarray(np.array(worse, np.int32).reshape(n, width)),
  )
  return made, answer >= 0, [*counts, closed]


def extracted(example: Answers, extract: str) -> Answers:
  """Returns an example whose texts are the answers found in them."""
  if not extract:
    return example
  pattern = re.compile(extract, re.DOTALL)

  def inner(text: str) -> str:
    match = pattern.search(text)
    if match is None:
      return text
    group = match[1] if pattern.groups else None
    return match[0] if group is None else group

  return msgspec.structs.replace(
    example,
    samples=[
      msgspec.structs.replace(s, text=inner(s.text)) for s in example.samples
    ],
    rejected=[inner(text) for text in example.rejected],
  )


def _is_held_out(example: Answers) -> bool:
  return int(example.key, 16) % HELD_OUT == 0


def _positions(texts: Sequence[str]) -> dict[str, list[int]]:
  """Returns where each prompt is: a text may be there more than once."""
  found: dict[str, list[int]] = {}
  for i, text in enumerate(texts):
    found.setdefault(Answers("", text, []).key, []).append(i)
  return found


def _vote(example: Answers, classes: Mapping[str, int]) -> int:
  """Returns the commonest class of the samples, -1 where none is a class."""
  for text, _ in targets.frequencies(example):
    if text in classes:
      return classes[text]
  return -1


def _class(box: BlackBox, text: str) -> int:
  return box.classes.get(targets.normal(text), -1)
