"""Which of an arm's keys a search may set: those of `tune.space` that it has.

A key is dotted where it lies in a section: "train.learning_rate". One without a
section is of the arm's objective, and where that is a sum of all its parts.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kd.config.sections import IN_ARMS

NO_LOSS = (*IN_ARMS, "overrides", "objective", "baseline", "compress")
# What only some optimisers have.
ONLY_OF = {"weight_decay": ("adamw", "sgd"), "momentum": ("sgd",)}


def places(arm: Mapping[str, Any], key: str) -> Iterator[Any]:
  """Yields the sections of an arm that hold `key`: its own, and where that is
  a sum, each part's.

  >>> arm = {"objective": "soft", "temperature": 4.0}
  >>> list(places(arm, "temperature")) == [arm], list(places(arm, "weight"))
  (True, [])
  """
  section, _, name = key.rpartition(".")
  only = ONLY_OF.get(name) if section == "train" else None
  if only and arm.get("train", {}).get("optimizer") not in only:
    return
  loss = {k: v for k, v in arm.items() if k not in NO_LOSS}
  parts = [loss, *loss.values()]
  if section:
    parts = [arm.get(section) if section in IN_ARMS else loss.get(section)]
  for place in parts:
    if isinstance(place, Mapping) and name in place:
      yield arm if place is loss else place
