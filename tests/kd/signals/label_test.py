"""Labelling ends with the same bytes, killed or not, on one device or two."""

import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.parallel import hosts
from kd.signals import label, store
from tests.kd import labelling

ROOT = pathlib.Path(__file__).resolve().parents[3]
KILLS = 10


def contents(folder):
  return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


class LabelTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.parent = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = os.path.join(self.parent, "signal")

  def whole(self, **options):
    """Labels without a stop; returns the files' bytes."""
    folder = os.path.join(self.parent, "whole")
    label.label(folder, labelling.plan(**options))
    return contents(folder)

  def test_killed_at_random_moments_it_ends_with_the_same_bytes(self):
    expected = self.whole(**labelling.KILLED)
    rng = random.Random(0)
    killed, progress = 0, []
    starter = subprocess.Popen(
      [sys.executable, "-m", "tests.kd.labelling", "0.02"],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    self.addCleanup(starter.communicate)
    while killed < KILLS:
      print(self.folder, file=starter.stdin, flush=True)
      child = int(starter.stdout.readline())
      # Moments count in batches, since seconds depend on the machine's load.
      lines = (starter.stdout.readline() for _ in range(rng.randint(0, 9)))
      ended = "end\n" in lines
      if not ended:
        time.sleep(rng.uniform(0, 0.06))
        with contextlib.suppress(ProcessLookupError):  # it ended just now
          os.kill(child, signal.SIGKILL)
        while starter.stdout.readline() != "end\n":
          pass
      if store.exists(self.folder):  # it finished first: see that it did so
        self.assertEqual(contents(self.folder), expected)  # well, begin anew
        shutil.rmtree(self.folder)
      else:
        killed += 1
        partial = pathlib.Path(f"{self.folder}.partial")
        progress.append(len(list(partial.glob("*.array_record"))))
    label.label(self.folder, labelling.plan(**labelling.KILLED))
    self.assertEqual(contents(self.folder), expected)
    self.assertGreater(len(set(progress)), 1, progress)
    self.assertEqual(sorted(os.listdir(self.parent)), ["signal", "whole"])

  def test_stopped_after_any_step_it_goes_on(self):
    """Stops at each rename and each removal in turn."""
    options = {"count": 200, **labelling.KILLED}
    expected = self.whole(**options)
    plan = labelling.plan(**options)

    class Stop(BaseException):
      pass

    stops = 0
    while not store.exists(self.folder):
      left = stops

      def counted(real):
        def call(*args):
          nonlocal left
          if not left:
            raise Stop
          left -= 1
          real(*args)

        return call

      with (
        mock.patch.object(os, "replace", counted(os.replace)),
        mock.patch.object(os, "remove", counted(os.remove)),
      ):
        try:
          label.label(self.folder, plan)
        except Stop:
          stops += 1
      if not store.exists(self.folder):  # go on elsewhere, and begin anew
        copy = f"{self.folder}-{stops}"
        os.rename(f"{self.folder}.partial", f"{copy}.partial")
        label.label(copy, plan)
        self.assertEqual(contents(copy), expected)
    self.assertEqual(contents(self.folder), expected)
    self.assertGreater(stops, 6)

  def test_nothing_is_asked_twice(self):
    asked = []
    plan = labelling.plan()

    def ask(rows):
      asked.extend(rows)
      if len(asked) == 300:
        raise KeyboardInterrupt
      return whole.ask(rows)

    plan, whole = dataclasses.replace(plan, ask=ask), plan
    for _ in range(3):
      try:
        label.label(self.folder, plan)
      except KeyboardInterrupt:
        asked = asked[:256]  # the shards that were done
    self.assertEqual(sorted(asked), list(range(labelling.COUNT)))

  def test_the_rest_of_another_signal_is_not_gone_on_with(self):
    with mock.patch.object(label, "_finish"):
      label.label(self.folder, labelling.plan(seed=1))
    self.assertTrue(os.path.exists(f"{self.folder}.partial"))
    with self.assertLogs(level="WARNING") as logs:
      label.label(self.folder, labelling.plan())
    self.assertIn("of another signal", logs.output[0])
    self.assertEqual(contents(self.folder), self.whole())

  def test_logits_that_are_not_finite(self):

    def logits(rows, **options):
      out = labelling.logits(rows, **options).copy()
      out[rows == 130] = np.nan
      return out

    bad = labelling.plan(logits=logits)
    with self.assertRaisesRegex(UserError, "row 130 .* not finite"):
      label.label(self.folder, bad)

  def test_two_hosts_share_the_shards(self):
    """Process 0 waits for process 1 where it must, and both write their own."""
    plan = labelling.plan()
    barrier = threading.Barrier(2)
    own = threading.local()
    wrote = {0: [], 1: []}
    write = store.write_shard

    def write_shard(path, *args):
      wrote[own.index].append(os.path.basename(path)[:12])
      return write(path, *args)

    def wait(name):
      del name
      barrier.wait(60)

    def work(index):
      own.index = index
      label.label(self.folder, plan)

    with (
      mock.patch.object(jax, "process_index", lambda: own.index),  # noqa: PT008
      mock.patch.object(jax, "process_count", return_value=2),
      mock.patch.object(hosts, "wait_for_all", wait),
      mock.patch.object(store, "write_shard", write_shard),
    ):
      threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
    self.assertEqual(contents(self.folder), self.whole())
    self.assertEqual(wrote[0], [f"signal-0000{i}" for i in (0, 2, 4)])
    self.assertEqual(wrote[1], [f"signal-0000{i}" for i in (1, 3, 5)])


class DevicesTest(absltest.TestCase):
  def test_two_devices_leave_the_store_of_one(self):
    program = """
import sys
import jax
from kd import study
from tests.kd import small
from tests.kd.study import phases_test
made = phases_test.options(hard=small.HARD)
made.evaluate.batch_size = 128
made.signal.update(dict(keep="top_k", k=5, dtype="int8", shard_size=500))
made.teacher.train.steps = 10
print("devices:", jax.device_count())
study.run(made, sys.argv[1], sys.argv[2])
"""
    parent = self.enterContext(tempfile.TemporaryDirectory())
    stores = []
    for devices in (1, 2):
      folder = os.path.join(parent, str(devices))
      flag = f"--xla_force_host_platform_device_count={devices}"
      if devices == 2:  # the same teacher, whose training isn't asked here
        shutil.copytree(
          os.path.join(parent, "1", "teacher"), os.path.join(folder, "teacher")
        )
      done = subprocess.run(
        [sys.executable, "-c", program, folder, "label"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      self.assertIn(f"devices: {devices}", done.stdout)
      (made,) = pathlib.Path(folder, "signals").iterdir()
      stores.append(contents(made))
    self.assertEqual(stores[0], stores[1])
    self.assertLen(stores[0], 4)


if __name__ == "__main__":
  absltest.main()
