"""Mistakes in studies of tokens: each said in a line, before any compute."""

import json
import os
import pathlib
import shutil
import tempfile

import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized
from flax import nnx

from kd import config, models, study
from kd.data import tokenizers
from kd.errors import UserError
from tests.kd import small
from tests.kd.study.phases_test import call

L = 16
STUDENT = {"name": "decoder", "layers": 1, "width": 8, "heads": 2}
TOP = {
  **small.SOFT,
  "objective": "top_k",
  "temperature": 1.0,
  "k": 4,
  "tail": "bucket",
}
TEXTS = [
  f"text number {i} of some {'ABCDEFGHIJ'[i : i + 1]}" for i in range(20)
]
RAISING = "{{ raise_exception('no such role') }}"


def checkpoint(folder, template=None):
  """Writes a folder of a small language model that reads bytes."""
  model = models.create(
    "decoder",
    **{k: v for k, v in STUDENT.items() if k != "name"},
    num_classes=257,
    input_shape=(2, L),
    rngs=nnx.Rngs(0),
  )
  models.save_pretrained(model, folder)
  made = tokenizers.of_bytes()
  tokenizers.dataclasses.replace(made, chat_template=template).save(folder)


class MistakeTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.parent = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    checkpoint(str(cls.parent / "whole"))
    lines = [{"text": x} for x in TEXTS]
    cls.write("texts.jsonl", lines)

  @classmethod
  def write(cls, name, lines):
    path = cls.parent / name
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(path)

  def config(self, **changes):
    made = config.defaults()
    made.study, made.baseline, made.seeds = "tokens", "soft", 1
    made.student = dict(STUDENT)
    made.task.update(
      {"name": "texts", "path": str(self.parent / "texts.jsonl")}
    )
    made.task.tokens.length = L
    made.teacher.update(STUDENT)
    made.teacher.train.steps = 2
    made.train.update({"steps": 2, "batch_size": 4})
    made.evaluate.metric = "nll"
    made.arms = {"soft": small.SOFT}
    for key, value in changes.items():
      *path, last = key.split("__")
      section = made
      for name in path:
        section = section[name]
      if last == "path" and path == ["teacher"]:
        for name in STUDENT:
          del section[name]
      section[last] = value
    return made

  def refused(self, pattern, **changes):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with self.assertRaisesRegex(UserError, pattern) as caught:
      study.run(self.config(**changes), folder)
    self.assertNotIn("\n", str(caught.exception))
    for left in ("teacher/teacher.json", "signals"):
      self.assertFalse(os.path.exists(os.path.join(folder, left)))

  @parameterized.parameters(
    ("length = 1", dict(task__tokens__length=1)),
    ("task.tokens.tokenizer", dict(task__tokens__tokenizer="nowhere")),
    ("pairs for", dict(task__tokens__tokenizer="bpe")),
    ("task.path", dict(task__path="")),
    ("absent.jsonl", dict(task__path="/absent.jsonl")),
    ("absent/\\*", dict(task__path="/absent/*.txt")),
    ("digits", dict(task__name="digits", task__path="")),
    (
      "student.name = 'mlp'",
      dict(student={"name": "mlp", "hidden": (8,), "dropout": 0.0}),
    ),
    ("omit_classes", dict(signal__omit_classes=(1,))),
    ("shift_classes", dict(evaluate__shift_classes=(1,))),
    ("jitter", dict(signal__jitter=1)),
    ("jitter", dict(teacher__train__jitter=1)),
    ("metric", dict(evaluate__metric="recall_3")),
    ("metric", dict(evaluate__metric="nll_shifted")),
    ("k = 999", dict(signal__keep="top_k", signal__k=999, arms={"soft": TOP})),
    ("accumulate = 3", dict(train__accumulate=3)),
    ("size = 999", dict(signal__size=999)),
    ("group", dict(task__group="of")),
    ("task.path", dict(task__name="docstrings")),
    (
      "filter",
      dict(
        filters={"sure": (dict(name="confidence", low=0.2),)},
        signal__filter="sure",
      ),
    ),
    ("holds texts", dict(teacher__black_box=True, arms={"soft": small.HARD})),
    (
      "compares",
      dict(
        arms={
          "soft": dict(objective="dist", beta=1.0, gamma=1.0, temperature=1.0)
        },
        train__accumulate=2,
      ),
    ),
    ("pretrained", dict(teacher__pretrained=True)),
    (
      "from [0-9]+ to [0-9]+ ids",
      dict(
        replicates={"count": 3, "vary": ("split",)},
        task__tokens__coverage=1.0,
      ),
    ),
  )
  def test_of_the_config(self, pattern, changes):
    self.refused(pattern, **changes)

  def test_a_decoder_for_images(self):
    made = self.config(task__tokens__length=0, task__name="digits")
    made.task.path = ""
    made.evaluate.metric = "accuracy"
    with self.assertRaisesRegex(UserError, "decoder.*task.tokens.length"):
      study.run(made, str(self.parent / "study"))

  @parameterized.parameters(
    ("texts.jsonl:1: an empty completion", {"prompt": "a", "completion": " "}),
    (
      "texts.jsonl:[0-9]+: .*40 of them the prompt",
      {"prompt": "a" * 40, "completion": "b"},
    ),
    ("texts.jsonl:1: holds none", {"words": "a"}),
    ("texts.jsonl:[0-9]+: .*chat template", {"messages": [{"role": "user"}]}),
  )
  def test_of_a_line(self, pattern, line):
    path = self.write("bad_texts.jsonl", [line] * 10)
    self.refused(pattern, task__path=path)

  def damaged(self, name):
    folder = self.parent / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(self.parent / "whole", folder)
    return folder

  def test_a_live_teacher_of_more_ids(self):
    self.refused(
      "live = True.*coverage",
      teacher__path=str(self.parent / "whole"),
      task__tokens__coverage=0.9,
      signal__live=True,
    )

  def test_of_a_folder(self):
    folder = self.damaged("bad")
    refuse = lambda pattern, **more: self.refused(
      pattern, teacher__path=str(folder), **more
    )
    path = folder / "config.json"
    whole = path.read_text()
    about = json.loads(whole)
    for pattern, change in (
      ("'gpt_oss'", {"model_type": "gpt_oss"}),
      ("moons = 3", {"moons": 3}),
    ):
      path.write_text(json.dumps({**about, **change}))
      refuse(pattern)
    path.write_text(whole)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    arrays = safetensors.numpy.load_file(weights)
    name = "model.norm.weight"
    safetensors.numpy.save_file({**arrays, name: np.ones(3)}, weights)
    refuse("norm")
    wrong = {**arrays, name: np.ones(3, np.float32)}
    safetensors.numpy.save_file(wrong, weights)
    refuse(r"norm.weight has shape \[3\], config.json says \[8\]")
    weights.write_bytes(data[:-100])
    refuse("no whole safetensors file")
    index = {"weight_map": dict.fromkeys(arrays, "model-00001-of-00002.x")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse("model-00001-of-00002.x: no such file")

  def test_of_a_tokenizer(self):
    folder = self.damaged("other")
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text())
    vocab = rules["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(rules))
    self.refused("2 ids: 97 \\('b', 'a'\\), 98", teacher__path=str(folder))

  def test_of_a_template(self):
    for template, pattern in (
      (RAISING, "line.*no such role"),
      (None, "no chat template"),
      ("{% if %}", "template"),
    ):
      folder = str(self.damaged("chat"))
      checkpoint(folder, template)
      self.refused(
        pattern,
        task__path=self.write(
          "line.jsonl", [{"prompt": "a", "completion": "b"}] * 10
        ),
        task__tokens__chat=True,
        task__tokens__tokenizer=folder,
        teacher__path=folder,
      )

  def test_another_tokenizer_than_a_stores(self):
    folder = str(self.parent / "first")
    study.run(
      self.config(teacher__path=str(self.parent / "whole")), folder, "label"
    )
    (name,) = os.listdir(os.path.join(folder, "signals"))
    other = self.damaged("other")
    path = other / "tokenizer_config.json"
    about = json.loads(path.read_text())
    about["pad_token"] = "a"
    path.write_text(json.dumps(about))
    self.refused(
      "tokenizer = '.*', this study expects",
      teacher__path=str(other),
      task__tokens__tokenizer=str(other),
      signal__path=os.path.join(folder, "signals", name),
    )

  def test_from_the_command_line(self):
    path = self.write("empty.jsonl", [{"prompt": "a", "completion": ""}])
    code, err = call(
      "--config=configs/lm_tiny.py:smoke",
      "--config.task.name=texts",
      f"--config.task.path={path}",
      f"--workdir={self.parent / 'command'}",
    )
    self.assertEqual(code, 2, err)
    self.assertIn(f"error: {path}:1: an empty completion", err)


if __name__ == "__main__":
  absltest.main()
