"""A prompted teacher that scores completions of texts with classes."""

import os
import pathlib
import tempfile
from unittest import mock

import jax
import msgspec
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd import config, models, study
from kd.compress import predict
from kd.data import registry, tfds_task, tokenizers
from kd.errors import UserError
from kd.models.decoder import Decoder
from kd.models.rope import Rope
from kd.models.spec import LayerSpec, Numerics, Spec
from kd.signals import calibrate
from kd.teachers import model, prompted
from kd.teachers.answers import Answers

NAMES = ("bad", "good")
SPEC = Spec(
  family="llama",
  vocab_size=257,
  width=16,
  mlp_width=24,
  heads=2,
  kv_heads=1,
  head_dim=8,
  layers=(LayerSpec(None, Rope(1e4)),),
  attention_scale=8**-0.5,
)


def read_texts(task, feature=""):
  del task, feature
  sizes = {"train": 10, "validation": 3, "test": 4}
  return {
    part: [(f"{part} {i}", f"{part[:2]} {i} abcdef", i % 2) for i in range(n)]
    for part, n in sizes.items()
  }


def settings(folder):
  c = config.defaults()
  c.study, c.seeds = "small", 1
  c.task.update({"name": "reviews", "train": "a", "test": "b"})
  c.task.validation = "c"
  c.task.tokens.update({"length": 24, "pack": False, "characters": 6})
  c.task.tokens.template = "<{text}>"
  c.teacher.update({"path": folder, "black_box": True, "fraction": 0.4})
  c.teacher.prompt.update({"shots": 2, "template": "{text}:\n{label}"})
  c.student = {"name": "decoder", "layers": 1, "width": 8, "heads": 2}
  c.signal.update({"pool": "rest", "samples": 2})
  c.filters = {"sure": ({"name": "confidence", "low": 0.4},)}
  c.train.update({"steps": 2, "log_every": 2, "batch_size": 2})
  c.evaluate.metric, c.evaluate.batch_size = "exact_match", 4
  c.evaluate.generate.update({"prompts": 4, "max_new_tokens": 3})
  ranked = {"scores": "log_probs", "length": "sum"}
  c.baseline = "hard"
  c.arms = {
    "hard": {"objective": "hard", "target": "answer", "signal": {"samples": 1}},
    "kd": {
      "objective": "sequence_kd",
      "several": "mean",
      "length": "sum",
      "signal": {"samples": 5, "filter": "sure"},
    },
    "rank": {"objective": "sequence_pairwise", "weights": None, **ranked},
    "truth": {
      "objective": "hard",
      "target": "truth",
      "signal": {"samples": 0, "labelled": True},
    },
  }
  return c


class ReviewsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    made = Decoder(SPEC, Numerics(), rngs=nnx.Rngs(0))
    larger = lambda x: x * (8 if x.ndim > 1 else 1)
    nnx.update(made, jax.tree.map(larger, nnx.state(made, nnx.Param)))
    models.save_pretrained(made, self.folder)
    tokenizers.of_bytes().save(self.folder)
    self.enterContext(
      mock.patch.multiple(
        tfds_task, read_texts=read_texts, text_classes=lambda _: NAMES
      )
    )

  def test_from_scored_completions_to_the_report(self):
    c = settings(self.folder)
    c.signal.calibrate = "uniform"
    workdir = pathlib.Path(self.folder, "run")
    results = study.run(c, str(workdir))
    lines = (workdir / "teacher" / "answers.jsonl").read_text().splitlines()
    answers = [msgspec.json.decode(line, type=Answers) for line in lines]
    # Of ten texts the first four may be the teacher's examples.
    self.assertEqual([a.prompt for a in answers[:2]], ["<tr 4 a>", "<tr 5 a>"])
    self.assertLen(answers, 6)
    task = registry.load(c.task.to_dict())
    teacher = model.load_checkpoint(c.teacher.to_dict(), task)
    texts = [a.prompt[1:-1] for a in answers]
    logits = teacher.reader.logits(texts)
    self.assertLen({int(np.argmax(z)) for z in logits}, 1)  # its own prior
    biases = calibrate.biases(logits)
    logits += biases
    self.assertLen({int(np.argmax(z)) for z in logits}, 2)
    for a, z in zip(answers, logits, strict=True):
      lp = z - np.logaddexp(*z)
      best = int(np.argmax(lp))
      own = {f" {name}": x for name, x in zip(NAMES, lp, strict=True)}
      self.assertLen(a.samples, 5)
      self.assertEqual(a.samples[0].text, f" {NAMES[best]}")
      self.assertEqual(a.samples[1].text, f" {NAMES[1 - best]}")
      for s in a.samples:
        self.assertAlmostEqual(s.logprob, own[s.text], places=4)
    self.assertEqual(
      [w["teacher"] for w in results["written"]],
      prompted.likeliest(teacher.reader, task, range(4), biases),
    )
    tokens = {k: a["teacher_tokens"] for k, a in results["arms"].items()}
    self.assertEqual(tokens["truth"], 0)
    self.assertLess(tokens["hard"], tokens["rank"])
    self.assertEqual(results["signal"]["funnels"]["sure"][0]["in"], 6)
    self.assertTrue(os.path.exists(workdir / "report.md"))
    folder = study.write_export(c, str(workdir), arm="kd")
    found = predict.Model(folder).logits(np.zeros((1, 24), np.int32))
    self.assertEqual(found.shape, (1, 24, 257))

  def test_draws_are_of_the_distribution(self):
    task = registry.load(settings("").task.to_dict())
    (made,) = prompted.completions(
      np.log([[0.2, 0.8]]), task, [0], samples=4002, temperature=0.5, seed=1
    )
    share = np.mean([s.text == " bad" for s in made[2:]])
    self.assertAlmostEqual(share, 0.04 / 0.68, delta=0.015)
    self.assertEqual([s.text for s in made[:2]], [" good", " bad"])
    self.assertAlmostEqual(made[0].logprob, np.log(0.8))

  @parameterized.parameters(
    ({"template": "no"}, "template = 'no': expected {text} once"),
    ({"template": "<{text}>", "name": "texts"}, "since task.name = 'texts'"),
  )
  def test_refuses(self, keys, message):
    task = settings("").task.to_dict()
    task["name"] = keys.get("name", task["name"])
    task["tokens"]["template"] = keys["template"]
    with self.assertRaises(UserError) as caught:
      registry.load(task)
    self.assertIn(message, str(caught.exception))


if __name__ == "__main__":
  absltest.main()
