"""Small problems for the interpreted GPU kernel, and `main` for clusters.

The interpreter runs every CTA of a cluster on a host thread of XLA's pool and
hangs where there are too few, so clusters run in a process with NPROC=32.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import Logits, distill_loss
from kernels.gpu import plans
from tests.kernels import oracle

RACES = plgpu.InterpretGPUParams(detect_races=True)


def logits(n, v, seed=0, scale=2.0):
  """Returns logits of student and teacher, labels and weights."""
  rng = np.random.default_rng(seed)
  z = scale * rng.standard_normal((2, n, v))
  weights = rng.uniform(0.1, 1, n).astype(np.float32)
  return *z.astype(np.float32), rng.integers(0, v, n), weights


def value_and_grad(z_s, z_t, plan, **kw):
  """Returns (loss, soft, hard, (dz,)) from logits."""
  teacher = None if z_t is None else Logits(jnp.asarray(z_t))

  def fn(z):
    return distill_loss(Logits(z), teacher, implementation=plan, **kw)

  fn = jax.jit(jax.value_and_grad(fn, has_aux=True))
  (loss, rows), dz = fn(jnp.asarray(z_s))
  return loss, rows.soft, rows.hard, (dz,)


def compare(n, v, divergence, plan, hard=True, temperature=1.0, **kw):
  """Asserts agreement with float64 autodiff; returns the result."""
  z_s, z_t, labels, weights = logits(n, v)
  kw |= dict(temperature=temperature, weights=weights)
  kw |= dict(labels=labels, hard_weight=0.3, soft_weight=0.7) if hard else {}
  want = oracle.loss(
    (z_s,), (z_t,), kw.pop("definition", divergence),
    **{k: x for k, x in kw.items() if k != "definition"},
  )  # fmt: skip
  kw = {k: jnp.asarray(x) if np.ndim(x) else x for k, x in kw.items()}
  got = value_and_grad(z_s, z_t, plan, divergence=divergence, **kw)
  oracle.assert_close(got, want)
  return got


def main():
  """Clusters of 2 and 4 agree with float64, race-free; a race is caught."""
  plan = plans.make_plan(interpret=RACES, cluster=2)
  compare(2, 1040, oracle.DIVERGENCES["jsd"], plan, temperature=2.0)
  plan = plans.make_plan(interpret=RACES, cluster=4, vector=1)
  compare(2, 544, oracle.DIVERGENCES["chi_square"], plan, hard=False)
  caught = ""
  try:
    with mock.patch.object(plgpu, "barrier_wait"):  # for the copies
      compare(1, 512, oracle.forward_kl, plans.make_plan(interpret=RACES))
  except jax.errors.JaxRuntimeError as error:
    caught = str(error)
  assert "RACE DETECTED" in caught, caught or "the planted race was not caught"
  print("all agree")


if __name__ == "__main__":
  main()
