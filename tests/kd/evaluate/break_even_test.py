import doctest
import math
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from kd.config import costs, sections
from kd.errors import UserError
from kd.evaluate import prices, stats
from kd.evaluate.break_even import Estimate

DOCS = pathlib.Path(__file__).resolve().parents[3] / "docs"


def priced(**keys):
  """Makes the section `cost`, with prices by side."""
  return sections.fill("cost", {"requests": 1000.0, **keys})


def entry(values, seconds=(), **config):
  signal = dict(size=None, live=False, samples=0)
  train = dict(steps=10, batch_size=5)
  metrics = {"accuracy": {"values": values, "mean": float(np.mean(values))}}
  if seconds:
    metrics[prices.SECONDS] = {"values": list(seconds)}
  return {
    "config": {"signal": signal, "train": train, **config},
    "metrics": metrics,
  }


def study(**arms):
  return {
    "metric": "accuracy",
    "seeds": [0, 1, 2],
    "arms": arms,
    "signal": {"examples": 200},
    "provenance": {"latency_seconds": {"teacher": {"example": 0.1}}},
  }


HARD = dict(objective="hard", target="truth")
ANSWER = dict(objective="hard", target="answer")
SECONDS = {"label": 360.0, "train": 7200.0, "evaluate": 1800.0}


class BreakEvenTest(parameterized.TestCase):
  def test_examples_of_the_page(self):
    found = doctest.testfile(str(DOCS / "cost.md"), module_relative=False)
    self.assertEqual(found.failed, 0)
    self.assertGreater(found.attempted, 10)

  def test_interval_is_students_t_of_the_saving(self):
    seconds = (0.01, 0.02, 0.03)
    cost = priced(teacher=dict(call=0.001), student=dict(hour=36.0), people=5.0)
    found = prices.of(study(a=entry([1, 1, 1], seconds, **ANSWER)), cost, {})
    saved = 0.001 - np.array(seconds) * 0.01
    half = stats.quantile(3) * saved.std(ddof=1) / math.sqrt(3)
    low, high = saved.mean() - half, saved.mean() + half
    own = found["arms"]["a"]
    made = 5.0 + 200 * 0.001
    self.assertAlmostEqual(own["making"]["total"], made)
    requests = Estimate.read(own["requests"])
    np.testing.assert_allclose(
      requests, [made / saved.mean(), made / high, made / low]
    )
    months = Estimate.read(own["payback_months"])
    np.testing.assert_allclose(months.value, made / (1000 * saved.mean()))

  def test_a_low_end_that_saves_nothing_is_never(self):
    cost = priced(teacher=dict(call=0.001), student=dict(hour=36.0), people=5.0)
    seconds = (0.001, 0.05, 0.14)  # on average it saves, but who knows
    found = prices.of(study(a=entry([1, 1, 1], seconds, **ANSWER)), cost, {})
    requests = found["arms"]["a"]["requests"]
    self.assertIsInstance(requests["value"], float)
    self.assertEqual(requests["high"], "never")
    dear = study(a=entry([1, 1, 1], (1.0, 1.0, 1.0), **ANSWER))
    never = prices.of(dear, cost, {})["arms"]["a"]
    for key in ("requests", "requests_a_month", "payback_months"):
      self.assertEqual(set(never[key].values()), {"never"})

  def test_making_counts_who_was_asked_and_what_was_measured(self):
    cost = priced(
      teacher=dict(call=0.5, hour=10.0),
      labelling=0.25,
      training=3.0,
      evaluation=4.0,
      people=7.0,
    )
    votes = dict(objective="frequencies", samples=8, temperature=1.0)
    results = study(truth=entry([1], **HARD), votes=entry([1], **votes))
    of = lambda arm, cost: prices.making(
      results["arms"][arm], results, cost, SECONDS
    )
    self.assertEqual(
      of("truth", cost),
      {
        "teacher": 0.0,
        "labels": 50.0,
        "training": 6.0,
        "evaluation": 2.0,
        "people": 7.0,
        "total": 65.0,
      },
    )
    # 200 x 8 calls, and a tenth of an hour of the teacher's hardware.
    self.assertEqual(of("votes", cost)["teacher"], 801.0)
    self.assertEqual(of("votes", cost)["labels"], 0.0)
    share = of("truth", {**cost, "count": "run"})
    self.assertAlmostEqual(share["training"], 1.0)  # of 2 arms x 3 seeds

  def test_samples_axis_pairs_with_fewer_samples(self):
    of = lambda k: dict(objective="frequencies", samples=k, temperature=1.0)
    results = study(
      hard=entry([0.5, 0.5, 0.5], **ANSWER),
      many=entry([0.9, 0.8, 0.7], **of(16)),
      few=entry([0.6, 0.6, 0.6], **of(4)),
    )
    cost = priced(teacher=dict(call=0.01))
    few, many = prices.samples_axis(results, cost)
    self.assertEqual((few["arm"], few["cost"]), ("few", 8.0))
    self.assertEqual((many["arm"], many["more"]), ("many", 24.0))
    self.assertNotIn("brings", few)
    self.assertAlmostEqual(many["brings"]["difference"], 0.2)
    self.assertAlmostEqual(
      many["brings"]["low"], 0.2 - stats.quantile(3) * 0.1 / math.sqrt(3)
    )

  def test_the_teachers_hardware_takes_its_measured_seconds(self):
    cost = priced(teacher=dict(hour=3600.0, utilization=0.5))
    of = lambda **arms: prices.of(study(**arms), cost, {})["teacher"]
    of_call = of(a=entry([1], **ANSWER))["request"]["value"]
    self.assertAlmostEqual(of_call, 0.2)
    plain = entry([1, 1, 1], (0.2, 0.2, 0.2), objective="teacher")
    self.assertAlmostEqual(of(plain=plain)["request"]["value"], 0.4)

  @parameterized.parameters(
    (dict(), True, "teacher costs nothing"),
    (dict(teacher=dict(hour=1.0)), False, "cost.teacher.hour"),
    (
      dict(teacher=dict(call=1.0), student=dict(hour=1.0)),
      False,
      "student.hour",
    ),
    (dict(teacher=dict(out_1k=1.0)), True, "cost.completion_tokens = 0"),
  )
  def test_refuses_what_nothing_could_tell(self, keys, measured, said):
    with self.assertRaisesRegex(UserError, said):
      costs.check(priced(**keys), measured)
    costs.check(priced(**keys) | {"requests": 0.0}, measured)

  def test_refuses_a_price_below_0(self):
    with self.assertRaisesRegex(UserError, r"cost.teacher.call = -0.1: .*>= 0"):
      priced(teacher=dict(call=-0.1))


if __name__ == "__main__":
  absltest.main()
