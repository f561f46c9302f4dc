"""Model cards: what is said of an exported model, and what follows."""

from absl.testing import absltest
from scipy import stats as scipy_stats

from kd.evaluate.design import Design
from kd.report import card
from tests.kd.report import studies

SIGNAL = {
  "size": None,
  "omit_classes": (3,),
  "only_classes": (),
  "filter": "clean",
  "labelled": True,
}


def written(arm="soft", classes=None, onnx=None, **changes):
  """Returns a card of one run of a synthetic study, and the study."""
  results, config, _ = studies.synthetic(
    {"hard": 0.0, "soft": 0.01, "low": -0.01},
    omit=(3,),
    diverged={"soft": {"2": 40}},
  )
  for entry in results["arms"].values():
    entry["config"]["signal"] = SIGNAL
  results |= changes
  config["config"]["licence"] = {"model": "MIT", "data": "", "teacher": ""}
  names = [f"class {c}" for c in range(10)] if classes is None else classes
  about = {
    "study": {
      "name": "digits",
      "fingerprint": "01234567",
      "arm": arm,
      "seed": 1,
      "weights": "last",
    },
    "model": {"name": "mlp", "parameters": 1234},
    "input": {"shape": ["b", 8], "dtype": "uint8", "raw": {"kind": "image"}},
    "classes": names,
    "task": {
      "name": "digits",
      "version": "1.0.0",
      "slices": ["a", "b", "c", "seed 0"],
      "fingerprint": "0123",
      "about": "Some digits.",
    },
    "versions": {"jax": "0.12"},
    "checked": {
      "rows": 9,
      "largest_difference": {"probabilities": 2e-7},
      "lowered_for": ["cpu", "tpu"],
      "compiled_and_run_on": ["cpu"],
    },
    "onnx": onnx or {"file": None, "why": "jax2onnx not installed"},
  }
  return card.write(results, config, about), results


class CardTest(absltest.TestCase):
  def test_an_interval_is_students_over_units(self):
    values = [0.9, 0.92, None, 0.95, 0.9]
    kept = [v for v in values if v is not None]
    low, high = scipy_stats.t.interval(
      0.95, len(kept) - 1, sum(kept) / 4, scipy_stats.sem(kept)
    )
    found = card.interval({"values": values}, Design())
    self.assertAlmostEqual(found[0], low)
    self.assertAlmostEqual(found[1], high)
    self.assertIsNone(card.interval({"values": [0.9, None]}, Design()))
    # What one test example is worth is a spread of its own.
    wide = card.interval({"values": [0.9] * 4, "worth": 0.1}, Design())
    self.assertGreater(wide[1] - wide[0], 0.1)

  def test_what_follows_from_the_numbers(self):
    text, results = written()
    metrics = results["arms"]["soft"]["metrics"]
    wrong = 100 * (1 - metrics["accuracy"]["mean"])
    for said in (
      "# digits: soft, seed 1",
      "filtered by `clean`",
      "without the classes class 3",
      "- model: MIT",
      "- data: not stated",
      f"it answers {wrong:.1f} % of the test examples wrongly",
      "none of its 10 classes",
      "1 of 10 runs of this arm diverged",
      "There is no ONNX file: jax2onnx not installed.",
      "Not measured",
      "python main.py --config=configs/digits.py",
    ):
      self.assertIn(said, text)
    self.assertNotIn("best on validation", text)
    self.assertNotIn("Probabilities taken for frequencies", text)

  def test_classes_that_are_seldom_recognised(self):
    text, results = written(arm="low")
    mean = results["arms"]["low"]["metrics"]["recall_3"]["mean"]
    self.assertLess(mean, 0.4)
    self.assertIn(f"(recall): class 3 ({100 * mean:.0f} %).", text)

  def test_of_tokens(self):
    text, _ = written(classes="the tokenizer's ids")
    self.assertIn("of the next tokens wrongly", text)
    self.assertIn("Texts that people read unchecked", text)
    self.assertNotIn("it always names one of them", text)

  def test_cost_and_warnings_are_of_the_arm(self):
    own = {
      "making": {"total": 100.0},
      "payback_months": {"value": 2.5, "low": 2.0, "high": 4.0},
      "requests_a_month": {"value": "never", "low": "never", "high": "never"},
    }
    about = {
      "requests": 5e3,
      "unit": "EUR",
      "months": 12,
      "arms": {"soft": own},
    }
    said = ["Arm hard, seed 1: lost.", "Arm soft, seed 1: kept.", "All of it."]
    provenance = {"cost": about, "command": "python main.py"}
    text, _ = written(provenance=provenance, warnings=said)
    self.assertIn("At 5,000 requests a month `soft` pays for itself", text)
    self.assertIn("made for 100 EUR", text)
    self.assertNotIn("Arm hard", text)
    for kept in said[1:]:
      self.assertIn(f"Mind: {kept}", text)
    text, _ = written(arm="hard", provenance=provenance)
    self.assertNotIn("## Cost", text)

  def test_outside_the_task(self):
    entry = {"values": [0.5], "mean": 0.5, "std": 0.01}
    outside = {
      "sets": {
        "noise": {"words": "Gaussian noise", "labelled": True},
        "other": {"words": "other images", "labelled": False},
      },
      "teacher": {"noise": {"accuracy": 0.625}},
      "arms": {
        "soft": {
          "noise": {"accuracy": entry, "nll": entry},
          "other": {"fpr95": {**entry, "mean": 0.25}},
        }
      },
    }
    text, _ = written(outside=outside)
    self.assertIn("`noise`<br>Gaussian noise | 50.0 (62.5) |", text)
    self.assertIn("95 % of the test split keeps 25 % of `other` too.", text)
    self.assertNotIn("Not measured", text)
    text, _ = written(arm="hard", outside=outside)
    self.assertIn("Not measured", text)


if __name__ == "__main__":
  absltest.main()
