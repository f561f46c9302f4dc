r"""Correct a teacher's prior: one bias a class, from unlabelled data alone.

A prompted model often favours some classes whatever the text is, and ranks the
texts well all the same. The prior that is assumed in its place is uniform.

Axes: N rows, V classes.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

from kd.errors import UserError

CLOSE = 1e-6  # of V times a class's mean probability to 1
ROUNDS = 10_000


def biases(logits: Float[np.ndarray, "N V"]) -> Float[np.ndarray, " V"]:
  r"""Returns b, of mean 0, with which all classes are equally likely on average

      1/N \sum_n softmax(z_n + b)_v = 1/V  for each class v

  by b_v <- b_v - log 1/N \sum_n softmax(z_n + b)_v, which scales the matrix
  exp(z) to rows of 1 and columns of N/V (Sinkhorn and Knopp 1967). Its first
  step is batch calibration (Zhou et al. 2023, 2309.17249), which leaves means
  that are nearly equal; contextual calibration (Zhao et al. 2021, 2102.09690)
  takes the prior from a text without content instead.

  Raises:
    UserError: no such b is found, as where the teacher is sure of every row.

  >>> z = np.log([[0.9, 0.1], [0.6, 0.4]])
  >>> special.softmax(z + biases(z), axis=-1).mean(0).round(5).tolist()
  [0.5, 0.5]
  """
  z = np.asarray(logits, np.float64)
  rows, classes = z.shape
  b = np.zeros(classes)
  for _ in range(ROUNDS):
    log_probs = special.log_softmax(z + b, axis=-1)
    off = special.logsumexp(log_probs, axis=0) + np.log(classes / rows)
    if np.abs(off).max() < CLOSE:
      return b - b.mean()
    b -= off
  raise UserError(
    "signal.calibrate = 'uniform': no biases make all classes equally likely "
    f"on average, after {ROUNDS} rounds; expected 'none'"
  )
