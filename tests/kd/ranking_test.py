"""Tests of kd.ranking against float64 oracles, list by list."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import ranking
from tests.kd import oracles

LOSSES = {
  "plackett_luce": ranking.plackett_luce,
  "by_index": functools.partial(ranking.plackett_luce, ties="index"),
  "mean_of_orders": functools.partial(ranking.plackett_luce, ties="mean"),
  "any_order": functools.partial(ranking.plackett_luce, ties="any"),
  "list_net": lambda s, t, where=None: ranking.list_net(s, t, 2.0, where),
  "pairwise": ranking.pairwise_logistic,
  "pairwise_difference": functools.partial(
    ranking.pairwise_logistic, weights="difference"
  ),
}


def lse(x):
  x = np.asarray(x, np.float64)
  return x.max() + np.log(np.exp(x - x.max()).sum())


def in_order(s, order):
  """-log-likelihood of one order of one list, divided by its length."""
  s = np.float64(s)[list(order)]
  return sum(lse(s[i:]) - s[i] for i in range(len(s))) / max(len(s), 1)


def efron(s, t):
  s, t, total = np.float64(s), np.asarray(t), 0.0
  for level in np.unique(t):
    block, below = s[t == level], s[t < level]
    for i, score in enumerate(block):
      share = lse(block) + np.log(1 - i / len(block))
      total += lse(np.append(below, share)) - score
  return total / max(len(s), 1)


def over_all_orders(s, t, combine):
  """Of -log P of every order that the ties allow; / n."""
  s, t = np.float64(s), np.asarray(t)
  orders = [[]]
  for level in np.unique(t)[::-1]:
    blocks = list(itertools.permutations(np.flatnonzero(t == level)))
    orders = [[*o, *block] for o in orders for block in blocks]
  n = max(len(s), 1)
  return combine(np.array([n * in_order(s, o) for o in orders])) / n


def over_orders(s, t, combine):
  """The same block by block, which longer lists need."""
  s, t, total = np.float64(s), np.asarray(t), 0.0
  for level in np.unique(t):
    below = s[t < level]
    total += combine(
      np.array(
        [
          sum(lse(np.append(o[i:], below)) - x for i, x in enumerate(o))
          for o in itertools.permutations(s[t == level])
        ]
      )
    )
  return total / max(len(s), 1)


def of_any(nll):
  return -lse(-nll)


def list_net(s, t, temperature):
  s, t = np.float64(s) / temperature, np.float64(t) / temperature
  return -(np.exp(t - lse(t)) * (s - lse(s))).sum()


def pairwise(s, t, weighted):
  total = weights = 0.0
  for i, j in itertools.permutations(range(len(s)), 2):
    if t[i] > t[j]:
      w = float(t[i]) - float(t[j]) if weighted else 1.0
      total += w * np.logaddexp(0, -(float(s[i]) - float(s[j])))
      weights += w
  return total / weights if weights else 0.0


ORACLES = {
  "plackett_luce": efron,
  "by_index": lambda s, t: in_order(s, np.argsort(-t, kind="stable")),
  "mean_of_orders": lambda s, t: over_orders(s, t, np.mean),
  "any_order": lambda s, t: over_orders(s, t, of_any),
  "list_net": lambda s, t: list_net(s, t, 2.0) if len(s) else 0.0,
  "pairwise": lambda s, t: pairwise(s, t, False),
  "pairwise_difference": lambda s, t: pairwise(s, t, True),
}


def partial(z, ids):
  rest, total = np.float64(z), 0.0
  left = np.ones(len(z), bool)
  for v in ids:
    total += lse(rest[left]) - rest[v]
    left[v] = False
  return total / len(ids)


def lists(seed, items, ties, rows=12):
  rng = np.random.default_rng(seed)
  s = np.float32(2 * rng.normal(size=(rows, items)))
  t = rng.normal(size=(rows, items))
  if ties:
    t = rng.integers(0, 3, size=(rows, items))
  return s, np.float32(t)


class RankingTest(oracles.TestCase):
  @parameterized.product(name=tuple(LOSSES), items=(1, 10), ties=(True, False))
  def test_value(self, name, items, ties):
    s, t = lists(0, items, ties)
    actual = LOSSES[name](jnp.array(s), jnp.array(t))
    expected = [ORACLES[name](a, b) for a, b in zip(s, t, strict=True)]
    oracles.assert_close(actual, expected, atol=1e-7)

  @parameterized.product(name=tuple(LOSSES), ties=(True, False))
  def test_gradient(self, name, ties):
    s, t = lists(1, 5, ties, rows=3)
    actual = jax.grad(lambda s: LOSSES[name](s, t).sum())(s)
    expected = oracles.numerical_gradient(
      lambda s: sum(map(ORACLES[name], s, t)), s
    )
    oracles.assert_close(actual, expected, rtol=1e-4, atol=1e-6)

  @parameterized.product(
    name=tuple(LOSSES), junk=(0.0, 1e4, -1e4, np.inf, -np.inf, np.nan)
  )
  def test_masked_entries_do_not_matter(self, name, junk):
    s, t = lists(2, 8, True)
    where = np.random.default_rng(3).random(s.shape) < 0.6
    where[0], where[1] = False, np.arange(8) == 3  # empty, and one entry
    s, t = np.where(where, s, junk), np.where(where, t, junk)
    loss = lambda s: LOSSES[name](s, t, where=where)
    expected = [
      ORACLES[name](a[w], b[w]) for a, b, w in zip(s, t, where, strict=True)
    ]
    value, back = jax.vjp(loss, jnp.float32(s))
    oracles.assert_close(value, expected, atol=3e-7)
    (gradient,) = back(jnp.ones_like(value))
    chex.assert_tree_all_finite(gradient)
    oracles.assert_close(gradient * ~where, np.zeros(s.shape))
    self.assertEqual(value[0], 0)

  @parameterized.product(name=tuple(LOSSES), ties=(True, False))
  def test_extremes_are_finite(self, name, ties):
    s, t = lists(4, 8, ties)
    for a, b in ((1e4 * np.sign(s), t), (s, 1e4 * t), (1e4 * s, -1e4 * s)):
      value, back = jax.vjp(lambda a, b=b: LOSSES[name](a, b), jnp.array(a))
      chex.assert_tree_all_finite((value, back(jnp.ones_like(value))))
      expected = [ORACLES[name](*x) for x in zip(a, b, strict=True)]
      rough = name in ("list_net", "mean_of_orders", "any_order")
      oracles.assert_close(value, expected, atol=1e-3 if rough else 1e-5)

  @parameterized.product(name=tuple(LOSSES), junk=(np.nan,))
  def test_vmap_and_jit(self, name, junk):
    s, t = lists(5, 6, True)
    where = np.arange(72).reshape(12, 6) % 5 > 0
    s = np.where(where, s, junk)
    one = lambda s, t, w: LOSSES[name](s, t, where=w)
    actual = jax.jit(jax.vmap(one))(s, t, where)
    oracles.assert_close(actual, one(s, t, where), atol=1e-7)
    shaped = (x.reshape(3, 4, 6) for x in (s, t, where))
    oracles.assert_close(one(*shaped).ravel(), actual, atol=1e-7)

  @parameterized.parameters(
    "plackett_luce", "mean_of_orders", "any_order", "pairwise", "list_net"
  )
  def test_order_of_the_entries_does_not_matter(self, name):
    s, t = lists(6, 9, True)
    order = np.random.default_rng(7).permutation(9)
    value, slopes = jax.vjp(lambda s: LOSSES[name](s, t), s)
    permuted, back = jax.vjp(
      lambda s: LOSSES[name](s, t[:, order]), s[:, order]
    )
    oracles.assert_close(permuted, value)
    (slopes,), (back,) = slopes(jnp.ones(12)), back(jnp.ones(12))
    oracles.assert_close(back, slopes[:, order], atol=1e-7)

  def test_ties_by_index_depend_on_the_order(self):
    s, t = lists(8, 9, True)
    one = ranking.plackett_luce(s, t, ties="index")
    other = ranking.plackett_luce(s[:, ::-1], t[:, ::-1], ties="index")
    self.assertGreater(float(jnp.abs(one - other).min()), 1e-3)

  @parameterized.parameters(*LOSSES)
  def test_shift_of_the_scores(self, name):
    s, t = lists(9, 8, True)
    s = np.round(s * 64) / 64  # so that the shift itself is exact
    oracles.assert_close(
      LOSSES[name](s + 1024, t), LOSSES[name](s, t), atol=1e-7
    )

  @parameterized.parameters(*LOSSES)
  def test_integer_teacher_scores_and_bfloat16(self, name):
    s, t = lists(10, 8, True)
    half = jnp.asarray(s, jnp.bfloat16)
    actual = LOSSES[name](half, t.astype(np.int32))
    self.assertEqual(actual.dtype, jnp.float32)
    oracles.assert_close(actual, LOSSES[name](half.astype(jnp.float32), t))

  @parameterized.parameters(*LOSSES)
  def test_shapes_differ(self, name):
    with self.assertRaisesRegex(ValueError, r"scores have shape \(2, 3\)"):
      LOSSES[name](jnp.zeros((2, 3)), jnp.zeros((2, 4)))


class PlackettLuceTest(oracles.TestCase):
  def test_without_ties_it_is_the_likelihood(self):
    s, t = lists(11, 6, False)
    expected = [in_order(a, np.argsort(-b)) for a, b in zip(s, t, strict=True)]
    for ties in ("average", "mean", "any", "index"):
      actual = ranking.plackett_luce(s, t, ties=ties)
      oracles.assert_close(actual, expected)

  def test_bounds_the_mean_over_orders(self):
    s, t = lists(12, 6, True)
    actual = np.asarray(ranking.plackett_luce(s, t))
    mean = np.asarray(ranking.plackett_luce(s, t, ties="mean"))
    self.assertTrue((actual >= mean - 1e-6).all())
    unknown = np.asarray(ranking.plackett_luce(s, t, ties="any"))
    self.assertTrue((mean >= unknown - 1e-6).all())

  def test_equals_the_mean_where_tied_scores_are_equal(self):
    _, t = lists(13, 6, True)
    s = np.float32(1.5 * t)
    actual, back = jax.vjp(lambda s: ranking.plackett_luce(s, t), s)
    exact, exact_back = jax.vjp(
      lambda s: ranking.plackett_luce(s, t, ties="mean"), s
    )
    oracles.assert_close(actual, exact)
    oracles.assert_close(
      back(jnp.ones(12))[0], exact_back(jnp.ones(12))[0], atol=1e-6
    )
    # There is no wish to tell them apart.
    (slopes,) = back(jnp.ones(12))
    for row, level in zip(np.asarray(slopes), t, strict=True):
      for x in np.unique(level):
        self.assertLess(np.ptp(row[level == x]), 1e-6)

  @parameterized.parameters(("mean", np.mean), ("any", of_any))
  def test_exact_rules_are_over_every_order_of_the_list(self, ties, combine):
    s, t = lists(24, 6, True)
    t[0], t[1] = 0, [0, 0, 0, 1, 1, 1]
    actual = ranking.plackett_luce(s, t, ties=ties)
    expected = [over_all_orders(*x, combine) for x in zip(s, t, strict=True)]
    oracles.assert_close(actual, expected, atol=1e-7)

  @parameterized.parameters("average", "mean")
  def test_all_tied_has_its_minimum_at_equal_scores(self, ties):
    t = jnp.ones(5)
    loss = lambda s: ranking.plackett_luce(s, t, ties=ties)
    oracles.assert_close(jax.grad(loss)(jnp.zeros(5)), np.zeros(5), atol=1e-7)
    slope = jax.grad(loss)(jnp.array([1.0, 0, 0, 0, 0]))
    self.assertGreater(slope[0], 0.05)

  def test_any_order_says_nothing_within_a_block(self):
    loss = lambda s, t: ranking.plackett_luce(s, t, ties="any")
    s, t = jnp.array([3.0, -2.0, 0.5, 100.0]), jnp.ones(4)
    value, slope = jax.value_and_grad(loss)(s, t)
    oracles.assert_close(value, 0.0, atol=1e-5)
    oracles.assert_close(slope, np.zeros(4), atol=1e-5)
    # One entry for all that is below leaves the loss as it is, but for its n.
    s, t = jnp.array([1.0, 0.2, -1, 0.3, 2]), jnp.array([2.0, 2, 1, 0, 0])
    rest = jnp.append(s[:3], jnp.logaddexp(s[3], s[4]))
    oracles.assert_close(5 * loss(s, t), 4 * loss(rest, t[:4]))

  @parameterized.parameters("mean", "any")
  def test_lists_that_are_too_long(self, ties):
    words = f"ties is '{ties}' for lists of 11 entries; accepted: up to 10"
    with self.assertRaisesRegex(ValueError, words):
      ranking.plackett_luce(jnp.zeros(11), jnp.zeros(11), ties=ties)

  def test_never_sampled_entries_may_be_minus_infinity(self):
    s, t = lists(14, 6, False)
    t[:, 3:] = -np.inf
    expected = [efron(a, b) for a, b in zip(s, t, strict=True)]
    oracles.assert_close(ranking.plackett_luce(s, t), expected)

  def test_unknown_rule(self):
    with self.assertRaisesRegex(ValueError, "ties is 'random'; accepted: 'av"):
      ranking.plackett_luce(jnp.zeros(3), jnp.zeros(3), ties="random")


class ListNetTest(oracles.TestCase):
  @parameterized.product(temperature=(0.5, 1.0, 4.0, 20.0), items=(2, 10, 257))
  def test_temperatures(self, temperature, items):
    s, t = lists(15, items, False)
    expected = [list_net(a, b, temperature) for a, b in zip(s, t, strict=True)]
    oracles.assert_close(ranking.list_net(s, t, temperature), expected)
    each = jax.vmap(ranking.list_net, (None, None, 0))
    actual = each(s, t, jnp.array([temperature, 3.0]))
    oracles.assert_close(actual[0], expected)

  def test_gradient_is_zero_at_the_teacher(self):
    _, t = lists(16, 10, False)
    slope = jax.grad(lambda s: ranking.list_net(s, t, 4.0).sum())(t)
    oracles.assert_close(slope, np.zeros(t.shape), atol=1e-7)


class PairwiseTest(oracles.TestCase):
  @parameterized.parameters(None, "difference")
  def test_no_pairs(self, weights):
    s = jnp.array([[1.0, 2.0], [1e4, -1e4]])
    loss, slope = jax.value_and_grad(
      lambda s: ranking.pairwise_logistic(
        s, jnp.ones((2, 2)), weights=weights
      ).sum()
    )(s)
    self.assertEqual(loss, 0)
    self.assertEqual(jnp.abs(slope).max(), 0)

  def test_weights_do_not_depend_on_the_unit(self):
    s, t = lists(17, 6, False)
    loss = LOSSES["pairwise_difference"]
    for unit in (1e-6, 1e30):
      oracles.assert_close(loss(s, np.float32(unit) * t), loss(s, t))

  def test_unknown_weights(self):
    with self.assertRaisesRegex(ValueError, "weights is 'rank'; accepted: No"):
      ranking.pairwise_logistic(jnp.zeros(3), jnp.zeros(3), weights="rank")


class PartialPlackettLuceTest(oracles.TestCase):
  @parameterized.parameters((2, 1), (10, 4), (10, 10), (257, 16))
  def test_value(self, classes, k):
    rng = np.random.default_rng(18)
    for scale in (0.2, 2.0, 20.0):
      z = np.float32(scale * rng.normal(size=(6, classes)))
      ids = np.argsort(rng.random(z.shape), axis=-1)[:, :k]
      actual = jax.jit(ranking.partial_plackett_luce)(z, ids)
      expected = [partial(a, b) for a, b in zip(z, ids, strict=True)]
      oracles.assert_close(actual, expected, atol=1e-6)

  def test_gradient(self):
    rng = np.random.default_rng(19)
    z, ids = rng.normal(size=(2, 6)), np.array([[5, 0, 3], [1, 2, 4]])
    actual = jax.grad(lambda z: ranking.partial_plackett_luce(z, ids).sum())(
      jnp.float32(z)
    )
    expected = oracles.numerical_gradient(
      lambda z: sum(map(partial, z, ids)), z
    )
    oracles.assert_close(actual, expected, rtol=1e-4, atol=1e-6)

  def test_k_1_is_cross_entropy(self):
    z = np.float32(np.random.default_rng(20).normal(size=(6, 10)))
    ids = np.arange(6)[:, None]
    expected = -oracles.log_softmax(z)[np.arange(6), np.arange(6)]
    oracles.assert_close(ranking.partial_plackett_luce(z, ids), expected)

  def test_whole_order_is_plackett_luce(self):
    s, t = lists(21, 7, False)
    ids = np.argsort(-t, axis=-1)
    oracles.assert_close(
      ranking.partial_plackett_luce(s, ids), ranking.plackett_luce(s, t)
    )

  def test_extremes(self):
    z = 1e4 * jnp.array([[1.0, -1, 0, 1, -1], [-1, -1, -1, -1, 1]])
    ids = jnp.array([[1, 0, 2], [0, 4, 1]])
    loss = lambda z: ranking.partial_plackett_luce(z, ids)
    value, back = jax.vjp(loss, z)
    chex.assert_tree_all_finite((value, back(jnp.ones(2))))
    oracles.assert_close(
      value, [partial(a, b) for a, b in zip(z, ids, strict=True)]
    )
    # The top entry first, 1e4 above the rest, whose order must still count.
    z = jnp.array([1e4, 2.0, 1.0, 0.0])
    slope = jax.grad(
      lambda z: ranking.partial_plackett_luce(z, jnp.array([0, 2, 1]))
    )(z)
    q = np.exp(oracles.log_softmax([2.0, 1.0, 0.0]))
    self.assertAlmostEqual(float(slope[2]), (q[1] - 1) / 3, places=4)

  @parameterized.parameters(-1, 3, 1000)
  def test_masked_ids(self, junk):
    z = np.float32(np.random.default_rng(22).normal(size=(3, 6)))
    ids = np.array([[3, junk, 0], [1, 2, junk], [junk] * 3])
    where = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0]], bool)
    expected = [partial(z[0], [3, 0]), partial(z[1], [1, 2]), 0.0]
    one = jax.jit(jax.vmap(ranking.partial_plackett_luce))
    oracles.assert_close(one(z, ids, where), expected)
    slope = jax.grad(
      lambda z: ranking.partial_plackett_luce(z, ids, where).sum()
    )(z)
    chex.assert_tree_all_finite(slope)
    oracles.assert_close(slope[2], np.zeros(6))

  def test_padded_classes_change_nothing(self):
    z = np.float32(np.random.default_rng(23).normal(size=(2, 5)))
    ids = np.array([[3, 1], [0, 2]])
    expected = ranking.partial_plackett_luce(z, ids)
    for padding in (-1e30, -np.inf):
      wide = np.pad(z, ((0, 0), (0, 3)), constant_values=padding)
      value, back = jax.vjp(
        lambda z: ranking.partial_plackett_luce(z, ids), jnp.array(wide)
      )
      oracles.assert_close(value, expected)
      chex.assert_tree_all_finite(back(jnp.ones(2)))

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, "with K <= V"):
      ranking.partial_plackett_luce(jnp.zeros((2, 3)), jnp.zeros((2, 4), int))
    with self.assertRaisesRegex(ValueError, "accepted"):
      ranking.partial_plackett_luce(jnp.zeros((2, 3)), jnp.zeros((3, 2), int))


if __name__ == "__main__":
  absltest.main()
