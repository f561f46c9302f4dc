"""What a config may say of an arm's loss, and the words of it."""

import itertools

from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.objectives import terms
from kd.objectives.reads import PARTS
from kd.objectives.registry import OBJECTIVES

SIGNAL = {
  "keep": "dense",
  "k": 4,
  "temperatures": (1.0, 4.0),
  "samples": 8,
  "labelled": True,
}
SOFT = {"objective": "soft", "temperature": 4.0, "divergence": "forward_kl"}
TOP = {**SOFT, "objective": "top_k", "k": 4, "tail": "bucket"}
DIST = {"objective": "dist", "beta": 1.0, "gamma": 2.0, "temperature": 1.0}
DKD = {
  "objective": "dkd",
  "alpha": 1.0,
  "beta": 2.0,
  "temperature": 4.0,
  "target": "truth",
}
BEST = {"objective": "hard", "target": "best"}
RANK = {"objective": "list_net", "samples": 8, "scores": "votes"}
RANK |= {"temperature": 1.0}
ORDER = {"objective": "plackett_luce", "samples": 8, "scores": "votes"}
ORDER |= {"candidates": "all", "ties": "average"}
PAIRS = {"objective": "pairwise_logistic", "samples": 8, "scores": "votes"}
PAIRS |= {"candidates": "all", "weights": "difference"}


def check(arm, black_box=False, **section):
  return terms.check("arms.a", {**arm, "signal": SIGNAL | section}, black_box)


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    ({**SOFT, "divergence": ["jsd"]}, {}, r"divergence = \['jsd'\]: expected"),
    ({**SOFT, "divergence": None}, {}, "divergence = None: expected one of"),
    ({"objective": "soft", "temperature": 1.0}, {}, "divergence is missing"),
    ({**SOFT, "divergence": "jsd", "beta": 2.0}, {}, "beta = 2.0: expected"),
    ({"objective": ["soft"]}, {}, r"objective = \['soft'\]: expected one of"),
    ({**DKD, "target": "best"}, {}, "target = 'best': expected one of 'ans"),
    ({**DKD}, {"labelled": False}, "target = 'truth': the transfer set is"),
    (BEST, {"samples": 0}, "target = 'best': the best of signal.samples = 0"),
    ({**RANK, "samples": 9}, {}, "samples = 9: expected at most .* = 8"),
    ({**RANK, "scores": "scores"}, {}, "'scores': only a black box gives"),
    ({**ORDER, "scores": "log_probs"}, {}, "classes that were not sampled"),
    ({**PAIRS, "scores": "log_probs"}, {}, "classes that were not sampled"),
    (
      {**ORDER, "ties": "any"},
      {},
      "ties = 'any': takes every order of the cla",
    ),
    (
      {**ORDER, "ties": "mean", "candidates": "rest", "samples": 10},
      {"samples": 10},
      "samples = 10: ties = 'mean' takes every order; expected at most 9,",
    ),
    ({"objective": "preference", "samples": 8}, {}, "needs rejected altern"),
    (SOFT, {"keep": "top_k"}, "objective = 'soft': needs the logits of all"),
    (DKD, {"keep": "top_k"}, "objective = 'dkd': needs the logits of all"),
    (
      {**TOP, "k": 5},
      {"keep": "top_k"},
      "k = 5: expected at most signal.k = 4",
    ),
    (
      {**TOP, "temperature": 2.0},
      {"keep": "top_k"},
      r"temperature = 2.0: expected one of signal.temperatures = \(1.0, 4.0\)",
    ),
  )
  def test_what_a_trained_teachers_arm_may_not_say(self, arm, section, words):
    with self.assertRaisesRegex(UserError, f"^arms.a.*{words}") as caught:
      check(arm, **section)
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.parameters(SOFT, TOP, DIST, DKD)
  def test_a_black_box_has_no_logits(self, **arm):
    with self.assertRaisesRegex(UserError, "needs the teacher's logits"):
      check(arm, black_box=True)

  @parameterized.parameters(
    BEST, RANK, {**RANK, "scores": "scores"}, ORDER, PAIRS,
    {**ORDER, "ties": "any", "candidates": "rest"},
    {**ORDER, "ties": "mean", "candidates": "sampled"},
    {"objective": "preference", "samples": 8},
  )  # fmt: skip
  def test_what_a_black_box_may_have(self, **arm):
    self.assertLen(check(arm, black_box=True), 1)

  def test_a_part_of_a_sum_is_named(self):
    both = {"objective": "hard + top_k", "hard": {"target": "answer"}}
    both["hard"]["weight"] = 1.0
    keys = {k: v for k, v in TOP.items() if k != "objective"}
    both["top_k"] = {**keys, "k": 5, "weight": 1.0}
    with self.assertRaisesRegex(UserError, r"^arms.a.top_k.k = 5: expected at"):
      check(both, keep="top_k")
    both["top_k"]["k"] = 3
    _, top = check(both, keep="top_k")
    static = {"k": 3, "tail": "bucket", "divergence": "forward_kl"}
    self.assertEqual(top.static, static)
    self.assertEqual(top.numbers, {"temperature": 4.0, "weight": 1.0})

  @parameterized.parameters(
    (DKD, 2, "objective = 'dkd': undefined for 2 classes, .* at least 3"),
    (TOP, 3, "k = 4: expected at most the task's 3 classes"),
  )
  def test_what_the_task_has_too_few_classes_for(self, arm, classes, words):
    (term,) = check(arm)
    terms.check_classes("arms.a", term.name, term.static, classes + 1)
    with self.assertRaisesRegex(UserError, f"arms.a.{words}"):
      terms.check_classes("arms.a", term.name, term.static, classes)


class WordsTest(parameterized.TestCase):
  @parameterized.parameters(
    (SOFT, "teacher's distribution (T = 4, forward KL)"),
    (TOP, "the teacher's top 4 (T = 4, forward KL, tail = bucket)"),
    (DKD, "decoupled KD on true labels (alpha = 1, beta = 2, T = 4)"),
    (BEST, "cross-entropy on teacher's best-scored answers"),
    (
      PAIRS,
      "pairwise order of the teacher's samples (K = 8, scores = votes, "
      "candidates = all, weights = difference)",
    ),
    (
      {"objective": "hard + dist", "hard": {"weight": 0.5, "target": "answer"},
       "dist": {"weight": 1, "beta": 1.0, "gamma": 2.0, "temperature": 1.0}},
      "0.5 x cross-entropy on teacher's answers + 1 x relations within and "
      "between classes (beta = 1, gamma = 2, T = 1)",
    ),
  )  # fmt: skip
  def test_words(self, arm, expected):
    # What else stands in a resolved arm is not of its loss.
    others = {"signal": SIGNAL, "student": {"name": "mlp"}, "baseline": None}
    self.assertEqual(terms.words({**arm, **others}), expected)


class TableTest(parameterized.TestCase):
  @parameterized.parameters(*OBJECTIVES)
  def test_an_entry_reads_known_parts_and_says_its_needs(self, name):
    objective = OBJECTIVES[name]
    values = {
      key: [v for v in CHOICES if rule.accepts(v)]
      for key, rule in objective.keys.items()
      if f"{{{key}}}" in objective.reads
    }
    for chosen in itertools.product(*values.values()):
      static = dict(zip(values, chosen, strict=True))
      self.assertContainsSubset(terms.reads(name, static), PARTS)
    self.assertEqual(bool(objective.needs), objective.rows is not None)


CHOICES = (
  "answer",
  "truth",
  "best",
  "votes",
  "log_probs",
  "scores",
  "rejected",
  "worst",
)

if __name__ == "__main__":
  absltest.main()
