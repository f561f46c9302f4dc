"""Evaluation metrics: float32 scalars from jax or numpy arrays, jit-able.

Leading axes [...] are all averaged over, each example alike. Probabilities are
normalised over the last axis; nothing here normalises them again. Logarithms
are natural. Ties between the highest entries go to the lowest class.

What is not finite is never passed over: a metric is NaN where a score is NaN,
where an example's highest score is infinite (so that no answer can be told), or
where a label is no class, in [0, V).
"""

from kd.metrics.calibration import (
  CONFIDENT,
  HOTTEST,
  bin_of,
  calibration_error,
  ece,
  fit_temperature,
  wrong_confident,
)
from kd.metrics.classification import (
  accuracy,
  agreement,
  brier,
  kl_to_teacher,
  nll,
  nll_from_logits,
  recall_per_class,
  total_variation,
)
from kd.metrics.detection import (
  aurc,
  auroc,
  energy,
  fpr_at_tpr,
  selective_accuracy,
)

__all__ = [
  "CONFIDENT",
  "HOTTEST",
  "accuracy",
  "agreement",
  "aurc",
  "auroc",
  "bin_of",
  "brier",
  "calibration_error",
  "ece",
  "energy",
  "fit_temperature",
  "fpr_at_tpr",
  "kl_to_teacher",
  "nll",
  "nll_from_logits",
  "recall_per_class",
  "selective_accuracy",
  "total_variation",
  "wrong_confident",
]
