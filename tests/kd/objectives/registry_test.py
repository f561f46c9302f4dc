"""What each objective makes of a signal, through its table."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import ranking, signals
from kd.models import outputs
from kd.objectives.registry import OBJECTIVES

B, H, V, K = 6, 4, 5, 8
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, H)).astype(np.float32)
KERNEL = RNG.normal(size=(H, V)).astype(np.float32)
LOGITS = HIDDEN.astype(np.float64) @ KERNEL
TEACHER = 2 * RNG.normal(size=(B, V)).astype(np.float32)
TRUTH = RNG.integers(0, V, B)
SIGNAL = signals.make(TEACHER, TRUTH, samples=K, temperature=2.0, seed=0)
IDS = np.asarray(SIGNAL.samples.ids)
STUDENT = outputs.Outputs(
  jnp.asarray(HIDDEN), jnp.asarray(KERNEL), jnp.zeros(V, jnp.float32)
)


def log_softmax(x):
  x = np.asarray(x, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def loss(name, **keys):
  return np.asarray(OBJECTIVES[name].loss(STUDENT, SIGNAL, **keys))


class ObjectiveTest(parameterized.TestCase):
  def test_hard_targets(self):
    logs = log_softmax(LOGITS)
    for target, ids in (("truth", TRUTH), ("answer", TEACHER.argmax(-1))):
      expected = -logs[np.arange(B), ids]
      np.testing.assert_allclose(
        loss("hard", target=target), expected, rtol=1e-5
      )

  @parameterized.parameters(1.0, 4.0)
  def test_frequencies_of_the_first_samples(self, temperature):
    found = loss("frequencies", samples=6, temperature=temperature)
    lq = log_softmax(LOGITS / temperature)
    for b in range(B):
      p = np.bincount(IDS[b, :6], minlength=V) / 6
      expected = sum(
        p[v] * (np.log(p[v]) - lq[b, v]) for v in np.flatnonzero(p)
      )
      np.testing.assert_allclose(found[b], temperature**2 * expected, rtol=2e-5)

  @parameterized.parameters("log_probs", "votes")
  def test_list_net_over_the_distinct_answers(self, scores):
    t = 2.0  # at which the samples were drawn
    found = loss("list_net", samples=K, scores=scores, temperature=t)
    lp = log_softmax(TEACHER / t)
    for b in range(B):
      ids, votes = np.unique(IDS[b], return_counts=True)
      own = lp[b, ids] if scores == "log_probs" else np.log(votes)
      target = np.exp(log_softmax(own))
      expected = -(target * log_softmax(LOGITS[b, ids] / t)).sum()
      np.testing.assert_allclose(found[b], t**2 * expected, rtol=2e-5)

  def test_plackett_luce_by_votes_is_over_what_was_sampled(self):
    found = loss(
      "plackett_luce",
      samples=K,
      scores="votes",
      candidates="sampled",
      ties="average",
    )
    for b in range(B):
      ids, votes = np.unique(IDS[b], return_counts=True)
      s = np.exp(LOGITS[b, ids])
      total = 0.0
      for i, vote in enumerate(votes):
        tied = np.flatnonzero(votes == vote)
        share = 1 - list(tied).index(i) / len(tied)
        total += np.log(s[votes < vote].sum() + share * s[tied].sum())
        total -= LOGITS[b, ids[i]]
      np.testing.assert_allclose(found[b], total / len(ids), rtol=2e-5)

  def test_the_rest_is_one_entry_below_what_was_sampled(self):
    k = 6
    keys = dict(samples=k, scores="votes", ties="any")
    found = loss("plackett_luce", candidates="rest", **keys)
    for b in range(B):
      votes = np.bincount(IDS[b, :k], minlength=V)
      # Those never sampled are tied in the list of all classes.
      whole = ranking.plackett_luce(
        jnp.asarray(LOGITS[b]), jnp.asarray(votes), ties="any"
      )
      entries = (votes > 0).sum() + (votes == 0).any()
      np.testing.assert_allclose(found[b], V * whole / entries, rtol=2e-5)

  def test_the_rest_where_all_was_sampled_or_nothing(self):
    keys = dict(scores="votes", candidates="rest")
    tests = MissingSamplesTest()
    every = tests.signal([3, 1, 3, 2, 0, 4])
    sampled = dict(keys, candidates="sampled")
    for name, own in (
      ("plackett_luce", dict(ties="any")),
      ("pairwise_logistic", dict(weights=None)),
    ):
      own = dict(own, samples=6)
      np.testing.assert_allclose(
        tests.loss(name, every, **own, **keys),
        tests.loss(name, every, **own, **sampled),
        rtol=1e-6,
      )
      none = tests.signal([-1, -1])
      own["samples"] = 2
      self.assertEqual(tests.loss(name, none, **own, **keys), 0)
    one = tests.signal([3, 3])
    has_order = OBJECTIVES["pairwise_logistic"].rows
    for among, told in (("sampled", False), ("rest", True)):
      keys = dict(keys, samples=2, weights=None, candidates=among)
      self.assertEqual(bool(has_order(one, V, **keys)[0]), told)
    found = tests.loss("pairwise_logistic", one, **keys)
    expected = -log_softmax(LOGITS[:1])[0, 3]  # against the sum of the others
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_one_distinct_answer_teaches_no_ranking(self):
    sure = signals.make(
      100 * np.eye(V)[TRUTH], None, samples=K, temperature=1.0, seed=0
    )
    ranked = {"samples": K, "scores": "votes"}
    for name, keys in (
      ("list_net", {"temperature": 1.0}),
      ("plackett_luce", {"candidates": "sampled", "ties": "average"}),
      ("pairwise_logistic", {"candidates": "sampled", "weights": None}),
    ):
      found = OBJECTIVES[name].loss(STUDENT, sure, **ranked, **keys)
      np.testing.assert_allclose(found, 0, atol=1e-6)

  def test_partial_plackett_luce_of_one_is_the_hard_answer(self):
    np.testing.assert_allclose(
      loss("partial_plackett_luce", k=1),
      loss("hard", target="answer"),
      rtol=1e-5,
    )

  def test_every_objective_is_finite_with_its_gradient_at_extremes(self):
    wild = signals.make(
      1e4 * TEACHER, TRUTH, samples=K, temperature=2.0, seed=0
    )
    worse = jnp.argmin(wild.dense.logits, -1)[:, None]
    wild = dataclasses.replace(wild, rejected=worse)
    student = outputs.Outputs(
      STUDENT.hidden * 1e4, STUDENT.kernel, STUDENT.bias
    )
    keys = {
      "hard": {"target": "answer"},
      "soft": {"temperature": 4.0, "divergence": "reverse_kl"},
      "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "target": "truth"},
      "dist": {"beta": 1.0, "gamma": 1.0, "temperature": 4.0},
      "frequencies": {"samples": K, "temperature": 4.0},
      "acceptable": {"samples": K, "temperature": 4.0},
      "preference": {"samples": K},
      "list_net": {"samples": K, "scores": "log_probs", "temperature": 2.0},
      "plackett_luce": {
        "samples": K,
        "scores": "votes",
        "candidates": "all",
        "ties": "index",
      },
      "pairwise_logistic": {
        "samples": K,
        "scores": "log_probs",
        "candidates": "sampled",
        "weights": "difference",
      },
      "partial_plackett_luce": {"k": 3},
      "top_k": {
        "k": 3,
        "tail": "bucket",
        "temperature": 4.0,
        "divergence": "reverse_kl",
      },
    }
    of_positions = [k for k, o in OBJECTIVES.items() if not o.sequences]
    self.assertCountEqual(keys, of_positions)

    @jax.jit
    def slopes(student):
      return {
        name: jax.value_and_grad(
          lambda s, name=name, own=own: (
            OBJECTIVES[name].loss(s, wild, **own).sum()
          )
        )(student)
        for name, own in keys.items()
      }

    for name, found in slopes(student).items():
      with self.subTest(name):
        chex.assert_tree_all_finite(found)


class MissingSamplesTest(parameterized.TestCase):
  """Rows with fewer than K answers, and answers without a score."""

  def signal(self, ids, scores=None, rejected=None):
    ids = jnp.asarray([ids], jnp.int32)
    none = jnp.full(ids.shape, jnp.nan)
    values = none if scores is None else jnp.asarray([scores])
    return signals.Signal(
      truth=signals.Labels(jnp.array([-1])),
      answer=signals.Labels(ids[:, 0]),
      dense=None,
      samples=signals.Samples(ids, none, values),
      rejected=None if rejected is None else jnp.asarray([rejected]),
    )

  def loss(self, name, signal, **keys):
    row = outputs.Outputs(STUDENT.hidden[:1], STUDENT.kernel, STUDENT.bias)
    return float(OBJECTIVES[name].loss(row, signal, **keys)[0])

  @parameterized.parameters(
    ("frequencies", dict(temperature=2.0)),
    ("acceptable", dict(temperature=2.0)),
    ("list_net", dict(scores="votes", temperature=1.0)),
    ("plackett_luce", dict(scores="votes", candidates="sampled", ties="index")),
    ("pairwise_logistic", dict(scores="votes", candidates="all", weights=None)),
    ("preference", {}),
  )  # fmt: skip
  def test_they_count_for_nothing(self, name, keys):
    rejected = [4, 1]
    short = self.signal([3, 1, 3], rejected=rejected)
    long = self.signal([3, 1, 3, -1, -1], rejected=[*rejected, -1])
    found = [
      self.loss(name, s, samples=k, **keys) for s, k in ((short, 3), (long, 5))
    ]
    np.testing.assert_allclose(*found, rtol=1e-6)
    self.assertTrue(np.isfinite(found).all())

  def test_acceptable_is_an_equal_share_of_what_is_not_rejected(self):
    made = self.signal([3, 1, 3, 2], rejected=[1])
    found = self.loss("acceptable", made, samples=4, temperature=1.0)
    log_q = log_softmax(LOGITS[:1])[0]
    expected = np.log(0.5) - (log_q[3] + log_q[2]) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_preference_is_over_pairs_of_distinct_answers(self):
    made = self.signal([3, 1, 3], rejected=[1, 4, 4])
    z = LOGITS[0]
    gaps = np.array([z[3] - z[1], z[3] - z[4], z[1] - z[4]])
    expected = np.log1p(np.exp(-gaps)).mean()
    found = self.loss("preference", made, samples=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_an_answer_has_the_mean_of_its_scores_and_none_is_not_ranked(self):
    nan = float("nan")
    keys = dict(scores="scores", candidates="sampled", weights=None)
    made = self.signal([3, 1, 3, 2], scores=[5.0, 3.0, 0.0, nan])
    z = LOGITS[0]  # 1 has 3, 3 has 2.5, 2 is not ranked
    expected = np.log1p(np.exp(-(z[1] - z[3])))
    found = self.loss("pairwise_logistic", made, samples=4, **keys)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    self.assertEqual(made.samples.best.tolist(), [3])

  def test_best_without_scores(self):
    ids, log_probs = jnp.array([[2, 0, 1]]), jnp.array([[-3.0, -1.0, -2.0]])
    self.assertEqual(signals.Samples(ids, log_probs).best.tolist(), [0])
    self.assertEqual(self.signal([2, -1]).samples.best.tolist(), [-1])


if __name__ == "__main__":
  absltest.main()
