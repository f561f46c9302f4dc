"""Tests of kd.objectives.sequences against float64 loops over completions."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import ranking
from kd.objectives import sequences
from tests.kd import oracles

B, K, R = 5, 4, 3


def nats(seed, *shape):
  return -np.random.default_rng(seed).gamma(2.0, 3.0, shape).astype(np.float32)


def holes(seed, *shape):
  """Returns a mask whose first row is full and whose last is empty."""
  where = np.random.default_rng(seed).random(shape) < 0.6
  where[0], where[1, 0], where[-1] = True, True, False
  return where


def spoiled(values, where):
  return np.where(where, values, np.nan).astype(np.float32)


def mean(values):
  return np.mean(values) if len(values) else 0.0


class CompletionTest(oracles.TestCase):
  @parameterized.parameters("sum", "mean")
  def test_packed_rows(self, length):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 6, (3, K))
    lengths[1, 2] = 0
    slots = np.concatenate(
      [np.repeat([-1, slot], [2, n]) for slot, n in enumerate(lengths.ravel())]
    )
    slots = np.pad(slots, (0, -len(slots) % 8), constant_values=-1)
    slots = rng.permutation(slots).reshape(-1, 8)
    lp = spoiled(nats(1, *slots.shape), slots >= 0)
    actual, where = sequences.completion_log_probs(
      jnp.array(lp), jnp.array(slots), (3, K), length=length
    )
    reduce = np.sum if length == "sum" else mean
    expected = [reduce(np.float64(lp[slots == s])) for s in range(3 * K)]
    oracles.assert_close(actual, np.reshape(expected, (3, K)))
    np.testing.assert_array_equal(where, lengths > 0)
    gradient = jax.grad(
      lambda x: sequences.completion_log_probs(
        x, jnp.array(slots), (3, K), length=length
      )[0].sum()
    )(jnp.array(lp))
    share = 1.0 if length == "sum" else 1 / np.maximum(lengths.ravel(), 1)
    share = np.broadcast_to(share, 3 * K)[slots]
    oracles.assert_close(gradient, np.where(slots >= 0, share, 0.0))

  def test_refuses(self):
    lp, slots = jnp.zeros((2, 3)), jnp.zeros((2, 3), int)
    with self.assertRaisesRegex(ValueError, "accepted: 'sum', 'mean'"):
      sequences.completion_log_probs(lp, slots, (1, 1), length="max")
    with self.assertRaisesRegex(ValueError, "slots: shape"):
      sequences.completion_log_probs(lp, slots[:, 1:], (1, 1), length="sum")


class SequenceKdTest(oracles.TestCase):
  @parameterized.parameters("mean", "any", "best")
  def test_value_and_gradient(self, several):
    lp, where = nats(2, B, K), holes(3, B, K)
    scores = spoiled(nats(4, B, K), holes(5, B, K))
    scores[0] = (1.0, np.nan, 2.0, 2.0)  # the first of equals
    expected, pull = np.zeros(B), np.zeros((B, K))
    for b in range(B):
      there = where[b] & (~np.isnan(scores[b]) | (several != "best"))
      x = np.float64(lp[b, there])
      if not len(x):
        continue
      if several == "mean":
        expected[b], share = -x.mean(), 1 / len(x)
      elif several == "any":
        p = np.exp(x)
        expected[b], share = -np.log(p.sum()), p / p.sum()
      else:
        share = np.eye(len(x))[np.argmax(scores[b, there])]
        expected[b] = -(share * x).sum()
      pull[b, there] = -share

    def loss(x):
      each = sequences.sequence_kd(
        x, jnp.array(where), several=several, scores=jnp.array(scores)
      )
      return each.sum(), each

    (_, actual), gradient = jax.value_and_grad(loss, has_aux=True)(
      jnp.array(spoiled(lp, where))
    )
    oracles.assert_close(actual, expected)
    oracles.assert_close(gradient, pull, atol=1e-7)

  def test_one_completion_is_its_cross_entropy(self):
    lp = jnp.array([[-1e4], [-3.0]])
    for several in ("mean", "any", "best"):
      loss = sequences.sequence_kd(
        lp, several=several, scores=jnp.zeros((2, 1))
      )
      oracles.assert_close(loss, [1e4, 3.0])

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "'mean', 'any', 'best'"):
      sequences.sequence_kd(jnp.zeros((1, 1)), several="all")
    with self.assertRaisesRegex(ValueError, "no scores"):
      sequences.sequence_kd(jnp.zeros((1, 1)), several="best")


class RankedTest(oracles.TestCase):
  @parameterized.parameters(
    (ranking.list_net, {"temperature": 2.0}),
    (ranking.plackett_luce, {"ties": "any"}),
    (ranking.pairwise_logistic, {"weights": "difference"}),
  )
  def test_is_that_of_the_completions_that_have_a_score(self, loss, keys):
    lp, where = nats(6, B, K), holes(7, B, K)
    scores = spoiled(nats(8, B, K), holes(9, B, K))
    both = where & ~np.isnan(scores)
    actual = sequences.ranked(
      loss,
      jnp.array(spoiled(lp, where)),
      jnp.array(scores),
      jnp.array(where),
      **keys,
    )
    expected = [
      loss(jnp.array(lp[b, both[b]]), jnp.array(scores[b, both[b]]), **keys)
      if both[b].any()
      else 0.0
      for b in range(B)
    ]
    oracles.assert_close(actual, expected)


class PreferenceTest(oracles.TestCase):
  @parameterized.product(
    form=("sigmoid", "ipo"), eps=(0.0, 0.2), referenced=(True, False)
  )
  def test_value(self, form, eps, referenced):
    beta, m = 0.3, 0.5
    q = nats(10, B, K), nats(11, B, R)
    r = (nats(12, B, K), nats(13, B, R)) if referenced else None
    where = holes(14, B, K), holes(15, B, R)
    actual = sequences.preference(
      *(jnp.array(spoiled(x, w)) for x, w in zip(q, where, strict=True)),
      r and tuple(map(jnp.array, r)),
      beta=beta,
      form=form,
      label_smoothing=eps,
      margin=m,
      where=tuple(map(jnp.array, where)),
    )
    ratio = [np.float64(x) - (r[i] if r else 0) for i, x in enumerate(q)]
    expected = []
    for b in range(B):
      h = np.array(
        [
          x - y
          for x in ratio[0][b][where[0][b]]
          for y in ratio[1][b][where[1][b]]
        ]
      )
      sigma = 1 / (1 + np.exp(-(beta * h - m)))
      if form == "ipo":
        each = (h - 1 / (2 * beta)) ** 2
      else:
        each = -(1 - eps) * np.log(sigma) - eps * np.log(1 - sigma)
      expected.append(mean(each))
    oracles.assert_close(actual, expected)

  def test_gradient_raises_the_chosen_alone_against_its_rejected(self):
    # At the reference, d/d chosen = -beta / 2, d/d rejected = beta / 2.
    win, lose = jnp.array(nats(16, B, 1)), jnp.array(nats(17, B, 1))
    loss = lambda win, lose, r: sequences.preference(
      win, lose, r, beta=0.1
    ).sum()
    up, down, none = jax.grad(loss, (0, 1, 2))(win, lose, (win, lose))
    oracles.assert_close(up, np.full((B, 1), -0.05))
    oracles.assert_close(down, np.full((B, 1), 0.05))
    for x in none:
      oracles.assert_close(x, np.zeros((B, 1)))

  def test_is_finite_where_inputs_are_extreme(self):
    win, lose = jnp.array([[-1e4, 0.0]]), jnp.array([[0.0, -1e4]])
    for form in ("sigmoid", "ipo"):
      loss, pull = jax.value_and_grad(
        lambda win, form=form: sequences.preference(
          win, lose, None, beta=2.0, form=form
        ).sum()
      )(win)
      self.assertTrue(np.isfinite(loss) and np.isfinite(pull).all())

  def test_refuses(self):
    one = jnp.zeros((1, 1))
    with self.assertRaisesRegex(ValueError, "'sigmoid', 'ipo'"):
      sequences.preference(one, one, None, beta=1.0, form="hinge")
    with self.assertRaisesRegex(ValueError, "the reference's rejected: shape"):
      sequences.preference(one, one, (one, jnp.zeros((1, 2))), beta=1.0)


class StepByStepTest(oracles.TestCase):
  def test_a_prompt_without_rationale_has_the_label_alone(self):
    lp = jnp.array([[-1.0, -5.0], [-2.0, jnp.nan]])
    where = jnp.array([[True, True], [True, False]])
    label, rationale = (
      sequences.sequence_kd(lp[:, i : i + 1], where[:, i : i + 1])
      for i in range(2)
    )
    loss = sequences.step_by_step(label, rationale, where[:, 1], weight=0.1)
    oracles.assert_close(loss, [1.5, 2.0])


if __name__ == "__main__":
  absltest.main()
