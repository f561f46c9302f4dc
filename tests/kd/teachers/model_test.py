"""Teachers with published weights: loaded, checked, never trained."""

import json
import os
import pathlib
import tempfile

import jax.numpy as jnp
from absl.testing import absltest, parameterized

from kd import config, models, study
from kd.errors import UserError
from kd.models import MLP
from tests.kd import small

DIGITS = tuple(map(str, range(10)))


class Published(MLP):
  """A linear model whose published weights are all `level`."""

  level = 0.25

  @staticmethod
  def published_classes():
    return DIGITS

  def load_published(self):
    self.head.kernel[...] = jnp.full(self.head.kernel.shape, self.level)


def options(**section):
  made = config.defaults()
  made.study = "small"
  made.seeds = 2
  made.student = {"name": "mlp", "hidden": (16,), "dropout": 0.0}
  made.teacher.update({"name": "published", "pretrained": True, "hidden": ()})
  made.teacher.update(section)
  made.train.update({"steps": 20, "log_every": 10, "checkpoint_every": 20})
  made.arms = {"hard": small.HARD, "soft": small.SOFT}
  return made


class PublishedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.parent = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = os.path.join(self.parent, "study")
    self.enterContext(
      absltest.mock.patch.dict(models.MODELS, published=Published)
    )

  def test_a_study_with_published_weights(self):
    first = study.run(options(), self.workdir)
    path = pathlib.Path(self.workdir, "teacher")
    self.assertEqual(os.listdir(path), ["teacher.json"])
    found = json.loads((path / "teacher.json").read_text())
    self.assertTrue(found["pretrained"])
    # A linear model whose classes have equal weights answers with the first.
    self.assertEqual(first["teacher"]["recall_0"], 1.0)
    again = study.run(options(), self.workdir)
    other = options(pretrained=False, path=str(path))
    other.teacher = {
      k: v for k, v in other.teacher.items() if k not in ("name", "hidden")
    }
    third = study.run(other, os.path.join(self.parent, "third"))
    for results in (again, third):
      self.assertEqual(results["teacher"], first["teacher"])
      self.assertEqual(
        results["arms"]["soft"]["metrics"], first["arms"]["soft"]["metrics"]
      )

  def test_it_has_seen_none_of_the_pool(self):
    made = options()
    made.signal.pool = "rest"
    results = study.run(made, self.workdir)
    self.assertEqual(results["signal"]["examples"], results["signal"]["pool"])

  def test_other_weights_are_installed_later(self):
    study.run(options(), self.workdir, "teacher")
    with (
      absltest.mock.patch.object(Published, "level", 0.5),
      self.assertRaisesRegex(UserError, "not those that teacher.json tells"),
    ):
      study.run(options(), self.workdir)

  @parameterized.parameters(
    ({"name": "mlp"}, "'mlp' has no published weights.*magika"),
    ({"path": "somewhere"}, "teacher.pretrained = True.*teacher.path"),
    ({"level": 3}, "teacher.level = 3: no option"),
  )
  def test_bad_sections(self, section, message):
    with self.assertRaisesRegex(UserError, message):
      study.run(options(**section), self.workdir)
    self.assertFalse(os.path.exists(self.workdir))

  def test_other_classes(self):
    with (
      absltest.mock.patch.object(
        Published, "published_classes", lambda: DIGITS[::-1]
      ),
      self.assertRaisesRegex(UserError, "not those of task.name = 'digits'"),
    ):
      study.run(options(), self.workdir)
    self.assertFalse(os.path.exists(self.workdir))


class TrainedTest(absltest.TestCase):
  def test_an_overflow_in_the_last_update_is_no_teacher(self):
    made = options(name="mlp", pretrained=False)
    train = {"steps": 1, "optimizer": "sgd", "learning_rate": 1e38}
    made.teacher.train.update(train)
    made.teacher.hidden = (8,)
    folder = self.enterContext(tempfile.TemporaryDirectory())
    for _ in range(2):  # and no more so when it goes on
      with self.assertRaisesRegex(
        UserError, r"not finite at step 1: lower .*learning_rate = 1e\+38"
      ):
        study.run(made, folder, "teacher")
    self.assertFalse(os.path.exists(f"{folder}/teacher/teacher.json"))


if __name__ == "__main__":
  absltest.main()
