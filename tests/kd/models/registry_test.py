"""Models: shapes, randomness, options."""

import inspect
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from kd import models
from kd.config import rules
from kd.errors import UserError

IMAGES = np.random.default_rng(0).random((3, 9, 7, 2)).astype(np.float32)


def make(name, **options):
  return models.create(
    name, num_classes=5, input_shape=(9, 7, 2), rngs=nnx.Rngs(0), **options
  )


class ModelTest(parameterized.TestCase):
  @parameterized.parameters(
    ("mlp", {"hidden": (16, 8)}, 8),
    ("mlp", {"hidden": ()}, 126),
    ("cnn", {"channels": (4, 6), "hidden": 11}, 11),
    ("cnn", {"channels": (4,), "hidden": 0}, 5 * 4 * 4),
  )
  def test_features_and_head_make_the_logits(self, name, options, width):
    outputs = make(name, **options)(IMAGES)
    chex.assert_shape(outputs.hidden, (3, width))
    chex.assert_shape(outputs.kernel, (width, 5))
    chex.assert_shape(outputs.bias, (5,))
    np.testing.assert_allclose(
      outputs.logits,
      np.asarray(outputs.hidden) @ outputs.kernel + outputs.bias,
      rtol=1e-5,
      atol=1e-6,
    )

  @parameterized.parameters(
    ("mlp", {"dropout": 0.5}), ("mlp", {"input_dropout": 0.5}),
    ("cnn", {"dropout": 0.5}),
  )  # fmt: skip
  def test_dropout_is_drawn_in_training_alone(self, name, options):
    model = make(name, **options)
    a, b = (model(IMAGES).logits for _ in range(2))
    chex.assert_trees_all_equal(a, b)
    drawn = [model(IMAGES, nnx.Rngs(dropout=seed)).logits for seed in (1, 2)]
    self.assertGreater(np.abs(drawn[0] - drawn[1]).max(), 1e-3)

  def test_batch_statistics_are_updated_in_training_alone(self):
    model = make("cnn")

    def statistics():
      return jax.tree.map(np.array, nnx.state(model, nnx.BatchStat))

    before = statistics()
    model(IMAGES)
    chex.assert_trees_all_equal(before, statistics())
    model(IMAGES, nnx.Rngs(dropout=0))
    changed = [
      np.abs(a - b).max() > 0
      for a, b in zip(
        jax.tree.leaves(before), jax.tree.leaves(statistics()), strict=True
      )
    ]
    self.assertTrue(any(changed))

  def test_num_params(self):
    model = make("mlp", hidden=(16,))
    self.assertEqual(models.num_params(model), 126 * 16 + 16 + 16 * 5 + 5)
    # Scale and bias of the norm count, its running mean and variance do not.
    model = make("cnn", channels=(4,), hidden=0)
    self.assertEqual(
      models.num_params(model), 3 * 3 * 2 * 4 + 2 * 4 + 80 * 5 + 5
    )

  @parameterized.parameters(*models.MODELS)
  def test_every_option_has_a_rule_that_takes_its_default(self, name):
    kind = models.MODELS[name]
    options = {
      k: p.default
      for k, p in inspect.signature(kind.__init__).parameters.items()
      if p.kind is p.KEYWORD_ONLY and k != "rngs"
    }
    # What a study resolves before it makes a model (kd.study.students).
    before = {"from_teacher", "lora", "freeze"} - {*options}
    self.assertCountEqual({*kind.OPTIONS} - before, options)
    given = {k: v for k, v in options.items() if v is not inspect._empty}
    models.check("student", {"name": name, **given})

  @parameterized.parameters(
    ("mlp", {"hidden": (True,)}, r"student.hidden = \(True,\): expected a tup"),
    ("mlp", {"hidden": 16}, "hidden = 16: expected a tuple"),
    ("mlp", {"hidden": (0,)}, "whole number from 1 to 65536"),
    ("mlp", {"hidden": (10**9,)}, "whole number from 1 to 65536"),
    ("mlp", {"hidden": (1,) * 65}, "expected a tuple of at most 64"),
    ("mlp", {"hidden": ((16,),)}, "expected a tuple"),
    ("mlp", {"dropout": True}, r"dropout = True: expected a rate in \[0, 1"),
    ("mlp", {"dropout": float("nan")}, "dropout = nan"),
    ("mlp", {"input_dropout": 1.0}, "input_dropout = 1.0"),
    ("cnn", {"hidden": 10**9}, "hidden = 1000000000: expected a whole number"),
    ("cnn", {"channels": (4, 10**9)}, "channels = .* from 1 to 16384"),
    ("byte_cnn", {"hidden": 0}, "hidden = 0: expected a whole number from 1"),
    ("byte_cnn", {"embed": False}, "embed = False"),
    ("magika", {"hidden": 3}, "no option of model 'magika', which takes none"),
    (["mlp"], {}, r"student.name = \['mlp'\]: expected one of mlp"),
  )
  def test_options_out_of_range_are_refused(self, name, options, message):
    with self.assertRaisesRegex(UserError, message):
      models.check("student", {"name": name, **options})

  def test_nested_tuples_and_texts_are_options_too(self):
    stages = rules.tuple_of(
      rules.tuple_of(rules.integer(1, 9), most=2, least=2), most=3
    )
    model = mock.Mock(OPTIONS={"stages": stages, "norm": rules.TEXT})
    with mock.patch.dict(models.MODELS, own=model):
      for good in ((), ((1, 2),), [[3, 4], [5, 6]]):
        models.check("s", {"name": "own", "stages": good, "norm": "rms"})
      for bad in ((1, 2), ((1,),), ((1, 10),), (((1, 2),),)):
        with self.assertRaisesRegex(
          UserError, "stages = .*each a tuple of 2 t"
        ):
          models.check("s", {"name": "own", "stages": bad})

  def test_a_cnn_wants_images(self):
    with self.assertRaisesRegex(UserError, r"expected images .* \(126,\)"):
      models.create("cnn", num_classes=2, input_shape=(126,), rngs=nnx.Rngs(0))


if __name__ == "__main__":
  absltest.main()
