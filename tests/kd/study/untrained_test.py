"""Arms that share a training, or have none, in a study, and what arms cost."""

import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from kd import config, study
from kd.errors import UserError
from kd.study import check
from tests.kd import small
from tests.kd.study.phases_test import options

TEACHER = dict(objective="teacher")


def tuned():
  made = options(
    soft=small.SOFT,
    hard=small.HARD,
    teacher=TEACHER,
    soft_again=dict(small.SOFT, baseline="hard"),
    whole=dict(objective="cascade", of="soft", margin=1.0),
    careful=dict(objective="cascade", of="hard", margin=0.0),
  )
  made.cost.requests = 100.0
  made.cost.teacher.call = 0.5
  made.train.steps = 20
  made.tune = dict(budget=2, space=dict(temperature=(1.0, 4.0)))
  return made


class StudyTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    parent = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.workdir = pathlib.Path(parent, "study")
    cls.results = study.run(tuned(), str(cls.workdir))

  def test_the_teacher_is_an_arm(self):
    arm, teacher = self.results["arms"]["teacher"], self.results["teacher"]
    self.assertIsNone(arm["trained"])
    for metric in ("accuracy", "nll", "ece"):
      for value in arm["metrics"][metric]["values"]:
        self.assertAlmostEqual(value, teacher[metric], places=6)
    self.assertEqual(arm["metrics"]["agreement"]["values"], [1.0, 1.0])
    versus = arm["metrics"]["accuracy"]["versus_baseline"]
    self.assertEqual(versus["baseline"], "soft")

  def test_where_teacher_and_students_disagree(self):
    found = self.results["disagreements"]["examples"]
    self.assertLen(found, 12)
    far = [x["distance"] for x in found]
    self.assertEqual(far, sorted(far, reverse=True))
    for x in found:
      self.assertEqual(x["input"]["kind"], "image")
      teacher = x["arms"]["teacher"]  # which is an arm too
      self.assertEqual(teacher["answer"], x["teacher"]["answer"])
      self.assertAlmostEqual(teacher["distance"], 0, places=6)
      self.assertEqual(x["arms"]["soft"], x["arms"]["soft_again"])
    page = (self.workdir / "report.html").read_text()
    self.assertIn(found[0]["input"]["png"], page)

  def test_arms_that_share_a_training_are_alike(self):
    soft, again = (self.results["arms"][a] for a in ("soft", "soft_again"))
    self.assertEqual(again["trained"], "soft")
    self.assertNotIn("trained", soft)
    values = lambda arm: {k: m["values"] for k, m in arm["metrics"].items()}
    self.assertEqual(values(soft), values(again))
    self.assertEqual(again["baseline"], "hard")
    tune = self.results["tune"]
    self.assertEqual(tune["choices"]["soft_again"], tune["choices"]["soft"])
    self.assertNotIn("teacher", tune["choices"])

  def test_a_cascade_is_its_student_or_its_teacher(self):
    arms = self.results["arms"]
    of = lambda arm, m: arms[arm]["metrics"][m]["values"]
    self.assertEqual(of("whole", "deferred"), [0.0, 0.0])
    self.assertEqual(of("whole", "nll"), of("soft", "nll"))
    found = self.results["cascades"]["careful"]
    self.assertEqual((found["of"], found["margin"]), ("hard", 0.0))
    curve = found["curve"]
    ends = [
      np.mean(of("hard", "accuracy")),
      self.results["teacher"]["accuracy"],
    ]
    np.testing.assert_allclose([curve["accuracy"][i] for i in (0, -1)], ends)
    shares = of("careful", "deferred")
    for share, own, first in zip(
      shares, of("careful", "agreement"), of("hard", "agreement"), strict=True
    ):
      self.assertBetween(share, 0.01, 1.0)
      self.assertGreater(own, first)

  def test_a_cascade_costs_the_share_that_it_hands_on(self):
    cost = self.results["provenance"]["cost"]
    share = np.mean(
      self.results["arms"]["careful"]["metrics"]["deferred"]["values"]
    )
    requests = {a: x["request"]["value"] for a, x in cost["arms"].items()}
    self.assertAlmostEqual(requests["careful"], 0.5 * share)
    self.assertEqual(requests["soft"], 0.0)
    self.assertEqual(requests["teacher"], 0.0)  # on one's own hardware
    versus = self.results["arms"]["teacher"]["versus_teacher"]
    self.assertAlmostEqual(versus["difference"], 0.0, places=6)
    text = pathlib.Path(self.workdir, "report.md").read_text()
    for heading in ("## Break-even", "## Cascades"):
      self.assertIn(heading, text)

  def test_the_report_tells_of_all(self):
    text = pathlib.Path(self.workdir, "report.md").read_text()
    self.assertIn("the teacher itself", text)
    self.assertNotIn("learning curves are cut", text)
    log = pathlib.Path(self.workdir, "metrics.jsonl").read_text()
    self.assertNotIn('"soft_again"', log)
    self.assertNotIn('"teacher"', log)


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(a=TEACHER), "arms: none of a is trained"),
    (dict(a=small.SOFT, b=dict(TEACHER, k=3)), "arms.b.k = 3: unknown key"),
    (
      dict(a=small.SOFT, b=dict(TEACHER, train=dict(learning_rate=0.1))),
      "arms.b.train = .*: expected none, since objective = 'teacher'",
    ),
    (
      dict(a=small.SOFT, b=dict(objective="teacher + soft")),
      "arms.b.objective = 'teacher . soft': expected one of",
    ),
    (
      dict(a=small.SOFT, b=dict(objective="cascade", of="c", margin=0.1)),
      "arms.b.of = 'c': expected the arm that answers first, one of a",
    ),
    (
      dict(a=small.SOFT, b=dict(objective="cascade", of="a", margin=-0.1)),
      "arms.b.margin = -0.1: expected a number >= 0",
    ),
  )
  def test_what_is_refused(self, arms, message):
    with self.assertRaisesRegex(UserError, message):
      check.config_alone(config.resolve(options(**arms)))

  def test_a_black_box_is_no_model(self):
    made = options(a=dict(objective="hard", target="answer"), b=dict(TEACHER))
    made.teacher.black_box = True
    with self.assertRaisesRegex(UserError, "arms.b.objective = 'teacher': the"):
      check.config_alone(config.resolve(made))


if __name__ == "__main__":
  absltest.main()
