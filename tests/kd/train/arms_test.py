"""Arms gathered, and their losses: sums, and large vocabularies."""

import dataclasses
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import signals
from kd.models import outputs
from kd.objectives.registry import OBJECTIVES
from kd.train import arms
from tests.kd import small

B, H, V, K = 6, 4, 5, 8
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, H)).astype(np.float32)
KERNEL = RNG.normal(size=(H, V)).astype(np.float32)
TEACHER = 2 * RNG.normal(size=(B, V)).astype(np.float32)
TRUTH = RNG.integers(0, V, B)
SIGNAL = signals.make(TEACHER, TRUTH, samples=K, temperature=2.0, seed=0)
STUDENT = outputs.Outputs(
  jnp.asarray(HIDDEN), jnp.asarray(KERNEL), jnp.zeros(V, jnp.float32)
)
LIVE = outputs.Outputs(
  jnp.asarray(TEACHER), jnp.eye(V), jnp.zeros(V), large_from=2
)


def loss(name, **keys):
  return np.asarray(OBJECTIVES[name].loss(STUDENT, SIGNAL, **keys))


class SumTest(absltest.TestCase):
  def test_a_sum_is_the_weighted_sum_of_its_parts(self):
    both = {
      "objective": "hard + soft",
      "hard": {"target": "answer", "weight": 0.25},
      "soft": {"temperature": 2.0, "divergence": "tvd", "weight": 3.0},
    }
    (group,) = arms.group(small.settings({"both": both})["arms"], V)
    (part,) = group.parts
    numbers = jax.tree.map(lambda x: x[0], part.numbers)
    expected = 0.25 * loss("hard", target="answer") + 3.0 * loss(
      "soft", temperature=2.0, divergence="tvd"
    )
    np.testing.assert_allclose(
      part.loss(STUDENT, SIGNAL, numbers), expected.mean(), rtol=1e-6
    )


def soft(divergence, **parameters):
  return dict(
    objective="soft", temperature=3.0, divergence=divergence, **parameters
  )


RANKED = dict(samples=K, scores="log_probs")


class LargeVocabularyTest(parameterized.TestCase):
  """Losses through the kernels, at a small V that is taken for a large one."""

  @parameterized.named_parameters(
    ("hard", small.HARD),
    ("forward_kl", soft("forward_kl")),
    ("reverse_kl", soft("reverse_kl")),
    ("tvd", soft("tvd")),
    ("jsd", soft("jsd", beta=0.3)),
    ("skew_kl", soft("skew_kl", alpha=0.1)),
    ("skew_reverse_kl", soft("skew_reverse_kl", alpha=0.1)),
    ("alpha_divergence", soft("alpha_divergence", alpha=0.5)),
    (
      "sum",
      {
        "objective": "hard + soft + list_net",
        "hard": {"target": "answer", "weight": 0.25},
        "soft": {"temperature": 2.0, "divergence": "tvd", "weight": 3.0},
        "list_net": {**RANKED, "temperature": 2.0, "weight": 0.5},
      },
    ),
    ("frequencies", dict(objective="frequencies", samples=K, temperature=4.0)),
    ("list_net", dict(RANKED, objective="list_net", temperature=2.0)),
    (
      "plackett_luce",
      dict(
        RANKED,
        objective="plackett_luce",
        candidates="sampled",
        ties="average",
      ),
    ),
  )
  def test_values_and_gradients_are_those_of_a_small_one(self, arm):
    (group,) = arms.group(small.settings({"arm": arm})["arms"], V)
    (part,) = group.parts
    numbers = jax.tree.map(lambda x: x[0], part.numbers)
    large = dataclasses.replace(part, fused_from=2)
    student = dataclasses.replace(STUDENT, large_from=2)
    live = dataclasses.replace(SIGNAL, dense=LIVE)  # or stored logits

    def score(part, student, signal):
      fn = jax.value_and_grad(lambda s: part.loss(s, signal, numbers))
      value, slope = fn(student)
      return value, slope.hidden, slope.kernel, slope.bias

    cases = [(part, STUDENT, SIGNAL), (large, student, SIGNAL)]
    cases.append((large, student, live))
    expected, *found = jax.jit(lambda: [score(*case) for case in cases])()
    for values in found:
      chex.assert_trees_all_close(values, expected, rtol=1e-4, atol=1e-6)

  def test_a_live_teachers_answer(self):
    np.testing.assert_array_equal(LIVE.answer, TEACHER.argmax(-1))


class ChunkedTest(parameterized.TestCase):
  """Losses that no kernel has, of a few rows at a time."""

  @parameterized.named_parameters(
    (
      "dkd",
      dict(
        objective="dkd", alpha=1.0, beta=2.0, temperature=1.5, target="truth"
      ),
    ),
    ("order", dict(objective="partial_plackett_luce", k=3)),
    ("frequencies", dict(objective="frequencies", samples=K, temperature=4.0)),
  )
  def test_values_and_gradients_are_those_of_all_at_once(self, arm):
    made = small.settings({"arm": arm}, signal={"labelled": True})
    (group,) = arms.group(made["arms"], V)
    (part,) = group.parts
    numbers = jax.tree.map(lambda x: x[0], part.numbers)
    counts = jnp.asarray(np.arange(B) != 2)

    def score(student, signal, at_a_time):
      signal = dataclasses.replace(signal, counts=counts)
      with mock.patch.object(arms, "AT_A_TIME", at_a_time):
        fn = jax.value_and_grad(lambda s: part.loss(s, signal, numbers))
        value, slope = fn(student)
      return value, slope.hidden, slope.kernel, slope.bias

    student = dataclasses.replace(STUDENT, large_from=2)
    live = dataclasses.replace(SIGNAL, dense=LIVE)
    expected, *found = jax.jit(
      lambda: [
        score(STUDENT, SIGNAL, 2 * V),
        score(student, SIGNAL, 2 * V),
        score(student, live, 4 * V),
        score(student, live, 1),
      ]
    )()
    for values in found:
      chex.assert_trees_all_close(values, expected, rtol=1e-5, atol=1e-6)


class GroupTest(absltest.TestCase):
  def test_what_makes_a_group_and_a_part(self):
    made = small.settings(
      {
        "hard": small.HARD,
        "soft": small.SOFT,
        "warm": {**small.SOFT, "temperature": 9.0},
        "fast": {**small.SOFT, "train": {"learning_rate": 0.1}},
        "wide": {**small.SOFT, "student": {"hidden": (64,)}},
        "few": {**small.SOFT, "signal": {"size": 50}},
        "sgd": {**small.SOFT, "train": {"optimizer": "sgd"}},
      }
    )
    groups = arms.group(made["arms"], V)
    self.assertEqual(
      [[part.names for part in group.parts] for group in groups],
      [
        [("hard",), ("soft", "warm", "fast")],
        [("wide",)],
        [("few",)],
        [("sgd",)],
      ],
    )
    np.testing.assert_allclose(
      groups[0].numbers["learning_rate"], [3e-3, 3e-3, 3e-3, 0.1]
    )


if __name__ == "__main__":
  absltest.main()
