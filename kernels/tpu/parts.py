"""What the sweeps of the TPU kernel are made of; see kernels.tpu.kernel."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels import tile
from kernels.linear import Linear
from kernels.phi import Phi

f32 = jnp.float32
LANES = 128
LOG2E = math.log2(math.e)
LN2 = math.log(2)
AHEAD = 7  # see `sweep`
LOW = tile.DEAD  # least logit: whatever was masked is equal on both sides


def padded(v: int) -> int:
  return -(-v // LANES) * LANES


@dataclasses.dataclass(frozen=True)
class Kernel:
  """What is static about one kernel.

  Attributes:
    phi, hard, unit_temperature: as in `plan.Spec`.
    hard_slope: as in `plan.Spec`, and a gradient is wanted.
    shapes: of phi's constants, each of size 1.
    vocab: the true V; columns beyond it are padding.
    grad: whether dz is wanted.
    guard: whether rows of weight 0 may hold NaN.
    select: whether phi or u may be other than 0 where both sides are masked.
    linear: phi's coefficients, if it has them.
    soft_cap: as in `plan.Spec`.
    rows: of a block.
    stash: how many [rows, V] float32 arrays there are: 2, for x_s and x_t, then
      q and u, or 0 (all is recomputed).
    narrow: whether maxima are taken in the logits' dtype.
    steps: of `Generation`.
    block: V lanes per grid step in phases; 0 means that rows are resident.
  """

  phi: Phi | None
  hard: bool
  hard_slope: bool
  unit_temperature: bool
  shapes: tuple[tuple[int, ...], ...]
  vocab: int
  grad: bool
  guard: bool
  select: bool
  linear: Linear | None = None
  soft_cap: float | None = None
  rows: int = 16
  stash: int = 0
  narrow: bool = False
  steps: tuple[tuple[int, int], ...] = ()
  block: int = 0

  @property
  def soft(self) -> bool:
    return self.phi is not None

  @property
  def second(self) -> bool:
    """Whether CE needs a softmax at T = 1 of its own."""
    return self.hard and self.soft and not self.unit_temperature

  @property
  def short(self) -> bool:
    """Whether sweep 1 does what else sweep 2 does."""
    kept = self.stash > 0 or not self.grad
    return self.linear is not None and kept and not self.block

  @property
  def keeps_second(self) -> bool:
    """Whether its exponentials are kept for sweep 3."""
    return self.second and self.hard_slope and self.stash > 0

  @property
  def arrays(self) -> int:
    """How many [rows, V] float32 arrays are kept between sweeps."""
    return self.stash + self.keeps_second


OUT = ("d", "total", "m_s", "s_s", "l_s", "m_t", "s_t", "l_t", "s_1", "z_l")
STATS = (*OUT, "lse_s", "lse_t")


class Stats:
  """Row statistics [rows, 128] by name (STATS) in VMEM: m, sums, their log2.

  In registers they would be spilled by the sweeps, and in phases they are kept
  between grid steps. All lanes hold the same. A loop that broadcasts [rows, 1]
  itself does so with the cross-lane unit in every iteration: 50 cycles each
  (compiled, v5e).
  """

  def __init__(self, ref):
    vars(self)["ref"] = ref

  def __getattr__(self, name):
    return self.ref[STATS.index(name)]

  def __setattr__(self, name, x):
    self.ref[STATS.index(name)] = x


class Refs:
  """A kernel's references by name; None where there is none."""

  def __init__(self, kernel: Kernel, refs):
    refs = list(refs)

    def take(wanted) -> Any:
      return refs.pop(0) if wanted else None

    self.scalars = take(True)  # [1, 2 + constants]: 1/T, T, constants
    self.info = take(True)  # [rows, 4]: label, k, k_hard, alive
    self.z_s = take(True)
    self.z_t = take(kernel.soft)
    self.out = take(True)  # [rows, 128], see OUT
    self.dz = take(kernel.grad)
    self.x_s = self.q = take(kernel.stash)
    self.x_t = self.u = take(kernel.stash)
    self.e_1 = take(kernel.keeps_second)  # 2^x at T = 1
    self.stats = Stats(take(True))  # [STATS, rows, 128]


@dataclasses.dataclass
class Soft:
  """Divergences of rows, and what sweep 3 must do with the kept arrays.

  dz = k (on_u u - q_scale centre q), softmax = q_scale q; all [rows, 128] or
  numbers.
  """

  d: Any
  total: Any
  on_u: Any
  centre: Any
  q_scale: Any = 1.0


def fold(x, op, width=LANES):
  """Returns [rows, width]: op over the groups of that many lanes of x."""
  parts = [x[:, i : i + width] for i in range(0, x.shape[1], width)]
  while len(parts) > 1:
    half = len(parts) // 2
    pairs = [op(parts[2 * i], parts[2 * i + 1]) for i in range(half)]
    parts = pairs + parts[2 * half :]
  return parts[0]


def wide(x):
  """Returns [rows, 1] in all of 128 lanes."""
  return jnp.broadcast_to(x, (x.shape[0], LANES))


def row_sum(x):
  return wide(x.sum(1, keepdims=True))


def spread(x, like):
  """Returns [rows, 128] repeated to the lanes of `like`: no operation."""
  return jnp.concatenate([x] * (like.shape[1] // LANES), 1)


def lanes_of(x):
  return lax.broadcasted_iota(jnp.int32, x.shape, 1)


def load(kernel: Kernel, ref, at, valid, floor=True):
  """Returns z [rows, lanes], LOW from lane `valid` on (None: all valid).

  Unless not `floor`, what is lower (-inf, -1e30) becomes LOW. A TPU that
  computes in bfloat16 does that before widening, two numbers at a time.
  """
  z = ref[:, at]
  low = jnp.asarray(LOW, z.dtype)
  if floor and kernel.narrow:
    z = jnp.maximum(z, low)
  z = z.astype(f32)
  if floor and not kernel.narrow:
    z = jnp.maximum(z, low.astype(f32))
  if valid is None:
    return z
  return jnp.where(lanes_of(z) < valid, z, low.astype(f32))


def even(columns: int, step: int, part: int) -> int:
  """Returns the step, of 3/4 or more of the given one, that leaves least over.

  What fills no step is written out after the loop: code that spills.
  """
  steps = range(step, step * 3 // 4 - 1, -part)
  return min(steps, key=lambda s: columns % s if columns >= s else 0)


def sweep(
  kernel: Kernel, index: int, body, init, limit=None, columns=None, read=None
):
  """Folds body(carry, lanes, valid, read(lanes, valid)) over V lanes.

  Args:
    index: which sweep, for its steps.
    body: `lanes` is a slice of V, `valid` None or how many of its lanes exist.
    limit: in phases, how many lanes of the grid's block exist (traced).
    columns: how many, if not all.
    read: called AHEAD parts before. Where body overwrites what is read, no part
      is read earlier than that, or a step would be at once in more registers
      than there are. None: body takes no fourth argument.
  """
  step, part = (n * 1024 // kernel.rows for n in kernel.steps[index])
  if columns is None:
    columns = kernel.vocab if limit is None else kernel.block
  step = even(columns // LANES * LANES, step, part)
  steps, start = columns // step, columns // step * step

  def fold_over(slices, carry):
    slices = list(slices)
    if read is None:
      for at, valid in slices:
        carry = body(carry, at, valid)
      return carry
    values = [read(*s) for s in slices[:AHEAD]]
    for i, (at, valid) in enumerate(slices):
      carry = body(carry, at, valid, values.pop(0))
      values += [read(*s) for s in slices[i + AHEAD : i + AHEAD + 1]]
    return carry

  def run(i, carry):
    slices = []
    for offset in range(0, step, part):
      at = i * step + offset
      valid = None if limit is None else limit - at
      slices.append((pl.ds(pl.multiple_of(at, LANES), part), valid))
    return fold_over(slices, carry)

  carry = lax.fori_loop(0, steps, run, init) if steps else init
  whole, ragged = columns // LANES * LANES, columns % LANES
  slices = []
  for at in range(start, whole, part):
    valid = None if limit is None else limit - at
    slices.append((pl.ds(at, min(part, whole - at)), valid))
  slices += [(pl.ds(whole, LANES), ragged)] if ragged else []
  return fold_over(slices, carry)


def scale_of(kernel: Kernel, inv_t):
  """Returns c = log2(e) / T of the first softmax, [rows, 128]."""
  if kernel.unit_temperature or not kernel.soft:
    return jnp.full_like(inv_t, LOG2E)
  return inv_t * LOG2E


def label_lanes(refs: Refs, base=0):
  """Returns label - lane [rows, 128]: where the block of a label's lane starts.

  base: in phases, the first column of the block.
  """
  labels = wide(refs.info[:, 0:1]).astype(jnp.int32)
  return labels - base - lanes_of(labels)


def label_blocks(kernel: Kernel, refs: Refs, base=0, limit=None):
  """Yields (start, lanes, valid) of the 128 lanes that hold a row's label."""
  columns = kernel.vocab if limit is None else kernel.block
  first = refs.info[:, 0:1].astype(jnp.int32) - base
  first = jnp.clip(first, 0, columns - 1) & -LANES
  for row in range(kernel.rows):
    start = pl.multiple_of(first[row, 0], LANES)
    total = kernel.vocab if limit is None else limit
    yield start, pl.ds(start, LANES), total - start


def label_logits(kernel: Kernel, refs: Refs, base=0, limit=None):
  """Returns the label's z [rows, 128], 0 if it is in another block."""
  out = jnp.zeros((kernel.rows, LANES), f32)
  labels = label_lanes(refs, base)
  for start, at, _ in label_blocks(kernel, refs, base, limit):
    out = jnp.where(labels == start, refs.z_s[:, at].astype(f32), out)
  return row_sum(out)
