"""A study that knows its teacher by its answers alone."""

import gzip
import json
import os
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from kd import config, study
from kd.data.registry import load
from kd.errors import UserError
from kd.teachers import black_box, ingest
from kd.teachers.answers import Answers, Sample

WORDS = {"Billing": "invoice refund", "Login": "password", "Other": "weather"}
NAMES = list(WORDS)
ANSWERS = dict(objective="hard", target="answer")
FREQUENCIES = dict(objective="frequencies", samples=4, temperature=1.0)
RANK = dict(objective="list_net", samples=4, scores="scores", temperature=1.0)


def text(i: int) -> str:
  return f"ticket {i}: my {WORDS[NAMES[i % 3]]} please"


def write(path: str, rows) -> str:
  with open(path, "w") as f:
    f.writelines(json.dumps(row) + "\n" for row in rows)
  return path


def answered(i: int, **more):
  """Three of four samples are right, one is about the next class."""
  right, wrong = NAMES[i % 3], NAMES[(i + 1) % 3]
  samples = [
    {"text": right.upper() + ".", "score": 2.0},
    {"text": right, "score": 3.0},
    {"text": wrong, "score": 1.0},
    {"text": f" {right.lower()} ", "score": 1.0},
  ]
  return {"id": f"a{i}", "prompt": text(i), "samples": samples} | more


class BlackBoxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    labelled = [
      {"id": str(i), "prompt": text(i), "reference": NAMES[i % 3]}
      for i in range(90)
    ]
    self.labelled = write(os.path.join(self.folder, "l.jsonl"), labelled)
    self.answers = os.path.join(self.folder, "answers.jsonl")
    self.options = config.defaults()
    self.options.study = "small"
    self.options.seeds = 2
    self.options.task.update(
      dict(name="prompts", path=self.labelled, text_features=64)
    )
    self.options.task.train = "train[:20%]"
    self.options.task.validation = "train[20%:40%]"
    self.options.task.test = "train[40%:]"
    self.options.teacher.path = self.answers
    self.options.student = dict(name="mlp", hidden=(8,))
    self.options.signal.samples = 4
    self.options.train.update(dict(steps=40, log_every=20, learning_rate=0.03))
    self.options.arms = dict(hard=ANSWERS, frequencies=FREQUENCIES)

  def run_study(self, name="study"):
    return study.run(self.options, os.path.join(self.folder, name))

  def box(self, rows):
    write(self.answers, rows)
    store = os.path.join(self.folder, "store")
    ingest.ingest([self.answers], store)
    task = load(self.options.task.to_dict())
    return black_box.load(store, task)

  def section(self, **keys):
    return {**self.options.signal.to_dict(), **keys}

  def test_a_study_learns_what_the_answers_say(self):
    write(self.answers, [answered(i) for i in range(90, 300)])
    results = self.run_study()
    self.assertEqual(results["teacher"], {"coverage": 0.0})
    for arm in results["arms"].values():
      self.assertGreater(arm["metrics"]["accuracy"]["mean"], 0.9)
      self.assertNotIn(
        "agreement", arm["metrics"]
      )  # it answered no test prompt
      self.assertNotIn("kl_to_teacher", arm["metrics"])
    self.assertGreater(results["signal"]["validation"], 5)  # held out

  def test_answers_to_test_prompts_measure_and_do_not_teach(self):
    write(self.answers, [answered(i) for i in range(150)])
    results = self.run_study()
    self.assertEqual(results["teacher"], {"coverage": 1.0, "accuracy": 1.0})
    # 90 labelled prompts: 18 train, 18 validation, 54 test; 60 more.
    self.assertEqual(results["signal"]["examples"], 18 + 60)
    self.assertEqual(results["signal"]["validation"], 18)
    arm = results["arms"]["hard"]["metrics"]
    self.assertEqual(arm["agreement"]["values"], arm["accuracy"]["values"])

  def test_the_signal(self):
    rejected = {"rejected": ["Other", "other.", "nonsense"]}
    refused = {"samples": [{"text": "Sorry, I can't help with that."}]}
    box = self.box(
      [answered(90, **rejected), answered(91, **refused)]
      + [answered(i) for i in range(92, 200)]
    )
    chain = (dict(name="refusals"),)
    made, kept, funnel = black_box.signal(box, chain, self.section(samples=3))
    row = [a.id for a in box.asked].index("a90")
    np.testing.assert_array_equal(made.samples.ids[row], [0, 0, 1])
    np.testing.assert_array_equal(made.samples.scores[row], [2, 3, 1])
    self.assertTrue(np.isnan(made.samples.log_probs).all())
    self.assertEqual(made.answer.ids[row], 0)
    self.assertEqual(made.samples.best[row], 0)
    np.testing.assert_array_equal(made.rejected[row], [2])
    gone = [a.id for a in box.asked].index("a91")
    self.assertEqual(np.flatnonzero(~kept).tolist(), [gone])
    np.testing.assert_array_equal(made.samples.ids[gone], [-1, -1, -1])
    self.assertEqual([e["step"] for e in funnel], ["refusals", "closed set"])
    self.assertEqual(funnel[0]["removed"][0]["id"], "a91")
    self.assertEqual(funnel[1]["in"], len(box.asked) - 1)

  def test_an_answer_within_a_text(self):
    self.options.teacher.extract = r"label: (\w+)"
    rows = [answered(i) for i in range(90, 200)]
    for row in rows:
      for sample in row["samples"]:
        sample["text"] = f"I think. label: {sample['text'].strip(' .')}!"
    write(self.answers, rows)
    results = self.run_study()
    self.assertGreater(
      results["arms"]["hard"]["metrics"]["accuracy"]["mean"], 0.9
    )
    self.options.teacher.extract = ""
    with self.assertRaisesRegex(UserError, "teacher.path: .* teacher.extract"):
      self.run_study("other")

  @parameterized.parameters(
    (r"label: (\w+)|none", "I think. label: Login!", "Login"),
    (r"(yes)?Login", "Login", "Login"),  # the group takes no part
    (r"(a)|(Login)", "so Login.", "Login"),
    (r"Log\w+", "so Login.", "Login"),
    (r"label: (\w*)", "label: .", ""),
    (r"nowhere", "Login", "Login"),
  )
  def test_what_is_extracted(self, extract, said, expected):
    one = Answers("q", "p", [Sample(said)], rejected=[said])
    found = black_box.extracted(one, extract)
    self.assertEqual(found.samples[0].text, expected)
    self.assertEqual(found.rejected, [expected])

  def test_a_filter_is_an_axis(self):
    rows = [answered(i) for i in range(90, 200)]
    for row in rows[::2]:  # the teacher is not sure
      row["samples"][3]["text"] = row["samples"][2]["text"]
    write(self.answers, rows)
    self.options.filters.sure = (dict(name="agreement", low=0.7),)
    self.options.arms.hard = dict(
      ANSWERS, signal=dict(filter=config.sweep("", "sure"))
    )
    self.options.arms.frequencies = dict(
      FREQUENCIES, signal=dict(filter=config.sweep("", "sure"))
    )
    results = self.run_study()
    self.assertEqual(
      list(results["arms"]),
      [f"{a}[signal.filter={f}]" for a in ("frequencies", "hard")
       for f in ("none", "sure")],
    )  # fmt: skip
    none, sure = (results["signal"]["funnels"][k] for k in ("none", "sure"))
    self.assertEqual([e["step"] for e in sure], ["agreement", "closed set"])
    self.assertLess(sure[0]["out"], none[0]["out"])
    self.assertEqual(sure[0]["in"], none[0]["in"])

  def test_every_objective_of_answers(self):
    rows = [answered(i, rejected=[NAMES[(i + 1) % 3]]) for i in range(90, 200)]
    write(self.answers, rows)
    ranked = dict(samples=4, scores="scores", candidates="sampled")
    self.options.arms = dict(
      hard=ANSWERS,
      best=dict(objective="hard", target="best"),
      frequencies=FREQUENCIES,
      acceptable=dict(objective="acceptable", samples=4, temperature=1.0),
      rank=RANK,
      pl=dict(objective="plackett_luce", ties="average", **ranked),
      pairwise=dict(objective="pairwise_logistic", weights=None, **ranked),
      preference=dict(
        objective="hard + preference",
        hard=dict(weight=1.0, target="answer"),
        preference=dict(weight=1.0, samples=4),
      ),
    )
    results = self.run_study()
    for name, arm in results["arms"].items():
      self.assertGreater(arm["metrics"]["accuracy"]["mean"], 0.6, name)

  def test_the_same_command_continues_but_not_on_other_answers(self):
    write(self.answers, [answered(i) for i in range(90, 200)])
    first = self.run_study()
    second = self.run_study()
    del first["provenance"], second["provenance"]
    self.assertEqual(first, second)
    write(self.answers, [answered(i) for i in range(90, 201)])
    with self.assertRaisesRegex(UserError, "made of another file"):
      self.run_study()

  def test_a_trained_teacher_behind_a_black_box(self):
    self.options.teacher.update(
      dict(path="", black_box=True, name="mlp", hidden=(16,))
    )
    self.options.teacher.train.update(dict(steps=60, log_every=20))
    self.options.task.train = "train[:40%]"
    self.options.task.validation = "train[40%:60%]"
    self.options.task.test = "train[60%:]"
    results = self.run_study()
    self.assertEqual(results["teacher"]["coverage"], 1.0)
    path = os.path.join(self.folder, "study", "teacher", "answers.jsonl")
    with open(path) as f:
      lines = [json.loads(line) for line in f]
    self.assertLen(lines, 90)
    self.assertLen(lines[0]["samples"], 4)
    self.assertNotIn("reference", lines[0])
    self.options.teacher.update(dict(path=path))
    again = self.run_study("again")
    self.assertEqual(again["teacher"], results["teacher"])
    for name, arm in results["arms"].items():
      self.assertEqual(again["arms"][name]["metrics"], arm["metrics"])

  @parameterized.parameters(
    (dict(objective="soft", temperature=1.0, divergence="forward_kl"),
     "needs the teacher's logits"),
    (dict(objective="partial_plackett_luce", k=2), "the teacher's logits"),
    (dict(FREQUENCIES, samples=5), "at most signal.samples = 4"),
    (dict(objective="preference", samples=4), "reads rejected"),
    (dict(RANK, scores="log_probs"), "reads log_probs"),
    (dict(RANK, signal=dict(rank_by="rubric")), "signal.rubric is empty"),
    (dict(RANK, signal=dict(rank_by="rubric", rubric=dict(tone=1.0))),
     "reads scores"),
    (dict(objective="hard", target="truth", signal=dict(labelled=True)),
     "arms.other: 'hard' reads truth, and none of the .* has such a label"),
    (dict(objective="hard", target="truth"), "transfer set is unlabelled"),
    (dict(ANSWERS, signal=dict(filter="clean")), "filter = 'clean'"),
    (dict(ANSWERS, signal=dict(live=True)), "live = True"),
  )  # fmt: skip
  def test_an_arm_that_the_answers_cannot_serve(self, arm, message):
    write(self.answers, [answered(i) for i in range(90, 150)])
    self.options.arms.other = arm
    with self.assertRaisesRegex(UserError, message):
      self.run_study()

  @parameterized.parameters(
    (dict(path="nowhere.jsonl"), "nowhere.jsonl.: no such file"),
    (dict(path="", black_box=False), "teacher.name is missing"),
    (dict(extract="("), "teacher.extract = .*regular expression"),
  )
  def test_a_teacher_that_is_not_there(self, teacher, message):
    write(self.answers, [answered(i) for i in range(90, 150)])
    self.options.teacher.update(teacher)
    with self.assertRaisesRegex(UserError, message):
      self.run_study()

  @parameterized.parameters("teacher", "task")
  def test_a_file_that_breaks_off(self, section):
    """Whatever share of bad lines is allowed."""
    write(self.answers, [answered(i) for i in range(90, 150)])
    whole = {"teacher": self.answers, "task": self.labelled}[section]
    with open(whole, "rb") as f:
      packed = gzip.compress(f.read())
    path = f"{whole}.gz"
    with open(path, "wb") as f:
      f.write(packed[:-20])
    self.options[section].path = path
    self.options.teacher.max_bad = 1.0
    with self.assertRaisesRegex(UserError, "jsonl.gz: .*EOFError"):
      self.run_study()

  def test_labelled_prompts_with_a_byte_order_mark(self):
    with open(self.labelled, "rb+") as f:
      text = f.read()
      f.seek(0)
      f.write(b"\xef\xbb\xbf" + text)
    task = load(self.options.task.to_dict())
    self.assertLen(task.train, 18)

  def test_pictures_have_no_black_box(self):
    write(self.answers, [answered(i) for i in range(90, 150)])
    self.options.task = config.defaults().task
    with self.assertRaisesRegex(UserError, "its inputs are no texts"):
      self.run_study()

  @parameterized.parameters(
    ('{"prompt": "a"}', "reference"),
    ('{"prompt": "a", "reference": 3}', "str"),
    ("{", "truncated"),
    ('{"prompt": "a", "reference": "b"}', "1 distinct references"),
  )
  def test_labelled_prompts_that_are_none(self, line, message):
    path = os.path.join(self.folder, "bad.jsonl")
    with open(path, "w") as f:
      f.write('{"prompt": "x", "reference": "b"}\n' + line + "\n")
    self.options.task.path = path
    where = "bad.jsonl:2: " if "distinct" not in message else "bad.jsonl"
    with self.assertRaisesRegex(UserError, f"{where}.*{message}"):
      load(self.options.task.to_dict())


if __name__ == "__main__":
  absltest.main()
