"""Checks of vocabularies: which ids are kept, and that two are one."""

import numpy as np
from absl.testing import absltest, parameterized

from kd.data import tokenizers, vocabulary
from kd.errors import UserError

CORPUS = [
  f"the {word} of the {word}s, {i}" for i in range(40) for word in "abc"
]


class SubsetTest(parameterized.TestCase):
  @parameterized.product(coverage=[0.3, 0.9, 1.0], keep=[(), (3, 49)])
  def test_covers_what_it_says_with_the_fewest(self, coverage, keep):
    ids = np.random.default_rng(0).zipf(1.5, 500).clip(0, 49)
    ids[ids == 3] = 4
    found = vocabulary.subset(ids, 50, coverage=coverage)
    covered = found.coverage(ids)
    self.assertGreaterEqual(covered, coverage)
    rarest = min(np.mean(ids == i) for i in found.ids)
    self.assertLess(covered - rarest, coverage)
    kept = vocabulary.subset(ids, 50, coverage=coverage, keep=keep)
    self.assertEqual(set(kept.ids), {*found.ids, *keep})
    self.assertEqual(
      found.fingerprint == kept.fingerprint, len(found) == len(kept)
    )

  def test_maps_there_and_back(self):
    found = vocabulary.subset(np.array([[7, 2], [2, 5]]), 9)
    self.assertEqual(found.ids.tolist(), [2, 5, 7])
    ids = np.array([[2, 7], [8, 5]])
    self.assertEqual(found.to_student(ids).tolist(), [[0, 2], [-1, 1]])
    self.assertEqual(found.to_student(ids, other=3).tolist(), [[0, 2], [3, 1]])
    kept = ids[:1]
    np.testing.assert_array_equal(
      found.to_teacher(found.to_student(kept)), kept
    )
    self.assertEqual(found.coverage(ids), 0.75)

  def test_ids_out_of_range(self):
    for ids, keep in (([0, 9], ()), ([0], (9,)), ([-1], ())):
      with self.assertRaisesRegex(UserError, "expected 0 to 8"):
        vocabulary.subset(np.array(ids), 9, keep=keep)
    with self.assertRaisesRegex(UserError, "coverage = 1.5"):
      vocabulary.subset(np.array([1]), 9, coverage=1.5)

  def test_refuses_other_vocabularies(self):
    ours = tokenizers.train_bpe(CORPUS, 265)
    vocabulary.refuse_others(ours, tokenizers.train_bpe(CORPUS, 265))
    with self.assertRaisesRegex(
      UserError, r"differ in 2 ids: 264 \(.*265 \(None"
    ):
      vocabulary.refuse_others(ours, tokenizers.train_bpe(CORPUS, 266))


if __name__ == "__main__":
  absltest.main()
