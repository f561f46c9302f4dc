"""Sets outside of a task: what is in them, and what is refused."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from kd.config import outside as sections
from kd.data import held_out, memory, outside
from kd.data.registry import load
from kd.data.task import PARTS
from kd.errors import UserError

WHOLE = {
  "name": "digits",
  "train": "train[:60%]",
  "validation": "train[60%:80%]",
  "test": "train[80%:]",
}
DIGITS = {**WHOLE, "held_out": (9,)}
SHIFT = dict(kind="shift", of=("gaussian_noise", "contrast"))
TOKENS = {"tokens": {"length": 0}}


def arrays(inputs):
  """Makes a task of arrays, whose form is all that is asked."""
  classes = np.zeros(len(inputs), np.int32)
  form = memory.form_of(inputs, "arrays")
  split = memory.InMemory([*inputs], classes, form, "arrays")
  return dataclasses.replace(load(WHOLE), test=split)


class SetsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.task = load(DIGITS)
    cls.sections = sections.normal(
      {
        "noise": dict(SHIFT, severities=(1, 5), examples=30),
        "mnist": dict(kind="data", name="mnist_subset", slice="train[:40]"),
        "photos": dict(kind="data", name="photo_patches", examples=25),
        "threes": dict(kind="classes", classes=(3,)),
        "nines": dict(kind="classes", classes=(9,)),
      }
    )
    outside.check_task(cls.sections, cls.task)
    cls.sets = {s.name: s for s in outside.sets(cls.sections, cls.task)}

  def labels(self, name):
    return self.sets[name].split.labels()

  def test_nobody_learns_what_is_held_out(self):
    for part in PARTS:
      self.assertNotIn(9, getattr(self.task, part).labels())
    self.assertEqual(self.task.num_classes, 10)
    whole = load(WHOLE)
    kept = whole.test.labels() != 9
    np.testing.assert_array_equal(
      self.task.test.arrays()[0], whole.test.arrays()[0][kept]
    )
    self.assertEqual(len(self.task.held_out), np.sum(~kept))
    self.assertNotEqual(self.task.fingerprint, whole.fingerprint)

  def test_replicates_are_of_one_size(self):
    other = load({**DIGITS, "seed": 1})
    tasks = held_out.of_one_size({0: self.task, 1: other})
    for part in PARTS:
      sizes = [len(getattr(t, part)) for t in (self.task, other)]
      cut = [len(getattr(t, part)) for t in tasks.values()]
      self.assertEqual(cut, [min(sizes)] * 2)

  def test_sets(self):
    names = ["test", "noise_1", "noise_5", "mnist", "photos", "threes", "nines"]
    self.assertEqual(list(self.sets), names)
    labelled = [s.name for s in self.sets.values() if s.labelled]
    self.assertEqual(
      labelled, ["test", "noise_1", "noise_5", "mnist", "threes"]
    )
    for s in self.sets.values():
      inputs, _ = s.split.arrays()
      self.assertEqual(inputs.shape[1:], (8, 8, 1), s.name)
      self.assertEqual(inputs.dtype, np.uint8)

  def test_inside_lacks_the_classes_of_sets(self):
    self.assertEqual(set(self.labels("test")), set(range(10)) - {3, 9})
    self.assertEqual(set(self.labels("threes")), {3})
    self.assertEqual(set(self.labels("nines")), {-1})
    self.assertLen(self.labels("nines"), len(self.task.held_out))

  def test_a_shift_is_of_the_first_examples_inside_by_each_kind(self):
    noise = self.sets["noise_5"]
    first = self.labels("test")[:30]
    np.testing.assert_array_equal(noise.split.labels(), [*first, *first])
    np.testing.assert_array_equal(noise.part, np.repeat([0, 1], 30))
    self.assertEqual((noise.severity, noise.of), (5, "noise"))
    self.assertEqual(noise.words, "gaussian noise, contrast, severity 5")

  def test_other_data_has_labels_where_names_are_the_same(self):
    self.assertBetween(self.labels("mnist").min(), 0, 9)
    self.assertLen(self.labels("mnist"), 40)
    self.assertEqual(set(self.labels("photos")), {-1})
    self.assertLen(self.labels("photos"), 25)


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      {"a": dict(SHIFT, of=("gausian_noise",))},
      "did you mean 'gaussian_noise'",
    ),
    ({"a": dict(kind="shif")}, "kind = 'shif': expected one of 'shift'"),
    (
      {"a": dict(SHIFT, severities=(6,))},
      "severities = .6,.: expected a tuple",
    ),
    ({"a": dict(SHIFT, severities=(2, 2))}, "expected each once"),
    ({"a": dict(SHIFT, slice="train")}, "a.slice = 'train': unknown key"),
    ({"a": dict(kind="shift")}, r"a.of = \(\): expected a tuple"),
    ({"a": dict(kind="data")}, "a.name = '': expected a data set's name"),
    ({"a": dict(kind="classes")}, r"a.classes = \(\): expected some"),
    ({"test": SHIFT}, "test: the name of the test split itself"),
    ({"a b": SHIFT}, "a name = 'a b': expected a name"),
    ({"a": 3}, "a = 3: expected a section"),
  )
  def test_by_the_config_alone(self, found, message):
    with self.assertRaisesRegex(UserError, f"evaluate.outside.*{message}"):
      outside.check(sections.normal(found), TOKENS)

  def test_tokens(self):
    with self.assertRaisesRegex(UserError, "expected evaluate.outside = {}"):
      outside.check(sections.normal({"a": SHIFT}), {"tokens": {"length": 8}})

  @parameterized.parameters(
    (dict(SHIFT, of=("typos",)), "a.of: 'typos' is of texts, and the task's "
     "inputs are images"),
    (dict(kind="classes", classes=(10,)), "expected some of 0 to 9"),
    (dict(kind="classes", classes=(3, 9)), "some are held out of the task"),
    (dict(kind="classes", classes=tuple(range(9))), "expected fewer"),
    (dict(kind="data", name="docstrings"), "evaluate.outside.a"),
    (dict(kind="data", name="no_such_data"), "a: .*no such data set"),
    (dict(kind="data", name="digits", slice="t[["), "a: slice = 't..'"),
  )  # fmt: skip
  def test_by_the_task(self, own, message):
    with self.assertRaisesRegex(UserError, message):
      outside.check_task(sections.normal({"a": own}), load(DIGITS))

  def test_by_the_form(self):
    rows = np.float32(np.random.default_rng(0).integers(0, 257, (20, 30)))
    noise = sections.normal({"a": dict(SHIFT, of=("byte_noise",))})
    outside.check_task(noise, arrays(rows))
    with self.assertRaisesRegex(UserError, "numbers of shape .30,"):
      outside.check_task(noise, arrays(rows + 0.5))

  @parameterized.parameters(
    ((10,), "10 is no class"), (tuple(range(10)), "nothing is left")
  )
  def test_held_out(self, classes, message):
    with self.assertRaisesRegex(UserError, f"task.held_out = .*{message}"):
      load({**WHOLE, "held_out": classes})


if __name__ == "__main__":
  absltest.main()
