"""TPUs to compile for, without having one.

libtpu compiles for a described topology on any machine: `pip install -r
requirements-tpu.txt`.
"""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

MODEL_ENVIRONMENT = {  # read when libtpu loads; keeps it from asking a network
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_MIN_LOG_LEVEL": "4",  # or it fills /tmp with logs when it aborts
}


@dataclasses.dataclass(frozen=True)
class Target:
  """One TPU generation.

  Attributes:
    topology: the name of the smallest topology that libtpu accepts.
    bandwidth: HBM bytes/s per core. Source: jax._src.tpu_info, jax 0.12.0.1.
    clock: Hz, None if not published. Sources: v4 Jouppi et al. (2023),
      2304.01433; v5e, v6e, v5p Google's public figures.
  """

  topology: str
  bandwidth: float
  clock: float | None

  @property
  def bundles_floor(self) -> float | None:
    """Returns bundles that pass while 3 x 1,024 bfloat16 are moved."""
    if self.clock is None:
      return None
    return 3 * 1024 * 2 / self.bandwidth * self.clock


TARGETS = {
  "v4": Target("v4:2x2x1", 1.23e12 / 2, 1.05e9),
  "v5e": Target("v5e:2x2", 8.19e11, 1.5e9),
  "v5p": Target("v5p:2x2x1", 2.46e12 / 2, 1.75e9),
  "v6e": Target("v6e:2x2", 1.64e12, 1.75e9),
  "tpu7x": Target("tpu7x:2x2x1", 7.40e12 / 2, None),
}


def available() -> str | None:
  """Returns why TPU programs cannot be compiled here, or None if they can."""
  if importlib.util.find_spec("libtpu") is None:
    return "libtpu is missing: pip install -r requirements-tpu.txt"
  return None


def topology(name: str):
  """Returns the devices of a target's topology, as jax describes them."""
  for key, value in MODEL_ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  return topologies.get_topology_desc(
    platform="tpu", topology_name=TARGETS[name].topology
  )


def sharding(name: str) -> jax.sharding.Sharding:
  """Returns the sharding of arrays on one device of a target."""
  return jax.sharding.SingleDeviceSharding(topology(name).devices[0])


def compiled(traced, platform: str = "tpu") -> Any:
  """Compiles a traced program for devices that are not here.

  Past jax's compilation cache, which keeps such programs but cannot read them
  (jax 0.12.0.1).

  Returns:
    jax.stages.Compiled.
  """
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # or what it was at first holds
  try:
    return traced.lower(lowering_platforms=(platform,)).compile()
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def compile_for(name: str, fn, *shapes, donate=()):
  """Compiles fn for a target.

  Args:
    name: of TARGETS.
    fn: a function of arrays.
    *shapes: trees of (shape, dtype) pairs as jax.ShapeDtypeStruct.
    donate: as donate_argnums of jax.jit.

  Returns:
    jax.stages.Compiled.
  """
  place = sharding(name)
  put = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
  args = jax.tree.map(put, shapes)
  return compiled(jax.jit(fn, donate_argnums=donate).trace(*args))
