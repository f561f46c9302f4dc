"""What an exported model is not to be used for, by its study's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd.report import results_table
from kd.report.blocks import code

Results = Mapping[str, Any]

WEAK = 0.5  # a class of less recall than this share of the accuracy is named
OVERCONFIDENT = 0.05  # an ECE from which on probabilities are said to be none


def said(results: Results, about: Results, arm: Results) -> list[str]:
  """Says what follows from an arm's numbers.

  Args:
    results: what results.json holds.
    about: what model.json holds.
    arm: the arm's entry in `results`.
  """
  metrics = arm["metrics"]
  accuracy = results_table.entry_of(arm, "accuracy")["mean"]
  names = about["classes"]
  found = []
  if accuracy is not None:
    unit = "next tokens" if not isinstance(names, list) else "test examples"
    found.append(
      f"Decisions that nobody checks: it answers {100 * (1 - accuracy):.1f} % "
      f"of the {unit} wrongly."
    )
  found.append(
    "Inputs that are unlike those of its task: its numbers are of one test "
    "split, and hold for draws like it alone."
  )
  if isinstance(names, list):
    found.append(
      f"Telling that an input is of none of its {len(names)} classes: it "
      f"always names one of them.{_accepted(results, about)}"
    )
    if left := left_out(about, arm):
      found.append(f"Classes that its transfer set left out: {some(left)}.")
    weak = [
      f"{names[c]} ({100 * mean:.0f} %)"
      for c in range(len(names))
      if (mean := (metrics.get(f"recall_{c}") or {}).get("mean")) is not None
      and mean < WEAK * (accuracy or 0.0)
    ]
    if weak:
      found.append(f"Classes that it seldom recognises (recall): {some(weak)}.")
  else:
    found.append(
      "Texts that people read unchecked: it continues texts like those of its "
      "task, and nothing was done to make what it writes true or harmless."
    )
  ece = results_table.entry_of(arm, "ece")["mean"]
  if ece is not None and ece > OVERCONFIDENT:
    found.append(
      f"Probabilities taken for frequencies: its ECE is {ece:.3f}; calibrate "
      "them first."
    )
  agreement = results_table.entry_of(arm, "agreement")["mean"]
  if agreement is not None and agreement < 1 and results.get("teacher"):
    found.append(
      "Standing in for its teacher unnoticed: they answer "
      f"{100 * (1 - agreement):.1f} % of the test split differently."
    )
  if lost := arm.get("diverged"):
    found.append(
      f"Training anew without a look: {len(lost)} of {len(results['seeds'])} "
      "runs of this arm diverged."
    )
  name = about["study"]["arm"]
  return found + [
    f"Mind: {text}"
    for text in results.get("warnings", ())
    if not text.startswith("Arm ") or text.startswith(f"Arm {name},")
  ]


def _accepted(results: Results, about: Results) -> str:
  """Says how much of the set that it tells worst from its task it accepts."""
  outside = results.get("outside") or {"arms": {}}
  found = {
    name: own["fpr95"]["mean"]
    for name, own in outside["arms"].get(about["study"]["arm"], {}).items()
    if own.get("fpr95", {}).get("mean") is not None
    and not outside["sets"][name]["labelled"]
  }
  if not found:
    return ""
  worst = max(found, key=lambda name: found[name])
  return (
    f" A threshold of confidence that keeps 95 % of the test split keeps "
    f"{100 * found[worst]:.0f} % of {code(worst)} too."
  )


def left_out(about: Results, arm: Results) -> list[str]:
  """Names the classes that a transfer set has no examples of."""
  names, section = about["classes"], arm["config"]["signal"]
  only = section["only_classes"]
  if not isinstance(names, list) or not is_trained(arm):
    return []
  return [
    name
    for c, name in enumerate(names)
    if c in section["omit_classes"] or (only and c not in only)
  ]


def is_trained(arm: Results) -> bool:
  """Whether an arm's model learned from a transfer set of the study's."""
  return arm.get("trained", "") is not None


def some(items: Sequence[str], most: int = 20) -> str:
  """Lists names, the first ones of many."""
  more = len(items) - most
  return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")
