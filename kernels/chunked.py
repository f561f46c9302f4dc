"""The chunked driver that all fused implementations share.

Rows are taken C at a time. A chunk's logits come from the heads' GEMMs, a
`Plan`'s row function turns them into losses and dz = dloss/dz, and dz goes
straight into the GEMMs of dh and dW. Only [C, V] ever exists, and both passes
are one: the loss is a scalar, so its cotangent only scales the gradients.

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
from jax.experimental.layout import Layout, with_layout_constraint

from kernels import tile
from kernels.types import Head, Logits, Rows, TopK

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
  """

  phi: tile.Phi | None
  hard: bool
  hard_slope: bool
  unit_temperature: bool
  vocab_size: int
  vocab_axis: str | None = None
  weighted: bool = True


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
    teacher: [C, V] logits, or TopK of C rows, or None.
    labels: [C] global ids, or None.
    soft_scale, hard_scale: [C] float32, weights soft_weight T and
      weights hard_weight.
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


def operand_dtype(scores: Head | Logits):
  """Returns the dtype of a head's GEMMs, or of given logits."""
  if isinstance(scores, Logits):
    return scores.values.dtype
  return jnp.promote_types(scores.hidden.dtype, scores.kernel.dtype)


def num_columns(scores: Head | Logits) -> int:
  """Returns V, local under vocab_axis and padding columns included."""
  if isinstance(scores, Logits):
    return scores.values.shape[1]
  return scores.kernel.shape[1]


def num_rows(scores: Head | Logits) -> int:
  if isinstance(scores, Logits):
    return scores.values.shape[0]
  return scores.hidden.shape[0]


def chunk_logits(
  scores, rows, alive, logits_dtype, skips_dead=False, gemms=None
):
  """Returns (h, z) of a chunk: h [C, H] or None, z [C, V]; masked rows are 0.

  Args:
    scores: Head or Logits of all rows.
    rows: slices a chunk out of [N, ...].
    alive: [C] bool; other rows may hold anything, NaN too.
    logits_dtype, skips_dead, gemms: see `Plan`.
  """
  mask = lambda x: jnp.where(alive[:, None], x, jnp.zeros((), x.dtype))
  if isinstance(scores, Logits):
    z = rows(scores.values)
    return None, z if skips_dead else mask(z)
  dtype = operand_dtype(scores)
  h = mask(rows(scores.hidden)).astype(dtype)
  w = scores.kernel.astype(dtype)
  if gemms is not None and gemms.fits(h, w):
    return h, gemms.scores(h, w, scores.bias, logits_dtype or dtype)
  z = jnp.dot(h, w, preferred_element_type=f32)
  if scores.bias is not None:
    z = z + scores.bias.astype(f32)
  return h, z.astype(logits_dtype or dtype)


def dot(a, b, contract: tuple[int, int]):
  """Returns a GEMM over the given axes, in the operands' dtype, in float32."""
  dims = (((contract[0],), (contract[1],)), ((), ()))
  return lax.dot_general(a, b, dims, preferred_element_type=f32)


def add_outer(plan: Plan, dw, h, dz, last=False):
  """Returns dW [H, V] + h^T dz, `plan.width` columns at a time.

  XLA does not accumulate into a GEMM's output: dW + h^T dz in one piece writes
  another [H, V] and reads it again. Where that is beyond the cache, blocks of
  columns save the memory and, on a CPU, time (`kernels.xla.cpu_width`).
  """
  v = dz.shape[1]
  width = plan.width(h.shape[1], v)
  if isinstance(dw, tuple):
    return _add_outer_halves(plan, dw, h, dz, last)
  if width >= v:
    return dw + dot(h, dz, (0, 0))

  def add(dw, start, width):
    dz_block = lax.dynamic_slice_in_dim(dz, start, width, 1)
    block = lax.dynamic_slice_in_dim(dw, start, width, 1)
    block = block + dot(h, dz_block, (0, 0))
    return lax.dynamic_update_slice_in_dim(dw, block, start, 1)

  dw = lax.fori_loop(0, v // width, lambda i, a: add(a, i * width, width), dw)
  return dw if v % width == 0 else add(dw, v - v % width, v % width)


def _add_outer_halves(plan: Plan, halves, h, dz, last):
  """As `add_outer`, dW as `split32` gives it; rounds the last sum."""
  shape = (h.shape[1], dz.shape[1])
  v, width = shape[1], min(plan.width(*shape), shape[1])
  order = Layout((1, 0) if plan.by_columns(*shape) else (0, 1))

  def add(halves, start, width):
    read = lambda a: lax.dynamic_slice_in_dim(a, start, width, 1)
    block = join32(*map(read, halves)) + dot(h, read(dz), (0, 0))
    # As the result will lie: TPUs would choose, and copy all of dW in the end.
    block = with_layout_constraint(block, order)
    high, low = split32(block)
    high = jnp.where(last, block.astype(high.dtype), high)
    return tuple(
      lax.dynamic_update_slice_in_dim(a, x, start, 1)
      for a, x in zip(halves, (high, low), strict=True)
    )

  step = lambda i, a: add(a, i * width, width)
  halves = lax.fori_loop(0, v // width, step, halves)
  return halves if v % width == 0 else add(halves, v - v % width, v % width)


def split32(x):
  """Returns a float32 array as (its upper half, bfloat16; its lower, uint16).

  Exact, and the upper half can lie where a bfloat16 result will.
  """
  bits = lax.bitcast_convert_type(x, jnp.uint32)
  high = lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
  return high, bits.astype(jnp.uint16)


def join32(high, low):
  """Returns the float32 array that `split32` split."""
  high = lax.bitcast_convert_type(high, jnp.uint16).astype(jnp.uint32)
  bits = (high << 16) | low.astype(jnp.uint32)
  return lax.bitcast_convert_type(bits, f32)


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


def column_offset(v: int, axis: str | None):
  """Returns the global id of this shard's first column."""
  return jnp.int32(0) if axis is None else lax.axis_index(axis) * v


def over_chunks(n: int, c: int, body, init):
  """Folds body(carry, start, fresh) over chunks of c rows.

  Where c does not divide n, the last chunk starts early, at n - c: no padding,
  so no copy of the input. It sees rows that were done before, and `fresh` [c]
  says which are not. Writing a row twice is harmless; sums must use `fresh`
  (None where all are).
  """
  if n <= c:
    return body(init, 0, None)

  def step(carry, i):
    start = jnp.minimum(i * c, n - c)
    fresh = None if n % c == 0 else start + jnp.arange(c) >= i * c
    return body(carry, start, fresh), None

  return lax.scan(step, init, jnp.arange(-(-n // c)))[0]


def at(start, c: int, n: int):
  """Returns functions that read and write c rows of [n, ...] at start."""
  if c == n:
    return (lambda a: a), (lambda a, x: x.astype(a.dtype))
  read = lambda a: lax.dynamic_slice_in_dim(a, start, c)
  write = lambda a, x: lax.dynamic_update_slice_in_dim(
    a, x.astype(a.dtype), start, 0
  )
  return read, write


def add_head_gradient(plan: Plan, head, grads, write, h, dz, fresh, last=False):
  """Adds a chunk to float32 gradients (dh, dW, db), see `over_chunks`.

  Args:
    head: the Head.
    grads: Head of gradients so far.
    write: puts the chunk's rows into [N, H].
    h, dz: [C, H] and [C, V], in the dtype of the GEMMs.
    fresh: [C] bool or None: dh is written, but dW and db are summed.
  """
  w, dw = head.kernel.astype(dz.dtype), grads.kernel
  if fresh is not None:
    h = jnp.where(fresh[:, None], h, jnp.zeros((), h.dtype))
  if plan.gemms is not None and isinstance(dw, tuple) and plan.gemms.fits(h, w):
    dh, dw = plan.gemms.gradients(h, w, dz, dw, last)
  else:
    dh = dot(dz, w, (1, 1))
    dw = add_outer(plan, dw, h, dz, last)
  dh = write(grads.hidden, dh)
  db = None
  if head.bias is not None:
    db = dz if fresh is None else jnp.where(fresh[:, None], dz, 0)
    db = grads.bias + db.astype(f32).sum(0)
  return Head(dh, dw, db, head.vocab_size)


def zero_gradient(student):
  """Returns float32 zeros for a Head, zeros of the logits' dtype for Logits."""
  if isinstance(student, Logits):
    return jax.tree.map(jnp.zeros_like, student)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, f32), student)


def run(plan: Plan, spec: Spec, student, ops: Operands, grad: bool):
  """Returns (loss, rows, gradients of the loss or None).

  Under vocab_axis these are this shard's share of the loss and rows, and the
  gradients of the whole loss with respect to what this shard has.
  """
  n, v = num_rows(student), num_columns(student)
  c = plan.chunk_rows(n, v, student, ops.teacher)
  is_topk = isinstance(ops.teacher, TopK)
  row_function = plan.topk_rows if is_topk else plan.rows
  alive = ops.weights != 0
  soft_scale = ops.weights * ops.soft_weight * ops.temperature
  hard_scale = ops.weights * ops.hard_weight
  labels, bad = ops.labels, None
  if labels is not None:  # a label out of range shows as NaN
    bad = alive & ((labels < 0) | (labels >= spec.vocab_size))
    hard_scale = jnp.where(bad, jnp.nan, hard_scale)
    labels = jnp.clip(labels, 0, spec.vocab_size - 1)
  zeros = jnp.zeros(n, f32)
  grads: Any = zero_gradient(student) if grad else None
  narrow = grad and isinstance(student, Head)
  narrow = narrow and student.kernel.dtype == jnp.bfloat16
  if narrow and plan.halves:
    grads = dataclasses.replace(grads, kernel=split32(grads.kernel))
  init = (zeros, zeros, grads)
  init = vary(init, varying((student, ops)))
  offset = column_offset(v, spec.vocab_axis)

  def body(carry, start, fresh):
    soft, hard, grads = carry
    read, write = at(start, c, n)
    alive_c = read(alive)
    skips_dead = plan.skips_dead and not is_topk
    args = (read, alive_c, plan.logits_dtype, skips_dead, plan.gemms)
    h, z_s = chunk_logits(student, *args)
    teacher = ops.teacher
    if isinstance(teacher, TopK):
      teacher = mask_topk(jax.tree.map(read, teacher), alive_c)
    elif teacher is not None:
      teacher = chunk_logits(teacher, *args)[1]
    chunk = Chunk(
      z_s=z_s,
      teacher=teacher,
      labels=None if labels is None else read(labels),
      soft_scale=read(soft_scale),
      hard_scale=read(hard_scale),
      inv_t=1 / ops.temperature,
      offset=offset,
      consts=ops.consts,
    )
    dtype = operand_dtype(student) if grad else None
    d, ce, dz = row_function(spec, chunk, dtype)
    soft, hard = write(soft, d), write(hard, ce)
    if grad and isinstance(student, Head):
      last = start == n - c
      grads = add_head_gradient(plan, student, grads, write, h, dz, fresh, last)
    elif grad:
      grads = Logits(write(grads.values, dz), student.vocab_size)
    return soft, hard, grads

  soft, hard, grads = over_chunks(n, c, body, init)
  if narrow:  # all plans alike (on_platform); see Plan.halves
    dw = grads.kernel[0] if plan.halves else grads.kernel
    grads = dataclasses.replace(grads, kernel=dw.astype(jnp.bfloat16))
  soft = jnp.where(alive, ops.temperature**2 * soft, 0)
  hard = jnp.where(alive, hard, 0)
  if bad is not None:
    hard = jnp.where(bad, jnp.nan, hard)
  each = ops.soft_weight * soft + ops.hard_weight * hard
  loss = jnp.where(alive, ops.weights * each, 0).sum()
  # All plans must return the same types (on_platform): a constant hard term,
  # say, would vary over no mesh axis.
  return vary((loss, Rows(soft, hard), grads), varying((student, ops)))


def mask_topk(teacher: TopK, alive) -> TopK:
  """Returns the chunk with harmless ids and log-probabilities in dead rows."""
  k = jnp.arange(teacher.ids.shape[1], dtype=teacher.ids.dtype)
  ids = jnp.where(alive[:, None], teacher.ids, k)
  lp = jnp.where(alive[:, None], teacher.log_probs.astype(f32), 0)
  return TopK(ids, jnp.maximum(lp, tile.FLOOR), teacher.tail)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def loss_and_rows(plans, spec: Spec, student, ops: Operands):
  """Returns this shard's share of (loss, rows); the value alone.

  Differentiable in the student. Everything in `ops` is constant: it gets no
  cotangent, whether or not it was traced.
  """
  fn = lambda plan, *args: run(plan, spec, *args, grad=False)[:2]
  return on_platform(plans, fn, student, ops)


def _fwd(plans, spec, student, ops):
  fn = lambda plan, *args: run(plan, spec, *args, grad=True)
  loss, rows, grads = on_platform(plans, fn, student, ops)
  # Arrays of size 0 carry the dtypes: the student itself need not be kept.
  dtypes = jax.tree.map(lambda x: jnp.zeros((0,), x.dtype), student)
  return (loss, rows), (grads, dtypes)


def _bwd(plans, spec, residuals, cotangents):
  del plans, spec
  grads, dtypes = residuals
  scale = cotangents[0]  # rows carry no gradients
  scaled = lambda g, x: (scale * g.astype(f32)).astype(x.dtype)
  return jax.tree.map(scaled, grads, dtypes), None


loss_and_rows.defvjp(_fwd, _bwd)
