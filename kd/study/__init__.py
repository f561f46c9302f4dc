"""A study from its config to its report."""

from kd.study.check import PHASES
from kd.study.entry import run, verdict

__all__ = ["PHASES", "run", "verdict"]
