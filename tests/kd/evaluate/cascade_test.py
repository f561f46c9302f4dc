import numpy as np
from absl.testing import absltest, parameterized

from kd.evaluate import cascade
from kd.evaluate.design import Design


def case(seed, n=40, levels=8):
  """Draws confidences with ties, and who is right."""
  rng = np.random.default_rng(seed)
  confidence = rng.integers(1, levels + 1, n) / levels
  student = (rng.uniform(size=n) < confidence).astype(np.float64)
  teacher = (rng.uniform(size=n) < 0.9).astype(np.float64)
  return confidence, student, teacher


def handed_on(confidence, student, teacher, least):
  """The accuracy where those below a threshold are handed on, by a loop."""
  right = [
    t if c < least else s
    for c, s, t in zip(confidence, student, teacher, strict=True)
  ]
  return sum(right) / len(right)


class CascadeTest(parameterized.TestCase):
  @parameterized.product(seed=(0, 1, 2, 3, 4), margin=(0.0, 0.05, 1.0))
  def test_the_lowest_threshold_that_is_good_enough(self, seed, margin):
    of = case(seed)
    chosen = cascade.threshold(*of, margin)
    enough = of[2].mean() - margin - 1e-9
    tried = [0.0, *np.unique(of[0]), np.inf]
    good = [t for t in tried if handed_on(*of, t) >= enough]
    # Of equal effect: none is below the lowest confidence.
    lowest = [0.0 if t == np.min(of[0]) else t for t in good]
    self.assertEqual(chosen, min(lowest))

  def test_a_curve_from_the_student_to_the_teacher(self):
    confidence, student, teacher = case(7, n=100)
    found = cascade.curve(confidence, student, teacher)
    self.assertLen(found, len(cascade.GRID))
    self.assertAlmostEqual(found[0], student.mean())
    self.assertAlmostEqual(found[-1], teacher.mean())
    half = cascade.order(confidence)[:50]
    right = student.copy()
    right[half] = teacher[half]
    self.assertAlmostEqual(found[10], right.mean())

  def test_answers_are_the_teachers_where_it_was_asked(self):
    student = {
      "accuracy": np.array([1.0, 0.0]),
      "nll": np.array([0.1, 3.0]),
      "agreement": np.array([0.0, 0.0]),
      "confidence": np.array([0.9, 0.2]),
    }
    handed = np.array([False, True])
    teacher = {k: np.ones(2) for k in ("accuracy", "nll", "confidence")}
    found = cascade.mixed(student, teacher, handed)
    for name, (kept, asked) in {
      "accuracy": (1.0, 1.0),
      "nll": (0.1, 1.0),
      "agreement": (0.0, 1.0),
      "confidence": (0.9, 1.0),
    }.items():
      np.testing.assert_array_equal(found[name], [kept, asked], name)
    box = cascade.mixed(student, {"accuracy": np.ones(2)}, handed)
    self.assertEqual(box["nll"][0], 0.1)
    self.assertTrue(np.isnan(box["nll"][1]))

  def test_a_summary_leaves_out_a_run_that_diverged(self):
    flat = lambda level: np.full(len(cascade.GRID), level)
    curves = [
      cascade.Curve(0.5, 0.1, flat(0.8)),
      None,
      cascade.Curve(np.inf, 1.0, flat(0.9)),
    ]
    found = cascade.summary(curves, "a", 0.01, Design())
    np.testing.assert_allclose(found["curve"]["accuracy"], 0.85)
    self.assertLess(found["curve"]["low"][0], 0.8)
    self.assertEqual(found["thresholds"], [0.5, None, None])


if __name__ == "__main__":
  absltest.main()
