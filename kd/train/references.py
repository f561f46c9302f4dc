"""What students give completions before their training: a preference's start.

Known from the first state alone, so that a run that continues has the same.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from kd.models import functional
from kd.models.outputs import Outputs
from kd.objectives import completions
from kd.signals import Signal, present
from kd.train.arms import Group
from kd.train.batches import Setup, Transfer, student_of, transfer_of
from kd.train.step import TrainState


def with_references(
  groups: Sequence[Group], setup: Setup, state: Sequence[TrainState]
) -> Setup:
  """Returns the setup with what its objectives ask of the first state.

  Args:
    groups: the arms.
    setup: what they share.
    state: before the first step, one for each group.
  """
  transfers = dict(setup.transfers)
  for group, own in zip(groups, state, strict=True):
    name, student = transfer_of(group.signal), student_of(group)
    transfer = transfers[name]
    keys = [keys for part in group.parts for _, keys in part.terms]
    asked = any(k.get("reference") == "initial" for k in keys)
    if asked and student not in transfer.references:
      found = _given(group, setup, transfer, own)
      transfers[name] = dataclasses.replace(
        transfer, references={**transfer.references, student: found}
      )
  return dataclasses.replace(setup, transfers=transfers)


def _given(
  group: Group, setup: Setup, transfer: Transfer, state: TrainState
) -> np.ndarray:
  """Returns log r(y | x) of each seed's student [S, N, C]; 0 for an example
  that is not drawn."""
  assert isinstance(transfer.signal, Signal)  # completions are never streamed
  of = present(transfer.signal.completions, "completions")
  prompts, count = of.kinds.shape
  rows = np.unique(transfer.rows)
  own = jnp.asarray(of.tokens).reshape(prompts, -1)[rows - transfer.first]
  inputs = transfer.inputs.read(rows).reshape(-1, *setup.task.input_shape)
  forward = functional.forward(
    group.student, setup.task.signature, setup.eval_batch, _token_log_probs
  )
  found = np.zeros((len(setup.seeds), prompts, count), np.float32)
  for s in range(len(setup.seeds)):
    weights = functional.of_run(state.weights, (s, 0))
    each = forward(weights, inputs, own.ravel())
    each = np.asarray(each).reshape(len(rows), count, -1)
    found[s, rows - transfer.first] = each.sum(-1)
  return found


def _token_log_probs(outputs: Outputs, tokens):
  """Returns each position's, 0 outside of completions."""
  return jnp.where(tokens >= 0, completions.at_tokens(outputs, tokens), 0.0)
