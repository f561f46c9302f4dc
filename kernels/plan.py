"""What a loss is made of, and how an implementation runs it.

A plan is what an implementation consists of: its row function, its rule for C,
and the dtype of logits between GEMM and row function.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernels.phi import Phi

f32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Spec:
  """What is static about a loss.

  Attributes:
    phi: the divergence; None drops the soft term.
    hard: whether there are labels.
    hard_slope: whether CE counts in the gradient (hard_weight is not known 0).
    unit_temperature: T is known to be 1, so both terms share one softmax.
    vocab_size: the true V, global.
    vocab_axis: mesh axis that V is sharded over, or None.
    weighted: whether weights were given, so that some may be 0.
    soft_cap: of the student's Head, or None. The row function multiplies dz by
      `tile.cap_slope`, as it is what has z.
  """

  phi: Phi | None
  hard: bool
  hard_slope: bool
  unit_temperature: bool
  vocab_size: int
  vocab_axis: str | None = None
  weighted: bool = True
  soft_cap: float | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operands:
  """Everything else that a loss is computed from; none of it gets gradients."""

  teacher: Any  # Head | Logits | TopK | None
  labels: jax.Array | None  # [N] int32
  weights: jax.Array  # [N] float32
  temperature: jax.Array  # [] float32, as are the next two
  hard_weight: jax.Array
  soft_weight: jax.Array
  consts: list[jax.Array]  # of phi


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
  """C rows as a row function sees them.

  Attributes:
    z_s: [C, V] student's logits (V local under vocab_axis), any float dtype.
    teacher: logits [C, V], or with other padding columns than z_s, or TopK of
      C rows, or None.
    labels: [C] global ids, or None.
    soft_scale, hard_scale: [C] float32, weights soft_weight T and
      weights hard_weight, both times the Head's scale.
    inv_t: [] float32, 1 / T.
    offset: [] int32 global id of the first column.
    consts: of phi.
  """

  z_s: jax.Array
  teacher: Any
  labels: jax.Array | None
  soft_scale: jax.Array
  hard_scale: jax.Array
  inv_t: jax.Array
  offset: jax.Array
  consts: list[jax.Array]


# (spec, chunk, dtype of dz or None) -> D [C], CE [C], dz [C, V] or None. Under
# vocab_axis the row function makes the statistics global itself, while D and CE
# are this shard's share: the caller adds them up.
RowFunction = Callable[[Spec, Chunk, Any], tuple]


@dataclasses.dataclass(frozen=True)
class Plan:
  """How one implementation runs.

  Attributes:
    rows: the row function for dense teachers, or none.
    topk_rows: the row function for TopK teachers.
    rule: (N, V, student, teacher) -> C.
    width: (H, V) -> how many columns of dW are accumulated at a time.
    chunk: C; None means that `rule` says.
    stash: for what the plan leaves to kernels.xla: see there.
    logits_dtype: of a Head's logits; None means that of its operands. float32
      keeps what the GEMM accumulated.
    skips_dead: `rows` copes with rows of weight 0 that hold anything
      (their dz is 0; D and CE do not matter), so given logits need no masking,
      which is a copy of [N, V] where a kernel reads them.
    halves: whether dW of a bfloat16 kernel is accumulated as `split32`, which
      takes half the memory beside the result. So with every plan it is
      rounded to bfloat16 before the cotangent scales it, and again after. A
      cotangent of 2^k loses nothing by that; others, 2^-8 of a number at most
      instead of 2^-9.
    by_columns: (H, V) -> whether a [H, V] result lies by columns on the target,
      for `halves`.
    gemms: a kernels.tpu.gemm.Gemms for the heads that it fits; None: XLA's.
    auto: whether implementation "auto" takes the plan.
  """

  rows: RowFunction
  topk_rows: RowFunction
  rule: Callable[[int, int, Any, Any], int]
  width: Callable[[int, int], int] = lambda h, v: v
  stash: bool = False
  chunk: int | None = None
  logits_dtype: Any = f32
  skips_dead: bool = False
  auto: bool = True
  halves: bool = False
  by_columns: Callable[[int, int], bool] = lambda h, v: False
  gemms: Any = None

  def chunk_rows(self, n: int, v: int, student, teacher) -> int:
    c = self.chunk or self.rule(n, v, student, teacher)
    return max(1, min(c, n))


def varying(tree) -> tuple[str, ...]:
  """Returns the manual mesh axes that any leaf varies over (in shard_map)."""
  axes = set()
  for leaf in jax.tree.leaves(tree):
    axes |= set(jax.typeof(leaf).mat.varying)
  return tuple(sorted(axes))


def vary(tree, axes: tuple[str, ...]):
  """Returns the tree with every leaf varying over `axes`.

  The transpose is a psum over the axes that were added. So it is here, outside
  of the custom_vjp and once per call, that a replicated hidden state's gradient
  is summed over the vocabulary's shards (and a replicated kernel's over the
  shards of a batch).
  """

  def one(x):
    missing = tuple(a for a in axes if a not in jax.typeof(x).mat.varying)
    return lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(one, tree)


def on_platform(plans, fn, *args):
  """Calls fn(plan, *args) with the plan of the platform that it is lowered for.

  Args:
    plans: tuple of (platform, Plan); "default" is every other platform.
    fn: called with each plan while tracing; only one is compiled.
    *args: pytrees of arrays.
  """
  branches = {name: functools.partial(fn, plan) for name, plan in plans}
  default = branches.pop("default", None)
  if not branches and default is not None:
    return default(*args)
  return lax.platform_dependent(*args, default=default, **branches)
