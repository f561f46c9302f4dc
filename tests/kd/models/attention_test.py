"""Attention: what a query sees, by each way to compute it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.models import attention
from kd.models.attention import Places, attend
from kd.models.decoder import restarting

SCALE = 0.7
B, L, H, K, D = 2, 384, 4, 2, 8


def arrays(length, seed=0):
  rng = np.random.default_rng(seed)
  shapes = [(B, length, H, D), (B, length, K, D), (B, length, K, D)]
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def places(*segments):
  rows = np.stack([np.repeat(range(len(s)), s) for s in segments])
  rows = np.where(rows == rows.max(1, keepdims=True), 0, rows + 1)
  return Places(jnp.asarray(rows), restarting(jnp.asarray(rows)))


def oracle(q, k, v, where, window=None, cap=None):
  """Returns attention in float64, one query at a time."""
  out = np.zeros(q.shape)
  segments = np.asarray(where.segments)
  for b, i, h in np.ndindex(q.shape[:3]):
    first = 0 if window is None else max(0, i - window + 1)
    seen = [j for j in range(first, i + 1) if segments[b, j] == segments[b, i]]
    group = h // (H // K)
    scores = SCALE * k[b, seen, group].astype(float) @ q[b, i, h]
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    probs = np.exp(scores - scores.max())
    out[b, i, h] = probs @ v[b, seen, group] / probs.sum()
  return out


class AttendTest(parameterized.TestCase):
  @parameterized.product(window=(None, 3), cap=(None, 1.5))
  def test_each_query_sees_its_document_up_to_itself(self, window, cap):
    where = places((5, 4, 3), (2, 7, 3))
    found = attend(*arrays(12), where, scale=SCALE, window=window, cap=cap)
    expected = oracle(*arrays(12), where, window, cap)
    np.testing.assert_allclose(found, expected, atol=2e-6)

  @parameterized.parameters((None, None), (100, 1.5))
  def test_a_row_in_parts(self, window, cap):
    where = places((150, 39, 100), (200, 89))
    found = attend(*arrays(289), where, scale=SCALE, window=window, cap=cap)
    expected = oracle(*arrays(289), where, window, cap)
    np.testing.assert_allclose(found, expected, atol=2e-6)

  @parameterized.parameters((None, None), (100, 1.5))
  def test_the_kernel_for_tpus_gives_the_same(self, window, cap):
    where = places((150, 100, 134), (31, 353))  # documents across blocks
    ours = functools.partial(
      attend, queries=where, scale=SCALE, window=window, cap=cap
    )
    theirs = functools.partial(
      attention.splash,
      segments_BxL=where.segments,
      scale=SCALE,
      window=window,
      cap=cap,
      interpret=True,
    )

    def both(way):
      loss = lambda *args: jnp.sum(jnp.sin(way(*args)))
      return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arrays(L))

    # A sum of 24,576 sines, of which each is good to 1e-6.
    for found, expected in zip(
      *map(jax.tree.leaves, map(both, (theirs, ours))), strict=True
    ):
      np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)

  @parameterized.parameters(
    ("tpu", L, "auto", True),
    ("cpu", L, "auto", False),
    ("cuda", L, "auto", False),
    ("tpu", L, "xla", False),
    ("tpu", L - 1, "auto", False),
  )
  def test_the_platform_lowered_for_decides(
    self, platform, length, way, kernel
  ):
    where = places((length - 9, 9), (20, length - 20))
    run = jax.jit(lambda *x: attend(*x, where, scale=1.0, implementation=way))
    lowered = run.trace(*arrays(length)).lower(lowering_platforms=(platform,))
    self.assertEqual("tpu_custom_call" in lowered.as_text(), kernel)

  @parameterized.parameters(
    (None, "cuDNN|Q must be"), (2.0, "no cap on scores")
  )
  def test_cudnn_says_what_it_cannot_do(self, cap, message):
    with self.assertRaisesRegex(UserError, f"attention = 'cudnn': .*{message}"):
      attend(
        *arrays(8),
        places((5, 3), (2, 6)),
        scale=1.0,
        cap=cap,
        implementation="cudnn",
      )


if __name__ == "__main__":
  absltest.main()
