"""A language model as a classifier: the words of classes after a prompt.

The prompt holds examples of the training split, as many of each class; what
they make of the model's memory is computed once. With x a text put into the
template and w_v the word of class v,

    z_v = log p(w_v | examples, x),

summed over the word's tokens, are the teacher's logits. They are nats, and say
how likely the model holds a word among all that may follow; their softmax is
the distribution over the classes.

    config.teacher.path = "smollm2"
    config.teacher.prompt = dict(
      shots=6, seed=0, template="Review: {text}\\nMood: {label}", words=())

Where prompts were made of the texts (`task.tokens.template`), such a teacher
leaves completions with their log-probabilities (`completions`).

Axes: N texts, V classes, L tokens of a text, C tokens of a word.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kd import files, models
from kd.data import tokenizers
from kd.data.task import Classified, Task
from kd.data.token_task import TEXT
from kd.data.tokenizers import Tokenizer
from kd.errors import UserError, brief
from kd.models import checkpoints
from kd.models.decoder import Cache, Decoder
from kd.signals import Dense
from kd.teachers.answers import Sample

BETWEEN = "\n\n"  # examples
LABEL = "{label}"
AT_ONCE = 16  # texts in a forward pass, of like length
STEP = 16  # tokens, to a multiple of which texts are filled up


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
  """What a text is put into.

  Attributes:
    tokenizer: of the model.
    before: the examples.
    template: around a text, up to the class's word.
    words: of each class, as tokens.
  """

  tokenizer: Tokenizer
  before: str
  template: str
  words: tuple[tuple[int, ...], ...]

  @property
  def prefix(self) -> list[int]:
    """What all prompts begin with, as tokens."""
    ids = self.tokenizer.encode([self.before])[0]
    return self.tokenizer.document(ids, ended=False).tolist()

  def prompts(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns what follows the prefix, as tokens of each text."""
    between = BETWEEN if self.before else ""
    whole = between + self.template
    return self.tokenizer.encode([whole.replace(TEXT, t) for t in texts])

  @property
  def facts(self) -> dict[str, Any]:
    """What a signal's metadata says of the prompt."""
    return {
      "tokenizer": self.tokenizer.fingerprint,
      "before": self.before,
      "template": self.template,
      "words": self.words,
    }


def make(section: Mapping[str, Any], task: Task) -> Prompt:
  """Makes the prompt that a config's teacher section asks for.

  Raises:
    UserError: naming the key.
  """
  own, path = section["prompt"], "teacher.prompt"
  if not (task.train.form.text or _classified(task)):
    raise UserError(
      f"teacher.path = {section['path']!r} is a language model, and the task "
      f"{task.name!r} has no texts; expected a task of texts"
    )
  template, names = own["template"], _names(task)
  words = own["words"] or names
  stem = template.removesuffix(LABEL)
  if template.count(TEXT) != 1 or stem == template or TEXT not in stem:
    raise UserError(
      f"{path}.template = {template!r}: expected {TEXT} once, and {LABEL} at "
      "the end"
    )
  if len(words) != len(names):
    raise UserError(
      f"{path}.words = {brief(words)}: expected a word for each of the "
      f"{len(names)} classes"
    )
  # A space before a word is a part of its first token.
  gap = stem[len(stem.rstrip()) :]
  tokenizer = tokenizers.load(checkpoints.folder(section["path"]))
  ids = tuple(
    tuple(i.tolist()) for i in tokenizer.encode([gap + w for w in words])
  )
  if not all(ids) or len(set(ids)) < len(ids):
    raise UserError(
      f"{path}.words = {brief(words)}: expected words that differ, none empty"
    )
  shown = [
    template.replace(LABEL, words[c]).replace(TEXT, text)
    for c, text in _examples(section, task)
  ]
  return Prompt(tokenizer, BETWEEN.join(shown), stem.rstrip(), ids)


def check(section: Mapping[str, Any], task: Task) -> None:
  """Checks that there is such a prompt, and room in the model for each text.

  Raises:
    UserError: naming the key, or the text.
  """
  prompt = make(section, task)
  path = os.path.join(checkpoints.folder(section["path"]), "config.json")
  most = files.read_json(path, "config").get("max_position_embeddings")
  room = (most or math.inf) - len(prompt.prefix) - max(map(len, prompt.words))
  for name in ("train", "test"):
    for row, text in enumerate(texts(task, name)):
      if 4 * len(prompt.template + text) <= room:  # in no case more tokens
        continue
      count = len(prompt.prompts([text])[0])
      if count > room:
        raise UserError(
          f"teacher.path = {section['path']!r} reads {most} tokens, and text "
          f"{row} of task.{name} has {count}, of {room} that teacher.prompt "
          "leaves; expected shorter texts, or fewer teacher.prompt.shots"
        )


def _examples(section: Mapping[str, Any], task: Task) -> list[tuple[int, str]]:
  """Draws (class, text) from the rows that the teacher may learn from: as many
  of each class, one after another; the first classes may have one more."""
  shots, path = section["prompt"]["shots"], "teacher.prompt"
  own, names = _classified(task), _names(task)
  count = may_show(section, task)
  labels = (own.labels["train"] if own else task.train.labels())[:count]
  order = np.random.default_rng(section["prompt"]["seed"]).permutation(count)
  of_class = [order[labels[order] == c] for c in range(len(names))]
  rows = []
  for i in range(shots):
    turn, c = divmod(i, len(names))
    if turn >= len(of_class[c]):
      raise UserError(
        f"{path}.shots = {shots}: {len(of_class[c])} of the first {count} "
        f"training examples are {names[c]!r}; expected fewer, or a larger "
        "teacher.fraction"
      )
    rows.append(of_class[c][turn])
  found = texts(task, "train", rows)
  return list(zip(labels[rows].tolist(), found, strict=True))


def may_show(section: Mapping[str, Any], task: Task) -> int:
  """Returns how many of the train split's first texts may be examples."""
  own = _classified(task)
  size = len(own.texts["train"]) if own else len(task.train)
  return max(1, round(section["fraction"] * size))


def texts(
  task: Task, part: str, rows: Sequence[int] | None = None
) -> list[str]:
  """Returns texts of one of a task's parts, as students read them; None is
  all."""
  own = _classified(task)
  if own is None:
    return getattr(task, part).texts(rows)
  found = own.texts[part]
  return list(found) if rows is None else [found[i] for i in rows]


def _classified(task: Task) -> Classified | None:
  return task.tokens.classified if task.tokens else None


def _names(task: Task) -> tuple[str, ...]:
  own = _classified(task)
  return own.names if own else task.class_names


class Reader:
  """A language model that reads prompts, and keeps what it read of the prefix.

  Attributes:
    prompt: what texts are put into.
  """

  def __init__(self, model: Decoder, prompt: Prompt):
    self.prompt, self._model = prompt, model
    length = max(map(len, prompt.words))
    self._words = np.zeros((len(prompt.words), length), np.int32)
    for row, word in zip(self._words, prompt.words, strict=True):
      row[: len(word)] = word
    self._lengths = np.array([len(word) for word in prompt.words])

  @functools.cached_property
  def _prefix(self) -> Cache | None:
    ids = self.prompt.prefix
    return models.read_prefix(self._model, np.array(ids)) if ids else None

  def logits(
    self, texts: Sequence[str], batch: int = AT_ONCE
  ) -> Float[np.ndarray, "N V"]:
    """Returns the log-probabilities of the classes' words.

    Texts of like length are read together. What a text gets depends on those of
    its `batch` alone.
    """
    found = [
      self._batch(texts[i : i + batch]) for i in range(0, len(texts), batch)
    ]
    return np.concatenate(found)

  def _batch(self, texts: Sequence[str]) -> np.ndarray:
    prompts = self.prompt.prompts(texts)
    lengths = np.array([len(ids) for ids in prompts])
    order = np.argsort(lengths, kind="stable")
    out = np.empty((len(texts), len(self._words)), np.float32)
    for i in range(0, len(order), AT_ONCE):
      rows = order[i : i + AT_ONCE]
      length = -(-lengths[rows[-1]] // STEP) * STEP
      ids = np.zeros((AT_ONCE, length), np.int32)
      for row, j in zip(ids, rows, strict=False):
        row[: lengths[j]] = prompts[j]
      counts = np.ones(AT_ONCE, np.int32)  # of rows that fill up
      counts[: len(rows)] = lengths[rows]
      scores = models.token_scores(
        self._model,
        ids,
        counts,
        self._words,
        self._lengths,
        prefix=self._prefix,
      )
      out[rows] = np.asarray(scores).sum(-1)[: len(rows)]
    return out


def completions(
  logits: Float[np.ndarray, "N V"],
  task: Task,
  rows: Sequence[int],
  *,
  samples: int,
  temperature: float,
  seed: int,
) -> list[list[Sample]]:
  """Returns completions of prompts of the train split that a reader scored.

  They are the classes' names, the likeliest first, and then draws from the
  distribution at `temperature`, for which a row decides alone. Their
  log-probability is of a class among all classes, at T = 1:

      log p_v = z_v - log sum_u exp z_u

  Args:
    logits: z, of `Reader.logits`.
    task: of which prompts were made of texts.
    rows: of the prompts.
    samples: how many completions of each.
    temperature: T.
    seed: of the draws.
  """
  own = _classified(task)
  assert own is not None
  made = []
  for row, z in zip(rows, logits.astype(np.float64), strict=True):
    lp = z - np.logaddexp.reduce(z)
    at_t = lp / temperature - np.logaddexp.reduce(lp / temperature)
    draws = np.random.default_rng([seed, row]).choice(
      len(lp), max(0, samples - len(lp)), p=np.exp(at_t)
    )
    chosen = [*np.argsort(-lp, kind="stable"), *draws][:samples]
    made.append(
      [
        Sample(own.completion(c), logprob=min(0.0, float(lp[c])))
        for c in chosen
      ]
    )
  return made


def likeliest(
  reader: Reader,
  task: Task,
  rows: Sequence[int],
  biases: Float[np.ndarray, "V"] | None = None,
) -> list[str]:
  """Returns the likeliest completions of prompts of the test split, where
  `biases` are added to the logits."""
  own = _classified(task)
  assert own is not None
  logits = reader.logits(texts(task, "test", rows), len(rows))
  if biases is not None:
    logits += biases
  return [own.completion(c) for c in logits.argmax(-1)]


@functools.lru_cache(maxsize=32)
def of_logits(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function of outputs as one of logits [N, V], compiled."""
  return jax.jit(
    lambda logits, *arrays: fn(Dense(jnp.asarray(logits)), *arrays)
  )
