"""What a black-box teacher is asked and answers: one prompt, many samples.

The schema of the JSONL that `kd.teachers.ingest` reads, one object a line:

    {"id": "q1", "prompt": "...",
     "samples": [{"text": "...", "score"?: 0.7, "logprob"?: -1.2,
                  "rationale"?: "...", "trace"?: ..., "rubric"?: {"tone": 3},
                 "truncated"?: true}],
     "rejected"?: ["..."], "reference"?: "..."}

Unknown fields are refused: a misspelt "logprobs" must not pass for none. A
rubric's criterion has one judge's number, or several judges' in a list.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from kd.errors import UserError
from kd.lines import Line, decode, lines

MOST_SAMPLES = 4096  # of one prompt; with more, something else was meant


class Prompt(msgspec.Struct, forbid_unknown_fields=True):
  """What is to be asked."""

  id: str
  prompt: str
  reference: str | None = None


class Sample(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
  """One answer that the teacher gave.

  Attributes:
    text: the answer.
    score: any number, more is better.
    logprob: natural log-probability of the text, at most 0.
    rationale: the reasons that came with it.
    trace: a plan or the tool calls that led to it, any JSON.
    rubric: by criterion, one judge's number or several judges'.
    truncated: whether the teacher was cut off before it had ended.
  """

  text: str
  score: float | None = None
  logprob: float | None = None
  rationale: str | None = None
  trace: Any = None
  rubric: dict[str, float | list[float]] = {}
  truncated: bool = False


class Answers(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
  """A prompt and what the teacher made of it.

  Attributes:
    id: unique among all that is ingested together.
    prompt: what was asked.
    samples: at least one.
    rejected: texts known to be worse than any sample.
    reference: a true answer, where somebody knows it.
  """

  id: str
  prompt: str
  samples: list[Sample]
  rejected: list[str] = []
  reference: str | None = None

  @property
  def key(self) -> str:
    """A stable hash of the prompt, whatever its id."""
    return hashlib.blake2b(self.prompt.encode(), digest_size=8).hexdigest()


def is_store(path: str) -> bool:
  """Whether a folder is a store of kd.teachers.ingest."""
  try:
    with open(os.path.join(path, "metadata.json"), encoding="utf-8") as f:
      metadata = json.load(f)
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(metadata, dict) and metadata.get("kind") == "answers"


def is_file(path: str) -> bool:
  """Whether a path names a file that kd.teachers.ingest reads, there or not."""
  plain = path.removesuffix(".gz").removesuffix(".zst")
  return plain.endswith((".jsonl", ".json")) or path.endswith(".parquet")


def is_answers(path: str) -> bool:
  """Whether a path names answers: a file, there or not, or a store."""
  return is_file(path) or is_store(path)


def writes(settings: Mapping[str, Any]) -> bool:
  """Whether a study's teacher leaves completions that it wrote."""
  tokens = settings["task"]["tokens"]["length"] > 0
  return tokens and is_black_box(settings["teacher"])


def is_black_box(teacher: Mapping[str, Any]) -> bool:
  """Whether a teacher section means one that leaves sampled answers alone."""
  return teacher["black_box"] or is_answers(teacher["path"])


def of_line(line: Line) -> Answers:
  """Reads a line of a file.

  Raises:
    ValueError: in a few words, what is wrong with it.
  """
  return checked(decode(line, Answers))


def check_asked(id_: str, prompt: str) -> None:
  """Raises ValueError for what nobody should be asked."""
  for name, text in (("id", id_), ("prompt", prompt)):
    if not text.strip():
      raise ValueError(f'schema: "{name}" is empty')


def checked(answers: Answers) -> Answers:
  """Raises ValueError for what the types do not say."""
  check_asked(answers.id, answers.prompt)
  if not 1 <= len(answers.samples) <= MOST_SAMPLES:
    raise ValueError(
      f'schema: {len(answers.samples)} "samples", expected 1 to {MOST_SAMPLES}'
    )
  for path, number in _numbers(answers):
    if not math.isfinite(number):
      raise ValueError(f"schema: {path} = {number} is not finite")
    if path.endswith(".logprob") and number > 0:
      raise ValueError(f"schema: {path} = {number}, expected at most 0")
  return answers


def _numbers(answers: Answers) -> Iterator[tuple[str, float]]:
  for i, sample in enumerate(answers.samples):
    path = f"$.samples[{i}]"
    if sample.score is not None:
      yield f"{path}.score", sample.score
    if sample.logprob is not None:
      yield f"{path}.logprob", sample.logprob
    for criterion, judged in sample.rubric.items():
      judges = judged if isinstance(judged, list) else [judged]
      for number in judges:
        yield f"{path}.rubric[{criterion!r}]", number


def read_prompts(path: str) -> list[Prompt]:
  """Reads the prompts, of which no two have one id.

  Raises:
    UserError: naming the file and the line that is none.
  """
  prompts: dict[str, Prompt] = {}
  for line in lines(path):
    try:
      prompt = decode(line, Prompt)
      check_asked(prompt.id, prompt.prompt)
      if prompt.id in prompts:
        raise ValueError(f"id {prompt.id!r} again")
    except ValueError as error:
      raise UserError(f"{path}, line {line.number}: {error}") from error
    prompts[prompt.id] = prompt
  if not prompts:
    raise UserError(f"{path}: no line, expected prompts")
  return list(prompts.values())
