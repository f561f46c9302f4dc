"""Checks what must hold of rows, whatever the documents."""

import chex
import numpy as np
from absl.testing import absltest, parameterized

from kd.data import tokens
from kd.data.tokens import Document
from kd.errors import UserError


def make(seed, n=60, longest=40, prompts=False):
  rng = np.random.default_rng(seed)
  documents = []
  for i, size in enumerate(rng.integers(2, longest + 1, n)):
    first = rng.integers(1, size) if prompts else 0
    ids = rng.integers(0, 1000, size).astype(np.int32)
    documents.append(Document(ids, np.arange(size) >= first, f"document {i}"))
  return documents


def segments(rows):
  """Yields (row, first, after the last) of each segment."""
  for r, found in enumerate(rows.x[:, 1]):
    for s in range(1, found.max() + 1):
      (at,) = np.nonzero(found == s)
      assert np.array_equal(at, np.arange(at[0], at[-1] + 1))
      yield r, at[0], at[-1] + 1


class RowsTest(parameterized.TestCase):
  @parameterized.product(
    seed=[0, 1],
    length=[16, 40, 100],
    packed=[True, False],
    prompts=[False, True],
  )
  def test_invariants(self, seed, length, packed, prompts):
    documents = make(seed, longest=length if prompts else 40, prompts=prompts)
    rows = tokens.rows(documents, length, pad=7, packed=packed)
    n = len(rows.x)
    chex.assert_shape([rows.weights, rows.labels, rows.documents], (n, length))
    self.assertEqual(
      (rows.x.dtype, rows.labels.dtype, rows.weights.dtype),
      (np.int32, np.int32, np.uint8),
    )
    # Every token once, in the order of its document, cut at L alone.
    pieces = []
    for r, start, end in segments(rows):
      (d,) = set(rows.documents[r, start:end])
      pieces.append((d, rows.x[r, 0, start:end].tolist()))
    expected = [
      (d, document.ids[i : i + length].tolist())
      for d, document in enumerate(documents)
      for i in range(0, len(document.ids), length)
    ]
    self.assertCountEqual(pieces, expected)
    # A position counts if the next is of its segment and to be predicted.
    ids, segment = rows.x[:, 0], rows.x[:, 1]
    r, at = np.nonzero(rows.weights)
    self.assertLess(at.max(), length - 1)
    np.testing.assert_array_equal(segment[r, at], segment[r, at + 1])
    self.assertTrue((segment[r, at] > 0).all())
    np.testing.assert_array_equal(rows.labels[r, at], ids[r, at + 1])
    self.assertFalse(rows.labels[rows.weights == 0].any())
    counted = sum(
      document.counts[i + 1 : i + length].sum()
      for document in documents
      for i in range(0, len(document.ids), length)
    )
    self.assertEqual(rows.positions, counted)
    # Padding stands at the end.
    padding = segment == 0
    self.assertTrue((np.diff(padding.astype(int), axis=1) >= 0).all())
    self.assertTrue((ids[padding] == 7).all())
    self.assertTrue((rows.documents[padding] == -1).all())
    self.assertAlmostEqual(rows.fill, 1 - padding.mean())

  def test_completions_alone_count(self):
    (document,) = make(3, n=1)
    document = document._replace(
      ids=np.arange(10, 16, dtype=np.int32), counts=np.arange(6) >= 4
    )
    rows = tokens.rows([document], 8, pad=0)
    self.assertEqual(rows.weights.tolist(), [[0, 0, 0, 1, 1, 0, 0, 0]])
    self.assertEqual(rows.labels.tolist(), [[0, 0, 0, 14, 15, 0, 0, 0]])

  def test_first_fit(self):
    documents = [
      Document(np.full(n, n, np.int32), np.ones(n, bool), "")
      for n in (5, 6, 3, 4, 2)
    ]
    rows = tokens.rows(documents, 8, pad=0)
    self.assertEqual(
      [[*map(int, np.unique(r[r > 0]))] for r in rows.x[:, 0]],
      [[3, 5], [2, 6], [4]],
    )
    self.assertEqual(rows.x[0, 1].tolist(), [1] * 5 + [2] * 3)

  def test_most_rows_are_half_full_and_in_order(self):
    documents = make(0, n=3000, longest=50)
    rows = tokens.rows(documents, 50, pad=0)
    filled = (rows.x[:, 1] > 0).sum(axis=1)
    self.assertLessEqual(np.sum(filled <= 25), 1)
    self.assertGreater(rows.fill, 0.9)
    within = np.diff(rows.documents, axis=1)[rows.x[:, 1, 1:] > 0]
    self.assertGreaterEqual(within.min(), 0)
    again = tokens.rows(documents, 50, pad=0)
    np.testing.assert_array_equal(rows.x, again.x)

  def test_refuses_what_cannot_be_learnt(self):
    ids = np.arange(9, dtype=np.int32)
    cases = (
      (np.arange(9) >= 3, 8, "a:7: 9 tokens, 3 of them the prompt; .* 8"),
      (np.zeros(9, bool), 9, "a:7: an empty completion"),
      (np.arange(9) < 1, 9, "a:7: an empty completion"),
      (np.ones(9, bool), 1, "length = 1: expected 2"),
    )
    for counts, length, words in cases:
      with self.assertRaisesRegex(UserError, words):
        tokens.rows([Document(ids, counts, "a:7")], length, pad=0)
    with self.assertRaisesRegex(UserError, "no document"):
      tokens.rows([], 8, pad=0)


if __name__ == "__main__":
  absltest.main()
