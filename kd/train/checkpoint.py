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

from kd.errors import UserError, why


def newest(folder: str | os.PathLike) -> int:
  """Returns the step of the newest checkpoint in a folder, 0 without one."""
  kept = os.listdir(folder) if os.path.isdir(folder) else []
  return max((int(name) for name in kept if name.isdigit()), default=0)


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
    for step in _steps(self._folder):
      try:
        return step, _read(self._folder, step, like)
      except UserError:
        raise
      # Orbax and tensorstore raise many kinds for a damaged file.
      except Exception as error:
        logging.warning(
          "checkpoint %d in %s is damaged (%s): set aside, falling back to "
          "the one before it",
          step,
          self._folder,
          why(error),
        )
        self._set_aside(step)
    return 0, like

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


def read(folder: str | os.PathLike, like: Any) -> Any:
  """Reads the newest checkpoint of a folder, and changes nothing there.

  Raises:
    UserError: there is none, it is damaged, or of arrays of another shape.
  """
  folder = os.path.abspath(folder)
  steps = _steps(folder)
  if not steps:
    raise UserError(f"{folder}: no checkpoint")
  try:
    return _read(folder, steps[0], like)
  except UserError:
    raise
  except Exception as error:  # as in Checkpoints.restore
    raise UserError(f"{folder}/{steps[0]}: damaged ({why(error)})") from error


def _steps(folder: str) -> list[int]:
  """Returns the steps of the checkpoints that are whole, the newest first."""
  names = os.listdir(folder) if os.path.isdir(folder) else []
  return sorted((int(n) for n in names if n.isdecimal()), reverse=True)


def _read(folder: str, step: int, like: Any) -> Any:
  leaves, treedef = jax.tree.flatten(like)
  path = os.path.join(folder, str(step))
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    meta = checkpointer.restore(
      path, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
    )["meta"]
    shapes = [list(x.shape) for x in leaves]
    if meta["shapes"] != shapes:
      raise UserError(
        f"{path} holds {len(meta['shapes'])} arrays of another shape than this "
        f"study's {len(shapes)}: choose another workdir"
      )
    abstract = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    found = checkpointer.restore(
      path, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
    )["arrays"]
  if [zlib.crc32(np.ascontiguousarray(x)) for x in found] != meta["crc32"]:
    raise ValueError("the arrays' CRC-32 differs from what was written")
  return jax.tree.unflatten(treedef, found)
