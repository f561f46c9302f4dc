"""The logits kernel for Hopper and newer: Pallas, Mosaic GPU.

A cluster of C CTAs takes one row. Each CTA copies its V / C columns of both
rows into shared memory and keeps them there for three sweeps, so that device
memory sees two reads and one write, 3 N V b bytes:

    1. max z_s, max z_t, then sum exp(x - max)      -> lse of both
    2. phi and u = dphi/dlq, with q and p given     -> D and U = sum u
    3. the same u again                             -> dz, to device memory

After sweeps 1 and 2 the CTAs read each other's partial sums through distributed
shared memory (in interpret mode, which has none, through device memory).

What it does not do, `by_platform` says; "auto" then takes kernels.xla, as it
does for every GPU older than compute capability 9, where Mosaic GPU aborts the
process.
Registers, spills, shared memory: `python -m kernels.report`. Evidence: numerics
interpreted on a CPU; compiled for H100 and B200; never run on a GPU.

Instructions per pair of logits in the loops (H100, bfloat16, machine code; 60
take as long as the 3 b bytes of the pair): plain forward and reverse KL 56 and
58, plain JSD 158;
kd.divergences, whose series keep digits near q = p: forward KL 80, reverse KL
84, TVD 154, alpha 248, skew KL 323, JSD 431. So by this count, which is no
timing, memory bounds the first two and instructions the others.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import tile, xla
from kernels.gpu import lowering
from kernels.gpu.kernel import LN2, STATS, Call
from kernels.gpu.launch import launch
from kernels.gpu.tiling import THREADS, padded, tiling
from kernels.plan import Plan
from kernels.types import Head, TopK, num_columns, operand_dtype

f32 = jnp.float32
# Device kinds of compute capability 9 and 10, for devices that are not here.
CAPABLE = re.compile(r"\b(G?H100|G?H200|H800|H20|G?B100|G?B200|G?B300)\b")


def rows(
  spec, chunk, dtype, *, alias, interpret=False, cluster=None, vector=None
):
  """Row function of the kernel (plan.RowFunction); alias: dz over z_s."""
  if spec.phi is None and not spec.hard:
    return xla.dense_rows(spec, chunk, dtype, stash=False)
  z_s, z_t = chunk.z_s, chunk.teacher
  n, v = z_s.shape
  soft = spec.phi is not None
  itemsizes = [z.dtype.itemsize for z in ([z_s, z_t] if soft else [z_s])]
  columns = padded(v, itemsizes)
  cut = tiling(columns, itemsizes, cluster, vector)
  if isinstance(cut, str):
    raise ValueError(cut)  # `by_platform` has asked before
  call = Call(
    tile=cut,
    phi=spec.phi,
    hard=spec.hard,
    hard_slope=spec.hard_slope,
    unit_temperature=spec.unit_temperature,
    vocab_size=None if spec.vocab_size == columns else spec.vocab_size,
    dtype=None if dtype is None else jnp.dtype(dtype),
    interpreted=bool(interpret),
    alias=alias and dtype == z_s.dtype,
    soft_cap=spec.soft_cap,
  )
  z_label = jnp.zeros((n, 1), f32)
  if spec.hard:
    z_label, _ = xla.pick(z_s, chunk.labels[:, None], chunk.offset, 1.0)
    # Read before dz overwrites z_s: otherwise XLA would copy [C, V].
    z_s, z_label = lax.optimization_barrier((z_s, z_label))
  operands = [xla.fitted(z_s, columns)]
  if soft and not readable(z_t.shape[1], columns, itemsizes):
    z_t = xla.fitted(z_t, columns)
  operands += [z_t] if soft else []
  operands += [chunk.inv_t.reshape(1), chunk.soft_scale, chunk.hard_scale]
  operands += [chunk.labels] if spec.hard else []
  operands += [jnp.asarray(c).reshape(1) for c in chunk.consts] if soft else []
  stats, dz = launch(call, operands, interpret)
  dz = None if dz is None else dz[:, :v]
  stats = dict(zip(STATS, stats.T, strict=True))
  d = ce = jnp.zeros(n, f32)
  if soft:  # the correction of xla.dense_rows, for log s as the kernel has it
    fix_s = log_error(stats["s_s"], stats["log2_s"])
    fix_t = log_error(stats["s_t"], stats["log2_t"])
    d, u = stats["d"], stats["u"]
    d = d - u * fix_s - (d - u) * fix_t
  if spec.hard:
    hi, lo = tile.split_log(stats["s_h"])
    ce = ((stats["top"] - z_label[:, 0]) + hi) + lo
  return d, ce, dz


def readable(v_t: int, columns: int, itemsizes) -> bool:
  """Whether the kernel can copy its columns out of rows of V_t logits."""
  return v_t >= columns and padded(v_t, itemsizes) == v_t


def log_error(s, log2_s):
  """Returns log s - ln(2) log2_s, for log2_s = log2 s but for its rounding.

  See tile.split_log. With s = f 2^k, log2 s = k + log2 f, and k is exact.
  """
  f, k = jnp.frexp(s)
  small = f < 0.70710678
  f, k = jnp.where(small, 2 * f, f), jnp.where(small, k - 1, k)
  return ((k.astype(f32) - log2_s) + jnp.log2(f)) * LN2


def rule(n: int, v: int, student, teacher) -> int:
  """Returns C rows per chunk: [C, V] of logits in 128 MiB.

  Modelled, not measured: a chunk's GEMMs should fill an H100 (132 CTAs of 128 x
  256 outputs want 512 rows), and z_s, z_t and dz of a chunk are temporaries.
  """
  if not isinstance(student, Head):
    return n
  bytes_per_row = v * operand_dtype(student).itemsize
  return max(256, (128 << 20) // bytes_per_row // 128 * 128)


def width(h: int, v: int) -> int:
  """Returns the columns of dW to accumulate at a time: 32 MiB of float32.

  A block is written by its GEMM and read by the sum; 32 MiB stay in an H100's
  L2 (50 MiB), and its GEMM still has 256 tiles of 128 x 256 (modelled).
  """
  return min(v, max(1024, (1 << 23) // h // 128 * 128))


def make_plan(alias=False, interpret=False, cluster=None, vector=None) -> Plan:
  """Returns the plan.

  Args:
    alias: dz overwrites the student's logits: for Head students, whose logits
      are the loss's own. Given logits would be copied first.
    interpret: parameters of interpret mode, or False.
    cluster, vector: override `tiling`.
  """
  return Plan(
    rows=functools.partial(
      rows, alias=alias, interpret=interpret, cluster=cluster, vector=vector
    ),
    topk_rows=xla.ACCELERATOR.topk_rows,
    rule=rule,
    width=width,
    logits_dtype=None,
    skips_dead=True,
    halves=True,
  )


def target_devices() -> list:
  """Returns the devices that a program is traced for, attached or abstract.

  From the mesh in effect (jax.set_mesh or shard_map; with ahead-of-time
  compilation its devices are not attached), else all that are attached.
  """
  target = jax.sharding.get_abstract_mesh().abstract_device
  if target is None:
    return jax.devices()
  same = [d for d in jax.devices() if d.device_kind == target.device_kind]
  return same or [target]


def capable() -> bool:
  """Whether the target devices are GPUs that Mosaic GPU can compile for.

  Asked while tracing. An unknown device counts as not capable.
  """
  return all(_capability(d) in (9, 10) for d in target_devices())


def _capability(device) -> int | None:
  """Returns 9 of "9.0"; None for what is no NVIDIA GPU ("gfx90a", a CPU)."""
  if device.platform != "gpu":
    return None
  capability = getattr(device, "compute_capability", None)
  if capability is None:  # abstract
    return 9 if CAPABLE.search(device.device_kind) else None
  major = str(capability).split(".")[0]
  return int(major) if major.isdigit() else None


def by_platform(spec, student, teacher) -> dict[str, Plan] | str:
  """Returns {platform: plan}, or what to use instead and why.

  "cuda" where the target can run it (`capable`), else "cpu", in interpret mode;
  on other GPUs the reason.

  TopK teachers, token_log_probs and a sharded V run in XLA under the name "gpu"
  too: there are no dense rows, no loss, or no whole rows to keep. A V that
  copies cannot cut is padded (`padded`), which costs more than XLA's own
  traffic, so "auto" takes XLA there. A teacher of fewer columns than the
  student is padded too, which alone costs less (5 N V b instead of 7).
  """
  if spec is None or spec.vocab_axis is not None or isinstance(teacher, TopK):
    return {"cuda": xla.ACCELERATOR, "cpu": xla.ACCELERATOR}
  dtypes = [operand_dtype(s) for s in (student, teacher) if s is not None]
  for dtype in dtypes:
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
      return f"'auto' or 'xla' for {dtype}: the GPU kernel takes 16 or 32 bits"
  itemsizes, v = [d.itemsize for d in dtypes], num_columns(student)
  cut = tiling(padded(v, itemsizes), itemsizes)
  if isinstance(cut, str):
    return cut
  if spec.phi is not None:
    for const in spec.phi.constants():
      if jnp.ndim(const):
        return (
          "'auto' or 'xla' for a divergence that closes over an array of shape"
          f" {jnp.shape(const)}: the GPU kernel takes scalars"
        )
    unknown = _unknown(spec.phi)
    if unknown:
      return (
        "'auto' or 'xla' for a divergence made of"
        f" {', '.join(sorted(unknown))}, which Mosaic GPU cannot lower"
      )
  can = capable()
  if not can and any(d.platform == "gpu" for d in target_devices()):
    return (
      "'auto' or 'xla' on this GPU: Mosaic GPU compiles for compute capability"
      " 9 and 10"
    )
  plan = make_plan(
    alias=isinstance(student, Head),
    interpret=False if can else plgpu.InterpretGPUParams(),
    # The interpreter wants a host thread per CTA of a cluster (NPROC) or hangs.
    cluster=None if can else 1,
  )
  plan = dataclasses.replace(plan, auto=padded(v, itemsizes) == v)
  return {"cuda" if can else "cpu": plan}


def _unknown(phi) -> set[str]:
  """Returns the primitives in phi and its slope that cannot be lowered."""
  x = jnp.zeros((THREADS,), f32)
  fn = lambda consts, *args: phi.terms(consts, *args)
  closed = jax.make_jaxpr(fn)(phi.constants(), x, x, x, x)
  return lowering.missing(closed.jaxpr, closed.consts)
