"""A teacher's completions as rows that students read, and as a signal.

A prompt stands in a row of L tokens with each of its C completions: K samples,
rejected alternatives, rationales and the task's own, where arms read those.

    answers -> filters -> inputs [N, C, 2, L] and Signal.completions
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import msgspec
import numpy as np

from kd.data import documents, token_task, tokens
from kd.data.documents import Record
from kd.data.inputs import Form
from kd.data.task import Split, Task, Tokens
from kd.data.tokens import Document
from kd.errors import UserError
from kd.signals import Completions, Kind, Labels, Samples, Signal
from kd.teachers import funnel, targets
from kd.teachers.answers import Answers


@dataclasses.dataclass(frozen=True)
class Completed:
  """What a study knows of such a teacher.

  Attributes:
    task: the study's, whose train split is the prompts that teach.
    asked: the answers to them.
    records: the task's own of them, by `Answers.key`, where it has any.
    test: what the teacher wrote after each of the test split's prompts, the
      commonest first; None where it was not asked.
    evaluation: the texts of those prompts, for the filter `leakage`.
    fingerprint: a hash of all answers.
    store: the folder that they are in.
    biases: what was added to the logits of a teacher that says how likely each
      class is (`signal.calibrate`).
  """

  task: Task
  asked: Sequence[Answers]
  records: Mapping[str, Record]
  test: Sequence[str | None]
  evaluation: Sequence[str]
  fingerprint: str
  store: str
  biases: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Pool:
  """What a chain of filters leaves of the answers.

  Attributes:
    split: inputs [N, C, 2, L] of the N prompts; of those that were dropped,
      padding.
    signal: of the same.
    kept: bool [N].
    funnel: what each step kept.
    cut: the completions that a row had no room for.
    bought: tokens of each prompt and its completions that the teacher was
      asked for [N]; a dropped prompt's are shared out among those kept.
  """

  split: Split
  signal: Signal
  kept: np.ndarray
  funnel: list[dict[str, Any]]
  cut: int
  bought: np.ndarray


def pool(
  box: Completed,
  chain: Sequence[Mapping[str, Any]],
  section: Mapping[str, Any],
  reads: Sequence[str],
) -> Pool:
  """Filters the answers and makes them rows and a signal.

  Args:
    box: the teacher.
    chain: of filters, checked.
    section: an arm's `signal`: samples (K; of more completions the first K are
      taken), rank_by, rubric, labelled, rationale.
    reads: what its objectives read (kd.objectives.reads): rejected alternatives
      and rationales have rows only where they are read.

  Raises:
    UserError: an arm has no completion to learn from.
  """
  k, length = section["samples"], box.task.positions
  view = view_of(box.task)
  asked = [msgspec.structs.replace(a, samples=a.samples[:k]) for a in box.asked]
  bought = np.array([_tokens(box, a) for a in asked], np.float64)
  room = {
    "samples": k,
    "rejected": max(len(a.rejected) for a in asked)
    if "rejected" in reads
    else 0,
    "rationales": k if "rationales" in reads else 0,
    "truth": int(section["labelled"]),
  }
  count = sum(room.values())
  if not count:
    raise UserError(
      "signal.samples = 0: leaves no completion; expected at least 1, or "
      "signal.labelled = True"
    )
  kinds = np.full((len(asked), count), Kind.NONE, np.int32)
  numbers = np.full((2, len(asked), count), np.nan, np.float32)
  row_of = {a.id: i for i, a in enumerate(asked)}
  kept, steps = funnel.run(asked, chain if k else (), box.evaluation)
  records: list[tuple[int, int, Record, bool]] = []
  is_kept = np.zeros(len(asked), bool)
  for example in kept:
    row = row_of[example.id]
    is_kept[row] = True
    by = section["rank_by"], section["rubric"]
    numbers[0, row, : len(example.samples)] = targets.numbers(example, *by)
    numbers[1, row, : len(example.samples)] = targets.numbers(
      example, "logprob"
    )
    for place, kind, record, cut in _rows(box, example, room, section):
      kinds[row, place] = kind
      records.append((row, place, record, cut))
  split, signal, cut = _arrays(box, view, records, kinds, numbers, length)
  return Pool(
    split,
    signal,
    cut=cut,
    kept=is_kept,
    funnel=steps,
    bought=np.where(
      is_kept, bought * bought.sum() / max(bought[is_kept].sum(), 1), 0.0
    ),
  )


def _rows(
  box: Completed,
  example: Answers,
  room: Mapping[str, int],
  section: Mapping[str, Any],
) -> Iterator[tuple[int, Kind, Record, bool]]:
  """Yields an example's completions: (place, kind, record, whether it has no
  end)."""
  where = f"{box.store}: id {example.id!r}"
  record = box.records.get(example.key) or Record(prompt=example.prompt)
  record = msgspec.structs.replace(record, where=where)
  make, seen = documents.completed, set()
  for i, sample in enumerate(example.samples):
    kind = Kind.REPEAT if sample.text in seen else Kind.SAMPLE
    seen.add(sample.text)
    yield i, kind, make(record, sample.text), sample.truncated
    if room["rationales"] and sample.rationale:
      before = make(record, sample.rationale, section["rationale"])
      place = room["samples"] + room["rejected"] + i
      yield place, Kind.RATIONALE, before, False
  for i, text in enumerate(example.rejected[: room["rejected"]]):
    yield room["samples"] + i, Kind.REJECTED, make(record, text), False
  if room["truth"] and example.reference is not None:
    last = sum(room.values()) - 1
    yield last, Kind.TRUTH, make(record, example.reference), False


def _arrays(
  box: Completed,
  view: Tokens,
  records: Sequence[tuple[int, int, Record, bool]],
  kinds: np.ndarray,
  numbers: np.ndarray,
  length: int,
) -> tuple[Split, Signal, int]:
  """Makes rows of completions: the split, its signal, and how many were cut."""
  shape, inside = kinds.shape, box.task.input_shape
  inputs = np.zeros((*shape, *inside), np.int32)
  next_ids = np.full((*shape, length), -1, np.int32)
  found: list[Document] = []
  if records:
    at = tuple(np.array([r[:2] for r in records]).T)
    found = _documents(view, [r[2] for r in records], length)
    cut = [
      _cut(d, length, view, r[3]) for d, r in zip(found, records, strict=True)
    ]
    made = tokens.rows(cut, length, pad=view.tokenizer.pad, packed=False)
    x, labels = token_task.arrays_of(made, view)
    inputs[at], next_ids[at] = x, labels.reshape(-1, length)
  flat = next_ids.reshape(-1)
  each = np.repeat(kinds.reshape(-1), length)
  none = jnp.zeros((len(flat), 0))
  pick = lambda *which: jnp.asarray(np.where(np.isin(each, which), flat, -1))
  form = Form("tokens", "next", inputs.shape[1:], np.int32, None, np.stack)
  signal = Signal(
    truth=Labels(pick(Kind.TRUTH)),
    answer=Labels(pick(Kind.SAMPLE, Kind.REPEAT)),
    dense=None,
    samples=Samples(none.astype(jnp.int32), none),
    counts=jnp.asarray(flat >= 0),
    completions=Completions(
      tokens=jnp.asarray(flat),
      kinds=jnp.asarray(kinds),
      scores=jnp.asarray(numbers[0]),
      log_probs=jnp.asarray(numbers[1]),
      lengths=jnp.asarray((next_ids >= 0).sum(-1), jnp.int32),
    ),
  )
  split = token_task.TokenSplit(inputs, flat, form, "the completions")
  return split, signal, sum(bool(d.counts[length:].any()) for d in found)


def _documents(
  view: Tokens, records: Sequence[Record], length: int
) -> list[Document]:
  """Encodes records, of which the tokens behind the prompt count."""
  made = documents.encode(records, view.tokenizer, view.template)
  prompts = documents.encode_prompts(records, view.tokenizer, view.template)
  found = []
  for document, prompt in zip(made, prompts, strict=True):
    check_prompt(document.where, len(prompt), length)
    behind = np.arange(len(document.ids)) >= len(prompt)
    found.append(document._replace(counts=document.counts & behind))
  return found


def _cut(
  document: Document, length: int, view: Tokens, truncated: bool
) -> Document:
  """Cuts what is behind a completion; of one that was cut off before it had
  ended the stop token, and what a row has no room for."""
  inside = np.flatnonzero(document.counts)
  end = 1 + (inside[-1] if len(inside) else len(document.ids) - 1)
  if truncated and document.ids[end - 1] in view.tokenizer.stops:
    end -= 1
  end = min(end, length)
  return document._replace(ids=document.ids[:end], counts=document.counts[:end])


def _tokens(box: Completed, example: Answers) -> int:
  """Counts the tokens of a prompt, of its completions and their rationales."""
  if not example.samples:
    return 0
  view = view_of(box.task)
  record = box.records.get(example.key) or Record(prompt=example.prompt)
  (prompt,) = documents.encode_prompts([record], view.tokenizer, view.template)
  texts = [t for s in example.samples for t in (s.text, s.rationale) if t]
  ends = sum(not s.truncated for s in example.samples)
  return len(prompt) + ends + sum(map(len, view.tokenizer.encode(texts)))


def check_prompt(where: str, tokens_: int, length: int) -> None:
  if tokens_ >= length:
    raise UserError(
      f"{where}: a prompt of {tokens_} tokens; expected fewer than "
      f"task.tokens.length = {length}"
    )


def view_of(task: Task) -> Tokens:
  """Returns what a task of tokens knows."""
  assert task.tokens is not None
  return task.tokens
