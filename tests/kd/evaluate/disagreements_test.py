"""Where teacher and students disagree most."""

import json

import numpy as np
from absl.testing import absltest, parameterized

from kd import signals
from kd.data import memory
from kd.evaluate import disagreements, scores
from kd.signals import Dense
from tests.kd import oracles

NAMES = ("cat", "dog", "eel", "fox")
SLICES = {
  "train": "train[:20%]",
  "validation": "train[20%:40%]",
  "test": "train[40%:]",
  "name": "arrays",
  "seed": 0,
  "resident": "auto",
  "resident_mib": 1.0,
}


class DisagreementsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    classes = np.arange(50) % 4
    self.task = memory.task_of(SLICES, rng.normal(size=(50, 3)), classes, NAMES)
    self.labels = self.task.test.labels()
    self.n = len(self.labels)
    shape = (self.n, 4)
    self.teacher = 3 * rng.normal(size=shape).astype(np.float32)
    self.students = {
      arm: 3 * rng.normal(size=shape).astype(np.float32) for arm in "ab"
    }

  def found(self, said, most=5, lost=()):
    scored = {}
    for arm, z in self.students.items():
      each = scores.of_logits(z, self.labels, said)
      scored[arm] = scores.Scored({}, {}, [], {} if arm in lost else each)
    places = np.arange(self.n)
    return disagreements.find(scored, said, self.task, places, most)

  def distances(self, p):
    return {
      arm: np.abs(p - np.exp(oracles.log_softmax(z))).sum(-1) / 2
      for arm, z in self.students.items()
    }

  def test_the_largest_mean_first(self):
    found = self.found(self.teacher)
    json.dumps(found, allow_nan=False)
    p = np.exp(oracles.log_softmax(self.teacher))
    each = self.distances(p)
    mean = (each["a"] + each["b"]) / 2
    order = np.argsort(-mean)[:5]
    for n, x in zip(order, found["examples"], strict=True):
      self.assertEqual(x["label"], n)
      self.assertAlmostEqual(x["distance"], mean[n], places=3)
      self.assertEqual(x["truth"], NAMES[self.labels[n]])
      self.assertEqual(x["teacher"]["answer"], NAMES[p[n].argmax()])
      self.assertAlmostEqual(x["teacher"]["confidence"], p[n].max(), places=3)
      for arm, z in self.students.items():
        q = np.exp(oracles.log_softmax(z))[n]
        own = x["arms"][arm]
        self.assertEqual(own["answer"], NAMES[q.argmax()])
        self.assertAlmostEqual(own["confidence"], q.max(), places=3)
        self.assertAlmostEqual(own["distance"], each[arm][n], places=3)

  def test_of_a_black_box_its_answers(self):
    said = np.where(np.arange(self.n) < 9, -1, np.arange(self.n) % 4)
    found = self.found(said, most=100)
    self.assertLen(found["examples"], self.n - 9)
    each = self.distances(np.eye(4)[np.maximum(said, 0)])
    mean = np.where(said < 0, -1, (each["a"] + each["b"]) / 2)
    self.assertEqual(found["examples"][0]["label"], mean.argmax())
    self.assertEqual(set(found["examples"][0]["teacher"]), {"answer"})

  def test_of_the_likeliest_classes(self):
    found = self.found(signals.top_k(Dense(self.teacher), 3))
    whole = self.found(self.teacher)
    # Three of four are known, so the rest is the fourth.
    self.assertEqual(json.dumps(found), json.dumps(whole))

  def test_nothing_to_show(self):
    self.assertIsNone(self.found(None))
    self.assertIsNone(self.found(self.teacher, most=0))
    self.assertIsNone(self.found(self.teacher, lost=("a", "b")))
    alone = self.found(self.teacher, lost=("a",))
    self.assertEqual(set(alone["examples"][0]["arms"]), {"b"})


if __name__ == "__main__":
  absltest.main()
