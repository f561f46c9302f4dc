"""Convolutions as one product over windows."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array


def windows(x: Array, sizes: Sequence[int], padding: str) -> Array:
  """Returns what a convolution of stride 1 sees of its inputs at each place.

  Args:
    x: [B, *places, C].
    sizes: of a window along each of the places' axes.
    padding: "SAME", of odd sizes, or "VALID".

  Returns:
    [B, *places, prod(sizes) C], as a kernel [*sizes, C, D] is in memory.
  """
  if padding == "SAME":
    x = jnp.pad(x, [(0, 0), *[(n // 2,) * 2 for n in sizes], (0, 0)])
  places = [n - k + 1 for n, k in zip(x.shape[1:-1], sizes, strict=True)]
  shifted = []
  for start in itertools.product(*map(range, sizes)):
    cut = [slice(i, i + n) for i, n in zip(start, places, strict=True)]
    shifted.append(x[:, *cut])
  return jnp.concatenate(shifted, axis=-1)
