"""The table of metrics: what a study is judged by, and how each is said.

To add a metric, write its function (in kd.metrics) and give it an entry in
METRICS. Studies then compute it, test it and accept it as `evaluate.metric`,
and reports show it, in the order of the table. Imports no jax: an entry is
handed kd.metrics when it is computed.

A metric's name in results.json may say more than its entry's: `recall_3` is
the recall of class 3; `nll_best` is of the weights that did best on
validation, `nll_shifted` of shifted biases, `validation_nll` is of the
validation split; what ends in `_seconds` is a time.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd.errors import UserError

RECALLS_UP_TO = 100  # classes; with more, a value for each is left out


class Position(NamedTuple):
  """What a metric of one label is computed from: an example's, or a token's."""

  logits: Any  # [V], the student's
  probs: Any  # [V], their softmax
  label: Any
  teacher: Any  # logits [V], or top-k; or an answer, -1 for none; or None


class Run(NamedTuple):
  """What is known of a run: a value for each of N labels, NaN where none is."""

  each: Mapping[str, np.ndarray]  # a metric's values [N], and `confidence`
  labels: np.ndarray
  bins: int  # of a calibration error
  num_classes: int


class Words(NamedTuple):
  """What is known of N prompts and of what a run wrote after them."""

  written: Sequence[str]
  truth: Sequence[str]
  teacher: Sequence[str | None]  # None where it wrote nothing
  schema: Mapping[str, Any] | None  # of JSON


class Unit(NamedTuple):
  """How a number is written: times `scale`, with `name` behind it."""

  name: str
  scale: int = 1
  of_differences: str = ""
  digits: int = 4  # where no spread over seeds suggests how many


PERCENT = Unit("%", 100, "points", 2)
NATS = Unit("nats", 1, "nats")
PLAIN = Unit("")


@dataclasses.dataclass(frozen=True)
class Metric:
  """An entry.

  Attributes:
    words: its name in a report.
    unit: of its values.
    better: +1 where higher is better, -1 where lower is, 0 where neither.
    each: (kd.metrics, Position) -> the value of one label, of which the metric
      is the mean; NaN where it cannot be told.
    value: (kd.metrics, Run) -> what is no such mean: a scalar, or one for each
      class. What has neither is not computed from a run's logits.
    reads: what must be there beside labels: "" (nothing), "teacher" (its
      logits or its answers) or "logits" (of the teacher; not of a black box).
    shown: "first" in the figure of differences and the results' table, "table"
      in the latter alone, "rest" among the other metrics.
    per_class: whether there is a value for each class.
    text: (kd.evaluate.text, Words) -> the values of N test prompts, of what was
      written after them.
    over_examples: "counts" for a share of the examples (of its class, or of
      those that the teacher answered), of which one is worth 1 / their number;
      "mean" for another mean over them; "" for what is none.
  """

  words: str
  unit: Unit = PLAIN
  better: int = 0
  each: Callable[[Any, Position], Any] | None = None
  value: Callable[[Any, Run], Any] | None = None
  reads: str = ""
  shown: str = "rest"
  per_class: bool = False
  text: Callable[[Any, Words], np.ndarray] | None = None
  over_examples: str = ""


def _share(right: np.ndarray) -> float:
  return float(np.mean(right)) if right.size else float("nan")


def _of_words(words: str, text: Callable[[Any, Words], Any]) -> Metric:
  """Returns the entry of a share of what is written, a mean over prompts."""
  return Metric(
    words, PERCENT, +1, text=text, shown="table", over_examples="mean"
  )


METRICS: dict[str, Metric] = {
  "accuracy": Metric(
    "accuracy",
    PERCENT,
    +1,
    lambda metrics, at: metrics.accuracy(at.logits, at.label),
    shown="first",
    over_examples="counts",
  ),
  "recall": Metric(
    "recall",
    PERCENT,
    +1,
    value=lambda metrics, run: [
      _share(run.each["accuracy"][run.labels == c])
      for c in range(run.num_classes)
    ],
    per_class=True,
    over_examples="counts",
  ),
  "agreement": Metric(
    "agreement",
    PERCENT,
    +1,
    lambda metrics, at: metrics.agreement(at.logits, at.teacher),
    reads="teacher",
    shown="table",
    over_examples="counts",
  ),
  "nll": Metric(
    "NLL",
    NATS,
    -1,
    lambda metrics, at: metrics.nll_from_logits(at.logits, at.label),
    shown="first",
    over_examples="mean",
  ),
  "ece": Metric(
    "ECE",
    PLAIN,
    -1,
    value=lambda metrics, run: metrics.calibration_error(
      run.each["confidence"], run.each["accuracy"], run.bins
    ),
    shown="first",
  ),
  "ece_equal_mass": Metric(
    "ECE, bins of equal mass",
    PLAIN,
    -1,
    value=lambda metrics, run: metrics.calibration_error(
      run.each["confidence"], run.each["accuracy"], run.bins, equal_mass=True
    ),
  ),
  "kl_to_teacher": Metric(
    "KL to teacher",
    NATS,
    -1,
    lambda metrics, at: metrics.kl_to_teacher(at.logits, at.teacher),
    reads="logits",
    shown="table",
    over_examples="mean",
  ),
  "brier": Metric(
    "Brier",
    PLAIN,
    -1,
    lambda metrics, at: metrics.brier(at.probs, at.label),
    over_examples="mean",
  ),
  "aurc": Metric(
    "AURC",
    PLAIN,
    -1,
    value=lambda metrics, run: metrics.aurc(
      run.each["confidence"], run.each["accuracy"]
    ),
  ),
  "wrong_confident": Metric(
    "wrong with confidence above 0.9",
    PERCENT,
    -1,
    lambda metrics, at: metrics.wrong_confident(at.probs, at.label),
    over_examples="counts",
  ),
  "exact_match": _of_words(
    "exact match", lambda text, of: text.exact_match(of.written, of.truth)
  ),
  "token_f1": _of_words(
    "token F1", lambda text, of: text.token_f1(of.written, of.truth)
  ),
  "rouge_l": _of_words(
    "ROUGE-L", lambda text, of: text.rouge_l(of.written, of.truth)
  ),
  "json_valid": _of_words(
    "valid JSON", lambda text, of: text.json_valid(of.written, of.schema)
  ),
  "field_accuracy": _of_words(
    "field accuracy", lambda text, of: text.field_accuracy(of.written, of.truth)
  ),
  "text_agreement": _of_words(
    "agreement of words",
    lambda text, of: text.agreement(of.written, of.teacher),
  ),
  # What a run's model asks of a device (kd.evaluate.meter).
  "bytes": Metric("bytes on disk", Unit("bytes", digits=0), -1),
  "parameters": Metric("parameters", Unit("", digits=0), -1),
  "peak_bytes": Metric("peak memory", Unit("bytes", digits=0), -1),
  "latency_seconds": Metric("one example", Unit("s", digits=6), -1),
  "throughput_seconds": Metric("each of many", Unit("s", digits=6), -1),
  # Not of a run's logits: choices made on validation, and what a black box
  # answered.
  "deferred": Metric("handed on", PERCENT, shown="table"),
  "bias_shift": Metric("bias shift", NATS),
  # Of what is outside of the task (kd.evaluate.outside).
  "mean_confidence": Metric("mean confidence", PERCENT),
  "auroc": Metric("AUROC, by confidence", PLAIN, +1),
  "fpr95": Metric("FPR at 95 % TPR, by confidence", PERCENT, -1),
  "auroc_energy": Metric("AUROC, by energy", PLAIN, +1),
  "fpr95_energy": Metric("FPR at 95 % TPR, by energy", PERCENT, -1),
  "accuracy_lost": Metric("accuracy lost outside", PERCENT, -1),
  "temperature": Metric("temperature"),
  "nll_tempered": Metric("NLL at that temperature", NATS, -1),
  "ece_tempered": Metric("ECE at that temperature", PLAIN, -1),
  "coverage": Metric("coverage", PERCENT, +1),
}

VARIANTS = {"_best": "best on validation", "_shifted": "biases shifted"}


def family(name: str) -> str:
  """Strips what does not change a metric's meaning.

  >>> family("recall_7_best"), family("validation_accuracy")
  ('recall', 'accuracy')
  """
  for suffix in VARIANTS:
    name = name.removesuffix(suffix)
  return re.sub(r"_\d+$", "", name.removeprefix("validation_"))


def class_of(name: str) -> int | None:
  """Returns the class that a metric is of, or None.

  >>> class_of("recall_7_shifted"), class_of("nll")
  (7, None)
  """
  for suffix in VARIANTS:
    name = name.removesuffix(suffix)
  match = re.search(r"_(\d+)$", name)
  return int(match[1]) if match else None


def lookup(name: str) -> Metric:
  """Returns the entry of a metric, and one made of its name for another."""
  name = family(name)
  if name in METRICS:
    return METRICS[name]
  words = name.replace("_", " ")
  return Metric(words, better=-1 if is_seconds(name) else 0)


def worths(
  names: Iterable[str],
  labels: Sequence[np.ndarray],
  answers: np.ndarray | None = None,
) -> dict[str, float]:
  """Returns what one test example is worth: metric -> its share of a run's.

  Args:
    names: metrics; what is no share of the test examples is left out.
    labels: of each test set that runs were scored on; the coarsest counts.
    answers: a black box's on the test set, -1 where it gave none.

  >>> worths(["accuracy", "recall_1_best", "nll"], [np.array([0, 1, 1, 1])])
  {'accuracy': 0.25, 'recall_1_best': 0.3333333333333333}
  """
  found = {}
  for name in names:
    metric, c = lookup(name), class_of(name)
    if metric.over_examples != "counts":
      continue
    if c is not None:
      counts = [int(np.sum(y == c)) for y in labels]
    elif metric.reads and answers is not None:
      counts = [int(np.sum(answers >= 0))]
    else:
      counts = [len(y) for y in labels]
    if least := min((n for n in counts if n), default=0):
      found[name] = 1 / least
  return found


def is_seconds(name: str) -> bool:
  """Tells times, which are never tested against each other."""
  return name.removesuffix("_best").endswith("_seconds")


def direction(name: str) -> int:
  """Returns +1 where higher is better, -1 where lower is.

  Raises:
    UserError: for a metric whose good direction is not known.

  >>> direction("accuracy_best"), direction("nll")
  (1, -1)
  """
  if better := lookup(name).better:
    return better
  known = ", ".join(sorted(k for k, m in METRICS.items() if m.better))
  raise UserError(f"metric {name!r}: no known good direction; have {known}")


def selection(metric: str) -> str:
  """Returns whose weights a metric scores: "best" on validation, or "last".

  >>> selection("accuracy"), selection("nll_best")
  ('last', 'best')
  """
  return "best" if metric.endswith("_best") else "last"


def names(
  num_classes: int,
  shift: bool,
  black_box: bool = False,
  written: Sequence[str] = (),
) -> list[str]:
  """Returns the metrics that a study has, of which one is primary.

  Args:
    num_classes: of the task.
    shift: whether biases of some classes are shifted.
    black_box: whether the teacher gives answers alone.
    written: metrics of what is written after the test prompts.
  """
  computed = {
    k: m
    for k, m in METRICS.items()
    if (m.each or m.value) and not (black_box and m.reads == "logits")
  }
  whole = [k for k, m in computed.items() if not m.per_class]
  classes = range(num_classes if num_classes <= RECALLS_UP_TO else 0)
  each = [
    f"{k}_{c}" for k, m in computed.items() if m.per_class for c in classes
  ]
  shifted = [f"{k}_shifted" for k in whole + each if shift]
  best = [f"{k}_best" for k in whole]
  return whole + each + best + shifted + [*written]
