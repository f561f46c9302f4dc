"""Students that begin with weights, side by side, to the folder they leave."""

import json
import os
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx
from safetensors.numpy import load_file

from kd import config, models, study
from kd.data import tokenizers
from kd.data.registry import load
from kd.errors import UserError
from kd.models import functional
from kd.study import check, export, students
from kd.teachers import model as teachers
from kd.train import arms, loop, program
from kd.train.batches import Setup

SOFT = {"objective": "soft", "temperature": 1.0, "divergence": "forward_kl"}
LORA = {"rank": 2, "alpha": 4.0}
LENGTH = 16


def write_checkpoint(folder, seed=0):
  """Writes a language model of bytes."""
  tokenizer = tokenizers.of_bytes()
  model = models.create(
    "decoder",
    input_shape=(2, LENGTH),
    num_classes=tokenizer.vocab_size,
    layers=2,
    width=16,
    heads=2,
    mlp=24,
    rngs=nnx.Rngs(seed),
  )
  models.save_pretrained(model, folder)
  tokenizer.save(folder)
  return model


def options(folder, **own):
  """Returns a config with the language model of a folder as the teacher."""
  made = config.defaults()
  made.study, made.baseline, made.seeds = "small", "full", 2
  texts = os.path.join(os.path.dirname(folder), "texts.jsonl")
  if not os.path.exists(texts):
    lines = [json.dumps({"text": f"{i} and {i + 1}"}) for i in range(16)]
    pathlib.Path(texts).write_text("\n".join(lines))
  made.task.update({"name": "texts", "path": texts, "train": "train[:50%]"})
  made.task.update({"validation": "train[50%:75%]", "test": "train[75%:]"})
  made.task.tokens.length = LENGTH
  made.teacher.path = folder
  made.student = {"name": "checkpoint", "folder": folder}
  made.signal.samples = 0
  made.train.update({"steps": 2, "batch_size": 2, "log_every": 2})
  made.evaluate.update({"metric": "nll", "batch_size": 4})
  made.arms = {
    "full": SOFT,
    "lora": {**SOFT, "student": {"lora": LORA}},
    "part": {**SOFT, "student": {"freeze": ("embed", "layers.*.mlp")}},
    "cut": {
      **SOFT,
      "student": {"name": "decoder", "from_teacher": {"layers": (1,)}},
    },
  }
  made.update(own)
  return made


class StudentsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.parent = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = os.path.join(self.parent, "published")

  def bound(self, made):
    settings = config.resolve(made)
    task = load(settings["task"])
    groups = students.bind(check.config_alone(settings), settings, task)
    return settings, task, groups

  def exported(self, workdir, arm, **own):
    out = os.path.join(self.parent, "out", arm)
    export.export(workdir, arm, None, out, **own)
    return load_file(os.path.join(out, "model.safetensors")), out

  def test_a_study_of_all_kinds(self):
    write_checkpoint(self.folder)
    other = os.path.join(self.parent, "other")
    write_checkpoint(other, seed=1)
    before = load_file(os.path.join(other, "model.safetensors"))
    workdir = os.path.join(self.parent, "study")
    own = {"student": {"name": "checkpoint", "folder": other}}
    results = study.run(options(self.folder, **own), workdir)
    self.assertCountEqual(results["arms"], ["full", "lora", "part", "cut"])
    for x in results["disagreements"]["examples"]:
      self.assertEqual(x["input"]["kind"], "tokens")
      self.assertCountEqual(x["arms"], results["arms"])
    kept = json.loads(pathlib.Path(workdir, "config.json").read_text())
    starts = kept["starts"]["0"]
    self.assertEqual(starts["full"], starts["lora"])
    self.assertEqual(starts["full"], starts["part"])
    self.assertNotEqual(starts["full"], starts["cut"])
    moved = {}
    for arm in ("full", "lora", "part"):
      after, out = self.exported(workdir, arm)
      self.assertEqual(after.keys(), before.keys())
      moved[arm] = {k for k in before if np.any(after[k] != before[k])}
      self.assertEqual(
        tokenizers.load(out).fingerprint,
        tokenizers.load(self.folder).fingerprint,
      )
    self.assertEqual(moved["full"], {*before})
    self.assertEqual(moved["lora"], {k for k in before if "_proj" in k})
    held = {k for k in before if "embed" in k or ".mlp." in k}
    self.assertEqual(moved["part"], {*before} - held)
    cut, _ = self.exported(workdir, "cut")
    self.assertNotIn("model.layers.1.mlp.up_proj.weight", cut)
    with self.assertRaisesRegex(
      UserError, "--arm=none: expected one of cut, full"
    ):
      self.exported(workdir, "none")
    write_checkpoint(other, seed=2)
    with self.assertRaisesRegex(UserError, "arm 'full' began with weights of"):
      study.run(options(self.folder, **own), workdir, phase="train:")

  @parameterized.parameters(None, 0.9)
  def test_all_of_a_teacher_gives_its_logits(self, coverage):
    published = write_checkpoint(self.folder)
    made = options(self.folder)
    made.task.tokens.coverage = coverage
    made.arms = {
      "full": SOFT,
      "cut": {**SOFT, "student": {"name": "decoder", "from_teacher": {}}},
    }
    settings, task, groups = self.bound(made)
    teacher = teachers.load_checkpoint(settings["teacher"], task)
    os.makedirs(workdir := os.path.join(self.parent, "study"))
    pathlib.Path(workdir, "config.json").write_text("{}")
    start = students.Starts(workdir, 0, task, teacher)
    x = task.test.arrays()[0]
    ids = x[:, -1] if coverage else x[:, 0]
    theirs = published.logits(ids, segments_BxL=x[:, 1])
    for group, arrays in zip(groups, start(groups), strict=True):
      model = functional.create(
        group.student, task.signature, jax.random.key(1)
      )
      nnx.update(model, functional.filled(nnx.state(model), arrays))
      ours = model(x).logits.reshape(*ids.shape, task.num_classes)
      if not coverage:
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        continue
      # Positions before the first id that students don't know.
      known = np.cumprod(x[:, 0] < task.num_classes - 1, axis=1) > 0
      known &= x[:, 1] == 1
      self.assertTrue(known.any())
      columns = theirs[..., task.tokens.subset.ids]
      np.testing.assert_allclose(ours[known][:, :-1], columns[known], atol=1e-5)

  def test_runs_share_what_is_frozen_and_keep_what_they_train(self):
    write_checkpoint(self.folder)
    made = options(self.folder)
    more = {**LORA, "rank": 4}
    made.arms = {
      "full": {**SOFT, "student": {"lora": LORA}},
      "more": {**SOFT, "student": {"lora": more, "dtype": "bfloat16"}},
    }
    settings, task, groups = self.bound(made)
    os.makedirs(workdir := os.path.join(self.parent, "study"))
    pathlib.Path(workdir, "config.json").write_text("{}")
    start = students.Starts(workdir, 0, task, None)
    setup = Setup(task, {}, [0, 1], settings["train"], start=start)
    _, (first, second) = loop._start(groups, setup)
    pointer = lambda x: x.unsafe_buffer_pointer()
    self.assertEqual(
      [pointer(x) for x in jax.tree.leaves(first)],
      [pointer(x) for x in jax.tree.leaves(second)],
    )
    state = jax.eval_shape(
      program.make_init(groups, setup),
      jax.ShapeDtypeStruct((2,), np.uint32),
      arms.numbers_of(groups),
    )
    for own, group in zip(state, groups, strict=True):
      rank = group.student["lora"]["rank"]
      paths = [functional.dotted(p) for p, _ in nnx.to_flat_state(own.params)]
      self.assertLen(paths, 2 * 7 * 2)
      self.assertTrue(all(".lora_" in path for path in paths))
      self.assertTrue(rank in jax.tree.leaves(own.params)[0].shape)

  @parameterized.parameters(
    ({"folder": "nowhere"}, "student.folder = 'nowhere': no language model"),
    ({"lora": {"rank": 2}}, "student.lora.alpha is missing"),
    ({"lora": {**LORA, "rank": 0}}, "student.lora.rank = 0"),
    ({"lora": {**LORA, "parts": ("x",)}}, "student.lora.parts"),
    ({"lora": LORA, "freeze": ("embed",)}, "student.freeze = .*expected ()"),
    ({"freeze": ("embedding",)}, "'embedding' fits no weight"),
    ({"freeze": ("*",)}, "nothing is left to train"),
    ({"name": "decoder", "lora": LORA}, "begins with given weights"),
    (
      {"name": "decoder", "from_teacher": {"depth": 1}},
      "student.from_teacher.depth = 1: unknown key",
    ),
    (
      {"name": "decoder", "from_teacher": {"layers": (2,)}},
      r"from_teacher.layers = \(2,\): expected distinct numbers from 0 to 1",
    ),
    (
      {"name": "decoder", "from_teacher": {}, "width": 8},
      "student.width = 8: what .* cuts has the teacher's",
    ),
  )
  def test_what_is_refused(self, student, message):
    write_checkpoint(self.folder)
    made = options(self.folder)
    named = {"name": "checkpoint", "folder": self.folder}
    made.student = student if "name" in student else {**named, **student}
    made.arms = {"full": SOFT}
    with self.assertRaisesRegex(UserError, message):
      self.bound(made)

  def test_a_teacher_takes_no_options_of_students(self):
    write_checkpoint(self.folder)
    made = options(self.folder)
    made.teacher.lora = LORA
    with self.assertRaisesRegex(UserError, "teacher.lora"):
      self.bound(made)


if __name__ == "__main__":
  absltest.main()
