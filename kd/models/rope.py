"""Rotary positions (Su et al. 2021, arXiv:2104.09864), and how they stretch."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Rope:
  """How one layer turns queries and keys by their positions.

  Attributes:
    theta: the base, pair i of a head turns by position * theta^(-2 i / dim).
    scaling: what stretches the positions, as (key, value) pairs by Hugging
      Face's names: rope_type ("linear", "llama3" or "yarn") and its numbers.
  """

  theta: float
  scaling: tuple[tuple[str, Any], ...] = ()

  def frequencies(self, dim: int) -> tuple[np.ndarray, float]:
    """Returns ([dim / 2] float32 radians per position, cos and sin's factor).

    By wavelength w and trained length L: "linear" divides all by the factor.
    "llama3" keeps w < L / high, divides w > L / low, and in between goes over
    by s = (L / w - low) / (high - low). "yarn" (Peng et al. 2023,
    arXiv:2309.00071) goes over by the index of the pair, between those that
    turn `beta_fast` and `beta_slow` times within L.
    """
    own = dict(self.scaling)
    powers = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    plain = 1 / np.float32(self.theta) ** powers
    factor = own.get("factor", 1.0)
    match own.get("rope_type"):
      case None:
        return plain, 1.0
      case "linear":
        return plain / np.float32(factor), 1.0
      case "llama3":
        low, high = own["low_freq_factor"], own["high_freq_factor"]
        turns = own["original_max_position_embeddings"] * plain / (2 * math.pi)
        keep = np.clip((turns - low) / (high - low), 0, 1)
      case "yarn":
        keep = 1 - _ramp(dim, self.theta, own)
    mixed = keep * plain + (1 - keep) * plain / factor
    return mixed.astype(np.float32), _yarn_factor(own)

  def angles(self, positions_BxL: Int[Array, "B L"], dim: int) -> tuple:
    """Returns (cos, sin), both [B, L, 1, dim / 2] float32."""
    frequencies, factor = self.frequencies(dim)
    angles = positions_BxL[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def _ramp(dim: int, theta: float, own: dict) -> np.ndarray:
  """Returns 0 for pairs that keep their speed, 1 for those that are divided."""
  length = own["original_max_position_embeddings"]

  def index(turns: float) -> float:  # of the pair that turns so often in L
    ratio = math.log(length / (turns * 2 * math.pi))
    return dim * ratio / (2 * math.log(theta))

  low = index(own.get("beta_fast") or 32)
  high = index(own.get("beta_slow") or 1)
  if own.get("truncate", True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  pairs = np.arange(dim // 2, dtype=np.float32)
  return np.clip((pairs - low) / max(high - low, 1e-3), 0, 1)


def _yarn_factor(own: dict) -> float:
  if own["rope_type"] != "yarn":
    return 1.0
  if own.get("attention_factor") is not None:
    return own["attention_factor"]

  def of(scale):
    factor = own["factor"]
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

  both = own.get("mscale"), own.get("mscale_all_dim")
  return of(both[0]) / of(both[1]) if all(both) else of(1.0)


def rotate(
  x_BxLxHxd: Float[Array, "B L H d"], angles: tuple
) -> Float[Array, "B L H d"]:
  """Turns the pairs (x_i, x_{i + d/2}) of each head, in float32."""
  cos, sin = angles
  first, second = jnp.split(x_BxLxHxd.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x_BxLxHxd.dtype)
