"""What a study refuses before any compute."""

from collections.abc import Mapping
from typing import Any

from kd.errors import UserError
from kd.teachers import answers, funnel


def before_the_task(settings: Mapping[str, Any]) -> None:
  """Checks what the config alone tells."""
  asks = answers.is_black_box(settings["teacher"])
  for name, chain in settings["filters"].items():
    funnel.check(f"filters.{name}", chain, asks)
  for name, arm in settings["arms"].items():
    section = arm["signal"]
    if section["live"] and (section["filter"] or asks):
      raise UserError(
        f"arms.{name}.signal.live = True: a signal that is filtered, or a "
        "black box's, is stored; expected False"
      )
