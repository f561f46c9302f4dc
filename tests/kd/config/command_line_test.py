"""Configs from files and the command line, and what is said of their faults."""

import json
import os
import pathlib
import tempfile
import textwrap
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict, config_dict

from kd import config
from kd.config import command_line, sections
from kd.config.rules import Key
from kd.errors import UserError
from kd.train import arms

ROOT = pathlib.Path(__file__).resolve().parents[3]


def leaves(node, path=()):
  for name, key in node.items():
    if isinstance(key, Key):
      yield (*path, name), key
    else:
      yield from leaves(key, (*path, name))


def study(**arms):
  made = config.defaults()
  made.student = {"name": "mlp", "hidden": (8,)}
  soft = {"objective": "soft", "temperature": 2.0, "divergence": "forward_kl"}
  made.arms = arms or {
    "hard": {"objective": "hard", "target": "answer"},
    "soft": soft,
  }
  return made


def override(made, *words):
  rest, overrides = command_line.split([f"--config.{w}" for w in words])
  assert not rest
  return command_line.override(made, overrides)


class OverrideTest(parameterized.TestCase):
  def test_words(self):
    rest, found = command_line.split(
      ["main.py", "--config=a.py", "--config.seeds=3", "--config.seed", "7"]
    )
    self.assertEqual(rest, ["main.py", "--config=a.py"])
    self.assertEqual(found, [("seeds", "3"), ("seed", "7")])
    with self.assertRaisesRegex(UserError, "--config.seed has no value"):
      command_line.split(["--config.seed"])

  @parameterized.parameters(
    ("signal.size=50", 50),
    ("signal.size=None", None),
    ("task.resident=True", True),
    ("task.resident=auto", "auto"),
    ("study=12", "12"),
    ("signal.labelled=true", True),
    ("signal.omit_classes=(3,)", (3,)),
    ("student.hidden=(30, 30)", (30, 30)),
    ("student.dropout=0.5", 0.5),
    ("teacher.name=mlp", "mlp"),
    ("arms.soft.temperature=3", 3.0),
    ("arms.soft.signal.rubric={'x': 1}", {"x": 1}),
    ("signal.rubric={'x': 1}", {"x": 1}),
    ("question=a=b", "a=b"),
    ("arms.soft.signal.size=50", 50),
    ("arms.soft.train.optimizer=sgd", "sgd"),
    ("train.learning_rate=1e-4", 1e-4),
    ("tune.space.temperature=(1.0, 2.0)", (1.0, 2.0)),
    ("tune.space.train.learning_rate=('log', 1e-3, 1)", ("log", 1e-3, 1)),
  )
  def test_a_value(self, word, expected):
    made = override(study(), word)
    for name in word.partition("=")[0].split("."):
      made = made[name]
    made = made.to_dict() if isinstance(made, ConfigDict) else made
    self.assertEqual(made, expected)

  def test_every_key_takes_its_usual_value_and_a_sweep(self):
    for path, key in leaves(sections.SECTIONS):
      if isinstance(key.default, dict):
        continue
      word = ".".join(path)
      made = override(study(), f"{word}={key.default}")
      made = override(made, f"{word}.sweep={(key.default,)!r}")
      made = override(made, f"{word}={key.default}")
      for name in path:
        made = made[name]
      self.assertEqual(made, key.default, word)

  @parameterized.parameters(
    ("arms.soft.temperature.sweep=(1.0, 2.0)", 3),
    ("arms.soft.student.hidden.sweep=((4,), (8, 8))", 3),
    ("arms.soft.divergence.sweep=('forward_kl', 'tvd')", 3),
    ("arms.soft.signal.size.sweep=(None, 50)", 3),
  )
  def test_a_plain_value_becomes_a_sweep_and_the_other_way_round(self, w, n):
    made = override(study(), w)
    self.assertLen(config.resolve(made)["arms"], n)
    key = w.partition(".sweep=")[0]
    value = {"temperature": 4.0, "hidden": (4,), "size": 20}
    value = value.get(key.rpartition(".")[2], "tvd")
    self.assertLen(config.resolve(override(made, f"{key}={value}"))["arms"], 2)

  @parameterized.parameters(
    ("arms.nobody.objective=hard", "no key arms.nobody.*hard, soft"),
    ("trian.steps=3", "no key trian.*train"),
    ("train=3", "train is a section"),
    ("arms.soft.temperature.x=3", "arms.soft.temperature is a value"),
    ("arms.soft.temperature.sweep=3", "expected a tuple"),
    ("arms.soft.temperature.sweep=(1.0, nan)", "of Python's literals"),
    ("sweep=(1,)", "expected --config.KEY=VALUE"),
    ("=3", "expected --config.KEY=VALUE"),
    ("arms..x=3", "expected --config.KEY=VALUE"),
  )
  def test_what_cannot_be_set(self, word, message):
    with self.assertRaisesRegex(UserError, message):
      override(study(), word)


class DerivedTest(absltest.TestCase):
  def test_references_follow_what_is_set(self):
    made = study()
    made.teacher.train.steps = made.train.get_ref("steps") * 2
    made.seeds = config_dict.placeholder(int)
    made.seed = config_dict.required_placeholder(int)
    with self.assertRaisesRegex(UserError, "the config lacks a value"):
      config.resolve(override(made, "seeds=3"))
    found = config.resolve(
      override(made, "train.steps=30", "seeds=3", "seed=7")
    )
    self.assertEqual(found["teacher"]["train"]["steps"], 60)
    self.assertEqual((found["seeds"], found["seed"]), (3, 7))
    self.assertEqual(made.train.steps, 400)  # a copy was changed

  def test_whole_numbers_make_the_study_that_floats_make(self):
    made, same = study(), study()
    made.signal.temperature, made.train.learning_rate = 4, 1
    same.signal.temperature, same.train.learning_rate = 4.0, 1.0
    made.signal.temperatures = (1.0,)
    found = [json.dumps(config.resolve(x)) for x in (made, same)]
    self.assertEqual(*found)

  def test_a_home_folder_is_found(self):
    words = ["teacher.path=~/a", "task.path=~/b", "task.data_dir=~"]
    words += ["signal.path=~/c", "arms.soft.signal.path=~/d"]
    with mock.patch.dict(os.environ, HOME="/home/me"):
      found = config.resolve(override(study(), *words))
    soft = found["arms"]["soft"]["signal"]["path"]
    self.assertEqual(found["teacher"]["path"], "/home/me/a")
    self.assertEqual(found["task"]["path"], "/home/me/b")
    self.assertEqual(found["task"]["data_dir"], "/home/me")
    self.assertEqual(
      (found["signal"]["path"], soft), ("/home/me/c", "/home/me/d")
    )

  def test_a_sweep_outside_of_arms(self):
    with self.assertRaisesRegex(
      UserError, "learning_rate is a sweep, which on"
    ):
      config.resolve(override(study(), "train.learning_rate.sweep=(1.0, 2.0)"))

  def test_a_sum_made_on_the_command_line(self):
    words = ["objective=hard + soft", "hard.target=answer", "hard.weight=0.1"]
    words += ["soft.temperature=2.0", "soft.divergence=tvd", "soft.weight=0.9"]
    made = study()
    made.arms.soft = {"objective": "soft"}
    found = override(made, *(f"arms.soft.{w}" for w in words))
    arms.group(config.resolve(found)["arms"])

  def test_what_is_no_config(self):
    made = study()
    made.arms.hard.baseline = ["x"]
    with self.assertRaisesRegex(UserError, "baseline = ..x.*: expected a text"):
      config.resolve(made)
    made = study()
    made.arms.soft.temperature = np.array(2.0)
    self.assertEqual(config.resolve(made)["arms"]["soft"]["temperature"], 2.0)
    made.arms.SOFT = made.arms.soft
    with self.assertRaisesRegex(UserError, "where case does not count"):
      config.resolve(made)
    made = study()
    made.train.warmup_steps = 400
    with self.assertRaisesRegex(UserError, "warmup_steps = 400: expected few"):
      config.resolve(made)

  def test_a_sweep_for_a_value_and_a_value_for_a_sweep(self):
    made = study().lock()
    made.arms.soft.temperature = config.sweep(1.0, 2.0)
    self.assertLen(config.resolve(made)["arms"], 3)
    made.arms.soft.temperature = 2.0
    self.assertLen(config.resolve(made)["arms"], 2)
    with self.assertRaises(AttributeError):
      made.arms.soft.temprature = 2.0

  def test_numpys_numbers(self):
    made = study()
    made.arms.soft.temperature = config.sweep(*np.float32([1, 2.5]))
    made.train.steps = np.int64(30)
    found = config.resolve(made)
    self.assertIn("soft[temperature=2.5]", found["arms"])
    self.assertIs(type(found["train"]["steps"]), int)


class FileTest(parameterized.TestCase):
  def read(self, text, argument=""):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(folder, "mine.py")
    path.write_text(textwrap.dedent(text))
    return command_line.read(f"{path}{argument}")

  def test_shipped_ones(self):
    for path in (ROOT / "configs").glob("*.py"):
      config.resolve(command_line.read(f"{path}:smoke"))

  @parameterized.parameters(
    ("def get_config():\n  return 1 / 0\n", "mine.py:2, in get_config: ZeroD"),
    ("def get_config(a):\n  return a.b\n", "mine.py:2, in get_config: Attrib"),
    ("def get_config():\n  return x\n", "mine.py:2, in get_config: NameError"),
    ("x = {}['k']\n", "mine.py:1, in <module>: KeyError: 'k'"),
    ("import nothing_here\n", "mine.py:1, in <module>: ModuleNotFound"),
    ("import sys\nsys.exit(3)\n", "mine.py:2, in <module>: SystemExit: 3"),
    ("def get_config():\n  pass\n", "returned NoneType, expected the Config"),
    ("x = 3\n", "mine.py: has no function get_config"),
    ("def get_config(:\n", "mine.py:1: "),
    ("get_config = 3\n", "mine.py"),
    ("raise KeyboardInterrupt", "mine.py:1, in <module>: KeyboardInterrupt"),
    ("raise ValueError", "mine.py:1, in <module>: ValueError"),
    ("exec('1+')", "mine.py:1, in <module>: SyntaxError: invalid syntax"),
    (
      "from kd.errors import UserError\nraise UserError('told')",
      "mine.py:2, in <module>: told",
    ),
    (
      "class E(Exception):\n  def __str__(self):\n    1 / 0\nraise E",
      "mine.py:4, in <module>: E$",
    ),
  )
  def test_faults_are_named_with_their_place(self, text, message):
    with self.assertRaisesRegex(UserError, message):
      self.read(text)

  def test_an_argument_that_is_not_taken(self):
    with self.assertRaisesRegex(UserError, "takes no argument"):
      self.read("def get_config():\n  pass\n", ":smoke")

  def test_dataclasses_neighbours_and_colons(self):
    folder = self.enterContext(tempfile.TemporaryDirectory(prefix="a:b"))
    pathlib.Path(folder, "beside_the_config.py").write_text("SEEDS = 3\n")
    path = pathlib.Path(folder, "mine.py")
    path.write_text(
      "from __future__ import annotations\n"
      "import dataclasses\n"
      "import beside_the_config\n"
      "from kd.config import defaults\n"
      "@dataclasses.dataclass\n"
      "class A:\n"
      "  x: int = 3\n"
      "def get_config(arg=''):\n"
      "  config = defaults()\n"
      "  config.study = arg\n"
      "  config.seeds = beside_the_config.SEEDS\n"
      "  return config\n"
    )
    made = command_line.read(f"{path}:x:y")
    self.assertEqual((made.study, made.seeds), ("x:y", 3))

  def test_a_file_at_home(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    text = "from kd.config import defaults as get_config\n"
    pathlib.Path(folder, "mine.py").write_text(text)
    with mock.patch.dict(os.environ, HOME=folder):
      self.assertEqual(command_line.read("~/mine.py").seeds, 5)

  def test_no_file(self):
    with self.assertRaisesRegex(UserError, "no file /nowhere.py"):
      command_line.read("/nowhere.py:smoke")


class EdgeTest(parameterized.TestCase):
  """Numbers that no machine holds, and names that are no names."""

  @parameterized.parameters(
    ("train.steps=3000000000", "train.steps = 3000000000"),
    ("train.batch_size=100000000", "train.batch_size = 100000000"),
    ("evaluate.bins=1000000000", "evaluate.bins = 1000000000"),
    ("evaluate.batch_size=100000000", "evaluate.batch_size"),
    ("teacher.seed=4294967296", "teacher.seed = 4294967296"),
    ("signal.seed=4294967296", "signal.seed"),
    ("task.seed=99999999999999999999", "task.seed"),
    ("train.learning_rate=1e39", "learning_rate = 1e\\+39"),
    ("train.learning_rate=1e-50", "learning_rate = 1e-50"),
    ("train.learning_rate=1" + "0" * 400, "learning_rate = 1000"),
    ("train.learning_rate=nan", "learning_rate = 'nan'"),
    ("signal.temperature=1e-46", "temperature = 1e-46"),
    ("study=/etc/passwd", "study = '/etc/passwd'"),
    ("study=" + "x" * 65, "study = 'xxx"),
  )
  def test_a_key(self, word, message):
    with self.assertRaisesRegex(UserError, message):
      config.resolve(override(study(), word))

  def test_the_last_seed(self):
    made = override(study(), "seed=4294967295", "seeds=1")
    self.assertEqual(config.resolve(made)["seed"], 2**32 - 1)

  @parameterized.parameters(
    ("/tmp/x",), ("a/b",), ("..",), ("x" * 300,), ("\ud83d",), ("a\nb",), ("",)
  )
  def test_a_name_that_is_none(self, name):
    hard = {"objective": "hard", "target": "answer"}
    for key in ("arms", "filters"):
      made = study().to_dict()
      made[key] = {**made[key], name: hard if key == "arms" else ()}
      with self.assertRaisesRegex(UserError, "expected a name of up to 64"):
        config.resolve(made)

  def test_names_of_sweeps_are_exact_and_differ(self):
    made = study()
    made.arms.soft.temperature = config.sweep(4.0, 4.0000001)
    self.assertEqual(
      list(config.resolve(made)["arms"]),
      ["hard", "soft[temperature=4]", "soft[temperature=4.0000001]"],
    )
    made.arms.soft.temperature = config.sweep(4.0, 4)
    with self.assertRaisesRegex(UserError, "two arms .*temperature=4"):
      config.resolve(made)

  def test_a_text_in_a_sweeps_name_is_no_path(self):
    made = study()
    made.arms.soft.signal = {"path": config.sweep("/a/b", "../c")}
    names = list(config.resolve(made)["arms"])
    self.assertEqual(
      names, ["hard", "soft[signal.path=_a_b]", "soft[signal.path=.._c]"]
    )

  def test_a_sweep_whose_names_are_too_long(self):
    made = study()
    made.arms.soft.signal = {"path": config.sweep("x" * 300)}
    with self.assertRaisesRegex(UserError, "expected at most 200"):
      config.resolve(made)


if __name__ == "__main__":
  absltest.main()
