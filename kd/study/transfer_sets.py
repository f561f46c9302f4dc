"""What the arms train on: pools that the teacher labelled, and draws of them.

A pool is a part of the train split with what the teacher left on it. Each is
labelled once, stored, and read by all arms that name it. Of its rows, those
that a filter keeps can be drawn; each seed's draw is a transfer set.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kd import signals
from kd.config import made
from kd.data.order import subset
from kd.data.task import SAMPLE, Task
from kd.errors import UserError
from kd.signals import calibrate, label, schema, store
from kd.study import budget, workdir
from kd.study.replicates import Replicate
from kd.teachers import black_box, completion_rows, funnel
from kd.teachers import model as teachers
from kd.train import arms
from kd.train.batches import Live, Transfer, transfer_of

# What draws an arm's rows from a pool, what is made of a pool's stored signal,
# and what is done with them in a step; the rest of an arm's `signal` section
# says what the teacher is asked.
DRAW = ("size", "omit_classes", "only_classes")
FILTER = ("filter", "calibrate", "rank_by", "rubric", "rationale")
STEP = ("jitter", "live")


@dataclasses.dataclass
class Pools:
  """The pools of a study.

  Attributes:
    of: the replicate that they are of.
    task: the study's; of a black box, the one that its answers make.
    teacher: who labels; None where only answers are known.
    box: the black box, if the teacher is one.
    funnels: {filter: what its steps kept}, filled by `transfers`.
    stored: {pool, whatever its filter: its signal}, likewise.
    bought: {arm: the teacher's tokens that it costs}, likewise, of a task of
      tokens.
    cut: the completions that a row had no room for, of a teacher that writes.
  """

  of: Replicate
  task: Task
  teacher: teachers.Teacher | None
  box: black_box.BlackBox | completion_rows.Completed | None
  funnels: dict[str, list[dict[str, Any]]] = dataclasses.field(
    default_factory=dict
  )
  stored: dict[str, signals.Signal | store.Streamed] = dataclasses.field(
    default_factory=dict
  )
  bought: dict[str, float] = dataclasses.field(default_factory=dict)
  cut: int = 0

  def transfers(self, groups: Sequence[arms.Group]) -> dict[str, Transfer]:
    """Labels each pool once, and gives each transfer set its rows of it."""
    os.makedirs(os.path.join(self.of.folder, "signals"), exist_ok=True)
    starts = {}
    if self.box is None:
      assert self.teacher is not None
      fraction = self.teacher.fraction
      starts = first_rows(self.of.settings, self.task, fraction)
    pools: dict[str, tuple[Any, np.ndarray | None]] = {}
    transfers: dict[str, Transfer] = {}
    for group in groups:
      section = group.signal
      if isinstance(self.box, completion_rows.Completed):
        if transfer_of(section) not in transfers:
          transfers |= self._completions(section, groups)
        continue
      pool = without(section, DRAW + STEP)
      pool["seed"] += self.of.shift
      key = transfer_of(pool | {"live": section["live"]})
      start = starts.get(section["pool"], 0)
      if key not in pools:
        pools[key] = self._pool(pool, start, section["live"])
      signal, kept = pools[key]
      transfers[transfer_of(section)] = Transfer(
        inputs=self.task.train,
        signal=signal,
        rows=draw(section, self.task, self.of.draws, start, kept),
        first=start,
        jitter=section["jitter"],
        live=self._live(section) if section["live"] else None,
        positions=self.task.positions,
      )
      if self.task.tokens is not None:
        rows = transfers[transfer_of(section)].rows
        train = self.of.settings["train"]
        self.bought |= budget.of_rows(group, self.task, rows, train)
    return transfers

  def _completions(
    self, section: Mapping[str, Any], groups: Sequence[arms.Group]
  ) -> dict[str, Transfer]:
    """Returns the transfer set of a teacher that writes, by its name."""
    assert isinstance(self.box, completion_rows.Completed)
    name = transfer_of(section)
    own = [g for g in groups if transfer_of(g.signal) == name]
    chain = self.of.settings["filters"].get(section["filter"], ())
    pool = completion_rows.pool(
      self.box, chain, section, [r for g in own for r in budget.reads(g)]
    )
    if pool.funnel:
      self.funnels[section["filter"]] = pool.funnel
    self.cut = max(self.cut, pool.cut)
    task = dataclasses.replace(self.task, train=pool.split)
    rows = draw(section, task, self.of.draws, 0, pool.kept)
    for group in own:
      self.bought |= budget.of_completions(group, pool.bought, rows)
    of = signals.present(pool.signal.completions, "completions")
    return {
      name: Transfer(
        pool.split,
        pool.signal,
        rows,
        positions=of.kinds.shape[1] * self.task.positions,
      )
    }

  def _live(self, section: Mapping[str, Any]) -> Live:
    assert self.teacher is not None  # kd.config refuses a live black box
    return Live(
      self.teacher.model,
      self.teacher.weights,
      samples=section["samples"],
      temperature=section["temperature"],
    )

  def _pool(
    self, pool: Mapping[str, Any], start: int, live: bool
  ) -> tuple[signals.Signal | store.Streamed, np.ndarray | None]:
    """Returns a pool's signal, and which rows its filter kept (None: all)."""
    chain = self.of.settings["filters"].get(pool["filter"], ())
    if isinstance(self.box, black_box.BlackBox):
      made, kept, counts = black_box.signal(self.box, chain, pool)
      self.funnels[pool["filter"] or "none"] = counts
      return made, kept
    if live:
      return self._truth(pool, start), None
    # What a filter keeps of a signal is no part of it.
    whole = without(pool, FILTER)
    name = transfer_of(whole)
    if name not in self.stored:
      self.stored[name] = self._stored(whole, start)
    made = self.stored[name]
    calibrated = pool["calibrate"] != "none"
    if not chain and not calibrated:
      return made, None
    if isinstance(made, store.Streamed):
      key = "filter" if chain else "calibrate"
      raise UserError(
        f"signal.{key} = {pool[key]!r}: reads a signal as a whole, which is "
        "larger than task.resident_mib; expected more of that, or no "
        f"signal.{key}"
      )
    if calibrated:
      made = self._calibrated(made, pool)
    if not chain:
      return made, None
    assert isinstance(made.dense, signals.Dense)  # kd.config sees to it
    probs = np.asarray(jax.nn.softmax(made.dense.logits))
    truth = np.asarray(made.truth.ids)
    kept, counts = funnel.keep(probs, truth, self.task.class_names, chain)
    name = pool["filter"] + (", calibrated" if calibrated else "")
    self.funnels[name] = counts
    return made, kept

  def _calibrated(
    self, made: signals.Signal, pool: Mapping[str, Any]
  ) -> signals.Signal:
    """Returns all that a teacher with another prior would have left."""
    assert isinstance(made.dense, signals.Dense)  # kd.config sees to it
    logits = np.asarray(made.dense.logits, np.float32)
    counted = logits if made.counts is None else logits[made.counts]
    return signals.make(
      logits + calibrate.biases(counted).astype(np.float32),
      made.truth.ids,
      seed=pool["seed"],
      samples=pool["samples"],
      temperature=pool["temperature"],
      counts=made.counts,
    )

  def _truth(self, pool: Mapping[str, Any], start: int) -> signals.Signal:
    """Returns what is known of a pool before a live teacher is asked."""
    each, split = self.task.positions, self.task.train
    labels, counts = split.labels()[start * each :], split.counts()
    return signals.of_labels(
      labels if pool["labelled"] else np.full_like(labels, -1),
      None if counts is None else counts[start * each :],
    )

  def _stored(
    self, pool: Mapping[str, Any], start: int
  ) -> signals.Signal | store.Streamed:
    """Returns a pool's signal, labelled now, or read."""
    split, teacher = self.task.train, self.teacher
    assert teacher is not None
    if self.task.resident:
      split.arrays()  # decoded once, for the teacher, the keys and training
    each = self.task.positions
    batch = label.whole_records(
      self.of.settings["evaluate"]["batch_size"], each
    )
    asked = label.Asked.of(pool)
    truth = split.labels()[start * each :]
    if not pool["labelled"]:
      truth = np.full_like(truth, -1)

    def ask(rows):
      numbers = signals.rows_of(rows, each)
      seeds = np.full(len(numbers), pool["seed"], np.uint32)
      own = [truth[numbers], numbers.astype(np.int32), seeds]
      return teacher.ask(split, start + rows, self.task, batch, asked, own)

    plan = label.Plan(
      section=pool,
      count=split.filled - start,
      num_classes=self.task.num_classes,
      inputs=lambda rows: split.read(start + rows),
      ask=ask,
      facts=_facts(self.task, start)
      | {
        "teacher": teacher.fingerprint,
        "teacher_model": {
          k: v for k, v in teacher.model.items() if k != "folder"
        },
      },
      batch=batch,
      positions=each,
    )
    folder = pool["path"] or os.path.join(
      self.of.folder, "signals", folder_name(plan.kept["signal"])
    )
    if not pool["path"]:
      label.label(folder, plan)
    counts = split.counts()
    if counts is not None:
      counts = counts[start * each : split.filled * each]
    made = store.read(
      folder,
      plan.kept,
      _keys(self.task, start),
      counts,
      most=2**20 * self.of.settings["task"]["resident_mib"],
    )
    # A program takes all replicates' signals, so their sizes are the same.
    empty = 0 if start else (len(split) - split.filled) * each
    if not empty or isinstance(made, store.Streamed):
      return made
    more = lambda x: [(0, empty), *[(0, 0)] * (x.ndim - 1)]
    return jax.tree.map(lambda x: np.pad(x, more(x)), made)


def folder_name(section: Mapping[str, Any]) -> str:
  """Names a pool's store: what one looks for, then a hash of all of it.

  >>> signal = dict(pool="train", labelled=True, keep="top_k", k=8)
  >>> folder_name(signal | dict(dtype="int8", samples=16, temperature=2.0))
  'train-labelled-top_8-int8-16_samples_at_T2-d55d7b5d'
  """
  labelled = ["labelled"] if section["labelled"] else []
  kept = f"top_{section['k']}" if section["keep"] == "top_k" else "dense"
  samples = f"{section['samples']}_samples_at_T{section['temperature']:g}"
  parts = [section["pool"], *labelled, kept, section["dtype"], samples]
  return "-".join([*parts, workdir.digest(section)])


def without(section: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
  """Returns a section less some of its keys."""
  return {k: v for k, v in section.items() if k not in keys}


def first_rows(
  settings: Mapping[str, Any], task: Task, fraction: float
) -> dict[str, int]:
  """Returns the first row of each kind of pool that some arm draws from, where
  the teacher learns from a fraction of the train split."""
  every = made.trained(settings["arms"]).values()
  kinds = {arm["signal"]["pool"] for arm in every}
  kinds.add(settings["signal"]["pool"])
  unseen = teachers.first_unseen(fraction, task)
  if "rest" in kinds and unseen >= task.train.filled:
    raise UserError(
      f"signal.pool = 'rest': the teacher sees all {len(task.train)} "
      "training examples; expected teacher.fraction < 1, or signal.pool = "
      "'train'"
    )
  return {"train": 0, "rest": unseen}


def draw(
  section: Mapping[str, Any],
  task: Task,
  seeds: Sequence[int],
  start: int,
  kept: np.ndarray | None = None,
) -> np.ndarray:
  """Draws a transfer set for each seed, rows [S, n] of the train split.

  Args:
    section: an arm's `signal`.
    task: of which the train split is the pool, from row `start` on.
    seeds: S.
    start: the pool's first row.
    kept: bool [N], which of the pool's rows can be drawn; None is all.
  """
  labels = task.train.labels()[start:]
  if task.positions > 1:  # whole rows are drawn, of no class
    labels = np.zeros(task.train.filled - start, np.int32)
  options = {key: section[key] for key in DRAW}
  drawn = [subset(labels, seed=s, kept=kept, **options) for s in seeds]
  return start + np.stack(drawn)


def _facts(task: Task, start: int) -> dict[str, Any]:
  """Returns what a store says of the data that it is of."""
  return {
    **_tokenizer(task),
    "task": task.fingerprint,
    "slices": list(task.slices),
    "rows": [start, task.train.filled],
  }


def _tokenizer(task: Task) -> dict[str, str]:
  if task.tokens is None:
    return {}
  return {"tokenizer": task.tokens.tokenizer.fingerprint}


def _keys(task: Task, start: int) -> store.Keys:
  """Returns the keys of a pool's examples: of all, or where reading them all
  takes long, of some that are evenly spaced."""
  count = task.train.filled - start
  most = count if task.resident else SAMPLE
  rows = np.unique(np.linspace(0, count - 1, min(count, most), dtype=int))
  inputs = task.train.read_in_chunks(start + rows)
  found = np.concatenate([store.keys(x) for x in inputs])
  each = task.positions
  return store.Keys(signals.rows_of(rows, each), np.repeat(found, each))


def check_stores(
  groups: Sequence[arms.Group], task: Task, starts: Mapping[str, int]
) -> None:
  """Checks the stores that arms name, less what only the teacher can say."""
  for group in groups:
    section = group.signal
    if section["path"]:
      start = starts[section["pool"]]
      pool = without(section, DRAW + STEP + FILTER)
      facts = {
        **_tokenizer(task),
        "num_classes": task.num_classes,
        **_facts(task, start),
      }
      signal = without(pool, label.PLACE)
      store.check(section["path"], facts | {"signal": signal})


def row_bytes(groups: Sequence[arms.Group], task: Task) -> int:
  """Returns the bytes that one example takes in all the pools' stores."""
  each = {
    transfer_of(without(g.signal, DRAW + STEP + FILTER)): (
      schema.row_bytes(g.signal, task.num_classes) * task.positions
    )
    for g in groups
    if not g.signal["live"] and not g.signal["path"]
  }
  return sum(each.values())


def streamed_bytes(
  groups: Sequence[arms.Group], task: Task, most: float
) -> int:
  """Returns the bytes in memory of one example's signals, of those that take
  more than `most` as a whole: batches read them as they need them."""
  count = len(task.train) * task.positions
  each = {
    transfer_of(without(g.signal, DRAW + STEP + FILTER)): (
      schema.row_memory(schema.fields(g.signal, task.num_classes))
    )
    for g in groups
    if not g.signal["live"]
  }
  return task.positions * sum(x for x in each.values() if x * count > most)
