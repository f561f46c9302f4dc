"""A loss over positions: how texts lie in rows changes nothing."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import signals
from kd.data import tokens
from kd.models import functional
from kd.train import arms, step
from tests.kd import small

V, L, B, K = (
  40,
  12,
  8,
  5,
)  # classes; positions and rows; the teacher's likeliest
RNG = np.random.default_rng(0)
# Lengths that fill rows of L wholly, and a text of one token, which predicts
# nothing.
LENGTHS = [12, 7, 5, 9, 3, 4, 4, 4, 10, 2, 6, 6, 8, 4, 11, 1]
PROMPTS = {1: 3, 8: 6}  # documents of which the first tokens do not count
DOCUMENTS = [
  tokens.Document(
    RNG.integers(1, V, n).astype(np.int32),
    np.arange(n) >= PROMPTS.get(d, 0),
    f"document {d}",
  )
  for d, n in enumerate(LENGTHS)
]
STUDENT = {
  "name": "decoder",
  "layers": 1,
  "width": 16,
  "heads": 2,
  "kv_heads": 1,
}
SOFT = {"objective": "soft", "temperature": 2.0, "divergence": "reverse_kl"}
TOP = {**SOFT, "objective": "top_k", "k": K, "tail": "bucket"}
ARMS = {
  "truth": {"objective": "hard", "target": "truth"},
  "soft": SOFT,
  "top": TOP,
  "some": {"objective": "frequencies", "samples": 3, "temperature": 1.0},
  "dkd": {
    "objective": "dkd",
    "alpha": 1.0,
    "beta": 2.0,
    "temperature": 1.5,
    "target": "answer",
  },
  "sum": {
    "objective": "hard + soft + list_net",
    "hard": {"target": "answer", "weight": 0.3},
    "soft": {"temperature": 1.0, "divergence": "jsd", "beta": 0.3, "weight": 2},
    "list_net": {
      **{k: v for k, v in small.RANK.items() if k != "objective"},
      "samples": 3,
      "weight": 0.5,
    },
  },
}


@functools.cache
def said():
  """What a teacher says of each token of each document, [D L] rows."""
  z = 3 * RNG.normal(size=(len(DOCUMENTS) * L, V)).astype(np.float32)
  return signals.make(z, None, samples=3, temperature=2.0, seed=0)


def batch(rows: tokens.Rows, count: int):
  """Returns (inputs, signal) of rows, and empty rows up to `count`."""
  lacking = count - len(rows.x)
  x = np.pad(rows.x, [(0, lacking), (0, 0), (0, 0)])
  owner = np.pad(rows.documents, [(0, lacking), (0, 0)], constant_values=-1)
  counts = np.pad(rows.weights, [(0, lacking), (0, 0)]).astype(bool)
  labels = np.pad(rows.labels, [(0, lacking), (0, 0)])
  segments = x[:, 1]
  begins = np.diff(segments, axis=1, prepend=0) != 0
  place = np.arange(x.shape[-1]) - np.maximum.accumulate(
    np.where(begins, np.arange(x.shape[-1]), 0), axis=1
  )
  # Padding is given what some other token was.
  at = np.where(owner >= 0, owner * L + place % L, 3).ravel()
  signal = dataclasses.replace(
    said().at(jnp.asarray(at)),
    truth=signals.Labels(jnp.asarray(np.where(counts, labels, -1).ravel())),
    counts=jnp.asarray(counts.ravel()),
  )
  return jnp.asarray(x), signal


@functools.cache
def compiled(parts=1, fused_from=2, partial=None):
  """Returns batch -> (losses [A], gradients) of all arms side by side."""
  signal = {"samples": 3, "labelled": True}
  resolved = small.settings(ARMS, student=STUDENT, signal=signal)
  (group,) = arms.group(resolved["arms"], V, fused_from=fused_from)
  if partial is not None:
    own = [
      dataclasses.replace(part, partial=(partial,) * len(part.terms))
      for part in group.parts
    ]
    group = dataclasses.replace(group, parts=tuple(own))
  signature = functional.Signature((2, L), V, None)
  graphdef, init = functional.define(group.student, signature)
  params, rest = jax.tree.map(
    lambda x: jnp.stack([x] * len(ARMS)), init(jax.random.key(0))
  )
  state = step.TrainState(params, rest, None, {}, *[jnp.zeros(())] * 3)
  key = jax.random.key(1)

  @jax.jit
  def look(batch):
    found = step.gradients(graphdef, group, state, batch, key, parts)
    return found[:2]

  return look


@functools.cache
def one_by_one():
  """The losses and gradients of each document alone, put together."""
  look, total, count = compiled(), None, 0
  for d, document in enumerate(DOCUMENTS):
    alone = tokens.rows([document], L, pad=0)
    own = dataclasses.replace(
      alone, documents=np.where(alone.documents == 0, d, -1)
    )
    n = own.positions
    if not n:
      continue
    part = jax.tree.map(lambda x, n=n: n * x, look(batch(own, 1)))
    total = part if total is None else jax.tree.map(jnp.add, total, part)
    count += n
  return jax.tree.map(lambda x: x / count, total)


class PackingTest(parameterized.TestCase):
  def check(self, found):
    losses, gradients = one_by_one()
    np.testing.assert_allclose(found[0], losses, rtol=1e-5)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients))
    chex.assert_trees_all_close(
      found[1], gradients, rtol=1e-5, atol=1e-5 * largest
    )

  @parameterized.parameters(
    {},
    {"parts": 2},
    {"parts": 8},
    {"fused_from": 1000},
    {"parts": 2, "partial": False},
  )
  def test_packed_rows_in_parts(self, **options):
    rows = tokens.rows(DOCUMENTS, L, pad=0)
    self.assertGreater(rows.fill, 0.9)
    self.check(compiled(**options)(batch(rows, 16)))

  def test_padding(self):
    rows = tokens.rows(DOCUMENTS, 5 * L, pad=0, packed=False)
    self.assertLessEqual(rows.fill, 0.1)
    self.check(compiled(8)(batch(rows, 16)))


if __name__ == "__main__":
  absltest.main()
