"""What several processes of one study must agree on."""

import jax
from jax.experimental import multihost_utils


def wait_for_all(name: str) -> None:
  """Returns when every process has come to the point `name`."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
