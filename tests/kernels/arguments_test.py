"""Wrong arguments raise, and say what was found and what is accepted."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from kernels import Head, Logits, TopK, distill_loss, token_log_probs
from kernels.arguments import ArgumentError
from tests.kernels import oracle


class ErrorTest(parameterized.TestCase):
  def call(self, student=None, teacher=None, **kw):
    z = np.zeros((3, 5), np.float32)
    kw = dict(divergence=oracle.forward_kl) | kw
    student = Logits(z) if student is None else student
    return distill_loss(
      student, Logits(z) if teacher is None else teacher, **kw
    )

  @parameterized.named_parameters(
    ("rank", dict(student=Logits(np.zeros((3, 5, 1), np.float32))), "student"),
    ("raw", dict(student=np.zeros((3, 5), np.float32)), "student.*ndarray"),
    ("int", dict(student=Logits(np.zeros((3, 5), int))), "values.*dtype int"),
    ("n", dict(teacher=Logits(np.zeros((4, 5), np.float32))), "N = 4.*N = 3"),
    ("v", dict(teacher=Logits(np.zeros((3, 6), np.float32))), "V = 6.*V = 5"),
    ("v_size", dict(teacher=Logits(np.zeros((3, 9), np.float32), 6)),
     "V = 9.*V = 5.*vocab_size <= 5"),
    ("cap", dict(student=Head(np.zeros((3, 2), np.float32),
                              np.zeros((2, 5), np.float32), soft_cap=-3)),
     "student.soft_cap.*-3.*number > 0"),
    ("scale", dict(teacher=Head(np.zeros((3, 2), np.float32),
                                np.zeros((2, 5), np.float32), scale="1")),
     "teacher.scale.*'1'.*number > 0"),
    ("h", dict(student=Head(np.zeros((3, 2), np.float32),
                            np.zeros((4, 5), np.float32))), "H = 2"),
    ("bias", dict(student=Head(np.zeros((3, 2), np.float32),
                               np.zeros((2, 5), np.float32),
                               np.zeros(4, np.float32))), r"bias.*\(5,\)"),
    ("label", dict(labels=np.array([0, 5, 1])), r"labels\[1\].*5.*0 to 4"),
    ("label_n", dict(labels=np.array([0, 1])), "labels"),
    ("label_dtype", dict(labels=np.zeros(3, np.float32)), "labels.*dtype"),
    ("no_labels", dict(hard_weight=0.5), "labels.*None"),
    ("weights", dict(weights=np.ones(4, np.float32)), "weights"),
    ("temperature", dict(temperature=0.0), "temperature.*> 0"),
    ("temperatures", dict(temperature=np.ones(2)), "temperature.*scalar"),
    ("divergence", dict(divergence="kl"), "divergence.*'kl'"),
    ("reduced", dict(divergence=lambda a, b: (a * b).sum()), "divergence"),
    ("name", dict(implementation="cuda"), "implementation.*'cuda'.*'xla'"),
    ("axis", dict(vocab_axis="model"), "vocab_axis.*model.*shard_map"),
    ("size", dict(student=Logits(np.ones((3, 5), np.float32), 6)), "6.*1 to 5"),
  )  # fmt: skip
  def test_distill_loss(self, kw, message):
    with self.assertRaisesRegex(ArgumentError, message):
      self.call(**kw)

  def test_both_kinds_of_exception_catch_it(self):
    for kind in (ValueError, TypeError):
      with self.assertRaises(kind):
        self.call(divergence=None)

  def test_top_k(self):
    lp = np.full((3, 2), -1.0, np.float32)
    ids = np.zeros((3, 2), np.int32)
    for topk, message in (
      (TopK(ids + 5, lp), r"ids\[0, 0\].*5.*0 to 4"),
      (TopK(ids - 1, lp), "-1"),
      (TopK(ids, lp, "uniform"), "tail.*'uniform'.*'bucket'"),
      (TopK(ids[:2], lp[:2]), "N = 2.*N = 3"),
      (TopK(ids, lp[:, :1]), "log_probs.*shape"),
      (TopK(lp, lp), "ids.*dtype"),
      (TopK(np.zeros((3, 6), int), np.zeros((3, 6), np.float32)), "K = 6"),
    ):
      with self.assertRaisesRegex(ArgumentError, message):
        self.call(teacher=topk)

  def test_token_log_probs(self):
    z = Logits(np.zeros((3, 5), np.float32))
    for args, message in (
      ((z, np.array([0, 1, 5])), r"ids\[2\].*5.*0 to 4"),
      ((z, np.array([0, 1])), "ids.*shape"),
      ((z, np.zeros(3, np.float32)), "ids.*dtype"),
      ((z.values, np.zeros(3, int)), "head_or_logits"),
    ):
      with self.assertRaisesRegex(ArgumentError, message):
        token_log_probs(*args)

  def test_traced_labels_out_of_range_show(self):
    loss = jax.jit(lambda y: self.call(labels=y, hard_weight=1.0)[0])
    self.assertTrue(np.isnan(loss(np.array([0, 1, 5]))))
    score = jax.jit(lambda y: token_log_probs(Logits(np.zeros((2, 3))), y))
    np.testing.assert_array_equal(np.isnan(score(np.array([2, -1]))), [0, 1])


if __name__ == "__main__":
  absltest.main()
