"""A study from its config to its report."""

from kd.study.check import PHASES
from kd.study.entry import run, verdict, write_export

__all__ = ["PHASES", "run", "verdict", "write_export"]
