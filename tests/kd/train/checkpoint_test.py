"""Checkpoints are whole, checked, and fall back."""

import os
import pathlib
import tempfile

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from kd.errors import UserError
from kd.train import checkpoint
from kd.train.checkpoint import Checkpoints

# Orbax leaves the reads that it had begun when one of them failed.
pytestmark = pytest.mark.filterwarnings(
  "ignore:Exception ignored in. <coroutine"
)

TREE = {
  "weights": jnp.arange(60_000, dtype=jnp.float32).reshape(300, 200),
  "step": jnp.int32(7),
}
LIKE = {"weights": jnp.zeros((300, 200)), "step": jnp.int32(0)}


def scaled(factor):
  return {**TREE, "weights": TREE["weights"] * factor}


def damage(folder, step, how):
  """Damages the largest file of a checkpoint."""
  files = [f for f in pathlib.Path(folder, str(step)).rglob("*") if f.is_file()]
  path = max(files, key=lambda f: f.stat().st_size)
  content = bytearray(path.read_bytes())
  if how == "remove":
    return path.unlink()
  if how == "flip":
    content[len(content) // 2] ^= 0x40
  else:
    del content[len(content) // 2 :]
  return path.write_bytes(content)


class CheckpointsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def written(self, *steps, keep=3):
    checkpoints = Checkpoints(self.folder, keep)
    for step in steps:
      checkpoints.save(step, scaled(step))
    checkpoints.close()
    return Checkpoints(self.folder, keep)

  def test_nothing_there(self):
    checkpoints = Checkpoints(self.folder)
    step, tree = checkpoints.restore(LIKE)
    checkpoints.close()
    self.assertEqual(step, 0)
    chex.assert_trees_all_equal(tree, LIKE)

  def test_the_newest_comes_back_with_the_same_bits(self):
    checkpoints = self.written(10, 20)
    step, tree = checkpoints.restore(LIKE)
    checkpoints.close()
    self.assertEqual(step, 20)
    chex.assert_trees_all_equal(tree, scaled(20))

  def test_keeps_the_newest(self):
    checkpoints = self.written(10, 20, 30, keep=2)
    checkpoints.close()
    self.assertCountEqual(
      [x for x in os.listdir(self.folder) if x.isdigit()], ["20", "30"]
    )

  def test_a_damaged_one_is_set_aside_and_the_one_before_it_taken(self):
    for how in ("flip", "cut", "remove"):
      with self.subTest(how), tempfile.TemporaryDirectory() as self.folder:
        self.written(10, 20).close()
        damage(self.folder, 20, how)
        checkpoints = Checkpoints(self.folder)
        with self.assertLogs(level="WARNING") as logs:
          step, tree = checkpoints.restore(LIKE)
        self.assertIn("checkpoint 20", logs.output[0])
        self.assertIn("damaged", logs.output[0])
        self.assertEqual(step, 10)
        chex.assert_trees_all_equal(tree, scaled(10))
        checkpoints.save(20, scaled(20))  # training passes the step again
        checkpoints.close()
        checkpoints = Checkpoints(self.folder)
        self.assertEqual(checkpoints.restore(LIKE)[0], 20)
        checkpoints.close()
        self.assertLen(os.listdir(f"{self.folder}-damaged"), 1)

  def test_reading_another_study_changes_nothing(self):
    self.written(10, 20).close()

    def listing():
      paths = sorted(pathlib.Path(self.folder).rglob("*"))
      return [(p, p.stat().st_mtime_ns, p.stat().st_ino) for p in paths]

    before = listing()
    chex.assert_trees_all_equal(checkpoint.read(self.folder, LIKE), scaled(20))
    self.assertEqual(listing(), before)
    damage(self.folder, 20, "flip")
    before = listing()
    with self.assertRaisesRegex(UserError, "/20: damaged"):
      checkpoint.read(self.folder, LIKE)
    self.assertEqual(listing(), before)
    nowhere = os.path.join(self.folder, "weights")
    with self.assertRaisesRegex(UserError, "weights: no checkpoint"):
      checkpoint.read(nowhere, LIKE)
    self.assertFalse(os.path.exists(nowhere))

  def test_another_study_is_refused(self):
    checkpoints = self.written(10)
    with self.assertRaisesRegex(UserError, "another shape"):
      checkpoints.restore({"weights": jnp.zeros((3, 2)), "step": jnp.int32(0)})
    checkpoints.close()

  def test_what_was_saved_does_not_follow_the_tree(self):
    checkpoints = Checkpoints(self.folder)
    tree = {"weights": np.ones(1000, np.float32)}
    checkpoints.save(1, {"weights": jnp.array(tree["weights"])})
    tree["weights"] *= 2
    checkpoints.wait()
    _, read = checkpoints.restore({"weights": jnp.zeros(1000)})
    checkpoints.close()
    np.testing.assert_array_equal(read["weights"], np.ones(1000))


if __name__ == "__main__":
  absltest.main()
