"""What a teacher is to a study: weights that are asked about examples."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kd import models
from kd.data.task import Split, Task
from kd.models import functional
from kd.parallel import mesh
from kd.teachers import prompted


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A trained model.

  Attributes:
    model: its name and options.
    weights: {"params", "rest"}.
    fingerprint: a hash of the model's options and weights.
    fraction: of the train split, the first rows that it learned from.
    of_another_split: whether it was trained on another task or split, and so
      perhaps on examples that this one tests on.
    reader: of a language model that reads texts in a prompt; None of a model
      that reads what students read.
  """

  model: Mapping[str, Any]
  weights: Mapping[str, Any]
  fingerprint: str
  fraction: float
  of_another_split: bool = False
  reader: prompted.Reader | None = None

  def padding(self, task: Task) -> dict[str, str]:
    """Returns which ids a language model's head has that are none of the
    task's tokens: a study leaves them out."""
    folder = self.model.get("folder")
    if not folder or task.tokens is None or task.tokens.subset is not None:
      return {}
    columns = models.spec_of(folder).vocab_size
    if columns == task.num_classes:
      return {}
    return {"teacher_ids_left_out": f"{task.num_classes} to {columns - 1}"}

  @functools.cached_property
  def _everywhere(self):
    return mesh.everywhere(self.weights)

  def ask(
    self,
    split: Split,
    rows,
    task: Task,
    batch: int,
    fn: Callable[..., Any] = functional.logits,
    arrays: Sequence[np.ndarray] = (),
  ) -> Any:
    """Returns what fn makes of the outputs on the split's `rows`, as numpy.

    A prompted model's outputs are the logits of the classes. Of others, every
    batch is padded to the same shape, and spread over the devices.

    Args:
      split, rows: the examples, N of them.
      task: that the split is of.
      batch: examples in one forward pass.
      fn: of kd.models.functional.over; by itself it returns logits [N, V].
      arrays: of each position of the rows, for fn.
    """
    if self.reader is not None:
      logits = self.reader.logits(split.texts(rows), batch)
      found = prompted.of_logits(fn)(logits, *arrays)
      return jax.tree.map(np.asarray, found)
    forward, ahead = functional.spread(self.model, task.signature, batch, fn)
    out, each = [], task.positions
    for i in range(0, len(rows), ahead):
      inputs = split.read(rows[i : i + ahead])
      count, lacking = len(inputs), ahead - len(inputs)
      own = [x[i * each : (i + ahead) * each] for x in arrays]
      found = forward(
        self._everywhere,
        _padded(inputs, lacking),
        *(_padded(x, lacking * each) for x in own),
      )
      cut = lambda x, n=count * each: np.asarray(x)[:n]
      out.append(jax.tree.map(cut, found))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *out)


def _padded(x: np.ndarray, lacking: int) -> np.ndarray:
  return np.pad(x, [(0, lacking), *[(0, 0)] * (x.ndim - 1)])
