"""Float64 numpy oracles that share no code with kd, and what tests share."""

import jax
import numpy as np
from absl.testing import parameterized


class TestCase(parameterized.TestCase):
  """Runs each test with implicit rank promotion as an error."""

  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_rank_promotion("raise"))


def assert_close(actual, expected, rtol=2e-5, atol=0.0):
  """Fails with the largest absolute and relative error, and where they are."""
  actual = np.asarray(actual, np.float64)
  expected = np.asarray(expected, np.float64)
  if actual.shape != expected.shape:
    raise AssertionError(f"shapes {actual.shape} and {expected.shape}")
  same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
  with np.errstate(all="ignore"):
    absolute = np.where(same, 0.0, np.abs(actual - expected))
    relative = np.where(same, 0.0, absolute / np.abs(expected))
    bad = ~(absolute <= atol + rtol * np.abs(expected))
  if not bad.any():
    return

  def worst(error):
    error = np.where(np.isnan(error), np.inf, error)
    at = np.unravel_index(np.argmax(error), error.shape)
    return (
      f"{error[at]:.3g} at {tuple(map(int, at))}: {actual[at]:.9g} for "
      + (f"{expected[at]:.9g}")
    )

  raise AssertionError(
    f"{bad.sum()} of {bad.size} beyond rtol {rtol:g}, atol {atol:g}\n"
    f"largest absolute error {worst(absolute)}\n"
    f"largest relative error {worst(relative)}"
  )


def log_softmax(z):
  z = np.asarray(z, np.float64)
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def kl(p, q):
  """sum_v p log(p / q), with 0 log 0 = 0."""
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum(-1)


def jsd(p, q, b):
  m = b * p + (1 - b) * q
  return 0.0 * m[..., 0] if b in (0, 1) else b * kl(p, m) + (1 - b) * kl(q, m)


def alpha_divergence(p, q, a):
  if a in (0, 1):
    return kl(p, q) if a else kl(q, p)
  # 1 - sum p^a q^(1-a), from terms that are each small where p = q nearly.
  terms = a * p + (1 - a) * q - p**a * q ** (1 - a)
  return terms.sum(-1) / (a * (1 - a))


# The definition of each divergence, and the parameters that tests give it.
DIVERGENCES = {
  "forward_kl": (lambda p, q, _: kl(p, q), (None,)),
  "reverse_kl": (lambda p, q, _: kl(q, p), (None,)),
  "tvd": (lambda p, q, _: 0.5 * np.abs(p - q).sum(-1), (None,)),
  "jsd": (jsd, (0.0, 1e-3, 0.1, 0.5, 1.0)),
  "skew_kl": (lambda p, q, a: kl(p, a * p + (1 - a) * q), (0.1, 0.9)),
  "skew_reverse_kl": (lambda p, q, a: kl(q, a * q + (1 - a) * p), (0.1,)),
  "alpha_divergence": (alpha_divergence, (0.0, 1e-3, 0.5, 0.999, 1.0)),
}


def divergence(name, p, q, parameter=None):
  """D of probabilities, from its definition."""
  return DIVERGENCES[name][0](p, q, parameter)


def numerical_gradient(function, x, step=1e-5):
  """Central differences of a float64 function of one array."""
  x = np.asarray(x, np.float64)
  gradient = np.zeros_like(x)
  for at in np.ndindex(x.shape):
    e = np.zeros_like(x)
    e[at] = step
    gradient[at] = (function(x + e) - function(x - e)) / (2 * step)
  return gradient
