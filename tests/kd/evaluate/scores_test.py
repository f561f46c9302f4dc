"""Numbers of a run: the shift of biases, reliability, a teacher's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import metrics
from kd.data.registry import load
from kd.evaluate import scores
from kd.models import functional
from kd.train import arms
from kd.train.step import TrainState
from tests.kd import small

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 400)
LOGITS = (2 * np.eye(5)[LABELS] + RNG.normal(size=(400, 5))).astype(np.float32)


class EachTest(parameterized.TestCase):
  @parameterized.parameters(
    "accuracy", "recall_3", "agreement", "nll", "brier_best", "kl_to_teacher"
  )
  def test_the_mean_over_examples_is_the_metric(self, metric):
    teacher = RNG.normal(size=(400, 5)).astype(np.float32)
    rows = scores.of_logits(LOGITS, LABELS, teacher)
    found = scores.values(rows, LABELS, bins=15, num_classes=5)
    each = scores.primary(rows, LABELS, metric)
    self.assertEqual(np.isnan(each).any(), metric == "recall_3")
    mean = np.nanmean(each, dtype=np.float64)
    self.assertAlmostEqual(mean, found[metric.removesuffix("_best")], 5)

  def test_an_example_without_an_answer_is_left_out(self):
    answers = np.where(LABELS == 3, -1, LABELS)
    rows = scores.of_logits(LOGITS, LABELS, answers)
    each = scores.primary(rows, LABELS, "agreement")
    np.testing.assert_array_equal(np.isnan(each), LABELS == 3)

  @parameterized.parameters("ece", "best_step", "kl_to_teacher")
  def test_none_where_there_is_none(self, metric):
    rows = scores.of_logits(LOGITS, LABELS)
    self.assertIsNone(scores.primary(rows, LABELS, metric))


def reliability(logits, labels, bins):
  return scores.reliability(scores.of_logits(logits, labels), bins)


class ReliabilityTest(parameterized.TestCase):
  @parameterized.parameters(5, 10, 15)
  def test_an_edge_confidence_is_in_the_bin_of_the_ece(self, bins):
    # Logits whose softmax is an edge to the last bit.
    edges = np.float32(np.arange(bins // 2 + 1, bins) / bins)
    tried = (
      np.log(edges / (1 - edges))[:, None] + np.linspace(-1, 1, 801) * 2e-5
    )
    logits = np.stack([tried, np.zeros_like(tried)], -1).astype(np.float32)
    exact = np.asarray(jax.nn.softmax(logits))[..., 0] == edges[:, None]
    self.assertTrue(exact.any(-1).all())
    logits = logits[np.arange(len(edges)), exact.argmax(-1)]
    count = reliability(logits, np.zeros(len(edges), int), bins)["count"]
    self.assertEqual(
      np.flatnonzero(count).tolist(), list(range(bins // 2, bins - 1))
    )
    for edge, z in zip(edges, logits, strict=True):
      # A wrong prediction in the same bin: their errors cancel within it.
      below = np.float32(edge - 0.2 / bins)
      low = np.log(below / (1 - below))
      both = np.stack([z, [low, 0.0]]).astype(np.float32)
      found = reliability(both, np.array([0, 1]), bins)
      self.assertEqual(max(found["count"]), 2)
      ece = metrics.ece(jax.nn.softmax(both), np.array([0, 1]), bins)
      self.assertAlmostEqual(float(ece), abs((edge + below) / 2 - 0.5), 6)

  def test_counts_add_up_and_give_the_ece(self):
    bins = reliability(LOGITS, LABELS, 15)
    self.assertEqual(sum(bins["count"]), 400)
    gap = sum(
      n / 400 * abs(a - c)
      for a, c, n in zip(
        bins["accuracy"], bins["confidence"], bins["count"], strict=True
      )
      if n
    )
    probs = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    self.assertAlmostEqual(gap, float(metrics.ece(probs, LABELS, 15)), 5)
    empty = [n == 0 for n in bins["count"]]
    self.assertEqual([x is None for x in bins["accuracy"]], empty)

  def test_what_is_not_finite_is_in_no_bin(self):
    logits = np.array(LOGITS)
    logits[:7, 2] = np.nan
    logits[7, 1] = np.inf
    bins = reliability(logits, LABELS, 15)
    self.assertEqual(bins, reliability(LOGITS[8:], LABELS[8:], 15))
    none = reliability(np.full((4, 5), np.nan), LABELS[:4], 3)
    self.assertEqual(none["count"], [0, 0, 0])
    json.dumps(none, allow_nan=False)


class ArmTest(absltest.TestCase):
  def test_one_run_that_is_not_finite_leaves_the_other(self):
    resolved = small.settings({"hard": small.HARD})
    (group,) = arms.group(resolved["arms"], 10)
    task = load(resolved["task"])
    make = functional.define(group.student, task.signature)[1]
    params, rest = jax.vmap(make)(jax.random.split(jax.random.key(0), 2))
    whole = {"params": params, "rest": rest}
    broken = jax.tree.map(lambda x: x.at[1].set(jnp.inf), params)
    state = TrainState(
      params=broken,
      rest=rest,
      opt=None,
      best=whole,
      best_score=jnp.zeros(2),
      best_step=jnp.array([3, 4]),
      diverged=jnp.zeros(2, jnp.int32),
    )
    labels = task.test.labels()
    scored = scores.arm(
      group, state, task, scores.Test.of(task.test, np.asarray(labels)),
      batch=128, bins=15,
      shift_classes=(3,), metric="accuracy_best",
    )  # fmt: skip
    values, bins = scored.values, scored.reliability
    json.dumps([values, bins], allow_nan=False)
    for own, mean in zip(scored.each, values["accuracy_best"], strict=True):
      self.assertAlmostEqual(float(own.mean()), mean, 6)
    for metric in ("accuracy", "nll", "ece", "agreement", "accuracy_shifted"):
      self.assertIsNotNone(values[metric][0], metric)
      self.assertIsNone(values[metric][1], metric)
    self.assertIsNotNone(values["accuracy_best"][1])
    self.assertEqual(sum(bins["count"]), len(labels))


class TeacherTest(absltest.TestCase):
  def test_what_is_not_finite_is_none(self):
    logits = np.array(LOGITS)
    logits[0, 0] = np.nan
    rows = scores.of_logits(logits, LABELS)
    values, bins = scores.teacher(rows, LABELS, bins=15, num_classes=5)
    for metric in ("accuracy", "nll", "ece", "brier"):
      self.assertIsNone(values[metric])
    self.assertNotIn("agreement", values)
    self.assertEqual(sum(bins["count"]), 399)
    json.dumps([values, bins], allow_nan=False)


if __name__ == "__main__":
  absltest.main()
