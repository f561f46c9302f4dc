"""Checkpoints through Orbax: written in the background, checked when read.

A checkpoint holds the arrays of a pytree in order, and their CRC-32 sums. One
that is half-written is never seen (Orbax renames it when it is whole); one
that is damaged is set aside, with a warning, and the one before it is taken.
"""

import os
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from kd.errors import UserError


class Checkpoints:
  """The checkpoints of one training, in a folder.

  Args:
    folder: created if needed.
    keep: how many of the newest stay.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 2):
    self._folder = os.path.abspath(folder)
    self._keep = keep
    self._manager = self._open()

  def _open(self):
    options = ocp.CheckpointManagerOptions(
      max_to_keep=self._keep, enable_async_checkpointing=True
    )
    return ocp.CheckpointManager(self._folder, options=options)

  def save(self, step: int, tree: Any) -> None:
    """Starts to write `tree`; its arrays must not change any more."""
    leaves = jax.tree.leaves(tree)
    meta = {
      "crc32": [zlib.crc32(np.ascontiguousarray(x)) for x in leaves],
      "shapes": [list(x.shape) for x in leaves],
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        arrays=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta)
      ),
    )

  def restore(self, like: Any) -> tuple[int, Any]:
    """Returns (step, tree) of the newest good checkpoint.

    Without one, returns (0, like).

    Raises:
      UserError: a checkpoint is whole but of another study.
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        return step, self._read(step, like)
      except UserError:
        raise
      # Orbax and tensorstore raise many kinds for a damaged file.
      except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        logging.warning(
          "checkpoint %d in %s is damaged (%s): set aside, falling back to "
          "the one before it",
          step,
          self._folder,
          reason,
        )
        self._set_aside(step)
    return 0, like

  def _read(self, step: int, like: Any) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    meta = self._manager.restore(
      step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
    )["meta"]
    shapes = [list(x.shape) for x in leaves]
    if meta["shapes"] != shapes:
      raise UserError(
        f"{self._folder}/{step} holds {len(meta['shapes'])} arrays of another "
        f"shape than this study's {len(shapes)}: choose another workdir"
      )
    abstract = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    read = self._manager.restore(
      step,
      args=ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract)),
    )["arrays"]
    found = [zlib.crc32(np.ascontiguousarray(x)) for x in read]
    if found != meta["crc32"]:
      raise ValueError("the arrays' CRC-32 differs from what was written")
    return jax.tree.unflatten(treedef, read)

  def _set_aside(self, step: int) -> None:
    aside = f"{self._folder}-damaged"
    os.makedirs(aside, exist_ok=True)
    name = f"{step}-{len(os.listdir(aside))}"
    os.replace(os.path.join(self._folder, str(step)), os.path.join(aside, name))
    self._manager.close()
    self._manager = self._open()

  def wait(self) -> None:
    """Returns when all that was saved is on the disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self.wait()
    self._manager.close()
