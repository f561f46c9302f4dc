"""Designs: which runs make a unit of evidence, and its mean."""

import numpy as np
from absl.testing import absltest

from kd.evaluate.design import Design, Level

NESTED = {
  "count": [2, 2],
  "vary": ["split", "teacher"],
  "levels": [
    {"name": "split", "of": [0, 0, 0, 0, 1, 1, 1, 1]},
    {"name": "teacher", "of": [0, 0, 1, 1, 0, 0, 1, 1]},
  ],
  "fixed": ["signal"],
}


class DesignTest(absltest.TestCase):
  def test_a_file_without_replicates_has_seeds(self):
    design = Design.of({})
    self.assertEqual((design, design.unit), (Design(), "seed"))
    np.testing.assert_array_equal(design.units(3), [0, 1, 2])
    np.testing.assert_array_equal(design.means([1.0, np.nan]), [1, np.nan])
    self.assertEqual(design.test_sets(3), 1)

  def test_reads_results(self):
    design = Design.of({"replicates": NESTED})
    self.assertEqual(design.levels[1], Level("teacher", (0, 0, 1, 1) * 2))
    self.assertEqual((design.unit, design.fixed), ("split", ("signal",)))
    np.testing.assert_array_equal(design.units(8), [0] * 4 + [1] * 4)
    # Groups are numbered within the level around, whatever their ids.
    np.testing.assert_array_equal(design.paths[1], [0, 0, 1, 1, 2, 2, 3, 3])
    self.assertEqual(design.test_sets(2), 2)
    one = Design.of({"replicates": NESTED | {"fixed": ["test set"]}})
    self.assertEqual(one.test_sets(2), 1)

  def test_means_are_nested_and_of_equal_weight(self):
    design = Design.of({"replicates": NESTED})
    d = np.array([0.0, 2.0, 4.0, 6.0, 1.0, 1.0, 2.0, 2.0])
    np.testing.assert_allclose(design.means(d), [3, 1.5])
    d[[0, 1, 2, 4, 5, 6, 7]] = [8, 8, np.nan, *[np.nan] * 4]
    # (8 + 8) / 2 and 6 alone: the lost run shifts no weight to the other group.
    np.testing.assert_allclose(design.means(d), [7, np.nan])
    both = np.stack([d, np.arange(8.0)])
    np.testing.assert_allclose(design.means(both), [[7, np.nan], [1.5, 5.5]])


if __name__ == "__main__":
  absltest.main()
