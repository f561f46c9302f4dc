"""What a teacher leaves on a transfer set, and how it is stored."""

from kd.signals.completions import Completions, Kind
from kd.signals.kinds import (
  Dense,
  Labels,
  Samples,
  Signal,
  TopK,
  apart,
  part,
  present,
  rows_of,
  top_k,
)
from kd.signals.readings import make, of_labels, of_teacher, sample

__all__ = [
  "Completions",
  "Dense",
  "Kind",
  "Labels",
  "Samples",
  "Signal",
  "TopK",
  "apart",
  "make",
  "of_labels",
  "of_teacher",
  "part",
  "present",
  "rows_of",
  "sample",
  "top_k",
]
