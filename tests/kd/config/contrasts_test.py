"""Contrasts: arms' names are exact, whatever they hold."""

from absl.testing import absltest, parameterized

from kd.config.contrasts import Contrast, check, parse
from kd.errors import UserError

ARMS = ("hard", "soft[T=4,rate=0.1]", "a - b", "a", "b", "x within 0.1")


class ParseTest(parameterized.TestCase):
  @parameterized.parameters(
    ("soft[T=4,rate=0.1] - hard", "soft[T=4,rate=0.1]", "hard", None),
    ("hard - a - b within 0.01", "hard", "a - b", 0.01),
    ("a - b - hard", "a - b", "hard", None),
    ("a - b", "a", "b", None),
    ("hard - x within 0.1", "hard", "x within 0.1", None),
    ("hard - x within 0.1 within 2e-3", "hard", "x within 0.1", 0.002),
  )
  def test_reads(self, text, arm, other, within):
    self.assertEqual(parse(text, ARMS), Contrast(text, arm, other, within))

  @parameterized.parameters(
    "soft - hard", "hard", "hard-a", "hard - hard", "", "hard - a withn 1"
  )
  def test_no_arms(self, text):
    with self.assertRaisesRegex(UserError, r"\Acontrasts: .*expected 'ARM - "):
      parse(text, ARMS)

  @parameterized.parameters("0", "-1", "nan", "inf", "a point", "")
  def test_no_margin(self, margin):
    with self.assertRaisesRegex(UserError, "contrasts: .*margin"):
      parse(f"hard - a within {margin}", ARMS)

  def test_each_comparison_once(self):
    check(["hard - a", "hard - a within 0.1", "hard - a within 0.2"], ARMS)
    for text in ("hard - a", "a - hard"):
      with self.assertRaisesRegex(UserError, "are one comparison"):
        check(["hard - a", "hard - b", text], ARMS)


if __name__ == "__main__":
  absltest.main()
