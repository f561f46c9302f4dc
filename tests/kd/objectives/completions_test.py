"""Losses of whole completions, against sums over a float64 softmax."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from kd import signals
from kd.models.outputs import Outputs
from kd.objectives.completions import OBJECTIVES
from kd.signals import Completions, Kind, Labels, Samples, Signal
from kd.train.arms import Part

B, L, D, V = 3, 5, 4, 7
KINDS = np.array(
  [
    [Kind.SAMPLE, Kind.REPEAT, Kind.SAMPLE, Kind.REJECTED, Kind.RATIONALE],
    [Kind.SAMPLE, Kind.SAMPLE, Kind.NONE, Kind.NONE, Kind.NONE],
    [Kind.TRUTH, Kind.NONE, Kind.NONE, Kind.REJECTED, Kind.NONE],
  ]
)
C = KINDS.shape[1]


def case(seed=0):
  """Returns (student, signal): 3 prompts with up to 5 completions of up to 5
  tokens, whose logits are random."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, L, (B, C)) * (KINDS != Kind.NONE)
  tokens = rng.integers(0, V, (B, C, L))
  tokens = np.where(np.arange(L) < lengths[..., None], tokens, -1)
  scores = rng.normal(size=(B, C))
  scores[1, 1] = np.nan
  flat = jnp.asarray(tokens.reshape(-1), jnp.int32)
  is_sample = np.isin(KINDS, (Kind.SAMPLE, Kind.REPEAT))[..., None]
  none = jnp.zeros((len(flat), 0))
  numbers = {
    "scores": scores,
    "log_probs": -rng.uniform(1, 9, (B, C)),
    "reference": -rng.uniform(1, 9, (B, C)),
  }
  signal = Signal(
    truth=Labels(jnp.full_like(flat, -1)),
    answer=Labels(jnp.asarray(np.where(is_sample, tokens, -1).reshape(-1))),
    dense=None,
    samples=Samples(none.astype(jnp.int32), none),
    counts=flat >= 0,
    completions=Completions(
      tokens=flat,
      kinds=jnp.asarray(KINDS, jnp.int32),
      lengths=jnp.asarray(lengths, jnp.int32),
      **{k: jnp.asarray(v, jnp.float32) for k, v in numbers.items()},
    ),
  )
  hidden = jnp.asarray(rng.normal(size=(B * C * L, D)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
  return Outputs(hidden, kernel), signal


def log_probs(student, signal, length="sum"):
  """Returns log q(y | x) [B, C] of each completion, float64; 0 of none."""
  z = np.asarray(student.hidden, np.float64) @ np.asarray(student.kernel)
  log_q = z - np.log(np.exp(z).sum(-1, keepdims=True))
  tokens = np.asarray(signal.completions.tokens)
  own = np.where(
    tokens >= 0, log_q[np.arange(len(tokens)), np.maximum(tokens, 0)], 0.0
  )
  sums = own.reshape(B, C, L).sum(-1)
  if length == "mean":
    sums = sums / np.maximum(np.asarray(signal.completions.lengths), 1)
  return sums


def loss(name, student, signal, **keys):
  return np.asarray(OBJECTIVES[name].loss(student, signal, **keys))


class CompletionsTest(chex.TestCase):
  @parameterized.parameters("sum", "mean")
  def test_sequence_kd(self, length):
    student, signal = case()
    q = log_probs(student, signal, length)
    keys = dict(several="mean", length=length)
    found = loss("sequence_kd", student, signal, **keys)
    expected = [-q[0, :3].mean(), -q[1, :2].mean(), 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_any_leaves_repeats_out(self):
    student, signal = case()
    q = np.exp(log_probs(student, signal))
    found = loss("sequence_kd", student, signal, several="any", length="sum")
    expected = [-np.log(q[0, 0] + q[0, 2]), -np.log(q[1, :2].sum()), 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_best_is_by_score(self):
    student, signal = case()
    q, scores = log_probs(student, signal), signal.completions.scores
    found = loss("sequence_kd", student, signal, several="best", length="sum")
    best = int(np.argmax(scores[0, :3]))
    np.testing.assert_allclose(found, [-q[0, best], -q[1, 0], 0.0], rtol=1e-5)

  @parameterized.product(scores=("log_probs", "scores"), temperature=(1.0, 2.0))
  def test_list_net(self, scores, temperature):
    student, signal = case()
    q = log_probs(student, signal, "mean")[0, [0, 2]]
    t = np.asarray(getattr(signal.completions, scores))[0, [0, 2]]
    if scores == "log_probs":
      t = t / np.asarray(signal.completions.lengths)[0, [0, 2]]
    found = loss(
      "sequence_list_net",
      student,
      signal,
      scores=scores,
      length="mean",
      temperature=temperature,
    )
    softmax = lambda x: np.exp(x) / np.exp(x).sum()
    cross = -softmax(t / temperature) @ np.log(softmax(q / temperature))
    self.assertAlmostEqual(found[0], temperature**2 * cross, places=4)

  @parameterized.parameters(
    ("sequence_plackett_luce", dict(ties="average"), 2),
    ("sequence_pairwise", dict(weights=None), 1),
  )
  def test_order_of_two(self, name, keys, items):
    student, signal = case()
    q, t = log_probs(student, signal), np.asarray(signal.completions.scores)
    lead = (q[0, 0] - q[0, 2]) * np.sign(t[0, 0] - t[0, 2])
    found = loss(name, student, signal, scores="scores", length="sum", **keys)
    expected = np.log1p(np.exp(-lead)) / items
    self.assertAlmostEqual(found[0], expected, places=4)
    has = OBJECTIVES[name].rows(
      signal, V, scores="scores", length="sum", **keys
    )
    self.assertEqual(np.asarray(has).tolist(), [True, False, False])

  @parameterized.product(
    reference=("initial", "teacher", "none"), length=("sum", "mean")
  )
  def test_preference_against_rejected(self, reference, length):
    student, signal = case()
    q, of = log_probs(student, signal, length), signal.completions
    given = {
      "initial": of.reference,
      "teacher": of.log_probs,
      "none": np.zeros((B, C)),
    }[reference]
    if length == "mean":
      given = given / np.maximum(np.asarray(of.lengths), 1)
    keys = dict(against="rejected", reference=reference)
    found = loss(
      "sequence_preference",
      student,
      signal,
      beta=0.3,
      form="sigmoid",
      length=length,
      **keys,
    )
    ahead = np.asarray(q - given)
    h = 0.3 * (ahead[0, [0, 2]] - ahead[0, 3])
    self.assertAlmostEqual(found[0], np.log1p(np.exp(-h)).mean(), places=4)
    has = OBJECTIVES["sequence_preference"].rows(signal, V, **keys)
    self.assertEqual(np.asarray(has).tolist(), [True, False, False])

  def test_preference_against_the_worst(self):
    student, signal = case()
    q, t = log_probs(student, signal), np.asarray(signal.completions.scores)
    sign = np.sign(t[0, 0] - t[0, 2])
    found = loss(
      "sequence_preference",
      student,
      signal,
      against="worst",
      reference="none",
      beta=1.0,
      form="ipo",
      length="sum",
    )
    h = sign * (q[0, 0] - q[0, 2])
    np.testing.assert_allclose(found[0], (h - 0.5) ** 2, rtol=1e-4)
    self.assertEqual(found[1:].tolist(), [0.0, 0.0])

  def test_step_by_step_adds_the_rationale(self):
    student, signal = case()
    q = log_probs(student, signal)
    keys = dict(rationale_weight=0.5, length="sum")
    found = loss("step_by_step", student, signal, **keys)
    expected = [-q[0, :3].mean() - 0.5 * q[0, 4], -q[1, :2].mean(), 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_parts_of_a_batch_add_up(self):
    student, signal = case()
    keys = {"several": "mean", "length": "sum"}
    part = Part(
      ("a",),
      (("hard", {"target": "answer"}), ("sequence_kd", keys)),
      ({"weight": np.ones(1)}, {"weight": np.ones(1)}),
    )
    numbers = ({"weight": 0.5}, {"weight": 2.0})

    def whole(hidden):
      own = dataclasses.replace(student, hidden=hidden)
      return part.loss(own, signal, numbers)

    def parts(hidden):
      total = 0.0
      for i in range(B):
        rows = slice(i * C * L, (i + 1) * C * L)
        own = dataclasses.replace(student, hidden=hidden[rows])
        cut = signals.part(signal, i, B)
        total += part.loss(own, cut, numbers, signal)
      return total

    expected = jax.jit(jax.value_and_grad(whole))(student.hidden)
    found = jax.jit(jax.value_and_grad(parts))(student.hidden)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    q = log_probs(student, signal)
    samples = np.isin(KINDS, (Kind.SAMPLE, Kind.REPEAT))
    tokens = np.asarray(signal.completions.lengths)[samples].sum()
    mean = np.mean([-q[0, :3].mean(), -q[1, :2].mean()])  # the third has none
    hard = -q[samples].sum() / tokens
    np.testing.assert_allclose(found[0], 0.5 * hard + 2 * mean, rtol=1e-5)
