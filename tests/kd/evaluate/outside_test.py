"""What a study says of itself outside of its task, from one small study."""

import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest
from sklearn import metrics as sklearn_metrics

from kd import study
from kd.config import tuples
from kd.data import outside
from kd.data.registry import load
from kd.evaluate import scores, verdict
from kd.models import functional
from kd.report import outside as shown
from kd.report.blocks import plain
from kd.study import finished
from tests.kd import small
from tests.kd.study.phases_test import options

SETS = dict(
  noise=dict(kind="shift", of=("gaussian_noise", "fog"), severities=(1, 5)),
  photos=dict(kind="data", name="photo_patches", examples=200),
)
SAME = (
  *("accuracy", "nll", "brier", "ece", "ece_equal_mass", "aurc"),
  *("wrong_confident", "agreement", "kl_to_teacher"),
  *("nll_tempered", "ece_tempered"),
)


class StudyTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    parent = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.workdir = pathlib.Path(parent, "study")
    made = options(
      hard=small.HARD,
      soft=small.SOFT,
      same=dict(objective="teacher"),
      whole=dict(objective="cascade", of="soft", margin=1.0),
    )
    made.seeds = 3
    made.train.steps = 20
    made.evaluate.outside = SETS
    cls.results = study.run(made, str(cls.workdir))
    cls.found = cls.results["outside"]

  def of(self, arm, name, metric):
    return self.found["arms"][arm][name][metric]["values"]

  def test_inside_it_is_the_test_split(self):
    for arm in ("hard", "soft"):
      known = self.results["arms"][arm]["metrics"]
      for metric in SAME:
        np.testing.assert_allclose(
          self.of(arm, "test", metric), known[metric]["values"], atol=1e-5,
          err_msg=metric,
        )  # fmt: skip
    self.assertNotIn("auroc", self.found["arms"]["hard"]["test"])

  def test_outside_it_is_what_the_run_answers(self):
    """From the run's own logits on the sets, made again."""
    settings = self.settings()
    run = finished.read(str(self.workdir), settings, "soft")
    task = load(settings["task"])
    sets = {
      s.name: s for s in outside.sets(settings["evaluate"]["outside"], task)
    }
    sure, right = {}, {}
    for name in ("test", "noise_5", "photos"):
      inputs, labels = sets[name].split.arrays()
      forward = functional.forward(run.student, task.signature, 64)
      logits = forward(run.weights, inputs)
      each = scores.of_logits(logits, labels)
      sure[name], right[name] = each["confidence"], each["accuracy"]
    noise, photos = (
      self.found["arms"]["soft"][n] for n in ("noise_5", "photos")
    )
    self.assertAlmostEqual(
      noise["accuracy"]["values"][0], right["noise_5"].mean(), 5
    )
    self.assertAlmostEqual(
      photos["wrong_confident"]["values"][0], np.mean(sure["photos"] > 0.9), 5
    )
    for name, own in (("noise_5", noise), ("photos", photos)):
      both = np.concatenate([sure["test"], sure[name]])
      inside = np.arange(len(both)) < len(sure["test"])
      auroc = sklearn_metrics.roc_auc_score(inside, both)
      self.assertAlmostEqual(own["auroc"]["values"][0], auroc, 5)
      fpr, tpr, _ = sklearn_metrics.roc_curve(
        inside, both, drop_intermediate=False
      )
      fpr95 = fpr[tpr >= 0.95].min()
      self.assertAlmostEqual(own["fpr95"]["values"][0], fpr95, 5)

  def settings(self):
    text = (self.workdir / "config.json").read_text()
    return tuples(json.loads(text)["config"])

  def test_what_nobody_could_know_has_no_accuracy(self):
    self.assertFalse(self.found["sets"]["photos"]["labelled"])
    of = self.found["arms"]["soft"]["photos"]
    self.assertFalse({"accuracy", "nll", "ece", "brier"} & set(of))
    self.assertContainsSubset({"auroc", "fpr95_energy", "agreement"}, set(of))

  def test_the_teacher_as_an_arm_is_as_the_teacher(self):
    for name in self.found["sets"]:
      for metric, value in self.found["teacher"][name].items():
        for own in self.of("same", name, metric):
          self.assertAlmostEqual(own, value, 4, msg=(name, metric))
    own = self.found["verdict"]["arms"]["same"]["accuracy_lost"]
    self.assertAlmostEqual(own["versus_teacher"]["difference"], 0, 5)
    self.assertEqual(verdict.told_apart(own["versus_teacher"]), 0)

  def test_a_cascade_that_keeps_all_is_its_student(self):
    for metric in ("accuracy", "auroc", "wrong_confident"):
      self.assertEqual(
        self.of("whole", "noise_5", metric), self.of("soft", "noise_5", metric)
      )

  def test_the_verdict_is_what_is_lost(self):
    found = self.found["verdict"]
    self.assertEqual(
      found["over"],
      {"accuracy_lost": ["noise"], "wrong_confident": ["noise", "photos"]},
    )
    mean = lambda *xs: np.mean(xs, axis=0)
    noise = [self.of("soft", f"noise_{s}", "accuracy") for s in (1, 5)]
    lost = np.subtract(self.of("soft", "test", "accuracy"), mean(*noise))
    own = found["arms"]["soft"]["accuracy_lost"]
    np.testing.assert_allclose(own["values"], lost, atol=1e-6)
    teacher = self.found["teacher"]
    of_teacher = teacher["test"]["accuracy"] - mean(
      *(teacher[f"noise_{s}"]["accuracy"] for s in (1, 5))
    )
    gap = own["versus_teacher"]
    self.assertAlmostEqual(gap["difference"], np.mean(lost) - of_teacher, 5)
    self.assertLess(gap["low"], gap["high"])
    self.assertGreaterEqual(gap["p"], gap["p_raw"])
    sure = [self.of("soft", f"noise_{s}", "wrong_confident") for s in (1, 5)]
    both = mean(mean(*sure), self.of("soft", "photos", "wrong_confident"))
    own = found["arms"]["soft"]["wrong_confident"]
    np.testing.assert_allclose(own["values"], both, atol=1e-6)
    self.assertEqual(own["versus_baseline"]["baseline"], "hard")

  def test_curves_and_diagrams(self):
    curve = self.found["curves"]["arms"]["soft"]
    np.testing.assert_allclose(
      curve["noise_5"][-1], np.mean(self.of("soft", "noise_5", "accuracy")),
      atol=1e-5,
    )  # fmt: skip
    sizes = {n: s["examples"] for n, s in self.found["sets"].items()}
    whole = np.mean(self.of("soft", "test", "accuracy")) * sizes["test"]
    mixed = whole / (sizes["test"] + sizes["photos"])
    self.assertAlmostEqual(curve["photos"][-1], mixed, 5)
    for name, size in sizes.items():
      count = self.found["reliability"]["arms"]["soft"][name]["count"]
      self.assertEqual(sum(count), 3 * size)
    parts = self.found["parts"]["teacher"]["noise_5"]
    self.assertAlmostEqual(
      np.mean(list(parts.values())),
      self.found["teacher"]["noise_5"]["accuracy"],
      5,
    )

  def test_the_report_says_it(self):
    text = (self.workdir / "report.md").read_text()
    self.assertIn("## Outside the task", text)
    said = plain(shown.sentence(self.results))
    self.assertIn("Outside the task. Accuracy lost to noise: ", said)
    number = "[+\N{MINUS SIGN}][0-9.]+"
    self.assertRegex(said, rf"soft {number} \[{number}, {number}\] to it")
    self.assertIn(shown.sentence(self.results), text)
    for name in ("outside_severity", "outside_curves"):
      self.assertTrue((self.workdir / "figures" / f"{name}.png").exists())


if __name__ == "__main__":
  absltest.main()
