"""A language model as a teacher of classes: its prompt, its answers."""

import json
import os
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd import config, models, study
from kd.config import sections
from kd.data import inputs, registry, tokenizers
from kd.data.task import Split, Task
from kd.errors import UserError
from kd.models.decoder import Decoder
from kd.models.rope import Rope
from kd.models.spec import LayerSpec, Numerics, Spec
from kd.teachers import model, prompted
from tests.kd import oracles, small

NAMES = ("bad", "good", "so so")
SPEC = Spec(
  family="llama",
  vocab_size=257,
  width=16,
  mlp_width=24,
  heads=2,
  kv_heads=1,
  head_dim=8,
  layers=(LayerSpec(None, Rope(1e4)),) * 2,
  attention_scale=8**-0.5,
)


class Texts(Split):
  """Texts of letters, of lengths that differ; the class is row mod 3."""

  def __init__(self, size, seed):
    super().__init__(size, inputs.text_form("text", "label", 32), "texts")
    rng = np.random.default_rng(seed)
    self._texts = [
      "".join(rng.choice([*"abc {label}"], rng.integers(1, 40)))
      for _ in range(size)
    ]

  def _example(self, position, decode):
    return {"text": self._texts[position].encode(), "label": position % 3}


def task(count=60):
  form = inputs.text_form("text", "label", 32)
  return Task(
    name="letters",
    version="1",
    num_classes=3,
    class_names=NAMES,
    input_shape=form.shape,
    scale=form.scale,
    train=Texts(count, 0),
    validation=Texts(12, 1),
    test=Texts(12, 2),
    resident=True,
    slices=(),
  )


def section(folder, **prompt):
  made = sections.fill("teacher", {"path": folder, "fraction": 0.5})
  made["prompt"] |= {"shots": 4, "template": "T {text}\n= {label}", **prompt}
  return made


class PromptedTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    made = Decoder(SPEC, Numerics(), rngs=nnx.Rngs(0))
    state = nnx.state(made, nnx.Param)
    larger = lambda x: x * (15 if x.ndim > 1 else 1)
    nnx.update(made, jax.tree.map(larger, state))
    models.save_pretrained(made, cls.folder)
    tokenizers.of_bytes().save(cls.folder)
    cls.decoder = models.load_pretrained(cls.folder)

  def test_the_prompt(self):
    of = task()
    texts = of.train.texts()
    made = prompted.make(section(self.folder), of)
    shown = [s.removeprefix("T ") for s in made.before.split("\n\n")]
    rows = [texts.index(s.rpartition("\n= ")[0]) for s in shown]
    self.assertEqual([s.rpartition("= ")[2] for s in shown], [*NAMES, "bad"])
    self.assertEqual([r % 3 for r in rows], [0, 1, 2, 0])
    self.assertLess(max(rows), 30)  # of half of the split
    self.assertLen(set(rows), 4)
    self.assertEqual(
      bytes(made.prompts(["{text} x"])[0].tolist()), b"\n\nT {text} x\n="
    )
    self.assertEqual(
      [bytes(w) for w in made.words], [b" bad", b" good", b" so so"]
    )
    other = prompted.make(section(self.folder, seed=1), of)
    self.assertNotEqual(made.before, other.before)

  @parameterized.parameters(0, 4)
  def test_logits_are_those_of_whole_texts(self, shots):
    of = task()
    teacher = model.load_checkpoint(section(self.folder, shots=shots), of)
    rows = np.arange(20)[::-1]
    found = teacher.ask(of.train, rows, of, 18)
    made = teacher.reader.prompt
    forward = jax.jit(self.decoder.logits)
    for got, text in zip(found, of.train.texts(rows), strict=True):
      for z, name in zip(got, NAMES, strict=True):
        before = f"{made.before}\n\n" if shots else ""
        ids = f"{before}T {text}\n= {name}".encode()
        count = len(f" {name}")
        padded = np.zeros((1, 512), np.int32)  # what follows changes nothing
        padded[0, : len(ids)] = [*ids]
        lp = jax.nn.log_softmax(forward(jnp.array(padded))[0])
        places = np.arange(len(ids) - count, len(ids))
        expected = lp[places - 1, padded[0, places]].sum()
        oracles.assert_close(z, expected, atol=1e-3)

  def test_a_fingerprint_is_of_weights_and_prompt(self):
    of = task()
    prints = {
      model.load_checkpoint(section(self.folder, **keys), of).fingerprint
      for keys in ({}, {"seed": 1}, {"shots": 3}, {"words": ("a", "b", "c")})
    }
    self.assertLen(prints, 4)

  def test_a_study_with_two_priors(self):
    made = config.defaults()
    made.update(study="small", seeds=2)
    made.task.update(name="letters", train="a", validation="b", test="c")
    made.teacher.update(section(self.folder))
    made.student = {"name": "mlp", "hidden": (), "dropout": 0.0}
    made.train.update({"steps": 20, "log_every": 20})
    made.signal.pool = "rest"
    made.filters = {"sure": ({"name": "margin", "low": 0.01},)}
    priors = {"calibrate": config.sweep("none", "uniform"), "filter": "sure"}
    made.arms = {
      "hard": {**small.HARD, "signal": priors},
      "soft": {**small.SOFT, "signal": priors},
    }
    made.baseline = "hard[signal.calibrate=none]"
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with mock.patch.dict(registry.TASKS, letters=lambda section: task()):
      results = study.run(made, folder)
    self.assertLen(os.listdir(os.path.join(folder, "signals")), 1)
    funnels = results["signal"]["funnels"]
    self.assertEqual([*funnels], ["sure", "sure, calibrated"])
    self.assertEqual(funnels["sure"][0]["in"], 30)
    losses = [arm["metrics"]["nll"]["mean"] for arm in results["arms"].values()]
    self.assertLen(set(losses), 4)

  @parameterized.parameters(
    ({"template": "{text}"}, "template = '{text}': expected {text} once"),
    ({"template": "{text}{text}{label}"}, "{text} once"),
    ({"template": "{label}"}, "{text} once"),
    ({"words": ("a", "b")}, "words = a, b: expected a word for each of the 3"),
    ({"words": ("a", "b", "a")}, "words = a, b, a: expected words that differ"),
    (
      {"shots": 32},
      "shots = 32: 10 of the first 30 training examples are 'bad'",
    ),
  )
  def test_refuses(self, keys, message):
    with self.assertRaises(UserError) as caught:
      model.check(section(self.folder, **keys), task())
    self.assertIn(message, str(caught.exception))

  def test_refuses_a_text_that_is_too_long(self):
    path = pathlib.Path(self.folder, "config.json")
    own = json.loads(path.read_text()) | {"max_position_embeddings": 200}
    read = prompted.files.read_json
    short = lambda at, what: own if str(at) == str(path) else read(at, what)
    with (
      mock.patch.object(prompted.files, "read_json", side_effect=short),
      self.assertRaisesRegex(UserError, r"200 tokens, and text 10 of task.tr"),
    ):
      of = task()
      of.train._texts[10] = "a" * 400
      model.check(section(self.folder, shots=0), of)

  def test_refuses_what_is_no_text(self):
    of = registry.load(config.defaults().to_dict()["task"])
    with self.assertRaisesRegex(UserError, "'digits' has no texts"):
      model.check(section(self.folder), of)


if __name__ == "__main__":
  absltest.main()
