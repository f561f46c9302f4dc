"""What a study may say. Starts no device, reads no disk, knows no model."""

from kd.config.resolver import defaults, resolve, sweep, tuples

__all__ = ["defaults", "resolve", "sweep", "tuples"]
