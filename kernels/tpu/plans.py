"""Row function in Pallas for TPUs: two reads of [N, V] and one write.

A block of rows of both models stays in VMEM while the sweeps of
kernels.tpu.kernel go over it. Where rows do not fit, the sweeps become grid
phases over blocks of V: six reads and one write.

Compiled for TPUs, not run on one; run in interpret mode. `python -m
kernels.report` says what the compiler makes of it.
"""

import concurrent.futures
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import linear, tile, xla
from kernels.phi import Phi
from kernels.plan import Chunk, Plan, Spec
from kernels.tpu import gemm
from kernels.tpu.kernel import resident
from kernels.tpu.parts import LANES, LN2, LOW, OUT, STATS, Kernel, padded
from kernels.tpu.phases import phased
from kernels.types import Head

f32 = jnp.float32
MIB = 1 << 20
Step = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Generation:
  """What a TPU generation allows; generations.json says from where.

  Attributes:
    vmem: bytes of VMEM per core.
    bf16: whether the vector unit computes in bfloat16.
    steps: per sweep, pairs (1,024 each) in a step of its loop, and in the part
      of a step that is written out at once. Long steps hide latency, short
      parts keep values in registers.
    busy: the same of sweep 1 where phi is linear, so that it does most.
    second: the same of sweep 1 where it sums a second softmax.
    gemms: whether XLA's GEMMs of a head cost copies of it (kernels.tpu.gemm).
  """

  vmem: int
  bf16: bool
  steps: tuple[Step, ...]
  busy: Step
  second: Step
  gemms: bool = False


TABLE = json.loads(
  pathlib.Path(__file__).with_name("generations.json").read_text()
)


def _generation(row: dict) -> Generation:
  row = TABLE["default"] | row
  return Generation(
    vmem=row["vmem_mib"] * MIB,
    bf16=row["bf16"],
    steps=tuple((step, part) for step, part in row["steps"]),
    busy=tuple(row["busy"]),
    second=tuple(row["second"]),
    gemms=row["gemms"],
  )


GENERATIONS = {
  name: _generation(row) for name, row in TABLE["generations"].items()
}
UNKNOWN = _generation(TABLE["unknown"])
KINDS = {
  kind: name
  for name, row in TABLE["generations"].items()
  for kind in row["kinds"]
}


def generation() -> Generation:
  """Returns that of the device that is compiled for, or UNKNOWN.

  The abstract device of the current mesh, if it has one (`jax.set_mesh`,
  `jax.sharding.use_abstract_mesh`), else the default backend's device. Without
  either (compiled ahead of time with no mesh) UNKNOWN, which fits all
  generations but v4; there the compiler raises.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None and jax.default_backend() == "tpu":
    device = jax.devices()[0]
  kind = getattr(device, "device_kind", None)
  return GENERATIONS.get(KINDS.get(kind, ""), UNKNOWN)


def need(kernel: Kernel, v: int, itemsizes) -> int:
  """Returns bytes of VMEM: blocks doubly buffered, stash, row statistics.

  4 MiB more than what is counted, for the compiler's own use (compiled).
  """
  width = kernel.block or padded(v)
  per_pair = 2 * sum(itemsizes) + 4 * kernel.arrays
  row = width * per_pair + LANES * (4 * len(STATS) + 16)
  return kernel.rows * row + 4 * MIB


def fit(kernel: Kernel, gen: Generation, v: int, itemsizes) -> Kernel:
  """Returns the kernel with block sizes: the fastest that fits.

  16 rows fill a bfloat16 tile. The stash counts for more than rows do, and any
  resident block for more than phases, which read thrice.
  """
  steps = list(gen.steps)
  if kernel.linear is not None:
    steps[1] = gen.busy
  elif kernel.second:
    steps[1] = gen.second
  kernel = dataclasses.replace(kernel, narrow=gen.bf16, steps=tuple(steps))
  for stash in (2, 0) if kernel.soft and kernel.grad else (0,):
    for rows in (16, 8):
      new = dataclasses.replace(kernel, rows=rows, stash=stash)
      if need(new, v, itemsizes) <= gen.vmem * 15 // 16:
        return new
  return dataclasses.replace(kernel, rows=16, block=gen.steps[0][0] * 64)


def call(kernel: Kernel, scalars, info, logits, dtype, alias: bool, interpret):
  """Runs the kernel; returns its outputs.

  Args:
    scalars: [1, 2 + number of constants]: 1/T, T, constants.
    info: [N, 4]: label, k, k_hard, alive.
    logits: those of the student, and of the teacher if there is a phi.

  Returns [out [N, 128]] and, if a gradient is wanted, dz [N, V].
  """
  (n, v), rows = logits[0].shape, kernel.rows
  width = kernel.block or padded(v)
  # A teacher may have other padding columns. z_s and dz may be one array.
  blocks = [width, kernel.block or padded(kernel.vocab)][: len(logits)]
  if not kernel.block:
    grid = (pl.cdiv(n, rows),)
    by_row = lambda i: (i, 0)
    read = write = by_row
    semantics = ("parallel",)
  else:
    grid = (pl.cdiv(n, rows), 3, pl.cdiv(v, width))
    by_row = lambda i, phase, j: (i, 0)
    last = pl.cdiv(kernel.vocab, width) - 1
    read = lambda i, phase, j: (i, jnp.minimum(j, last))
    write = lambda i, phase, j: (i, jnp.where(phase == 2, j, 0))
    semantics = ("parallel", "arbitrary", "arbitrary")
  in_specs = [
    pl.BlockSpec(scalars.shape, lambda *_: (0, 0)),
    pl.BlockSpec((rows, info.shape[1]), by_row),
    *(pl.BlockSpec((rows, block), read) for block in blocks),
  ]
  arrays = [scalars, info, *logits]
  out_specs = [pl.BlockSpec((rows, LANES), by_row)]
  manual = jax.typeof(logits[0]).mat  # chunked.run has made all vary alike
  struct = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=manual)
  out_shape = [struct((n, LANES), f32)]
  if kernel.grad:
    out_specs.append(pl.BlockSpec((rows, width), write))
    out_shape.append(struct((n, v), dtype))
  scratch = [pltpu.VMEM((rows, width), f32)] * kernel.arrays
  scratch.append(pltpu.VMEM((len(STATS), rows, LANES), f32))
  itemsizes = [x.dtype.itemsize for x in logits]
  itemsizes += [jnp.dtype(dtype).itemsize] if kernel.grad else []
  limit = need(kernel, v, itemsizes)
  moved = sum(x.size * x.dtype.itemsize for x in logits)
  moved += n * v * jnp.dtype(dtype).itemsize if kernel.grad else 0
  return pl.pallas_call(
    functools.partial(resident if not kernel.block else phased, kernel),
    grid=grid,
    in_specs=in_specs,
    out_specs=out_specs,
    out_shape=out_shape,
    scratch_shapes=scratch,
    input_output_aliases={len(arrays) - len(logits): 1}
    if alias and kernel.grad
    else {},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=semantics, vmem_limit_bytes=limit
    ),
    cost_estimate=pl.CostEstimate(
      flops=20 * n * v, transcendentals=3 * n * v, bytes_accessed=moved
    ),
    interpret=interpret,
    name="distill_rows",
  )(*arrays)


def silent_where_masked(phi: Phi, consts, grad: bool) -> bool:
  """Whether phi and u are known to be nothing where both sides are masked."""
  if any(isinstance(c, Tracer) for c in consts):
    return False
  consts = [np.asarray(c) for c in consts]

  def evaluate():
    low, zero = jnp.full((1, 1), LOW, f32), jnp.zeros((1, 1), f32)
    args = (consts, low, low, zero, zero)
    new = phi.value_and_slope(*args) if grad else (phi.value(*args),)
    return all(abs(float(x[0, 0])) < 1e-11 for x in new)

  # Another thread has neither this one's trace nor its mesh, whose devices may
  # not even be attached (compiled ahead of time).
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(evaluate).result()


def dense_rows(
  spec: Spec,
  chunk: Chunk,
  dtype,
  *,
  alias: bool,
  guard: bool,
  gen: Generation | None = None,
  interpret: Any = False,
  tweak=lambda kernel: kernel,
):
  """Row function for Head and Logits teachers, or none."""
  grad = dtype is not None
  n, v = chunk.z_s.shape
  phi, consts = spec.phi, list(chunk.consts)
  zero = jnp.zeros(n, f32)
  if phi is None and not spec.hard:
    return zero, zero, jnp.zeros((n, v), dtype) if grad else None
  kernel = Kernel(
    phi=phi,
    hard=spec.hard,
    hard_slope=grad and spec.hard_slope,
    unit_temperature=spec.unit_temperature,
    shapes=tuple(jnp.shape(c) for c in consts),
    vocab=spec.vocab_size,
    grad=grad,
    guard=guard and spec.weighted,
    select=phi is not None and not silent_where_masked(phi, consts, grad),
    linear=None if phi is None else linear.coefficients(phi),
    soft_cap=spec.soft_cap,
  )
  logits = [chunk.z_s] + ([] if phi is None else [chunk.teacher])
  itemsizes = [z.dtype.itemsize for z in logits]
  itemsizes += [jnp.dtype(dtype).itemsize] if grad else []
  kernel = tweak(fit(kernel, gen or generation(), v, itemsizes))
  labels = zero if chunk.labels is None else chunk.labels.astype(f32)
  alive = (chunk.soft_scale != 0) | (chunk.hard_scale != 0)
  columns = (labels, chunk.soft_scale, chunk.hard_scale, alive.astype(f32))
  scalars = [
    chunk.inv_t,
    1 / chunk.inv_t,
    *(jnp.reshape(c, ()) for c in consts),
  ]
  scalars = jnp.stack([s.astype(f32) for s in scalars])[None]
  alias = alias and dtype == chunk.z_s.dtype
  info = jnp.stack(columns, 1)
  out, *dz = call(kernel, scalars, info, logits, dtype, alias, interpret)
  out = {name: out[:, i] for i, name in enumerate(OUT)}
  d = ce = zero
  if phi is not None:
    fix_s = excess(out["s_s"], out["l_s"])
    fix_t = excess(out["s_t"], out["l_t"])
    d, total = out["d"], out["total"]
    if grad:  # first order in the rounding of lse, as in kernels.xla
      d = d - total * fix_s - (d - total) * fix_t
  if spec.hard:
    hi, lo = tile.split_log(out["s_1"])
    ce = (out["m_s"] - out["z_l"]) + hi + lo
  return d, ce, dz[0] if grad else None


def excess(s, log2_s):
  """Returns log(s) - ln(2) log2_s, the kernel's rounding of log s, to 2e-8.

  As `tile.split_log`: log2 s = k + log2 f, and log2_s - k is exact.
  """
  f, k = tile.frexp(s)
  return LN2 * (jnp.log2(f) - (log2_s - k))


def head_rule(n: int, v: int, student, teacher) -> int:
  """Returns C: both models' logits take at most 240 MiB in bfloat16.

  More rows mean fewer passes over dW, fewer fit: at N 8192, H_s 2048, H_t 4096,
  V 131072, temporaries are 899 / 1,028 / 1,415 MiB at C = 384 / 512 / 896
  (compiled, v5e; 512 MiB of it is dW). Chunks are of equal size, as a short
  last one costs as much as a full one.
  """
  del teacher
  if not isinstance(student, Head):
    return n
  most = max(256, 15 * (1 << 22) // v // 16 * 16)
  each = -(-n // -(-n // most))
  each = -(-each // 16) * 16
  # XLA lays [C, V] out by columns where 128 divides C but not V, and would copy
  # a chunk around the kernel.
  return each + 16 if v % 128 and each % 128 == 0 else each


def by_columns(h: int, v: int) -> bool:
  """Whether XLA lays a [H, V] result out by columns: so it pads less."""
  return v % 128 != 0 and h % 128 == 0


def head_width(h: int, v: int) -> int:
  """Returns the columns of dW to accumulate at a time: 64 MiB of float32.

  In one piece XLA writes a second dW of 1 GiB (H 2048, V 131072, compiled).
  """
  return min(v, max(1024, (1 << 24) // h // 128 * 128))


def plan(
  student, teacher, gen: Generation | None = None, interpret: Any = False, **kw
) -> Plan:
  """Returns the plan for a student.

  dz overwrites the logits of a Head, which nothing else sees. Given logits are
  mostly not ours to overwrite: XLA would copy them first, two more N V b than
  the third buffer costs. So they are left alone.
  """
  head = isinstance(student, Head)
  guard = not (head and isinstance(teacher, (Head, type(None))))
  rows = functools.partial(
    dense_rows, alias=head, guard=guard, gen=gen, interpret=interpret, **kw
  )
  gemms = None
  if (gen or generation()).gemms:
    gemms = gemm.Gemms(interpret=interpret)
  return dataclasses.replace(
    xla.ACCELERATOR,
    rows=rows,
    rule=head_rule,
    width=head_width,
    skips_dead=True,
    halves=True,
    by_columns=by_columns,
    gemms=gemms,
  )


def by_platform(spec: Spec | None, student, teacher) -> dict | str:
  """Returns {"tpu": compiled, "cpu": interpreted}, see `api.select_plans`.

  What the kernel does not do runs in XLA on a TPU too, in the same chunks:
  TopK teachers (gathers of K numbers), token_log_probs, a sharded V (its
  statistics cross shards between the sweeps, so that a kernel would move as
  much as XLA does), and a phi that closes over more than scalars.
  """
  if unsupported(spec):
    fallback = dataclasses.replace(
      xla.ACCELERATOR, rule=head_rule, width=head_width
    )
    return {"tpu": fallback, "cpu": fallback}
  return {
    "tpu": plan(student, teacher),
    "cpu": plan(student, teacher, interpret=True),
  }


def unsupported(spec: Spec | None) -> bool:
  if spec is None or spec.vocab_axis is not None:
    return True
  if spec.phi is None:
    return False
  consts = spec.phi.constants()
  return any(jnp.size(c) != 1 or jnp.result_type(c) != f32 for c in consts)
