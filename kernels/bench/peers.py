"""What `kernels.bench` measures: our implementations and their peers.

A variant is a function (inputs, divergence, labels) -> step. A step runs one
value_and_grad of the mean over rows, from hidden states, and waits for it. A
divergence is a path of kernels.bench.divergences; torch and Liger have some of
its names.
torch and Liger are optional: `pip install torch liger-kernel`.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels import Head, distill_loss
from kernels.bench import divergences

OURS = ("xla", "reference", "tpu", "gpu")
PEERS = ("naive", "optax", "torch", "torch_compiled", "liger")


class Inputs(NamedTuple):
  """h [N, H_s], W [H_s, V], h_t [N, H_t], W_t [H_t, V], labels [N]."""

  h: Any
  w: Any
  h_t: Any
  w_t: Any
  labels: Any


def make_inputs(n: int, h_s: int, h_t: int, v: int, dtype: str) -> Inputs:
  """Returns hidden states and kernels that make logits of variance 1."""
  rng = np.random.default_rng(0)
  normal = lambda *s: rng.standard_normal(s, dtype=np.float32)
  arrays = (
    normal(n, h_s),
    normal(h_s, v) * np.float32(h_s**-0.5),
    normal(n, h_t),
    normal(h_t, v) * np.float32(h_t**-0.5),
  )
  arrays = (jnp.asarray(a, dtype) for a in arrays)
  return Inputs(*arrays, jnp.asarray(rng.integers(0, v, n), jnp.int32))


class Step(NamedTuple):
  """run() does the work; temp_bytes is XLA's count of temporaries, or None."""

  run: Callable[[], Any]
  temp_bytes: int | None


def _compiled(fn, inputs: Inputs) -> Step:
  step = jax.jit(jax.value_and_grad(fn, (0, 1))).lower(*inputs).compile()
  memory = step.memory_analysis()
  temp = getattr(memory, "temp_size_in_bytes", None)
  return Step(lambda: jax.block_until_ready(step(*inputs)), temp)


def ours(implementation: str):
  def variant(inputs, divergence: str, labels: bool) -> Step:
    def fn(h, w, h_t, w_t, y):
      return distill_loss(
        Head(h, w),
        Head(h_t, w_t),
        divergence=divergences.resolve(divergence),
        labels=y if labels else None,
        hard_weight=1.0 if labels else 0.0,
        implementation=implementation,
      )[0]

    return _compiled(fn, inputs)

  return variant


def naive(inputs, divergence: str, labels: bool) -> Step:
  phi = divergences.resolve(divergence)

  def fn(h, w, h_t, w_t, y):
    lq = jax.nn.log_softmax((h @ w).astype(jnp.float32))
    lp = jax.nn.log_softmax((h_t @ w_t).astype(jnp.float32))
    loss = phi(lq, lp).sum(1)
    if labels:
      loss = loss - jnp.take_along_axis(lq, y[:, None], 1)[:, 0]
    return loss.mean()

  return _compiled(fn, inputs)


def optax(inputs, divergence: str, labels: bool) -> Step:
  if divergence not in ("forward_kl", "reverse_kl"):
    raise NotImplementedError(f"optax has no {divergence}")
  from optax import losses

  def fn(h, w, h_t, w_t, y):
    z = (h @ w).astype(jnp.float32)
    lq = jax.nn.log_softmax(z)
    lp = jax.nn.log_softmax((h_t @ w_t).astype(jnp.float32))
    pair = (lq, lp) if divergence == "forward_kl" else (lp, lq)
    loss = losses.kl_divergence_with_log_targets(*pair)
    if labels:
      loss = loss + losses.softmax_cross_entropy_with_integer_labels(z, y)
    return loss.mean()

  return _compiled(fn, inputs)


def _torch_arrays(inputs):
  import torch  # ty: ignore[import-not-found]

  to = lambda a: torch.from_numpy(np.asarray(a, np.float32).copy())
  h, w, h_t, w_t = (to(a) for a in inputs[:4])
  h.requires_grad_()
  w = w.T.contiguous().requires_grad_()  # torch's orientation, [V, H]
  return torch, h, w, h_t, w_t.T.contiguous(), to(inputs.labels).long()


def torch_naive(compiled: bool):
  def variant(inputs, divergence: str, labels: bool) -> Step:
    if divergence not in ("forward_kl", "reverse_kl", "tvd", "jsd"):
      raise NotImplementedError(f"the torch step has no {divergence}")
    torch, h, w, h_t, w_t, y = _torch_arrays(inputs)

    def fn(h, w):
      z = h @ w.T
      lq, lp = z.log_softmax(1), (h_t @ w_t.T).log_softmax(1)
      if divergence == "forward_kl":
        loss = (lp.exp() * (lp - lq)).sum(1)
      elif divergence == "reverse_kl":
        loss = (lq.exp() * (lq - lp)).sum(1)
      elif divergence == "tvd":
        loss = 0.5 * (lp.exp() - lq.exp()).abs().sum(1)
      else:
        lm = torch.logaddexp(lp, lq) - float(np.log(2))
        loss = 0.5 * (lp.exp() * (lp - lm) + lq.exp() * (lq - lm)).sum(1)
      if labels:
        loss = loss + torch.nn.functional.cross_entropy(z, y, reduction="none")
      return loss.mean()

    loss = torch.compile(fn) if compiled else fn
    return _torch_step(loss, h, w)

  return variant


def liger(inputs, divergence: str, labels: bool) -> Step:
  from liger_kernel import (  # ty: ignore[import-not-found]
    chunked_loss,
  )

  beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
  if divergence not in beta:
    raise NotImplementedError(f"Liger's chunked loss has no {divergence}")
  _, h, w, h_t, w_t, y = _torch_arrays(inputs)
  loss = chunked_loss.LigerFusedLinearJSDLoss(
    weight_hard_loss=1.0 if labels else 0.0,
    weight_soft_loss=1.0,
    beta=beta[divergence],
    compiled=True,
  )
  fn = lambda h, w: loss(h, w, h_t, w_t, y)
  return _torch_step(fn, h, w)


def _torch_step(loss, h, w) -> Step:
  def run():
    h.grad = w.grad = None
    value = loss(h, w)
    (value[0] if isinstance(value, tuple) else value).backward()

  return Step(run, None)


VARIANTS = {name: ours(name) for name in OURS} | {
  "naive": naive,
  "optax": optax,
  "torch": torch_naive(False),
  "torch_compiled": torch_naive(True),
  "liger": liger,
}


def absent(variant: str) -> str | None:
  """Returns why a variant cannot run here, or None."""
  needs = {
    "optax": ["optax"],
    "torch": ["torch"],
    "torch_compiled": ["torch"],
    "liger": ["torch", "liger_kernel"],
    "tpu": ["kernels.tpu"],
    "gpu": ["kernels.gpu"],
  }
  for module in needs.get(variant, []):
    if importlib.util.find_spec(module) is None:
      return f"{module} is not installed"
  return None
