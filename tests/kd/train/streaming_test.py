"""Signals of tokens read from their store as they are needed."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import tracemalloc

import chex
import jax
import numpy as np
from absl.testing import absltest

from kd import config, files
from kd.data.registry import load
from kd.models import functional
from kd.signals import codec, schema, store
from kd.signals.store import Streamed
from kd.study import replicates, transfer_sets
from kd.teachers.model import Teacher
from kd.train import arms, batches, coverage, loop
from kd.train.batches import Setup
from kd.train.checkpoint import Checkpoints
from tests.kd import small

L = 16
PARTS = 16  # of a store that is larger than what is read of it at once
MODEL = {"name": "decoder", "layers": 1, "width": 8, "heads": 2}
TOP = {
  **small.SOFT,
  "objective": "top_k",
  "temperature": 1.0,
  "k": 4,
  "tail": "bucket",
}
ARMS = {
  "top": TOP,
  "some": {"objective": "frequencies", "samples": 2, "temperature": 1.0},
  "truth": {"objective": "hard", "target": "truth"},
}


@functools.cache
def settings(folder):
  """A small study of texts that are written into a folder."""
  rng = np.random.default_rng(0)
  words = ["a", "text", "of", "few", "words", "more", "or", "less"]
  path = pathlib.Path(folder, "texts.jsonl")
  texts = (" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(60))
  path.write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
  usual = config.defaults().task.to_dict()
  return small.settings(
    ARMS,
    steps=6,
    student={**MODEL},
    signal={
      "keep": "top_k",
      "k": 5,
      "dtype": "int8",
      "samples": 2,
      "size": 20,
      "labelled": True,
    },
    task={
      **usual,
      "name": "texts",
      "path": str(path),
      "resident": True,
      "tokens": {**usual["tokens"], "length": L},
    },
    train={
      "batch_size": 4,
      "log_every": 2,
      "checkpoint_every": 2,
      "steps": 6,
      "accumulate": 2,
    },
  )


def study(folder, resident_mib, count=2):
  """Returns (groups, setup) with a signal that a teacher without training
  left, of `count` seeds."""
  resolved = settings(folder)
  resolved = resolved | {
    "seeds": count,
    "task": resolved["task"] | {"resident_mib": resident_mib},
  }
  task = load(resolved["task"])
  groups = arms.group(resolved["arms"], task.num_classes)
  init = functional.define(MODEL, task.signature)[1]
  params, rest = init(jax.random.key(0))
  weights = {"params": params, "rest": rest}
  (of,) = replicates.of(resolved, folder)
  teacher = Teacher(MODEL, weights, "abc", 0.0)
  pools = transfer_sets.Pools(of, task, teacher, None)
  transfers = pools.transfers(groups)
  groups = coverage.bind(groups, [transfers], task.num_classes)
  setup = Setup(task, transfers, list(range(count)), resolved["train"])
  return groups, setup


def fit(folder, resident_mib, devices=1, count=2, **options):
  """Trains; returns ({arm: state}, [logs])."""
  groups, setup = study(folder, resident_mib, count)
  setup = dataclasses.replace(setup, devices=devices)
  logs = []
  return loop.fit(groups, setup, on_log=logs.append, **options), logs


def over_devices(folder):
  """Compares losses and gradients over 1, 2 and 4 devices."""
  found = []
  for devices in (1, 2, 4):
    _, logs = fit(folder, 1e-3, devices, count=4)
    found.append(
      np.concatenate(
        [
          np.ravel(log.arms[arm][what])
          for log in logs
          for arm in ARMS
          for what in ("loss", "grad_norm", "validation_nll")
        ]
      )
    )
  for other in found[1:]:
    np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-6)


class StreamedTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())

  def test_batches_and_runs_are_those_of_a_resident_one(self):
    groups, setup = study(self.folder, 1024)
    streaming, streamed = study(self.folder, 1e-3)
    for one, other in zip(groups, streaming, strict=True):
      for part, like in zip(one.parts, other.parts, strict=True):
        self.assertEqual(part.partial, like.partial)
    ((name, own),) = setup.transfers.items()
    self.assertIsInstance(streamed.transfers[name].signal, Streamed)
    placed = batches.resident(setup)[name]
    pairs = zip(
      batches.intervals(setup, 2), batches.intervals(streamed, 2), strict=True
    )
    for (end, one), (other_end, other) in pairs:
      self.assertEqual(end, other_end)
      for s, step in np.ndindex(2, 2):
        x = {"rows": one[name]["rows"][s, step]}
        _, expected = batches.gather(placed, x, own.positions)
        signal = other[name]["signal"]
        found = jax.tree.map(lambda a, s=s, t=step: a[s, t], signal)
        chex.assert_trees_all_equal(found, expected)

    states = loop.fit(groups, setup)
    programs = loop.programs(streaming, streamed)
    chex.assert_trees_all_equal(
      loop.fit(streaming, streamed, compiled=programs), states
    )

    class Stop(Exception):
      pass

    def stop(log):
      if log.step == 4:
        raise Stop

    checkpoints = os.path.join(self.folder, "checkpoints")
    kept = Checkpoints(checkpoints)
    with self.assertRaises(Stop):
      loop.fit(streaming, streamed, kept, stop, compiled=programs)
    kept.close()
    kept, steps = Checkpoints(checkpoints), []
    resumed = loop.fit(
      streaming, streamed, kept, on_resume=steps.append, compiled=programs
    )
    kept.close()
    self.assertEqual(steps, [2])
    chex.assert_trees_all_equal(resumed, states)

  def test_no_more_of_it_is_in_memory_than_batches_take(self):
    groups, setup = study(self.folder, 1e-3)
    ((name, own),) = setup.transfers.items()
    section = groups[0].signal | {"k": 64, "samples": 16}
    fields = schema.fields(section, 512)
    rng = np.random.default_rng(0)
    size = 128 * store.ROWS
    ids = np.sort(rng.integers(0, 448, (size, 64)), -1) + np.arange(64)
    part = {
      f.name: rng.integers(0, 9, (size, *f.shape)).astype(f.dtype)
      for f in fields
    } | {"ids": ids.astype(np.int32)}
    folder = self.enterContext(tempfile.TemporaryDirectory())
    about = store.write_shard(os.path.join(folder, "a"), fields, [part] * PARTS)
    files.write_json(
      os.path.join(folder, "metadata.json"),
      {
        "format": store.FORMAT,
        "schema": codec.describe(fields),
        "shards": [about],
        "signal": {"temperatures": [1.0]},
      },
    )
    whole = PARTS * size * schema.row_memory(fields)
    tracemalloc.start()
    signal = store.read(folder, {}, most=0)
    rows = np.arange(PARTS * size // L, dtype=np.int32)[None].repeat(2, 0)
    transfer = dataclasses.replace(own, signal=signal, rows=rows)
    setup = dataclasses.replace(setup, transfers={name: transfer})
    (bound,) = coverage.bind(groups, [setup.transfers], 512)
    for _, xs in batches.intervals(setup, 0):
      self.assertEqual(xs[name]["signal"].dense.ids.shape, (2, 2, 4 * L, 64))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    self.assertEqual(bound.parts[0].partial, (False,))
    self.assertLess(most, whole / 4)

  def test_seeds_over_devices(self):
    script = (
      "import sys\n"
      "from tests.kd.train import streaming_test\n"
      "streaming_test.over_devices(sys.argv[1])\n"
    )
    env = {
      **os.environ,
      "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
      "PYTHONPATH": os.getcwd(),
    }
    folder = self.enterContext(tempfile.TemporaryDirectory())
    subprocess.run([sys.executable, "-c", script, folder], check=True, env=env)


if __name__ == "__main__":
  absltest.main()
