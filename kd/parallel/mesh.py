"""Meshes of devices, and arrays that lie on them."""

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def of_seeds(devices: int) -> jax.sharding.Mesh:
  """Returns the devices that the seeds are spread over."""
  return jax.make_mesh(
    (devices,), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,)
  )


def local(axis: str) -> jax.sharding.Mesh:
  """Returns this process's devices, along one axis."""
  return jax.sharding.Mesh(np.asarray(jax.local_devices()), (axis,))


def everywhere(tree):
  """Returns arrays that lie whole on each of this process's devices."""
  return jax.device_put(tree, NamedSharding(local("rows"), P()))
