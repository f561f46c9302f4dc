"""Batches of trainings without end, and what they take."""

import dataclasses
import tracemalloc

import numpy as np
from absl.testing import absltest, parameterized

from kd.data.order import positions
from kd.train import batches
from tests.kd import small

LAST = 2**31 - 1  # the most that train.steps can be


class IntervalsTest(parameterized.TestCase):
  def setup_of(self, resident=True, **train):
    resolved = small.settings({"hard": small.HARD}, task={"resident": resident})
    _, setup = small.study(resolved)
    return dataclasses.replace(setup, train={**setup.train, **train})

  @parameterized.parameters(True, False)
  def test_what_is_ahead_takes_no_memory(self, resident):
    setup = self.setup_of(resident, steps=LAST, log_every=1)
    tracemalloc.start()
    made = batches.intervals(setup, 0)
    ends = [next(made)[0] for _ in range(3)]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    made.close()
    self.assertEqual(ends, [1, 2, 3])
    self.assertLess(most, 2**25)

  def test_the_last_batches_of_many(self):
    setup = self.setup_of(steps=LAST, log_every=10)
    found = list(batches.intervals(setup, LAST - 11))
    self.assertEqual([end for end, _ in found], [LAST - 1, LAST])
    ((name, transfer),) = setup.transfers.items()
    size = setup.train["batch_size"]
    for s, seed in enumerate(setup.seeds):
      own = transfer.rows[s]
      order = positions(seed, len(own), size, LAST - 1, LAST)
      np.testing.assert_array_equal(found[1][1][name]["rows"][s], own[order])

  def test_their_bytes(self):
    train = {"batch_size": 8, "log_every": 10, "steps": 5}
    task = self.setup_of().task
    own = 3 * 8 * (4 * 5 + 4 * 64)
    self.assertEqual(batches.interval_bytes(train, 3, task), own)
    streamed = dataclasses.replace(task, resident=False)
    found = batches.interval_bytes(train, 3, streamed)
    self.assertEqual(found, own + 4 * 3 * 8 * 5 * 64)


if __name__ == "__main__":
  absltest.main()
