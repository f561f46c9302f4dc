"""Orders: pure functions of their seeds, and reading ahead in order."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

from kd.data import order
from kd.errors import UserError

# What seed 7 gives: a change here makes every stored study another study.
GOLDEN = [[1, 2, 6], [3, 5, 0], [4, 5, 2], [6, 0, 3]]
ROOT = str(Path(order.__file__).parents[2])
LABELS = np.repeat(np.arange(10, dtype=np.int32), 20)


class PositionsTest(parameterized.TestCase):
  def test_golden(self):
    got = order.positions(7, n=7, batch_size=3, start=0, stop=4)
    self.assertEqual(got.dtype, np.int32)
    self.assertEqual(got.tolist(), GOLDEN)

  def test_another_process_draws_the_same(self):
    code = (
      "from kd.data import order;"
      "print(order.positions(7, n=7, batch_size=3, start=0, stop=4).tolist())"
    )
    printed = subprocess.run(
      [sys.executable, "-c", code],
      env=dict(os.environ, PYTHONHASHSEED="12345", PYTHONPATH=ROOT),
      check=True,
      capture_output=True,
      text=True,
    ).stdout
    self.assertEqual(printed.strip(), str(GOLDEN))

  @parameterized.product(n=(1, 7, 64), batch_size=(1, 3, 64, 100))
  def test_start_does_not_matter(self, n, batch_size):
    whole = order.positions(3, n, batch_size, 0, 10)
    self.assertEqual(whole.shape, (10, batch_size))
    for start in (1, 5, 9, 10):
      np.testing.assert_array_equal(
        whole[start:], order.positions(3, n, batch_size, start, 10)
      )

  @parameterized.product(n=(1, 7, 100), batch_size=(3, 10, 250))
  def test_every_epoch_holds_every_row_once(self, n, batch_size):
    epochs = 6
    steps = -(-epochs * n // batch_size)
    flat = order.positions(0, n, batch_size, 0, steps).reshape(-1)
    for epoch in flat[: epochs * n].reshape(epochs, n):
      self.assertEqual(sorted(epoch), list(range(n)))

  def test_epochs_and_seeds_differ(self):
    rows = [
      order.positions(seed, 50, 50, epoch, epoch + 1)[0].tolist()
      for seed in range(4)
      for epoch in range(4)
    ]
    self.assertLen({tuple(row) for row in rows}, 16)

  def test_permutations_are_uniform(self):
    n, draws = 5, 5000
    counts = np.zeros((n, n))
    for epoch in range(draws):
      counts[np.arange(n), order.permutation(order.ORDER, 0, epoch, n)] += 1
    # Each cell is Binomial(draws, 1 / n): 5 standard deviations.
    np.testing.assert_allclose(
      counts, draws / n, atol=5 * np.sqrt(draws / n * (1 - 1 / n))
    )

  def test_purposes_differ(self):
    drawn = {
      tuple(order.permutation(purpose, 0, 0, 50).tolist())
      for purpose in (order.SPLIT, order.ORDER, order.SUBSET)
    }
    self.assertLen(drawn, 3)

  @parameterized.parameters((0, 1, 0, 1), (5, 0, 0, 1), (5, 1, 2, 1))
  def test_refuses(self, n, batch_size, start, stop):
    with self.assertRaises(ValueError):
      order.positions(0, n, batch_size, start, stop)

  def test_no_steps(self):
    self.assertEqual(order.positions(0, 5, 2, 3, 3).shape, (0, 2))


class SubsetTest(parameterized.TestCase):
  def test_all(self):
    rows = order.subset(LABELS)
    self.assertEqual(rows.dtype, np.int32)
    self.assertEqual(rows.tolist(), list(range(200)))

  @parameterized.parameters(None, 30)
  def test_omits_and_keeps_classes(self, size):
    without = order.subset(LABELS, size=size, omit_classes=[3])
    self.assertNotIn(3, LABELS[without])
    only = order.subset(LABELS, size=size, only_classes=(7, 8))
    self.assertEqual(set(LABELS[only].tolist()), {7, 8})
    both = order.subset(LABELS, only_classes=(7, 8), omit_classes=(8,))
    self.assertEqual(set(LABELS[both].tolist()), {7})

  def test_draws_without_replacement(self):
    rows = order.subset(LABELS, size=50, seed=1)
    self.assertLen(set(rows.tolist()), 50)
    self.assertTrue(np.all(np.diff(rows) > 0))
    np.testing.assert_array_equal(rows, order.subset(LABELS, size=50, seed=1))
    other = order.subset(LABELS, size=50, seed=2)
    self.assertNotEqual(rows.tolist(), other.tolist())

  def test_smaller_sets_are_nested(self):
    large = set(order.subset(LABELS, size=100).tolist())
    self.assertLess(set(order.subset(LABELS, size=10).tolist()), large)

  def test_draw_is_uniform(self):
    counts = np.zeros(len(LABELS))
    for seed in range(2000):
      counts[order.subset(LABELS, size=20, seed=seed)] += 1
    # Binomial(2000, 0.1): 5 standard deviations.
    np.testing.assert_allclose(counts, 200, atol=5 * np.sqrt(180))

  @parameterized.parameters(
    (dict(omit_classes=[10]), r"signal\.omit_classes = \[10\].* class 10"),
    (dict(only_classes=[1, -1]), r"signal\.only_classes = .*class -1.*0, 1, 2"),
    (dict(omit_classes=range(10)), r"leave none of the pool's 200 examples"),
    (dict(size=201), r"signal\.size = 201: .*1\.\.200"),
    (dict(size=0), r"signal\.size = 0: .*1\.\.200"),
    (dict(size=21, only_classes=[4]), r"has 20 examples.*1\.\.20"),
  )
  def test_refuses(self, draw, message):
    with self.assertRaisesRegex(UserError, message):
      order.subset(LABELS, **draw)


def _grain_threads() -> set[threading.Thread]:
  return {t for t in threading.enumerate() if "grain" in t.name}


class StreamTest(parameterized.TestCase):
  @parameterized.product(
    threads=(0, 1, 4), prefetch=(1, 3), start=(0, 4, 9, 10)
  )
  def test_yields_in_order_from_any_start(self, threads, prefetch, start):
    rows = [np.full((2, 3), k) for k in range(10)]

    def read(r):
      time.sleep(0.002 * (r[0, 0] % 3))  # later ones are often done first
      return r * 2

    options = dict(threads=threads, prefetch=prefetch, start=start)
    got = list(order.stream(read, rows, **options))
    self.assertLen(got, 10 - start)
    for k, x in enumerate(got):
      np.testing.assert_array_equal(x, rows[start + k] * 2)

  def test_intervals_by_function(self):
    got = order.stream(lambda r: r + 1, np.arange, start=1, stop=3)
    self.assertEqual([x.tolist() for x in got], [[1], [1, 2]])
    with self.assertRaisesRegex(ValueError, "stop is needed"):
      next(order.stream(lambda r: r, np.arange))

  def test_reads_ahead_no_further_than_asked(self):
    read = []
    rows = [np.array([k]) for k in range(50)]
    ahead = order.stream(lambda r: read.append(r[0]) or r, rows, prefetch=3)
    next(ahead)
    deadline = time.monotonic() + 5
    while len(read) < 4 and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.05)
    self.assertEqual(sorted(read), [0, 1, 2, 3])
    ahead.close()

  def test_raises_what_read_raises_where_it_would_yield(self):
    def read(r):
      if r[0] == 2:
        raise OSError("a record is damaged")
      return r

    ahead = order.stream(read, [np.array([k]) for k in range(5)])
    self.assertEqual([int(next(ahead)[0]) for _ in range(2)], [0, 1])
    with self.assertRaisesRegex(OSError, "damaged"):
      next(ahead)

  @parameterized.parameters("end", "close", "drop")
  def test_leaves_no_thread(self, how):
    before = _grain_threads()
    ahead = order.stream(lambda r: r, [np.zeros(1)] * 20, threads=3)
    next(ahead)
    self.assertNotEmpty(_grain_threads() - before)
    if how == "end":
      list(ahead)
    elif how == "close":
      ahead.close()
    del ahead
    deadline = time.monotonic() + 5
    while _grain_threads() - before and time.monotonic() < deadline:
      time.sleep(0.01)
    self.assertEmpty(_grain_threads() - before)


if __name__ == "__main__":
  absltest.main()
