"""GEMMs of a bfloat16 head in Pallas for TPUs, for where XLA's cost memory.

In a loop's body, XLA for tpu7x keeps every 16-bit array in tiles of 16 rows,
while arguments come in tiles of 8: it copies both heads before the loop, and
dW around each GEMM inside it (N 8192, H_s 2048, H_t 4096, V 131072: 3,028 MiB
of temporaries; unrolled, or with the compiler option
xla_tpu_control_large_2nd_minor_layout_for_x16=false, there are no copies). What
a Pallas kernel takes and gives stays in tiles of 8: 991 MiB.

The kernels read W once for z and once for dh and dW together, which is added to
in place. Cycles on v6e by libtpu's static profile, per 8,192 columns, C = 464,
H = 2048: z 46,800 (XLA 37,100), dh and dW 91,000 (XLA 39,500 + 75,200); HBM
traffic takes 36,000 and 187,000. Compiled, not run on a TPU; run in interpret
mode.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import accumulate
from kernels.plan import vary, varying

f32, bf16 = jnp.float32, jnp.bfloat16
MIB = 1 << 20
BLOCKS = (512, 256, 128)  # columns of W at a time


def scores_kernel(finish, h, w, *rest):
  *bias, z = rest
  out = accumulate.dot(h[...], w[...], (1, 0))
  z[...] = finish(out + bias[0][...] if bias else out).astype(z.dtype)


def gradients_kernel(vocab, last, h, w, dz, high, low, dh, high_out, low_out):
  """Adds a block of columns to dh [C, h] and to dW [h, block] in halves."""
  j, block = pl.program_id(1), w.shape[1]
  ragged = vocab % block

  @pl.when(j == 0)
  def _():
    dh[...] = jnp.zeros_like(dh)

  def step(width):
    dz_, w_ = dz[...], w[...]
    if width < block:  # beyond V there is anything, NaN too
      keep = lax.broadcasted_iota(jnp.int32, (1, block), 1) < width
      dz_, w_ = (jnp.where(keep, x, jnp.zeros((), bf16)) for x in (dz_, w_))
    dh[...] += accumulate.dot(dz_, w_, (1, 1))
    upper = lax.bitcast_convert_type(high[...].astype(f32), jnp.uint32)
    sum_ = lax.bitcast_convert_type(upper | low[...].astype(jnp.uint32), f32)
    sum_ = sum_ + accumulate.dot(h[...], dz_, (0, 0))
    bits = lax.bitcast_convert_type(sum_, jnp.uint32)
    upper = lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), f32)
    # `upper` is a bfloat16 already; the last sum is rounded to one.
    high_out[...] = jnp.where(last[0] == 1, sum_, upper).astype(bf16)
    low_out[...] = (bits & jnp.uint32(0xFFFF)).astype(jnp.uint16)

  if not ragged:
    step(block)
    return
  at_end = j == pl.num_programs(1) - 1
  pl.when(jnp.logical_not(at_end))(functools.partial(step, block))
  pl.when(at_end)(functools.partial(step, ragged))


@dataclasses.dataclass(frozen=True)
class Gemms:
  """The GEMMs of a chunk, as kernels.chunked calls them.

  Attributes:
    vmem: bytes that a kernel may use.
    interpret: as in pl.pallas_call.
  """

  vmem: int = 56 * MIB
  interpret: Any = False

  def score_block(self, c: int, h: int, z_bytes: int = 2) -> int | None:
    """Returns the columns of W at a time, or None if none fit."""
    for block in BLOCKS:
      need = 4 * c * h + block * (4 * h + (2 * z_bytes + 4) * c)
      if need + 4 * MIB <= self.vmem:
        return block
    return None

  def gradient_block(self, c: int, h: int) -> tuple[int, int] | None:
    """Returns (rows, columns) of W at a time, or None if none fit."""
    for block in BLOCKS:
      for parts in (1, 2, 4, 8):
        rows = h // parts
        if h % parts or (parts > 1 and rows % 128):
          continue
        # Doubly buffered: h and dh; W, and both halves in and out; dz. Once:
        # products and sums.
        need = c * rows * (4 + 8 + 4) + rows * block * (20 + 12) + c * block * 4
        if need + 4 * MIB <= self.vmem:
          return rows, block
    return None

  def fits(self, h, w) -> bool:
    """Whether the kernels take h [C, H] and W [H, V] of these types."""
    (c, k), v = h.shape, w.shape[1]
    return (
      (h.dtype, w.dtype) == (bf16, bf16)
      and k % 16 == 0
      and v % 128 == 0
      and v >= BLOCKS[0]
      and self.score_block(c, k, 4) is not None
      and self.gradient_block(c, k) is not None
    )

  def scores(self, h, w, bias, dtype, finish):
    """Returns finish(h W + bias) [C, V], accumulated in float32."""
    (c, k), v = h.shape, w.shape[1]
    dtype = jnp.dtype(dtype)
    block = self.score_block(c, k, dtype.itemsize)
    assert block is not None  # `fits` has asked
    operands = [h, w] + ([] if bias is None else [bias.astype(f32)[None]])
    column = lambda rows: pl.BlockSpec((rows, block), lambda j: (0, j))
    return self._call(
      functools.partial(scores_kernel, finish),
      *_alike(operands),
      name="head_scores",
      grid=(pl.cdiv(v, block),),
      in_specs=[
        pl.BlockSpec((c, k), lambda j: (0, 0)),
        *(column(x.shape[0]) for x in operands[1:]),
      ],
      out_specs=column(c),
      out_shape=[((c, v), dtype)],
    )[0]

  def gradients(self, h, w, dz, halves, last):
    """Returns dh = dz W^T [C, H] in float32, and dW + h^T dz.

    Args:
      h, w, dz: [C, H], [H, V] and [C, V], bfloat16.
      halves: dW as `accumulate.split32` gives it; overwritten.
      last: whether the upper half is to be rounded.
    """
    (c, k), v = h.shape, w.shape[1]
    tile = self.gradient_block(c, k)
    assert tile is not None
    rows, block = tile
    last = jnp.asarray(last, jnp.int32).reshape(1)
    row = pl.BlockSpec((c, rows), lambda i, j: (0, i))
    both = pl.BlockSpec((rows, block), lambda i, j: (i, j))
    column = pl.BlockSpec((c, block), lambda i, j: (0, j))
    dh, high, low = self._call(
      functools.partial(gradients_kernel, v),
      *_alike((last, h, w, dz, *halves)),
      name="head_gradients",
      grid=(k // rows, pl.cdiv(v, block)),
      in_specs=[
        pl.BlockSpec(memory_space=pltpu.SMEM), row, both, column, both, both,
      ],
      out_specs=[row, both, both],
      out_shape=[((c, k), f32), ((k, v), bf16), ((k, v), jnp.uint16)],
      input_output_aliases={4: 1, 5: 2},
    )  # fmt: skip
    return dh, (high, low)

  def _call(self, kernel, *operands, grid, out_shape, out_specs, **kw):
    manual = jax.typeof(operands[0]).mat
    out_shape = [
      jax.ShapeDtypeStruct(*shape, manual_axis_type=manual)
      for shape in out_shape
    ]
    out_specs = out_specs if isinstance(out_specs, list) else [out_specs]
    semantics = ("arbitrary",) * len(grid)
    return pl.pallas_call(
      kernel,
      grid=grid,
      out_shape=out_shape,
      out_specs=out_specs,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=semantics, vmem_limit_bytes=self.vmem + 4 * MIB
      ),
      interpret=self.interpret,
      **kw,
    )(*operands)


def _alike(operands):
  """Returns the operands varying over the same mesh axes (in shard_map)."""
  return vary(tuple(operands), varying(operands))
