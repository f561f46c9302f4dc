"""Checks vocabulary-parallel losses on 4 virtual devices; run by its test.

Its own process, because XLA_FLAGS must be set before jax starts.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from kernels import Head, Logits, Rows, TopK, distill_loss, token_log_probs
from tests.kernels import oracle
from tests.kernels.problems import (
  CAPPED,
  PLANS,
  arrays,
  dense,
  head,
  problem,
  top_k,
)

P = PartitionSpec
N, V = 24, 300
HEAD = Head(P(), P(None, "v"), P("v"))


def sharded(fn, specs, out, axes=(("v", 4),), check=True):
  names, sizes = zip(*axes, strict=True)
  mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(axes))
  fn = jax.shard_map(
    fn, mesh=mesh, in_specs=specs, out_specs=out, check_vma=check
  )
  return jax.jit(fn)


def specs_of(x, head_specs=HEAD):
  if isinstance(x, Logits):
    return Logits(P(None, "v"), x.vocab_size)
  if isinstance(x, TopK):
    return TopK(P(), P(), x.tail)
  bias = None if x.bias is None else head_specs.bias
  return dataclasses.replace(
    x, hidden=head_specs.hidden, kernel=head_specs.kernel, bias=bias
  )


def loss_and_grads(student, teacher, inside=True, check=True, **kw):
  """Returns (loss, soft, hard, gradients) of one device's whole problem."""
  s_spec, t_spec = specs_of(student), specs_of(teacher)

  def fn(s, t):
    loss, rows = distill_loss(s, t, vocab_axis="v", **kw)
    return loss, (rows.soft, rows.hard)

  out = (P(), (P(), P()))
  if inside:
    grad = jax.value_and_grad(fn, has_aux=True)
    whole = sharded(grad, (s_spec, t_spec), (out, s_spec))
  else:
    fn = sharded(fn, (s_spec, t_spec), out, check=check)
    whole = jax.jit(jax.value_and_grad(fn, has_aux=True))
  (loss, rows), grads = whole(student, teacher)
  text = whole.lower(student, teacher).compile().as_text()
  return (loss, *rows, arrays(grads)), text


def reductions(text: str, shape: str) -> int:
  """Returns how many arrays of a shape are all-reduced."""
  results = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
  return sum(len(re.findall(rf"f32\[{shape}\]", r)) for r in results)


def check_losses():
  student, teacher, labels, weights = problem(N, V)
  labels, weights = jnp.asarray(labels), jnp.asarray(weights)
  kw = dict(divergence=oracle.jsd(0.3), temperature=2.0, weights=weights)
  kw.update(labels=labels, hard_weight=0.5)
  s, t = head(student), head(teacher)
  topk = top_k(teacher, 7, 2.0)
  topk = (jnp.asarray(topk[0], jnp.int32), jnp.asarray(topk[1]))
  pairs = {
    "head": (s, t),
    "logits": (Logits(dense(student)[0]), Logits(dense(teacher)[0])),
    "bucket": (s, TopK(*topk)),
    "renormalize": (s, TopK(*topk, "renormalize")),
    "capped": (head(student, **CAPPED[0]), head(teacher, **CAPPED[1])),
    "capped_bucket": (head(student, **CAPPED[0]), TopK(*topk)),
  }
  for name, (a, b) in pairs.items():
    fn = lambda a, b=b: distill_loss(a, b, **kw)
    (loss, rows), grads = jax.value_and_grad(fn, has_aux=True)(a)
    want = (loss, rows.soft, rows.hard, arrays(grads))
    plans = ("xla", "chunked", "online") if name == "head" else ("chunked",)
    for plan in plans:
      got, text = loss_and_grads(a, b, implementation=PLANS[plan], **kw)
      oracle.assert_close(got, want, 1e-5)
      if isinstance(a, Head):
        assert reductions(text, f"{N},12") == 1, (name, plan)
    # Differentiated from outside of shard_map:
    for check in (True, False) if name == "head" else ():
      got, _ = loss_and_grads(a, b, inside=False, check=check, **kw)
      oracle.assert_close(got, want, 1e-5)


def check_ragged():
  student, teacher, labels, _ = problem(N, V - 3)
  kw = dict(divergence=oracle.DIVERGENCES["log_ratio"], temperature=2.0)
  kw.update(labels=jnp.asarray(labels), hard_weight=0.5)
  want = oracle.loss(student, teacher, **kw)
  pad = lambda x, value: np.concatenate(
    [x, np.full((*x.shape[:-1], 3), value, np.float32)], -1
  )
  for bias, size in ((-1e30, None), (-np.inf, None), (7.0, V - 3)):
    s, t = (Head(a, pad(b, 0), pad(c, bias), size)
            for a, b, c in (student, teacher))  # fmt: skip
    got, _ = loss_and_grads(s, t, **kw)
    grads = (got[3][0], *(g[..., : V - 3] for g in got[3][1:]))
    oracle.assert_close((*got[:3], *grads), (*want[:3], *want[3]))


def check_rows_sharded_too():
  """Rows over one axis, V over the other; weights count globally."""
  student, teacher, _, _ = problem(N, V)
  kw = dict(divergence=oracle.forward_kl)
  want = oracle.loss(student, teacher, **kw)
  weights = jnp.full(N, 1 / N)
  spec = Head(P("d"), P(None, "v"), P("v"))

  def fn(s, t, w):
    loss, rows = distill_loss(s, t, weights=w, vocab_axis="v", **kw)
    return jax.lax.psum(loss, "d"), (rows.soft, rows.hard)

  grad = jax.value_and_grad(fn, has_aux=True)
  out = ((P(), (P("d"), P("d"))), spec)
  whole = sharded(grad, (spec, spec, P("d")), out, (("d", 2), ("v", 2)))
  (loss, rows), grads = whole(head(student), head(teacher), weights)
  oracle.assert_close((loss, *rows, arrays(grads)), want)
  text = whole.lower(head(student), head(teacher), weights).compile().as_text()
  assert reductions(text, f"{N // 2},12") == 1


def check_scores():
  student, _, ids, g = problem(N, V)
  ids = jnp.asarray(ids)
  heads = head(student), head(student, **CAPPED[0])
  for x in (*heads, Logits(dense(student)[0])):
    spec = specs_of(x)
    for plan in ("xla", "chunked", "online"):

      def fn(x, plan=plan):
        out = token_log_probs(
          x, ids, temperature=1.5, vocab_axis="v", implementation=PLANS[plan]
        )
        return (g * out).sum(), out

      whole = sharded(jax.grad(fn, has_aux=True), (spec,), (spec, P()))
      grads, out = whole(x)
      arrays_64 = student if isinstance(x, Head) else dense(student)
      caps = CAPPED[0] if x is heads[1] else {}
      want = oracle.token_log_probs(arrays_64, ids, 1.5, g, **caps)
      oracle.assert_close((out, arrays(grads)), want, 1e-5)
      if isinstance(x, Head):
        text = whole.lower(x).compile().as_text()
        assert reductions(text, f"{N},12") == 1, plan


def check_invalid():
  """An id out of range or twice is NaN in its row; weight 0 hides all."""
  student, teacher, labels, weights = problem(N, V)
  ids, lp = top_k(teacher, 7, 1.0)
  row, s = np.arange(N) == 5, head(student)

  def fn(s, teacher, labels, weights):
    return distill_loss(
      s, teacher, divergence=oracle.forward_kl, weights=weights, labels=labels,
      hard_weight=0.5, vocab_axis="v", implementation=PLANS["chunked"],
    )  # fmt: skip

  specs = (HEAD, TopK(P(), P()), P(), P())
  grad = jax.value_and_grad(fn, has_aux=True)
  grad = sharded(grad, specs, ((P(), Rows(P(), P())), HEAD))
  scores = lambda s, ids: token_log_probs(s, ids, vocab_axis="v")
  scores = sharded(scores, (HEAD, P()), P())
  none = np.where(row, 0, weights).astype(np.float32)
  (_, rows), _ = grad(s, TopK(ids, lp), labels, weights)
  clean = grad(s, TopK(ids, lp), labels, none)
  np.testing.assert_equal(np.isfinite([*rows]).all(), True)
  for value in (-1, V, ids[5, 0]):
    bad = ids.copy()
    bad[5, 3] = value
    (loss, rows), _ = grad(s, TopK(bad, lp), labels, weights)
    np.testing.assert_array_equal(np.isnan([loss, *rows.soft]), [True, *row])
    np.testing.assert_equal(np.isfinite(rows.hard).all(), True)
    got = grad(s, TopK(bad, lp), labels, none)
    oracle.assert_close(got, clean, 1e-6)
  for value in (-1, V):
    bad = np.where(row, value, labels)
    (loss, rows), _ = grad(s, TopK(ids, lp), bad, weights)
    np.testing.assert_array_equal(np.isnan([loss, *rows.hard]), [True, *row])
    np.testing.assert_array_equal(np.isnan(scores(s, bad)), row)
    spoilt = Head(s.hidden.at[5].set(jnp.nan), s.kernel, s.bias)
    got = grad(spoilt, TopK(ids, lp), bad, none)
    oracle.assert_close(got, clean, 1e-6)


if __name__ == "__main__":
  assert jax.device_count() == 4
  check_losses()
  check_ragged()
  check_rows_sharded_too()
  check_scores()
  check_invalid()
  print("all agree")
