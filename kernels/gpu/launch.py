"""Calls the GPU kernel: its operands, results and shared memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.gpu.kernel import STATS, Call, cta_kernel
from kernels.plan import vary, varying

f32 = jnp.float32


def _launch(call: Call, operands, interpret):
  """Returns (stats [N, 8], dz [N, V] or None) of the kernel."""
  cut = call.tile
  z_s = operands[0]
  n = z_s.shape[0]
  out_type = [jax.ShapeDtypeStruct((n, len(STATS)), f32)]
  if call.dtype is not None and not call.alias:
    out_type.append(jax.ShapeDtypeStruct(z_s.shape, call.dtype))
  if call.interpreted:
    out_type.append(jax.ShapeDtypeStruct((n, cut.cluster, 16), f32))
  smem = lambda x: plgpu.SMEM((cut.held,), x.dtype)
  scratch = {"z_s": smem(operands[0])}
  arrivals = 1
  if call.phi is not None:
    scratch["z_t"], arrivals = smem(operands[1]), 2
  pieces = len(cut.pieces())
  scratch["copied"] = plgpu.Barrier(num_arrivals=arrivals, num_barriers=pieces)
  if cut.cluster > 1:
    scratch["met"] = plgpu.ClusterBarrier(
      collective_axes=("cta",), num_barriers=3
    )
    if not call.interpreted:
      scratch["peers"] = plgpu.SMEM((16,), f32)
  kernel = plgpu.kernel(
    functools.partial(cta_kernel, call),
    out_type=tuple(out_type),
    scratch_types=scratch,
    grid=(n,),
    grid_names=("row",),
    cluster=(cut.cluster,),
    cluster_names=("cta",),
    compiler_params=plgpu.CompilerParams(
      # Every region of shared memory is written once: by copies, or by scalar
      # stores of which each thread makes all.
      unsafe_no_auto_barriers=True,
      lowering_semantics=plgpu.LoweringSemantics.Lane,
    ),
    interpret=interpret,
    kernel_name="distill_rows",
  )
  if call.alias:
    ref = jax.new_ref(z_s)
    out = kernel(ref, *operands[1:])
    return out[0], jax.freeze(ref)
  out = kernel(*operands)
  return out[0], out[1] if call.dtype is not None else None


def launch(call: Call, operands, interpret):
  """Calls the kernel; without aliasing under vmap and inside shard_map.

  Aliasing goes through a jax.new_ref, which neither accepts (jax 0.12.0.1).
  """
  axes = varying(operands)

  def plain(operands):
    # The kernel's outputs come back as the same on all devices.
    unaliased = dataclasses.replace(call, alias=False)
    return vary(_launch(unaliased, operands, interpret), axes)

  if axes or not call.alias:
    return plain(operands)

  @jax.custom_batching.custom_vmap
  def aliased(*operands):
    return _launch(call, operands, interpret)

  @aliased.def_vmap
  def _(axis_size, in_batched, *operands):
    axes = [0 if batched else None for batched in in_batched]
    fn = lambda *operands: plain(operands)
    out = jax.vmap(fn, axes, axis_size=axis_size)(*operands)
    return out, (True, True)

  return aliased(*operands)
