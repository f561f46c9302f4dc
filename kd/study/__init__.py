"""A study from its config to its report."""

from kd.study.phases import PHASES, log_devices, run

__all__ = ["PHASES", "log_devices", "run"]
