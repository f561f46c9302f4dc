"""What a study may say. Starts no device, reads no disk, knows no model."""

from kd.config.resolver import leaves, resolve, tuples
from kd.config.sections import defaults
from kd.config.sweeps import sweep

__all__ = ["defaults", "leaves", "resolve", "sweep", "tuples"]
