"""The table of metrics: names, directions, and what a new entry reaches."""

import pathlib
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.evaluate import registry, scores, stats
from kd.report import results_table, sentences, style

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 400)
LOGITS = RNG.normal(size=(400, 5)).astype(np.float32)


def values(logits, labels, said=None):
  """Returns all metrics of one run, from its logits."""
  given = None if said is None or said.ndim > 1 else said >= 0
  each = scores.of_logits(logits, labels, said)
  classes = logits.shape[-1]
  return scores.values(each, labels, bins=15, num_classes=classes, given=given)


class DirectionTest(parameterized.TestCase):
  @parameterized.parameters(
    ("accuracy", 1), ("recall_3_best", 1), ("agreement_shifted", 1),
    ("validation_nll", -1), ("kl_to_teacher", -1), ("train_seconds", -1),
  )  # fmt: skip
  def test_direction(self, metric, sign):
    self.assertEqual(registry.direction(metric), sign)

  def test_unknown_metric(self):
    with self.assertRaisesRegex(UserError, "'charm'"):
      registry.direction("charm")


class NamesTest(absltest.TestCase):
  def test_every_metric_of_a_run_has_a_name(self):
    found = values(LOGITS, LABELS, LOGITS)
    self.assertLessEqual(set(found), set(registry.names(5, False)))
    self.assertIn("recall_4_shifted", registry.names(5, True))
    self.assertNotIn("recall_5", registry.names(5, True))
    self.assertFalse(any("recall" in n for n in registry.names(1000, False)))

  def test_of_a_black_box(self):
    box = registry.names(5, False, black_box=True)
    self.assertNotIn("kl_to_teacher", box)
    answers = np.where(LABELS == 3, -1, LABELS)
    found = values(LOGITS, LABELS, answers)
    self.assertEqual(set(found), {n for n in box if not n.endswith("_best")})
    same = (LOGITS.argmax(-1) == LABELS)[LABELS != 3].mean()
    self.assertAlmostEqual(float(found["agreement"]), same, 6)

  def test_many_classes_have_no_recall_each(self):
    logits = np.zeros((4, 101), np.float32)
    found = values(logits, LABELS[:4])
    self.assertEqual(
      set(found),
      {
        *("accuracy", "nll", "brier", "wrong_confident"),
        *("ece", "ece_equal_mass", "aurc"),
      },
    )


class PageTest(absltest.TestCase):
  def test_names_what_there_is(self):
    page = pathlib.Path(__file__).parents[3] / "docs" / "results.md"
    said = re.findall(r"^\| `([a-z_]+)(?:_C)?` \| ", page.read_text(), re.M)
    said = set(said[said.index("accuracy") :])
    self.assertEqual(said - set(registry.METRICS), {"best_step"})


class NewEntryTest(absltest.TestCase):
  """A metric is one function and one entry; all else follows from those."""

  def test_reaches_names_scores_tests_and_the_report(self):
    entry = registry.Metric(
      "top-2 accuracy",
      registry.PERCENT,
      +1,
      lambda metrics, at: jnp.any(jnp.argsort(at.logits)[-2:] == at.label),
      shown="table",
    )
    self.enterContext(
      mock.patch.dict(registry.METRICS, {"top2_accuracy": entry})
    )
    self.assertIn("top2_accuracy_best", registry.names(5, False))
    jax.clear_caches()  # the function is compiled anew
    found = values(LOGITS, LABELS, LOGITS)
    self.assertGreater(found["top2_accuracy"], found["accuracy"])
    of_arms = {
      arm: {"top2_accuracy": [0.7 + gain, 0.8 + gain, 0.71 + gain]}
      for arm, gain in {"hard": 0.0, "soft": 0.1}.items()
    }
    summary, _ = stats.summarise(
      of_arms,
      {"hard": None, "soft": "hard"},
      worth={"top2_accuracy": 0.0025},
    )
    arms = {
      arm: {"metrics": m, "baseline": None if arm == "hard" else "hard"}
      for arm, m in summary.items()
    }
    results = {"metric": "top2_accuracy", "arms": arms, "seeds": [0, 1, 2]}
    said = "\n".join(sentences.verdict(results))
    self.assertStartsWith(said, "**`soft` is the best arm on top-2 accuracy")
    self.assertIn("**: 83.7 % on average", said)
    table = results_table.table(results, style.styles(results), {})
    self.assertEqual(table.columns[1], "Top-2 accuracy (%)")


if __name__ == "__main__":
  absltest.main()
