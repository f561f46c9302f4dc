"""What an arm's `compress` may say: steps that make a trained model smaller.

    arms.NAME.compress = (
      dict(step="prune", what="units", sparsity=0.5, recover=200),
      dict(step="quantize", weights="int8", activations="int8"),
    )

Steps follow each other; kd.compress says what each does. A step that is `aware`
is known to the training: the student learns with weights that are rounded as
they will be, and what follows from it is an arm that trains for itself.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from kd.config import rules
from kd.config.rules import Key, choice, integer, number, optional
from kd.errors import UserError

EXAMPLES = 256  # of the transfer set, that scales and sizes are found with
STRUCTURES = ("units", "channels", "heads", "layers")
SHARE = dataclasses.replace(number(above=0, below=1), traced=False)

# Each with its usual value; REQUIRED ones have none.
REQUIRED = object()
QUANTIZE = {
  "weights": Key(REQUIRED, choice("int8", "int4", "fp8")),
  # Of a layer's inputs: one scale, found beforehand on the transfer set; or one
  # for each row, found as it comes.
  "activations": Key("none", choice("none", "int8", "int8_dynamic")),
  # Weights that share a scale; None is all that make an output.
  "block": Key(None, optional(integer(2, 2**16))),
  "aware": Key(False, rules.FLAG),
}
PRUNE = {
  "what": Key(REQUIRED, choice("weights", "2:4", *STRUCTURES)),
  "sparsity": Key(0.5, SHARE),  # the share that goes
  # Of `weights`: whether each layer loses as large a share.
  "scope": Key("layer", choice("layer", "global")),
  # Of `units` and `channels`: of weights alone, or with how large they are on
  # the transfer set.
  "importance": Key("weights", choice("weights", "activations")),
  "recover": Key(0, integer(0)),  # steps of training that follow
}
STEPS: dict[str, dict[str, Key]] = {"quantize": QUANTIZE, "prune": PRUNE}


def normal(path: str, chain: Any) -> tuple[dict[str, Any], ...]:
  """Returns a chain with the usual value of every key that it lacks.

  Args:
    path: of the key.
    chain: what the config says.

  Raises:
    UserError: no such step, key or value, or an order that cannot be.
  """
  whole = isinstance(chain, tuple | list) and len(chain) > 0
  if not whole or not all(isinstance(s, Mapping) for s in chain):
    raise UserError(
      f"{path} = {chain!r}: expected a tuple of sections, "
      "(dict(step='quantize', weights='int8'),) for one"
    )
  steps = [_step(f"{path}[{i}]", step) for i, step in enumerate(chain)]
  for i, step in enumerate(steps):
    if step["step"] == "quantize" and i < len(steps) - 1:
      raise UserError(
        f"{path}[{i}].step = 'quantize': expected last, since what is rounded "
        "is neither pruned nor trained"
      )
    if step.get("aware") and len(steps) > 1:
      raise UserError(
        f"{path}[{i}].aware = True: expected no other step, since training "
        "rounds what it will be rounded to"
      )
  return tuple(steps)


def _step(path: str, step: Mapping[str, Any]) -> dict[str, Any]:
  if step.get("step") not in STEPS:
    raise UserError(
      f"{path}.step = {step.get('step')!r}: expected one of {', '.join(STEPS)}"
    )
  keys = STEPS[step["step"]]
  own = {k: v for k, v in step.items() if k != "step"}
  usual = {k: x.default for k, x in keys.items() if x.default is not REQUIRED}
  filled = usual | own
  rules.check_keys(path, filled, {k: key.rule for k, key in keys.items()})
  if step["step"] == "prune":
    _check_prune(path, own, filled)
  elif filled["weights"] == "fp8" and filled["activations"] != "none":
    raise UserError(
      f"{path}.activations = {filled['activations']!r}: expected 'none' with "
      "weights = 'fp8', or whole numbers for both"
    )
  return {"step": step["step"], **filled}


def _check_prune(path: str, own: Mapping, filled: Mapping) -> None:
  what = filled["what"]
  of = {
    "scope": ("weights",),
    "importance": ("units", "channels"),
    "sparsity": ("weights", *STRUCTURES),
  }
  for key, kinds in of.items():
    if key in own and what not in kinds:
      raise UserError(
        f"{path}.{key} = {own[key]!r}: of what = {', '.join(map(repr, kinds))}"
        f"; expected none for {what!r}"
      )


def aware(arm: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the step that an arm's training knows, less its name."""
  for step in arm.get("compress", ()):
    if step.get("aware"):
      return {k: v for k, v in step.items() if k != "step"}
  return None


def words(chain: Sequence[Mapping[str, Any]]) -> str:
  """Says what a chain does.

  >>> words(normal("compress", (dict(step="quantize", weights="int4"),)))
  'int4 weights per channel'
  >>> step = dict(step="prune", what="units", recover=9)
  >>> words(normal("compress", (step,)))
  '50 % of units pruned, 9 steps to recover'
  """
  return ", then ".join(
    _pruned(s) if s["step"] == "prune" else _quantized(s) for s in chain
  )


def _quantized(step: Mapping[str, Any]) -> str:
  each = f"block of {step['block']}" if step["block"] else "channel"
  inputs = {
    "none": "",
    "int8": f", int8 inputs scaled by {EXAMPLES} examples",
    "int8_dynamic": ", int8 inputs scaled row by row",
  }
  known = ", known to training" if step["aware"] else ""
  text = f"{step['weights']} weights per {each}"
  return text + inputs[step["activations"]] + known


def _pruned(step: Mapping[str, Any]) -> str:
  share = f"{100 * step['sparsity']:g} %"
  what = step["what"]
  text = f"{share} of {what} pruned"
  if what == "2:4":
    text = "two of four weights pruned"
  elif what == "weights":
    each = "each layer" if step["scope"] == "layer" else "all layers"
    text = f"{share} of the weights of {each} pruned"
  elif step["importance"] == "activations":
    text += " by their activations"
  return text + (
    f", {step['recover']} steps to recover" if step["recover"] else ""
  )
