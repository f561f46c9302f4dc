"""Tests of kd.models.sampler against a forward pass of all tokens a step."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized
from flax import nnx

from kd.models import prefill, sampler
from kd.models.decoder import Decoder
from tests.kd import oracles
from tests.kd.models import written

M = 9


def greedily(model, ids):
  """Returns M likeliest tokens and their log-probabilities, step by step."""
  tokens, scores = [], []
  for _ in range(M):
    last = written.log_probs(model, ids + tokens)[-1]
    tokens.append(int(last.argmax()))
    scores.append(last.max())
  return tokens, scores


def assert_drawn_from(counts, probs):
  """Fails where counts are less likely than 1 in 1,000 of such a law."""
  counts, expected = np.ravel(counts), np.sum(counts) * np.ravel(probs)
  np.testing.assert_array_equal(counts[expected == 0], 0)
  rare = expected < 5
  counts = np.append(counts[~rare], counts[rare].sum())
  expected = np.append(expected[~rare], expected[rare].sum())
  if expected[-1] == 0:
    counts, expected = counts[:-1], expected[:-1]
  p = scipy.stats.chisquare(counts, expected).pvalue
  if p < 1e-3:
    raise AssertionError(f"p = {p:.2g}: counts {counts}, expected {expected}")


class GreedyTest(parameterized.TestCase):
  @parameterized.parameters(
    ("plain", "right", False),
    ("plain", "left", True),
    ("gemma", "right", True),
    ("gemma", "left", False),
  )
  def test_equals_step_by_step(self, kind, padding, prefix):
    model = written.decoder(kind)
    before = [3, 1, 4, 1, 5] if prefix else []
    completions, log_probs = sampler.generate(
      model,
      written.prompts(padding),
      written.LENGTHS,
      max_new_tokens=M,
      temperature=0.0,
      padding=padding,
      prefix=prefill.read_prefix(model, before) if prefix else None,
    )
    steps = [greedily(model, before + ids) for ids in written.texts()]
    tokens, scores = zip(*steps, strict=True)
    np.testing.assert_array_equal(completions, tokens)
    oracles.assert_close(log_probs, scores, atol=1e-5)
    self.assertGreater(len(set(np.ravel(tokens))), 6)  # no word over and over

  def test_stops(self):
    class Counted(Decoder):
      """Counts the passes that are made."""

      def hidden(self, *args, **keys):
        jax.debug.callback(lambda: passes.append(1))
        return super().hidden(*args, **keys)

    passes = []
    model = written.decoder()
    counted = Counted(model.spec, model.numerics, rngs=nnx.Rngs(0))
    nnx.update(counted, nnx.state(model))
    keys = {"max_new_tokens": M, "temperature": 0.0}
    given = written.prompts("right"), written.LENGTHS
    whole, scores = map(np.asarray, sampler.generate(model, *given, **keys))
    stops = tuple(
      {int(row[i]) for row, i in zip(whole, (0, 2, 2, 4), strict=True)}
    )
    stopped, log_probs = sampler.generate(
      counted, *given, **keys, stop_ids=stops, pad_id=99
    )
    ends = np.isin(whole, stops).argmax(1) + 1
    self.assertGreater(len(set(ends)), 1)
    after = np.arange(M) >= ends[:, None]
    np.testing.assert_array_equal(stopped, np.where(after, 99, whole))
    oracles.assert_close(log_probs, np.where(after, 0.0, scores))
    lengths = sampler.completion_lengths(stopped, stops)
    np.testing.assert_array_equal(lengths, ends)
    jax.effects_barrier()
    self.assertLen(passes, max(ends))


class SampleTest(parameterized.TestCase):
  def test_frequencies_are_the_softmax_s(self):
    model, n, t = written.decoder(), 4000, 1.7
    ids = written.texts()[0]
    (completions,), (log_probs,) = sampler.generate(
      model,
      np.array([ids]),
      [len(ids)],
      max_new_tokens=2,
      temperature=t,
      samples=n,
      rngs=nnx.Rngs(0),
    )
    first = written.log_probs(model, ids)[-1]
    second = np.stack(
      [written.log_probs(model, [*ids, v])[-1] for v in range(written.V)]
    )
    at_t = lambda x: np.exp(oracles.log_softmax(x / t))
    counts = np.zeros((written.V, written.V))
    np.add.at(counts, tuple(np.asarray(completions).T), 1)
    assert_drawn_from(counts, at_t(first)[:, None] * at_t(second))
    a, b = np.asarray(completions).T
    # Of the model itself, at T = 1.
    expected = np.stack([first[a], second[a, b]], axis=1)
    oracles.assert_close(log_probs, expected, atol=1e-5)

  @parameterized.product(top_k=(None, 4, 100), top_p=(0.6, 1.0))
  def test_draws_from_the_likeliest(self, top_k, top_p):
    n, t = 3000, 2.0
    logits = np.random.default_rng(1).normal(size=12).astype(np.float32) * 3
    drawn = sampler.draw(
      jnp.broadcast_to(logits, (n, 12)),
      jax.random.split(jax.random.key(0), n),
      t,
      top_k,
      top_p,
    )
    p = np.exp(oracles.log_softmax(logits / t))
    order = np.argsort(-p)
    p[order[top_k or 12 :]] = 0
    p /= p.sum()
    if top_p is not None:
      fewest = np.searchsorted(p[order].cumsum(), top_p) + 1
      p[order[fewest:]] = 0
    counts = np.bincount(drawn, minlength=12)
    assert_drawn_from(counts, p / p.sum())

  def test_top_k_and_top_p_hold_at_every_step(self):
    model = written.decoder()
    completions, _ = sampler.generate(
      model,
      np.repeat(written.prompts("left"), 10, axis=0),
      np.repeat(written.LENGTHS, 10),
      max_new_tokens=M,
      temperature=3.0,
      top_k=5,
      top_p=0.8,
      padding="left",
      rngs=nnx.Rngs(1),
    )
    ranks = set()
    for i, tokens in enumerate(np.asarray(completions).tolist()):
      ids = written.texts()[i // 10]
      for m, token in enumerate(tokens):
        x = written.log_probs(model, ids + tokens[:m])[-1]
        top = np.argsort(-x)[:5]
        p = np.exp(oracles.log_softmax(x[top] / 3.0)).cumsum()
        rank = top.tolist().index(token)
        self.assertLess(p[rank - 1] if rank else 0.0, 0.8 + 1e-6)
        ranks.add(rank)
    self.assertGreater(len(ranks), 2)

  def test_a_prompt_s_key_alone_decides_inside_a_program_too(self):
    model = written.decoder()
    prompts, keys = (
      written.prompts("right"),
      jax.random.split(jax.random.key(2), 4),
    )
    write = lambda t, rows, samples: sampler.generate(
      model,
      prompts[rows],
      written.LENGTHS[rows],
      max_new_tokens=M,
      temperature=t,
      samples=samples,
      rngs=keys[rows],
    )[0]
    of_all = write(2.0, slice(None), 2)
    self.assertEqual(of_all.shape, (4, 2, M))
    self.assertFalse(np.any(np.all(of_all[:, 0] == of_all[:, 1], axis=-1)))
    of_two = jax.jit(lambda t: write(t, slice(1, 3), None))(2.0)
    np.testing.assert_array_equal(of_two, of_all[1:3, 0])

  @parameterized.parameters(
    ({"max_new_tokens": 0}, "accepted: 1 or more"),
    ({"top_k": 0}, "top_k = 0; accepted: 1 or more"),
    ({"samples": 0}, "samples = 0; accepted: 1 or more"),
    ({"temperature": -1.0}, "temperature: -1.0; accepted: 0 or more"),
    ({"temperature": 1.0}, "needs rngs"),
    ({"top_p": 0.0}, "top_p: 0.0; accepted: above 0"),
    ({"lengths": [1, 8, 1, 1]}, "lengths: 8; accepted: 1 to 7"),
    ({"lengths": [0, 1, 1, 1]}, "lengths: 0; accepted: 1 to 7"),
    ({"lengths": [1]}, "lengths: shape"),
    (
      {"prompts": np.full((4, 7), 29)},
      "prompts: 29; accepted: ids from 0 to 28",
    ),
    ({"padding": "both"}, "accepted: 'right', 'left'"),
    (
      {"temperature": 1.0, "rngs": jax.random.split(jax.random.key(0), 3)},
      "accepted: .* keys",
    ),
  )
  def test_refuses(self, keys, message):
    given = {
      "prompts": written.prompts("right"),
      "lengths": written.LENGTHS,
      "max_new_tokens": 2,
      "temperature": 0.0,
    }
    with self.assertRaisesRegex(ValueError, message):
      sampler.generate(written.decoder(), **{**given, **keys})


if __name__ == "__main__":
  absltest.main()
