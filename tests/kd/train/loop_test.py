"""One program for all runs: independence, order, modes, divergence, resume."""

import functools
import os
import subprocess
import sys
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from kd.data.registry import load
from kd.models import functional
from kd.train import arms, batches, loop, program, step
from kd.train.checkpoint import Checkpoints
from tests.kd import small

ARMS = {
  "hard": small.HARD,
  "soft": small.SOFT,
  "warm": {**small.SOFT, "temperature": 2.0},
  "rank": small.RANK,
  "both": {
    "objective": "hard + soft",
    "hard": {"target": "answer", "weight": 0.1},
    "soft": {
      "temperature": 4.0,
      "divergence": "jsd",
      "beta": 0.5,
      "weight": 0.9,
    },
  },
}


def fit(arm_configs, *, seeds=(0, 1), checkpoints=None, **sections):
  """Trains; returns ({arm: state}, {arm: losses [S, steps]}, groups)."""
  resolved = small.settings(arm_configs, **sections)
  groups, setup = small.study(resolved, seeds=seeds)
  logs = []
  states = loop.fit(groups, setup, checkpoints, logs.append)
  losses = {
    arm: np.concatenate([log.arms[arm]["loss"] for log in logs], axis=1)
    for arm in resolved["arms"]
  }
  return states, losses, groups


FEW = {name: ARMS[name] for name in ("soft", "warm")}


@functools.cache
def usual():
  """FEW's (states, losses), to compare with."""
  states, losses, _ = fit(FEW)
  return states, losses


DROPPED = {"steps": 50, "student": {"dropout": 0.5}}


class IndependenceTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    _, cls.company, cls.groups = fit(ARMS, **DROPPED)

  @parameterized.parameters(*ARMS)
  def test_a_run_is_the_same_alone_and_in_company(self, name):
    # Dropout's random numbers must be the same, too.
    _, alone, _ = fit({name: ARMS[name]}, seeds=(1,), **DROPPED)
    np.testing.assert_allclose(
      alone[name][0], self.company[name][1], rtol=1e-5, atol=1e-6
    )

  def test_arms_share_the_initialisation_and_seeds_differ(self):
    groups, setup = small.study(small.settings(ARMS))
    state = program.make_init(groups, setup)(
      np.arange(2, dtype=np.uint32), arms.numbers_of(groups)
    )
    kernels = [s.params["layers"][0]["kernel"][...] for s in state]
    for kernel in kernels:  # [S, A, ...]
      np.testing.assert_array_equal(kernel[:, 0], kernels[0][:, 0])
      self.assertGreater(np.abs(kernel[0] - kernel[1]).max(), 0.01)

  def test_arms_of_one_student_share_a_step_and_those_of_one_loss_a_part(self):
    (group,) = self.groups
    self.assertIn(("soft", "warm"), [part.names for part in group.parts])
    self.assertLen(group.parts, 4)


class LiveTest(absltest.TestCase):
  """A teacher inside the step."""

  def fit(self, arm_configs, seed, steps=10, runs="auto"):
    """Trains students of the teacher's own kind; returns {arm: losses}."""
    resolved = small.settings(arm_configs, steps=steps, train={"runs": runs})
    task = load(resolved["task"])
    params, rest = functional.define(small.TEACHER, task.signature)[1](
      program.init_key(seed)
    )
    weights = {"params": params, "rest": rest}
    live = batches.Live(small.TEACHER, weights, samples=8, temperature=2.0)
    forward = functional.forward(small.TEACHER, task.signature, 512)
    logits = np.asarray(forward(weights, task.train.arrays()[0]))
    groups, setup = small.study(
      resolved, seeds=(0,), logits=logits, live=live, task=task
    )
    logs = []
    loop.fit(groups, setup, on_log=logs.append)
    return {
      arm: np.concatenate([log.arms[arm]["loss"][0] for log in logs])
      for arm in resolved["arms"]
    }

  def test_without_jitter_it_teaches_what_was_stored(self):
    both = {
      "objective": "hard + soft",
      "hard": {"target": "answer", "weight": 0.5},
      "soft": {"temperature": 4.0, "divergence": "jsd", "beta": 0.5,
               "weight": 1.0},
    }  # fmt: skip
    losses = self.fit(
      {
        "stored": both,
        "live": {**both, "signal": {"live": True}},
      },
      seed=5,
    )
    np.testing.assert_allclose(losses["live"], losses["stored"], rtol=1e-5)

  def test_it_sees_the_shifted_images_and_a_stored_signal_does_not(self):
    # A student that starts as its teacher has nothing to learn from it, if
    # both look at the same images.
    losses = self.fit(
      {
        "stored": {**small.SOFT, "signal": {"jitter": 2}},
        "live": {**small.SOFT, "signal": {"jitter": 2, "live": True}},
      },
      seed=0,
    )
    self.assertLess(losses["live"].max(), 1e-6)
    self.assertGreater(losses["stored"][0], 1e-2)

  def test_it_answers_once_for_all_arms_however_they_are_run(self):
    arm = {**small.SOFT, "signal": {"live": True}}
    arms = {"one": arm, "two": {**arm, "temperature": 2.0}, "still": small.SOFT}
    losses = {}
    for runs in ("vmap", "map"):
      with mock.patch.object(step, "ask", wraps=step.ask) as ask:
        losses[runs] = self.fit(arms, seed=5, runs=runs)
      self.assertEqual(ask.call_count, 1)  # traced into one scan
    for name in arms:
      np.testing.assert_allclose(
        losses["map"][name], losses["vmap"][name], rtol=1e-5
      )

  def test_samples_are_drawn_anew_at_each_step(self):
    # Every batch is the whole transfer set, and the student stands still.
    rank = {**small.RANK, "train": {"learning_rate": 1e-30}}
    losses = self.fit(
      {
        "stored": {**rank, "signal": {"size": 64}},
        "live": {**rank, "signal": {"size": 64, "live": True}},
      },
      seed=5,
    )
    still, live = losses["stored"], losses["live"]
    np.testing.assert_allclose(still, still[0], rtol=1e-5)
    self.assertGreater(np.ptp(live), 1e-3 * live[0])


class ModeTest(parameterized.TestCase):
  def test_one_after_another_equals_vmapped(self):
    _, one, _ = fit(FEW, train={"runs": "map"})
    for name, losses in usual()[1].items():
      np.testing.assert_allclose(one[name], losses, rtol=1e-5, atol=1e-6)

  def test_a_big_student_goes_one_after_another(self):
    for hidden, full in (((30, 30), False), ((800, 800), True)):
      groups, setup = small.study(small.settings(ARMS, hidden=hidden))
      self.assertEqual(loop.fills_the_machine(groups, setup)[0], full)

  def test_streamed_equals_resident(self):
    _, streamed, _ = fit(FEW, task={"resident": False})
    chex.assert_trees_all_equal(streamed, usual()[1])

  def test_log_every_that_does_not_divide_the_steps(self):
    with self.assertLogs(level="INFO") as logs:
      _, ragged, _ = fit(FEW, train={"log_every": 15})
    chex.assert_trees_all_close(ragged, usual()[1], rtol=1e-5, atol=1e-6)
    self.assertEqual(ragged["soft"].shape, (2, 40))
    said = [line for line in logs.output if "compiling" in line]
    self.assertLen(said, 2)
    self.assertIn("compiling the last 10 steps", said[1])

  @parameterized.parameters("constant", "cosine")
  def test_every_optimizer_and_schedule_learns(self, schedule):
    numbers = {
      "sgd": {"learning_rate": 0.2, "weight_decay": 1e-4},
      "adam": {"learning_rate": 1e-2},
      "adamw": {"learning_rate": 1e-2, "weight_decay": 1e-2},
    }
    made = {
      name: {**small.HARD, "train": {"optimizer": name, **values}}
      for name, values in numbers.items()
    }
    made["slow"] = {**made["adam"], "train": {"learning_rate": 3e-6}}
    _, losses, _ = fit(
      made, steps=60, train={"schedule": schedule, "warmup_steps": 5}
    )
    for name in numbers:
      last = losses[name][:, -5:].mean()
      self.assertLess(last, 0.7 * losses[name][:, 0].mean(), name)
    slow = losses["slow"]
    self.assertGreater(slow[:, -5:].mean(), 0.9 * slow[:, 0].mean())

  def test_a_cnn_with_batch_statistics(self):
    states, losses, _ = fit(
      {"hard": small.HARD, "soft": small.SOFT},
      student={"name": "cnn", "channels": (8,), "hidden": 0, "dropout": 0.1},
    )
    self.assertLess(losses["hard"][:, -5:].mean(), losses["hard"][:, 0].mean())
    statistics = jax.tree.leaves(states["hard"].rest)
    self.assertNotEmpty(statistics)
    self.assertTrue(all(np.isfinite(x).all() for x in statistics))

  def test_seeds_spread_over_devices(self):
    script = (
      "import numpy as np\n"
      "import dataclasses\n"
      "from tests.kd import small\n"
      "from tests.kd.train.loop_test import FEW\n"
      "from kd.train import loop\n"
      "groups, setup = small.study(small.settings(FEW), seeds=range(4))\n"
      "def losses(devices):\n"
      "  logs = []\n"
      "  s = dataclasses.replace(setup, devices=devices)\n"
      "  loop.fit(groups, s, None, logs.append)\n"
      "  return [x.arms[a]['loss'] for x in logs for a in sorted(x.arms)]\n"
      "np.testing.assert_allclose(losses(1), losses(4), rtol=1e-5, atol=1e-6)\n"
    )
    env = {
      **os.environ,
      "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
      "PYTHONPATH": os.getcwd(),
    }
    subprocess.run([sys.executable, "-c", script], check=True, env=env)


class DivergenceTest(absltest.TestCase):
  def test_a_run_that_diverges_stops_and_the_others_go_on(self):
    # A step of 1e30 makes the next loss overflow.
    wild = {**small.SOFT, "train": {"learning_rate": 1e30}}
    states, losses, groups = fit({"soft": small.SOFT, "wild": wild})
    self.assertEqual([g.names for g in groups], [("soft", "wild")])
    np.testing.assert_allclose(losses["soft"], usual()[1]["soft"], rtol=1e-5)
    self.assertTrue((states["soft"].diverged == 0).all())
    stopped = np.asarray(states["wild"].diverged)
    self.assertTrue(((stopped > 0) & (stopped < 40)).all())
    chex.assert_tree_all_finite((states["wild"].params, states["wild"].best))

  def test_an_overflow_in_the_last_update_is_seen(self):
    wild = {**small.SOFT, "train": {"learning_rate": 1e30, "optimizer": "sgd"}}
    folder = self.enterContext(tempfile.TemporaryDirectory())
    found, steps = [], []
    for _ in range(2):  # once more from the checkpoint
      checkpoints = Checkpoints(folder)
      resolved = small.settings({"soft": small.SOFT, "wild": wild}, steps=1)
      groups, setup = small.study(resolved)
      states = loop.fit(groups, setup, checkpoints, on_resume=steps.append)
      checkpoints.close()
      found.append(states)
    self.assertEqual(steps, [0, 1])
    chex.assert_trees_all_equal(*found)
    self.assertEqual(states["soft"].diverged.tolist(), [0, 0])
    self.assertEqual(states["soft"].best_step.tolist(), [1, 1])
    self.assertEqual(states["wild"].diverged.tolist(), [1, 1])
    self.assertEqual(states["wild"].best_step.tolist(), [0, 0])
    chex.assert_tree_all_finite(states["wild"].best)


class ResumeTest(absltest.TestCase):
  def test_continuing_gives_the_same_bits(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    checkpoints = Checkpoints(folder)

    class Stop(Exception):
      pass

    resolved = small.settings(FEW)
    groups, setup = small.study(resolved)

    def stop(log):
      if log.step == 30:
        raise Stop

    with self.assertRaises(Stop):
      loop.fit(groups, setup, checkpoints, stop)
    checkpoints.close()
    checkpoints = Checkpoints(folder)
    steps = []
    resumed = loop.fit(groups, setup, checkpoints, on_resume=steps.append)
    checkpoints.close()
    self.assertEqual(steps, [20])
    chex.assert_trees_all_equal(resumed, usual()[0])


if __name__ == "__main__":
  absltest.main()
