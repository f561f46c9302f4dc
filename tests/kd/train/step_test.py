"""A step's program, and what a look at the validation split notices."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd.models import functional
from kd.train import arms, program, step
from tests.kd import small


class LargeVocabularyTest(absltest.TestCase):
  def test_the_compiled_steps_hold_no_logits_of_a_batch(self):
    run, args = small.wide_program()
    text = run.lower(*args).compile().as_text()
    self.assertLess(small.widest(text), small.BATCH * small.CLASSES)


class ValidateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    groups, setup = small.study(small.settings({"soft": small.SOFT}))
    (made,) = program.make_init(groups, setup)(
      np.zeros(1, np.uint32), arms.numbers_of(groups)
    )
    cls.state = jax.tree.map(lambda x: x[0, 0], made)
    student = groups[0].student
    graphdef, _ = functional.define(student, setup.task.signature)
    x, y = (jnp.asarray(a[:50]) for a in setup.task.validation.arrays())
    examples = x, y, jnp.ones(50, bool)
    cls.look = lambda state: step.validate(graphdef, setup, examples, 7, state)

  def with_bias(self, value, *, scale=1.0, **changes):
    """Returns the state with another bias of a hidden unit, and the head's
    kernel scaled."""
    params = jax.tree.map(lambda x: x, self.state.params)
    bias, kernel = params["layers"][0]["bias"], params["head"]["kernel"]
    bias[...] = bias[...].at[0].set(value)
    kernel[...] = scale * kernel[...]
    return dataclasses.replace(self.state, params=params, **changes)

  def test_a_healthy_run(self):
    state, seen = type(self).look(self.with_bias(0.5))
    self.assertEqual((state.diverged, seen["diverged"]), (0, 0))
    self.assertEqual(state.best_step, 7)
    self.assertEqual(state.best_score, seen["validation_accuracy"])
    chex.assert_trees_all_equal(state.best, state.weights)

  @parameterized.parameters(
    {"value": float("nan")},
    {"value": float("inf")},
    {"value": -float("inf")},  # the unit is always 0, all logits are finite
    {"value": 1e30, "scale": 1e20},  # the weights are finite
  )
  def test_what_is_not_finite_is_marked_and_is_not_the_best(self, **weights):
    state, seen = type(self).look(self.with_bias(**weights))
    self.assertEqual((state.diverged, seen["diverged"]), (7, 7))
    self.assertEqual((state.best_step, state.best_score), (0, -np.inf))
    chex.assert_trees_all_equal(state.best, self.state.best)

  def test_a_mark_stays(self):
    marked = self.with_bias(float("nan"), diverged=jnp.int32(3))
    state, _ = type(self).look(marked)
    self.assertEqual((state.diverged, state.best_step), (3, 0))


if __name__ == "__main__":
  absltest.main()
