"""Tests of kd.models.scoring."""

import numpy as np
from absl.testing import absltest, parameterized

from kd.models import prefill, scoring
from tests.kd import oracles
from tests.kd.models import written


class TokenScoresTest(parameterized.TestCase):
  @parameterized.parameters(
    ("plain", "right", 1), ("plain", "left", 4), ("gemma", "right", 4)
  )
  def test_is_the_forward_pass_s(self, kind, padding, length):
    model, c = written.decoder(kind), 3
    before = [3, 1, 4, 1, 5]
    rng = np.random.default_rng(0)
    own = rng.integers(0, written.V, (len(written.LENGTHS), c, length))
    ends = rng.integers(0, length + 1, own.shape[:2])
    own[np.arange(length) >= ends[..., None]] = 99
    scores = scoring.token_scores(
      model,
      written.prompts(padding),
      written.LENGTHS,
      own,
      ends,
      padding=padding,
      prefix=prefill.read_prefix(model, before),
    )
    expected = np.zeros(own.shape)
    for b, ids in enumerate(written.texts()):
      for k in range(c):
        end = ends[b, k]
        text = [*before, *ids, *own[b, k, :end].tolist()]
        given = written.log_probs(model, text)[-end - 1 : -1]
        expected[b, k, :end] = given[np.arange(end), own[b, k, :end]]
    oracles.assert_close(scores, expected, atol=1e-5)

  def test_the_same_completions_for_all(self):
    model = written.decoder()
    given = written.prompts("right"), written.LENGTHS
    classes, ends = np.array([[4, 8], [7, 0]]), np.array([2, 1])
    scores = scoring.token_scores(model, *given, classes, ends)
    each = np.tile(classes, (4, 1, 1)), np.tile(ends, (4, 1))
    oracles.assert_close(scores, scoring.token_scores(model, *given, *each))

  @parameterized.parameters(
    (0, 3, "completion_lengths: 3; accepted: 0 to 2"),
    (29, 2, "completions: 29; accepted: ids from 0 to 28"),
  )
  def test_refuses(self, token, length, message):
    with self.assertRaisesRegex(ValueError, message):
      scoring.token_scores(
        written.decoder(),
        written.prompts("right"),
        written.LENGTHS,
        np.array([[1, token]]),
        np.array([length]),
      )


if __name__ == "__main__":
  absltest.main()
