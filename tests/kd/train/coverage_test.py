"""What is absent must not count: in a batch's loss, and in a transfer set."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from kd import signals
from kd.errors import UserError
from kd.models.outputs import Outputs
from kd.train import arms, coverage, loop
from kd.train.batches import Live, Transfer, transfer_of
from tests.kd import small

V, K, H = 5, 4, 3
NAN = float("nan")
# Rows: whole; no truth; no score; no rejected, one answer; nothing at all.
IDS = [[0, 1, 1, 2], [3, 3, 4, 0], [2, 1, 0, 0], [4, 4, 4, 4], [-1] * K]
SCORES = [[3, 1, 1, 2], [1, 2, 3, 4], [NAN] * K, [1, 1, 1, 1], [NAN] * K]
REJECTED = [[3, 4], [1, -1], [0, 3], [-1, -1], [2, -1]]
B = len(IDS)
RNG = np.random.default_rng(0)
STUDENT = Outputs(
  jnp.asarray(RNG.normal(size=(B, H)), jnp.float32),
  jnp.asarray(RNG.normal(size=(H, V)), jnp.float32),
  jnp.asarray(RNG.normal(size=V), jnp.float32),
)
DENSE = signals.Dense(jnp.asarray(RNG.normal(size=(B, V)), jnp.float32))
SIGNAL = signals.Signal(
  truth=signals.Labels(jnp.array([1, -1, 2, 3, -1])),
  answer=signals.Labels(jnp.array([1, 3, 0, 4, -1])),
  dense=DENSE,
  samples=signals.Samples(
    jnp.array(IDS),
    jnp.array(SCORES) - 5.0,
    jnp.array(SCORES, jnp.float32),
  ),
  rejected=jnp.array(REJECTED),
)
RANKED = {"samples": K, "candidates": "sampled"}
# Each arm, and the rows that have what it reads.
ARMS = {
  "truth": ({"objective": "hard", "target": "truth"}, [0, 2, 3]),
  "answer": (small.HARD, [0, 1, 2, 3]),
  "best": ({"objective": "hard", "target": "best"}, [0, 1, 3]),
  "dkd": (
    {"objective": "dkd", "target": "truth", "alpha": 1.0, "beta": 2.0,
     "temperature": 2.0},
    [0, 2, 3],
  ),
  "frequencies": (
    {"objective": "frequencies", "samples": K, "temperature": 2.0},
    [0, 1, 2, 3],
  ),
  "acceptable": (
    {"objective": "acceptable", "samples": K, "temperature": 2.0},
    [0, 1, 2, 3],
  ),
  "preference": ({"objective": "preference", "samples": K}, [0, 1, 2]),
  "list_net": (
    {"objective": "list_net", "samples": K, "scores": "scores",
     "temperature": 1.0},
    [0, 1, 3],
  ),
  "plackett_luce": (
    {**RANKED, "objective": "plackett_luce", "scores": "log_probs",
     "ties": "average"},
    [0, 1, 3],
  ),
  "plackett_luce_of_all": (
    {**RANKED, "objective": "plackett_luce", "scores": "votes",
     "candidates": "all", "ties": "average"},
    [0, 1, 2, 3],
  ),
  "pairwise": (
    {**RANKED, "objective": "pairwise_logistic", "scores": "scores",
     "weights": None},
    [0, 1],
  ),
  "pairwise_of_all": (
    {**RANKED, "objective": "pairwise_logistic", "scores": "votes",
     "candidates": "all", "weights": "difference"},
    [0, 1, 2, 3],
  ),
  "sum": (
    {"objective": "hard + soft",
     "hard": {"target": "truth", "weight": 0.5},
     "soft": {"temperature": 2.0, "divergence": "tvd", "weight": 2.0}},
    None,
  ),
}  # fmt: skip
SECTION = {
  "labelled": True, "samples": K, "keep": "dense", "live": False, "k": 1,
}  # fmt: skip

BASE = {
  k: small.settings({"arm": small.HARD})["arms"]["arm"][k]
  for k in ("student", "train")
}


def group_of(arm, **section):
  """Returns the group of one arm, of a teacher that leaves what it reads."""
  whole = dict(arm, **BASE, signal=SECTION | section)
  boxed = arm["objective"] == "preference" or arm.get("scores") == "scores"
  (group,) = arms.group({"arm": whole}, V, black_box=boxed)
  return group


def transfer(rows=None, signal=SIGNAL, **options):
  rows = np.arange(B)[None] if rows is None else np.asarray(rows)
  return Transfer(inputs=None, signal=signal, rows=rows, **options)


def bind(group, transfer):
  (bound,) = coverage.bind([group], [{transfer_of(group.signal): transfer}], V)
  return bound


def losses(parts, signal=SIGNAL):
  """Returns each part's loss and gradients on a batch."""
  return losses_of([(part, STUDENT, signal) for part in parts])


def losses_of(cases):
  """Returns the same of (part, student, signal), all in one program."""

  def one(part, student, signal):
    numbers = jax.tree.map(lambda x: x[0], part.numbers)
    fn = lambda s: part.loss(s, signal, numbers)
    value, slope = jax.value_and_grad(fn)(student)
    return value, slope.hidden, slope.kernel, slope.bias

  students, batches = zip(*((s, b) for _, s, b in cases), strict=True)
  return jax.jit(
    lambda *args: [
      one(part, *given) for (part, *_), *given in zip(cases, *args, strict=True)
    ]
  )(students, batches)


def paths(part):
  """Returns a part by the formulas, and through the kernels."""
  return [dataclasses.replace(part, fused_from=v) for v in (V + 1, 2)]


def batch_of(rows):
  """Returns (student, signal) of some rows."""
  at = jnp.asarray(rows)
  student = Outputs(STUDENT.hidden[at], STUDENT.kernel, STUDENT.bias)
  return student, SIGNAL.at(at)


class RowsThatCountTest(parameterized.TestCase):
  def test_the_loss_is_the_mean_over_rows_that_have_what_it_reads(self):
    cases = []
    whole = {name: rows for name, (_, rows) in ARMS.items() if rows}
    for name, rows in whole.items():
      part = group_of(ARMS[name][0]).parts[0]
      cases += [(p, STUDENT, SIGNAL) for p in paths(part)]
      # The plain mean of a batch that has those rows alone.
      part = dataclasses.replace(part, partial=(False,))
      cases.append((part, *batch_of(rows)))
    found = losses_of(cases)
    chex.assert_tree_all_finite(found)
    for i, (name, rows) in enumerate(whole.items()):
      by_formula, by_kernels, few = found[3 * i : 3 * i + 3]
      hidden = np.zeros((B, H), np.float32)
      hidden[rows] = few[1]
      expected = few[0], hidden, *few[2:]
      for way, values in (("formula", by_formula), ("kernels", by_kernels)):
        with self.subTest(name, way=way):
          chex.assert_trees_all_close(values, expected, rtol=1e-4, atol=1e-6)

  def test_each_term_of_a_sum_has_rows_of_its_own(self):
    arm, _ = ARMS["sum"]
    found = losses(paths(group_of(arm).parts[0]))
    hard, _ = ARMS["truth"]
    soft = {**small.SOFT, "temperature": 2.0, "divergence": "tvd"}
    alone = losses([group_of(a).parts[0] for a in (hard, soft)])
    expected = jax.tree.map(lambda a, b: 0.5 * a + 2.0 * b, *alone)
    for values in found:
      chex.assert_trees_all_close(values, expected, rtol=1e-4, atol=1e-6)

  def test_a_batch_of_which_no_row_counts_teaches_nothing(self):
    none = SIGNAL.at(jnp.full(B, B - 1))
    parts = [
      part
      for name, (arm, _) in ARMS.items()
      if name != "sum"
      for part in paths(group_of(arm).parts[0])
    ]
    found = losses(parts, none)
    chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, found))

  def test_where_every_row_counts_the_mean_is_the_plain_one(self):
    batch, cases = batch_of([0, 0, 1]), []
    for name in ("answer", "best", "pairwise"):
      for part in paths(group_of(ARMS[name][0]).parts[0]):
        known = dataclasses.replace(part, partial=(False,))
        cases += [(part, *batch), (known, *batch)]
    found = losses_of(cases)
    chex.assert_trees_all_close(found[::2], found[1::2], rtol=1e-5, atol=1e-7)


class TransferTest(parameterized.TestCase):
  @parameterized.parameters(*ARMS)
  def test_which_terms_lack_something(self, name):
    arm, rows = ARMS[name]
    group = group_of(arm)
    (part,) = bind(group, transfer()).parts
    self.assertEqual(part.partial, (True,) if rows else (True, False))
    (part,) = bind(group, transfer([rows or [0, 2]])).parts
    self.assertFalse(any(part.partial))

  @parameterized.parameters(
    ("truth", "'hard' reads truth, and none of the 2 .* has such a label"),
    ("best", "'hard' reads best, and none"),
    ("dkd", "'dkd' reads logits, truth, and none"),
    ("frequencies", "reads samples, .* has a sample$"),
    ("acceptable", "reads samples, .* that is not rejected"),
    ("preference", "reads rejected, samples, .* rejected alternative"),
    ("list_net", "reads scores, samples, .* a sample with such a score"),
    ("plackett_luce", "reads log_probs, samples, "),
    ("pairwise", "reads scores, samples, .* that such scores tell apart"),
    ("sum", "'hard' reads truth"),
  )
  def test_nothing_to_learn_from_is_refused_by_the_arms_name(self, name, words):
    group = group_of(ARMS[name][0])
    rows = [[0, 1], [B - 1, B - 1]]  # of the second seed
    with self.assertRaisesRegex(UserError, f"^arms.arm: .*{words}"):
      bind(group, transfer(rows))

  def test_two_classes_with_equal_votes_have_no_order(self):
    arm = {**ARMS["pairwise_of_all"][0], "samples": 2}
    group = group_of(arm)
    ids = jnp.array([[0, 1], [0, 0]])
    labels = signals.Labels(ids[:, 0])
    none = jnp.full(ids.shape, jnp.nan)
    made = signals.Signal(labels, labels, None, signals.Samples(ids, none))
    key = transfer_of(group.signal)
    for classes, lacking in ((2, True), (3, False)):
      both = {key: transfer([[0, 1]], made)}
      (bound,) = coverage.bind([group], [both], classes)
      self.assertEqual(bound.parts[0].partial, (lacking,))

  def test_a_live_teacher_answers_every_row(self):
    labels = signals.of_labels(np.array([1, -1, 2]))
    live = Live({}, None, samples=K, temperature=1.0)
    for name, lacking in (
      ("answer", False), ("frequencies", False), ("best", False),
      ("truth", True), ("pairwise_of_all", False), ("soft", False),
    ):  # fmt: skip
      arm = small.SOFT if name == "soft" else ARMS[name][0]
      group = group_of(arm, live=True)
      seen = transfer([[0, 1, 2]], labels, live=live)
      self.assertEqual(bind(group, seen).parts[0].partial, (lacking,), name)
    with self.assertRaisesRegex(UserError, "reads truth"):
      group = group_of(ARMS["truth"][0], live=True)
      bind(group, transfer([[1]], labels, live=live))

  def test_a_pool_is_counted_from_its_first_row(self):
    group = group_of(ARMS["truth"][0])
    rows = np.array([[7, 9]])  # the pool's rows 0 and 2
    bound = bind(group, transfer(rows, first=7))
    self.assertEqual(bound.parts[0].partial, (False,))


class TrainingTest(absltest.TestCase):
  def test_few_labels_train_alike_by_both_paths(self):
    both = {
      "objective": "hard + soft",
      "hard": {"target": "truth", "weight": 0.5},
      "soft": {"temperature": 4.0, "divergence": "forward_kl", "weight": 0.5},
    }
    resolved = small.settings(
      {"truth": ARMS["truth"][0], "both": both},
      steps=10,
      signal={"labelled": True},
      train={"batch_size": 8},
    )
    found = []
    for fused_from in (2, 1000):
      groups, setup = small.study(resolved, seeds=(0,), fused_from=fused_from)
      ((name, given),) = setup.transfers.items()
      truth = np.asarray(given.signal.truth.ids)
      few = np.where(np.arange(len(truth)) % 16, -1, truth)  # no label in some
      signal = dataclasses.replace(
        given.signal, truth=signals.Labels(jnp.asarray(few))
      )
      transfers = {name: dataclasses.replace(given, signal=signal)}
      setup = dataclasses.replace(setup, transfers=transfers)
      groups = coverage.bind(groups, [transfers], setup.task.num_classes)
      self.assertTrue(groups[0].parts[0].partial[0])
      logs = []
      states = loop.fit(groups, setup, on_log=logs.append)
      for state in states.values():
        self.assertFalse(np.any(state.diverged))
      found.append({k: v["loss"] for k, v in logs[0].arms.items()})
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)
    # Batches without a label move nobody who learns from labels alone.
    self.assertIn(0.0, found[0]["truth"])


if __name__ == "__main__":
  absltest.main()
