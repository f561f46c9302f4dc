"""Top-k targets: k = V is dense training, at every step and through a store."""

import dataclasses
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import divergences, objectives, signals, study
from kd.data.registry import load
from kd.errors import UserError
from kd.signals import label, store
from kd.train import arms, batches, loop
from tests.kd import labelling, oracles, small
from tests.kd.study import phases_test

TOP = {
  "objective": "top_k",
  "k": 10,
  "tail": "bucket",
  "temperature": 4.0,
  "divergence": "forward_kl",
}
KEPT = {"keep": "top_k", "k": 10, "temperatures": (1.0, 4.0)}
V = 7


def logits(seed, rows=12):
  z = np.random.default_rng(seed).normal(size=(2, rows, V))
  return np.float32(2 * z)


def exact(student, teacher, k, t, tail):
  """Returns T^2 KL over the top k and their tail, in float64."""
  lq, lp = (oracles.log_softmax(np.float64(z) / t) for z in (student, teacher))
  out = []
  for q, p in zip(np.exp(lq), np.exp(lp), strict=True):
    ids = np.argsort(-p)[:k]
    q, p = q[ids], p[ids]
    if tail == "renormalize":
      q, p = q / q.sum(), p / p.sum()
    elif tail == "zero":
      p = p / p.sum()
    elif k < V:
      q, p = np.append(q, 1 - q.sum()), np.append(p, 1 - p.sum())
    out.append(t * t * (p * np.log(p / q)).sum())
  return np.array(out)


class ObjectiveTest(parameterized.TestCase):
  @parameterized.product(
    k=(1, 3, V), t=(1.0, 4.0), tail=("bucket", "renormalize", "zero")
  )
  def test_value_and_gradient(self, k, t, tail):
    student, teacher = logits(0)
    top = signals.top_k(signals.Dense(jnp.asarray(teacher)), k, (t,))

    def loss(z):
      return objectives.top_k(z, top.ids, top.log_probs_at(t), t, tail=tail)

    expected = exact(student, teacher, k, t, tail)
    np.testing.assert_allclose(
      loss(jnp.asarray(student)), expected, rtol=1e-4, atol=1e-5
    )
    slope = jax.grad(lambda z: loss(z).sum())(jnp.asarray(student))
    for v in range(V):
      moved = np.float64(student)
      moved[:, v] += 1e-5
      up = exact(moved, teacher, k, t, tail)
      moved[:, v] -= 2e-5
      down = exact(moved, teacher, k, t, tail)
      np.testing.assert_allclose(
        slope[:, v], (up - down) / 2e-5, rtol=1e-3, atol=1e-4
      )

  @parameterized.parameters("forward_kl", "reverse_kl")
  def test_extreme_logits_give_finite_gradients(self, divergence):
    z = jnp.asarray([[1e4, 0.0, -1e4, 0.0]])
    top = signals.top_k(signals.Dense(-z), 2)
    phi = divergences.get(divergence)

    def loss(z):
      return objectives.top_k(z, top.ids, top.log_probs, 1.0, phi).sum()

    value, slope = jax.value_and_grad(loss)(z)
    self.assertTrue(np.isfinite(value))
    self.assertTrue(np.isfinite(slope).all())

  def test_a_wider_store_is_narrowed_in_the_step(self):
    _, teacher = logits(1)
    dense = signals.Dense(jnp.asarray(teacher))
    wide = signals.top_k(dense, 6, (2.0,))
    none = signals.of_labels(np.zeros(len(teacher), int))
    kept = dataclasses.replace(none, dense=wide)
    _, found = kept.top_k_at(3, jnp.float32(2.0))
    expected = np.sort(oracles.log_softmax(np.float64(teacher) / 2.0), -1)
    np.testing.assert_allclose(found, expected[:, :-4:-1], rtol=1e-4)

  def test_two_terms_with_a_teacher_each_are_both_counted(self):
    """The kernels take one teacher a call."""
    parts = {
      "objective": "soft + top_k",
      "soft": {"temperature": 1.0, "divergence": "forward_kl", "weight": 0.3},
      "top_k": {**{k: v for k, v in TOP.items() if k != "objective"},
                "k": 3, "temperature": 1.0, "weight": 0.7},
    }  # fmt: skip
    losses = {}
    for classes in (2, 1000):
      made = losses_of({"both": parts}, steps=10, fused_from=classes)
      losses[classes] = made["both"]
    np.testing.assert_allclose(losses[2], losses[1000], rtol=1e-4)


def stored(section, task, teacher_logits):
  """Labels a task's training rows into a store, and reads it."""
  plan = label.Plan(
    section=section,
    count=len(task.train),
    num_classes=task.num_classes,
    inputs=task.train.read,
    ask=labelling.asks(section, lambda rows: teacher_logits[rows]),
    facts={},
    batch=labelling.BATCH,
  )
  with tempfile.TemporaryDirectory() as parent:
    folder = os.path.join(parent, "signal")
    label.label(folder, plan)
    return store.read(folder, plan.kept)


def losses_of(arm_configs, steps=50, **options):
  """Trains on stored signals; returns {arm: losses [steps]} of one seed."""
  resolved = small.settings(arm_configs, steps=steps)
  task = load(resolved["task"])
  labels = task.train.labels()
  noise = np.random.default_rng(0).normal(size=(len(labels), 10))
  teacher = (4 * np.eye(10)[labels] + noise).astype(np.float32)
  groups, setup = small.study(
    resolved, seeds=(0,), logits=teacher, task=task, **options
  )
  transfers = {
    name: batches.Transfer(
      t.inputs, stored(json.loads(name), task, teacher), t.rows
    )
    for name, t in setup.transfers.items()
  }
  setup = dataclasses.replace(setup, transfers=transfers)
  logs = []
  loop.fit(groups, setup, on_log=logs.append)
  return {
    arm: np.concatenate([log.arms[arm]["loss"][0] for log in logs])
    for arm in arm_configs
  }


class TrainingTest(parameterized.TestCase):
  @parameterized.parameters(2, 1000)
  def test_all_classes_kept_is_dense_training(self, fused_from):
    tops = {
      f"{tail}.{'kept' if kept else 'dense'}": {**TOP, "tail": tail} | kept
      for tail in ("bucket", "renormalize", "zero")
      for kept in ({}, {"signal": KEPT})
    }
    losses = losses_of({"soft": small.SOFT, **tops}, fused_from=fused_from)
    self.assertLess(losses["soft"][-1], 0.8 * losses["soft"][0])
    for name in tops:
      with self.subTest(name):
        np.testing.assert_allclose(losses[name], losses["soft"], rtol=1e-4)


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"objective": "soft", "temperature": 4.0, "divergence": "tvd"},
     "objective = 'soft': needs the logits of all .* signal.keep = 'top_k'"),
    ({"objective": "dist", "beta": 1.0, "gamma": 1.0, "temperature": 1.0},
     "objective = 'dist': needs"),
    ({**TOP, "k": 11}, "arms.a.k = 11: expected at most"),
    ({**TOP, "temperature": 2.0},
     r"a.temperature = 2.0: expected one of signal.temperatures = \(1.0, 4.0"),
    ({**TOP, "tail": "drop"}, "a.tail = 'drop': expected one of"),
    ({"objective": "partial_plackett_luce", "k": 11}, "a.k = 11"),
  )  # fmt: skip
  def test_what_a_top_k_signal_cannot_serve(self, arm, words):
    settings = small.settings({"a": {**arm, "signal": KEPT}})
    with self.assertRaisesRegex(UserError, words):
      arms.group(settings["arms"], 20)

  @parameterized.parameters(
    ({"temperatures": ()}, "temperatures"),
    ({"temperatures": (0.0,)}, "temperatures"),
    ({"keep": "some"}, "keep = 'some'"),
    ({"dtype": "int4"}, "dtype = 'int4'"),
    ({"shard_size": 0}, "shard_size = 0"),
    ({"keep": "top_k", "live": True}, "keep = 'top_k'.*live"),
    ({"dtype": "int8", "live": True}, "dtype = 'int8'.*live"),
    ({"path": "x", "live": True}, "path = 'x'.*live"),
  )
  def test_a_bad_section(self, section, words):
    with self.assertRaisesRegex(UserError, words):
      small.settings({"a": {**TOP, "signal": section}})


class PathTest(phases_test.Workdir):
  def options(self, **signal):
    made = phases_test.options(top={**TOP, "k": 5, "temperature": 1.0})
    made.signal.update({"keep": "top_k", "k": 8, "dtype": "int8", **signal})
    made.train.steps = 20
    return made

  def listing(self):
    """Returns all that is in the first study's folder, and since when."""
    paths = sorted(pathlib.Path(self.workdir).rglob("*"))
    return [(p, p.stat().st_mtime_ns, p.stat().st_ino) for p in paths]

  def test_a_study_reads_the_store_of_another_or_says_what_differs(self):
    first = study.run(self.options(), self.workdir)
    (name,) = os.listdir(os.path.join(self.workdir, "signals"))
    path = os.path.join(self.workdir, "signals", name)
    teacher = {"path": os.path.join(self.workdir, "teacher")}
    again = self.options(path=path)
    again.teacher.update(teacher)
    folder = os.path.join(self.parent, "second")
    before = self.listing()
    second = study.run(again, folder)
    self.assertEqual(self.listing(), before)  # who reads only reads
    self.assertEqual(
      first["arms"]["top"]["metrics"], second["arms"]["top"]["metrics"]
    )
    self.assertEmpty(os.listdir(os.path.join(folder, "signals")))
    for changes, words in (
      ({"signal.k": 9}, "signal.k = 8, this study expects 9"),
      ({"signal.k": 11}, "signal.k = 11: expected at most the task's 10"),
      ({"signal.path": "nowhere"}, "nowhere.*no readable signal"),
      ({"task.seed": 1}, "task = '.*', this study expects"),
      (
        {"teacher.path": "", "teacher.seed": 5},
        "teacher = '.*', this study expects",
      ),
    ):
      other = self.options(path=path)
      other.teacher.update(teacher)
      other.update_from_flattened_dict(changes)
      with self.subTest(words), self.assertRaisesRegex(UserError, words):
        study.run(other, os.path.join(self.parent, "third"))
        self.fail(words)
      if "teacher.path" not in changes:  # before any compute
        self.assertFalse(os.path.exists(os.path.join(self.parent, "third")))


if __name__ == "__main__":
  absltest.main()
