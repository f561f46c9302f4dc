"""What an arm's chain of compression may say."""

from absl.testing import absltest, parameterized

from kd import config
from kd.config import compression, made
from kd.errors import UserError
from tests.kd import small
from tests.kd.study.phases_test import options

INT4 = dict(step="quantize", weights="int4")
UNITS = dict(step="prune", what="units")


class ChainTest(parameterized.TestCase):
  def test_usual_values(self):
    (first, last) = compression.normal("c", (UNITS, INT4))
    self.assertEqual((first["sparsity"], first["recover"]), (0.5, 0))
    self.assertEqual((last["activations"], last["block"]), ("none", None))

  @parameterized.parameters(
    ((), r"c = \(\): expected a tuple of sections"),
    (INT4, "expected a tuple of sections"),
    ((dict(step="distil"),), r"c\[0\].step = 'distil': expected one of quant"),
    ((dict(INT4, bits=3),), r"c\[0\].bits = 3: unknown key, expected one of"),
    ((dict(INT4, weights="int3"),), "weights = 'int3': expected one of 'int8'"),
    ((dict(step="quantize"),), r"c\[0\].weights is missing: expected one of"),
    ((INT4, UNITS), r"c\[0\].step = 'quantize': expected last"),
    ((UNITS, dict(INT4, aware=True)), r"c\[1\].aware = True: expected no oth"),
    ((dict(UNITS, sparsity=1.0),), "sparsity = 1.0: expected a number > 0 and"),
    ((dict(UNITS, sparsity=0.0),), "sparsity = 0.0: expected a number > 0"),
    ((dict(UNITS, scope="global"),), "scope = 'global': of what = 'weights'"),
    ((dict(UNITS, what="2:4", sparsity=0.5),), "sparsity = 0.5: of what = 'we"),
    ((dict(UNITS, recover=-1),), "recover = -1: expected a whole number >= 0"),
    (
      (dict(INT4, weights="fp8", activations="int8"),),
      "activations = 'int8': expected 'none' with weights = 'fp8'",
    ),
  )
  def test_what_is_refused(self, chain, message):
    with self.assertRaisesRegex(UserError, message):
      compression.normal("c", chain)

  def test_training_reads_what_is_aware_of_it(self):
    of = lambda *chain: dict(small.SOFT, compress=chain)
    arms = config.resolve(
      options(
        a_int4=of(INT4),
        aware=of(dict(INT4, aware=True)),
        aware_too=of(dict(INT4, aware=True)),
        soft=small.SOFT,
      )
    )["arms"]
    self.assertEqual(
      made.leaders(arms),
      {
        "a_int4": "soft",  # the plain one, though it comes later
        "aware": "aware",
        "aware_too": "aware",
        "soft": "soft",
      },
    )
    trained = made.trained(arms)
    self.assertEqual(
      trained["aware"]["student"]["quantized"]["weights"], "int4"
    )
    self.assertNotIn("quantized", trained["soft"]["student"])

  def test_no_student_says_it_itself(self):
    made_of = options(soft=small.SOFT)
    made_of.student["quantized"] = dict(weights="int8")
    with self.assertRaisesRegex(UserError, "student.quantized = .*: no option"):
      config.resolve(made_of)


if __name__ == "__main__":
  absltest.main()
