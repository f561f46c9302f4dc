"""Sweeps, overrides and the errors of a config."""

from absl.testing import absltest, parameterized

from kd import config
from kd.errors import UserError
from kd.train import arms
from tests.kd import small


def resolve(arm_configs, **sections):
  return small.settings(arm_configs, **sections)["arms"]


class SweepTest(parameterized.TestCase):
  def test_one_arm_for_each_value(self):
    soft = {**small.SOFT, "temperature": config.sweep(1.0, 2.5, 8.0)}
    names = list(resolve({"hard": small.HARD, "soft": soft}))
    self.assertEqual(
      names,
      [
        "hard",
        "soft[temperature=1]",
        "soft[temperature=2.5]",
        "soft[temperature=8]",
      ],
    )

  def test_two_sweeps_make_a_grid(self):
    soft = {
      **small.SOFT,
      "temperature": config.sweep(1.0, 2.0),
      "student": {"hidden": config.sweep((30, 30), (300,))},
    }
    made = resolve({"soft": soft})
    self.assertLen(made, 4)
    arm = made["soft[student.hidden=30x30,temperature=2]"]
    self.assertEqual(arm["student"]["hidden"], (30, 30))
    self.assertEqual(arm["temperature"], 2.0)

  def test_a_swept_baseline_is_matched_by_the_shared_key(self):
    sizes = {"size": config.sweep(30, 100)}
    made = resolve(
      {
        "hard": {**small.HARD, "signal": sizes},
        "soft": {
          **small.SOFT,
          "temperature": config.sweep(1.0, 2.0),
          "signal": sizes,
        },
      }
    )
    self.assertEqual(
      made["soft[signal.size=30,temperature=2]"]["baseline"],
      "hard[signal.size=30]",
    )
    self.assertIsNone(made["hard[signal.size=100]"]["baseline"])

  def test_a_swept_baseline_that_does_not_fit(self):
    hard = {**small.HARD, "signal": {"size": config.sweep(30, 100)}}
    with self.assertRaisesRegex(UserError, "2 of its variants fit arms.soft"):
      resolve({"hard": hard, "soft": small.SOFT})

  def test_an_arm_overrides_its_sections(self):
    soft = {
      **small.SOFT,
      "signal": {"size": 50},
      "train": {"learning_rate": 0.1},
    }
    made = resolve({"hard": small.HARD, "soft": soft})
    self.assertEqual(made["soft"]["signal"]["size"], 50)
    self.assertIsNone(made["hard"]["signal"]["size"])
    self.assertEqual(made["soft"]["train"]["learning_rate"], 0.1)
    self.assertEqual(made["soft"]["train"]["optimizer"], "adam")


class ErrorTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"temperature": 0.0}, r"arms.soft.temperature = 0.0: expected .* > 0"),
    ({"temperature": -1.0}, "temperature = -1.0"),
    ({"temperature": float("nan")}, "temperature = nan"),
    ({"temperature": "hot"}, "temperature = 'hot'"),
    ({"divergence": "kl"}, "divergence = 'kl': expected one of forward_kl"),
    ({"divergence": "jsd"}, "arms.soft.beta is missing"),
    ({"beta": 0.5}, "arms.soft.beta = 0.5: unknown key"),
    ({"objective": "softer"}, "objective = 'softer': expected one of hard"),
    ({"objective": "hard + soft"}, "expected the sections hard, soft"),
    ({"baseline": "nobody"}, "arms.soft.baseline = 'nobody'"),
    ({"train": {"steps": 3}}, "an arm may change optimizer"),
    ({"train": {"weight_decay": 0.1}}, "'adam' has none"),
    ({"signal": {"sizes": 3}}, "arms.soft.signal.sizes = 3: unknown key"),
    ({"student": {"width": 3}}, "student.width = 3: no option of model 'mlp'"),
    ({"student": {"name": "vit"}}, "student.name = 'vit': expected one of mlp"),
    ({"student": {"dropout": 1.0}}, r"dropout = 1.0: expected a rate in \[0"),
  )
  def test_an_arm(self, change, message):
    soft = {**small.SOFT, **change}
    with self.assertRaisesRegex(UserError, message):
      arms.group(resolve({"hard": small.HARD, "soft": soft}), 10)

  @parameterized.parameters(
    ({"train": {"stepz": 3}}, "train.stepz = 3: unknown key"),
    ({"train": {"steps": 0}}, "train.steps = 0: expected a whole number >= 1"),
    ({"train": {"steps": 2.5}}, "train.steps = 2.5"),
    ({"train": {"steps": True}}, "train.steps = True"),
    ({"signal": {"pool": "all"}}, "signal.pool = 'all'"),
    ({"seeds": 0}, "seeds = 0"),
    ({"baseline": "soft"}, "baseline = 'soft': expected one of the arms hard"),
    ({"teacher": {"fraction": 1.5}}, "teacher.fraction = 1.5"),
  )
  def test_a_section(self, sections, message):
    with self.assertRaisesRegex(UserError, message):
      resolve({"hard": small.HARD}, **sections)

  def test_an_unknown_section(self):
    options = config.defaults()
    options.trian = {}
    with self.assertRaisesRegex(UserError, "trian: unknown section"):
      config.resolve(options)

  @parameterized.parameters(
    ({**small.RANK, "samples": 17}, "samples = 17: expected at most signal"),
    ({"objective": "partial_plackett_luce", "k": 11}, "the task's 10 classes"),
    ({"objective": "hard", "target": "truth"}, "the transfer set is unlabell"),
  )
  def test_more_than_there_is(self, arm, message):
    made = resolve({"arm": arm})
    with self.assertRaisesRegex(UserError, message):
      arms.group(made, 10)

  def test_dkd_needs_three_classes(self):
    dkd = {
      "objective": "dkd",
      "alpha": 1.0,
      "beta": 8.0,
      "temperature": 4.0,
      "target": "answer",
    }
    made = resolve({"dkd": dkd})
    arms.group(made, 3)
    with self.assertRaisesRegex(UserError, "undefined for 2 classes"):
      arms.group(made, 2)


class SumTest(absltest.TestCase):
  def test_every_part_names_its_weight(self):
    both = {
      "objective": "hard + soft",
      "hard": {"target": "answer"},
      "soft": {k: v for k, v in small.SOFT.items() if k != "objective"},
    }
    made = resolve({"both": both})
    with self.assertRaisesRegex(UserError, "arms.both.hard.weight is missing"):
      arms.group(made, 10)


if __name__ == "__main__":
  absltest.main()
