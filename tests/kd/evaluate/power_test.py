"""Power against simulation, from components that are known."""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats as sps

from kd.errors import UserError
from kd.evaluate import power, stats
from kd.evaluate.design import Design, Level
from tests.kd.report.studies import REPLICATES, synthetic


class UnitsTest(parameterized.TestCase):
  @parameterized.parameters((1.0, 1), (2.0, 3), (3.0, 11))
  def test_studies_of_so_many_units_have_the_power(self, ratio, family):
    """Simulates that many: the outermost of `family` corrected tests."""
    sd, level = 0.01 * ratio, stats.LEVEL / family
    n = power.units(0.01, sd, level, 0.8)
    d = 0.01 + sd * np.random.default_rng(0).normal(size=(20_000, n))
    error = stats.standard_error(d)
    told = (stats.p_values(d.mean(-1), error, n) < level).mean()
    self.assertAlmostEqual(told, power.power(n, 0.01, sd, level), delta=0.01)
    self.assertGreater(told, 0.79)
    self.assertLess(power.power(n - 1, 0.01, sd, level), 0.8)

  @parameterized.product(n=(3, 30), shift=(0.5, 3.0))
  def test_is_the_noncentral_t(self, n, shift):
    limit = sps.t.ppf(0.975, n - 1)
    expected = sps.nct.sf(limit, n - 1, shift)
    expected += sps.nct.cdf(-limit, n - 1, shift)
    found = power.power(n, shift / np.sqrt(n), 1.0, 0.05)
    self.assertAlmostEqual(found, expected, 4)

  def test_bounds(self):
    for sd in (0.0, 1e-9):
      self.assertEqual(power.units(0.01, sd, 0.05, 0.8), 3)
    self.assertIsNone(power.units(1e-6, 1.0, 0.05, 0.8))


class SpreadsTest(absltest.TestCase):
  def test_are_of_a_units_mean(self):
    """Draws units of two splits' teachers with S seeds each, as nested."""
    of = [np.repeat(np.arange(4), 6), np.tile(np.repeat([0, 1, 2], 2), 4)]
    names = ("split", "teacher + signal")
    levels = zip(names, of, strict=True)
    design = Design(tuple(Level(k, tuple(v.tolist())) for k, v in levels))
    sd = {"split": 1.0, "teacher + signal": 2.0, "seed": 3.0, "test": 9.0}
    parts = {k: {"sd": v} for k, v in sd.items()}
    found = power.spreads(parts, design)
    rng = np.random.default_rng(0)
    for s in (1, 5):
      d = rng.normal(size=(40_000, 1, 1)) + 2 * rng.normal(size=(40_000, 3, 1))
      d = (d + 3 * rng.normal(size=(40_000, 3, s))).mean((1, 2))
      self.assertAlmostEqual(found[s], d.std(), delta=0.03)

  def test_without_a_part_of_its_own(self):
    design = Design((Level("split", (0, 1, 2)),))
    merged = {"split + seed": {"sd": 2.0}}
    self.assertEqual(power.spreads(merged, design), {1: 2.0})
    self.assertEqual(power.spreads({"seed": {"sd": 2.0}}, Design()), {1: 2.0})


class ReportTest(parameterized.TestCase):
  def table(self, results, **options):
    said, _ = power.report(results, **options).split("\n\n")
    head, *rows = (line.split("  ") for line in said.split("\n"))
    return [[c.strip() for c in row if c] for row in (head, *rows)]

  def test_replicates(self):
    results, _, _ = synthetic(
      {"hard": 0.0, "soft": 0.03, "rank": 0.01},
      replicates=REPLICATES,
      contrasts=("rank - soft", "rank - soft within 0.01", "hard - soft"),
    )
    head, *rows = self.table(results)
    self.assertEqual(
      head, ["difference", "had", "S = 1", "S = 2", "S = 5", "S = 10"]
    )
    self.assertEqual(
      [row[0] for row in rows], ["soft - hard", "rank - hard", "rank - soft"]
    )
    for row in rows:
      needed = [int(c) for c in row[2:]]
      self.assertEqual(needed, sorted(needed, reverse=True))
    self.assertIn("level 0.05 / 4", power.report(results))
    versus = results["arms"]["soft"]["metrics"]["accuracy"]["versus_baseline"]
    parts = versus["components"]
    sd = math.hypot(parts["split + signal"]["sd"], parts["seed"]["sd"])
    self.assertEqual(int(rows[0][2]), power.units(0.01, sd, 0.05 / 4, 0.8))

  def test_seeds_and_the_floor(self):
    results, _, _ = synthetic({"hard": 0.0, "soft": 0.03}, noise=0.001)
    head, row = self.table(results)
    self.assertEqual(head, ["difference", "had", "needed"])
    self.assertEqual(
      row[1:], ["10", str(power.units(0.01, 1 / 360, 0.05, 0.8))]
    )
    results["arms"]["soft"]["metrics"]["accuracy"]["worth"] = 0.1
    self.assertGreater(int(self.table(results)[1][2]), 100)
    self.assertEqual(self.table(results, difference=1e-4)[1][2], "> 10000")

  @parameterized.parameters(
    (dict(difference=0.0), "--difference=0: expected a number above 0"),
    (dict(difference=math.nan), "--difference=nan"),
    (dict(wanted=1.0), "--power=1: expected a number between 0 and 1"),
  )
  def test_out_of_range(self, options, message):
    results, _, _ = synthetic({"hard": 0.0, "soft": 0.03})
    with self.assertRaisesRegex(UserError, message):
      power.report(results, **options)

  def test_one_seed_tells_no_spread(self):
    results, _, _ = synthetic({"hard": 0.0, "soft": 0.03}, seeds=1)
    with self.assertRaisesRegex(UserError, "no difference of accuracy has"):
      power.report(results)

  def test_command(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    results, _, _ = synthetic({"hard": 0.0, "soft": 0.03})
    path = pathlib.Path(folder, "results.json")
    path.write_text(json.dumps(results))
    said = [self.run_main(x, "--power=0.9") for x in (folder, str(path))]
    self.assertEqual(said[0], (0, power.report(results, 0.01, 0.9) + "\n", ""))
    self.assertEqual(said[0], said[1])
    code, _, error = self.run_main(os.path.join(folder, "none"))
    self.assertEqual(code, 2)
    self.assertRegex(error, r"\Aerror: .*none: no readable study's res.*\n\Z")

  def run_main(self, *arguments):
    code = (
      "import sys; from kd.evaluate import power; sys.modules['jax'] = None; "
      "power.main(sys.argv[1:])"
    )
    done = subprocess.run(
      [sys.executable, "-c", code, *arguments],
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


if __name__ == "__main__":
  absltest.main()
