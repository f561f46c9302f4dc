"""The public losses: what they mean, what they accept, where they run."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax

# A program in whose trace this were imported, which adds to what jax knows
# programs by, would be traced and compiled once more at its next call.
import jax.experimental.pallas.tpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from kernels import arguments, chunked, log_probs, reference, xla
from kernels.phi import Phi
from kernels.plan import Operands, Plan, Spec, vary, varying
from kernels.types import (
  Head,
  Logits,
  Rows,
  TopK,
  num_rows,
  operand_dtype,
  soft_cap,
)

Implementation = str | Plan


def distill_loss(
  student: Logits | Head,
  teacher: Logits | Head | TopK | None,
  *,
  divergence: Callable[[Array, Array], Array],
  temperature: float | Float[Array, ""] = 1.0,
  weights: Float[Array, "N"] | None = None,
  labels: Int[Array, "N"] | None = None,
  hard_weight: float | Float[Array, ""] = 0.0,
  soft_weight: float | Float[Array, ""] = 1.0,
  implementation: Implementation = "auto",
  vocab_axis: str | None = None,
) -> tuple[Float[Array, ""], Rows]:
  r"""Returns the weighted sum of a divergence and a cross-entropy over rows.

      loss = sum_n w_n (soft_weight T^2 D_n + hard_weight CE_n)
      D_n  = sum_v phi(log q_v, log p_v),  q, p = softmax(z_s / T), (z_t / T)
      CE_n = -log softmax(z_s)[label_n],   at T = 1

  in nats, float32, differentiable (reverse mode) in the student's arrays only:
  the teacher, the weights and all else are constants. Source: Hinton, Vinyals,
  Dean (2015), 1503.02531, for the sum and the factor T^2.

  Args:
    student: Logits or Head, N rows over V.
    teacher: Logits, Head (any width) or TopK. None where soft_weight is 0. With
      a `vocab_size` its columns may be padded to another V than the student's
      (151,936 and 152,064, say), but not under vocab_axis.
    divergence: phi(lq, lp), any elementwise function of float32 student and
      teacher log-probabilities made of jnp operations. It may close over
      arrays. Infinite slopes are bounded by 1e30.
    temperature: T > 0; may be traced, and vmapped, as may weights, hard_weight
      and soft_weight.
    weights: [N]; None means 1 / N each. A row of weight 0 counts for nothing,
      whatever it holds: NaN, infinities, labels out of range.
    labels: [N] ids; needed unless hard_weight is known to be 0. Traced labels
      out of range make their rows and the loss NaN; concrete ones raise. So do
      the ids of a TopK teacher that are out of range or twice in a row.
    hard_weight, soft_weight: scalars.
    implementation: "auto" follows the platform that is lowered for;
      "reference", "xla", "tpu", "gpu"; or a `plan.Plan`, for tuning:
      `dataclasses.replace(xla.CPU, chunk=64)`.
    vocab_axis: mesh axis over which V is sharded, inside shard_map. Hidden
      states, labels, TopK and weights are the same on every shard, kernels,
      biases and logits are this shard's columns, ids are global. Where V does
      not divide, pad the columns and give the true V as `vocab_size`, or mask
      them with logits or biases of -inf or -1e30.

  Returns:
    (loss, rows): rows.soft[N] = T^2 D_n and rows.hard[N] = CE_n, for logging,
    without gradients, 0 in rows of weight 0; rows.hard is 0 without labels.

  Raises:
    arguments.ArgumentError (a ValueError and a TypeError), with the argument,
    what was got and what was expected.

  >>> import jax.numpy as jnp
  >>> kl = lambda lq, lp: jnp.exp(lp) * (lp - lq)
  >>> student = Logits(jnp.log(jnp.array([[0.25, 0.75]])))
  >>> teacher = Logits(jnp.log(jnp.array([[0.5, 0.5]])))
  >>> loss, rows = distill_loss(student, teacher, divergence=kl)
  >>> print(f"{loss:.4f}")
  0.1438
  """
  vocab_size = arguments.of_loss(
    student, teacher, divergence, temperature, weights, labels, hard_weight,
    soft_weight, vocab_axis,
  )  # fmt: skip
  n = num_rows(student)
  f32 = jnp.float32
  weighted = weights is not None
  if weights is None:
    weights = jnp.full(n, 1 / n, f32)
  consts = dict(
    temperature=jnp.asarray(temperature, f32),
    weights=jnp.asarray(weights, f32),
    hard_weight=jnp.asarray(hard_weight, f32),
    soft_weight=jnp.asarray(soft_weight, f32),
  )
  consts = lax.stop_gradient(consts)
  if labels is not None:
    labels = arguments.int32(labels, vocab_size)
  if isinstance(teacher, TopK):
    ids = arguments.int32(teacher.ids, vocab_size)
    teacher = dataclasses.replace(teacher, ids=ids)
  if implementation == "reference":
    arguments.of_reference(vocab_axis)
    return reference.distill_loss(
      student, teacher, labels, divergence=divergence, vocab_size=vocab_size,
      **consts,
    )  # fmt: skip
  phi = None
  if teacher is not None:
    phi = Phi.of(divergence, operand_dtype(student))
  spec = Spec(
    phi=phi,
    hard=labels is not None,
    hard_slope=labels is not None and not arguments.is_known(hard_weight, 0),
    unit_temperature=arguments.is_known(temperature, 1),
    vocab_size=vocab_size,
    vocab_axis=vocab_axis,
    weighted=weighted,
    soft_cap=soft_cap(student),
  )
  ops = Operands(
    teacher=lax.stop_gradient(teacher),
    labels=labels,
    consts=[] if phi is None else phi.constants(),
    **consts,
  )
  plans = select_plans(implementation, spec, student, teacher)
  student = vary(student, varying((student, ops)))
  loss, rows = chunked.loss_and_rows(plans, spec, student, ops)
  if vocab_axis is not None:
    loss, rows = lax.psum((loss, rows), vocab_axis)
  return loss, lax.stop_gradient(rows)


def token_log_probs(
  head_or_logits: Head | Logits,
  ids: Int[Array, "N"],
  *,
  temperature: float | Float[Array, ""] = 1.0,
  implementation: Implementation = "auto",
  vocab_axis: str | None = None,
) -> Float[Array, "N"]:
  r"""Returns log softmax(z / T)[ids] for each row, in nats, float32.

  For sequence scores and rankings. Differentiable in the scores' arrays with
  any cotangent per row: backward computes the logits again, a chunk at a time.

  Args:
    head_or_logits: Head or Logits of N rows over V.
    ids: [N]; global ids under vocab_axis. Traced ids out of range give NaN (and
      no gradient); concrete ones raise.
    temperature: T > 0, may be traced; a constant.
    implementation, vocab_axis: as in `distill_loss`.

  Raises:
    arguments.ArgumentError, as `distill_loss`.

  >>> import jax.numpy as jnp
  >>> logits = Logits(jnp.log(jnp.array([[0.25, 0.75]])))
  >>> print(f"{token_log_probs(logits, jnp.array([1]))[0]:.4f}")
  -0.2877
  """
  z = head_or_logits
  vocab_size = arguments.of_scores(z, ids, temperature, vocab_axis)
  temperature = lax.stop_gradient(jnp.asarray(temperature, jnp.float32))
  ids = arguments.int32(ids, vocab_size)
  valid = (ids >= 0) & (ids < vocab_size)
  safe = jnp.where(valid, ids, 0)
  if implementation == "reference":
    arguments.of_reference(vocab_axis)
    out = reference.token_log_probs(
      reference.logits(z, vocab_size), safe, temperature
    )
    return jnp.where(valid, out, jnp.nan)
  plans = select_plans(implementation, None, z, None)
  axes = varying((z, ids, temperature))
  if vocab_axis is not None and axes and vocab_axis not in axes:
    axes = (*axes, vocab_axis)
  z = vary(z, axes)
  out = log_probs.token_log_probs(
    plans, vocab_size, vocab_axis, z, safe, temperature
  )
  out = out if vocab_axis is None else lax.psum(out, vocab_axis)
  return jnp.where(valid, out, jnp.nan)


def select_plans(
  implementation: Implementation,
  spec: Spec | None,
  student,
  teacher: Any,
) -> tuple[tuple[str, Plan], ...]:
  """Returns (platform, plan) pairs for `plan.on_platform`.

  kernels.tpu and kernels.gpu have `plans.by_platform(spec, student, teacher)`,
  which returns {platform: plan} or a string that says why not: "cpu" in
  interpret mode, "tpu" or "cuda" compiled. spec is None for token_log_probs.
  "auto" takes those that say `auto`, for the platform of the mesh in effect
  where there is one (jax.set_mesh, shard_map), else for all platforms.
  """
  if isinstance(implementation, Plan):
    return (("default", implementation),)
  if implementation not in ("auto", "xla", "tpu", "gpu"):
    raise arguments.bad(
      "implementation",
      repr(implementation),
      "'auto', 'reference', 'xla', 'tpu', 'gpu' or a kernels.plan.Plan",
    )
  plans = {"cpu": xla.CPU, "default": xla.ACCELERATOR}
  if implementation == "xla":
    return tuple(plans.items())
  backends = {"tpu": "tpu", "gpu": "cuda"}
  target = _target_platform()
  if implementation == "auto":
    for name, platform in backends.items():
      if target not in (None, platform):
        continue
      found = _kernel_plans(name, spec, student, teacher)
      if not isinstance(found, str) and platform in found:
        plan = found[platform]
        plans |= {platform: plan} if plan.auto else {}
    return tuple(plans.items())
  found = _kernel_plans(implementation, spec, student, teacher)
  if isinstance(found, str):
    raise arguments.bad("implementation", repr(implementation), found)
  here = target or _PLATFORMS.get(jax.default_backend(), jax.default_backend())
  if here not in found:
    raise arguments.bad(
      "implementation",
      f"{implementation!r} on platform {here!r}",
      f"one of the platforms {sorted(found)}, or implementation 'auto'",
    )
  if len(found) == 1:  # no choice at lowering: vmap takes no callbacks in one
    return (("default", found[here]),)
  return tuple(found.items())


_PLATFORMS = {"gpu": "cuda"}  # of a device -> of a lowering


def _target_platform() -> str | None:
  """Returns the platform of the mesh in effect; None where there is none."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return None
  return _PLATFORMS.get(device.platform, device.platform)


def _kernel_plans(name: str, spec, student, teacher) -> dict | str:
  # Imported here: they take 0.2 s, which "xla" and "reference" need not pay.
  module = importlib.import_module(f"kernels.{name}")
  return module.plans.by_platform(spec, student, teacher)
