"""Any JSON is a reply, and none of it is an exception."""

import json
import random

import msgspec
from absl.testing import absltest, parameterized

from kd.lines import Line
from kd.teachers import answers, replies
from kd.teachers.answers import Answers
from tests.kd.chat_server import choice, reply

REPLY = "choices usage error object detail"
CHOICE = "message finish_reason logprobs"
MESSAGE = "content reasoning reasoning_content refusal tool_calls"
PART = "type text thinking summary value logprob"
USAGE = "prompt_tokens completion_tokens"
KEYS = " ".join((REPLY, CHOICE, MESSAGE, PART, USAGE)).split()
SCALARS = (
  *(None, True, False, 0, -1, 3, 10**30, 10**400, 0.5, -1e308, 1e308),
  *(float("nan"), float("inf"), float("-inf")),
  *("", "a", "\ud83d", "\ude00\ud83d", "\x00\x1b[31m", "ü\u2028\U0001f600"),
  *("length", "stop", "LENGTH", "content_filter", "thinking", "text"),
)


def random_json(rng: random.Random, depth: int):
  """Returns any JSON value, often with the keys that replies have."""
  kind = rng.random()
  if depth == 0 or kind < 0.3:
    return rng.choice(SCALARS)
  if kind < 0.55:
    count = rng.choice((0, 1, 1, 2, 3))
    return [random_json(rng, depth - 1) for _ in range(count)]
  keys = rng.sample(KEYS, rng.randint(0, 6))
  return {key: random_json(rng, depth - 1) for key in keys}


def damaged(rng: random.Random, node, chance: float):
  """Returns a JSON value with some of its nodes replaced or left out."""
  if rng.random() < chance:
    return random_json(rng, 3)
  if isinstance(node, list):
    return [damaged(rng, n, chance) for n in node]
  if isinstance(node, dict):
    return {
      key: damaged(rng, value, chance)
      for key, value in node.items()
      if rng.random() > chance / 2
    }
  return node


class ReadTest(parameterized.TestCase):
  def check(self, value, count=1):
    """Reads a value; what comes of it can be written and read again."""
    found = replies.read(value, count)
    self.assertTrue(found.samples or found.dropped or found.fault)
    for reason in (*found.dropped, found.fault):
      reason.encode()
    if found.usage is not None:
      self.assertGreaterEqual(min(found.usage), 0)
    if found.samples:
      made = Answers("q", "p", found.samples)
      line = msgspec.json.encode(made)
      self.assertEqual(answers.of_line(Line(1, line)), made)
    return found

  @parameterized.parameters(*((v,) for v in SCALARS), ([[]],), ({},))
  def test_small_values(self, value):
    self.assertEmpty(self.check(value).samples)

  def test_values_of_random_shapes(self):
    rng = random.Random(0)
    for _ in range(20_000):
      self.check(random_json(rng, 5), rng.randint(1, 3))

  @parameterized.parameters(0.02, 0.1, 0.3)
  def test_replies_with_random_damage(self, chance):
    rng = random.Random(1)
    tokens = {"content": [{"token": "a", "logprob": -0.5}] * 2}
    parts = [
      {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
      {"type": "text", "text": "so"},
      {"type": "refusal", "refusal": ""},
    ]
    call = {"function": {"name": "f", "arguments": "{}"}, "type": "function"}
    good = reply(
      choice("a", logprobs=tokens),
      choice(parts, message={"reasoning_content": "because"}),
      choice(None, message={"tool_calls": [call]}, finish_reason="tool_calls"),
    )
    read = 0
    for _ in range(5_000):
      read += len(self.check(damaged(rng, good, chance), 3).samples)
    self.assertGreater(read, 100)

  def test_deep_nesting(self):
    deep = []
    for _ in range(100_000):
      deep = [deep]
    for value in (deep, {"choices": deep}, reply(choice(deep))):
      self.assertIn("another form", self.check(value).fault)

  def test_a_choice_that_cannot_be_written_is_not_the_others_loss(self):
    deep = json.loads("[" * 900 + "]" * 900)
    unusual = choice("a", message={"tool_calls": deep})
    found = self.check(reply(choice("b"), unusual), 2)
    self.assertEqual(found.samples[0].text, "b")
    self.assertLen(found.samples + found.dropped, 2)

  def test_too_few_choices_and_too_many(self):
    two = reply(choice("a"), choice("b"))
    words = "2 choices for n = 3: try --one_by_one"
    self.assertEqual(self.check(two, 3).fault, words)
    self.assertEqual(self.check(two, 1).fault, "2 choices for n = 1")
    self.assertEqual(self.check(reply(), 3).fault, "an answer without choices")

  @parameterized.parameters("stop", None, "eos", "tool_calls", 7)
  def test_reasons_to_stop_that_leave_an_answer(self, reason):
    found = self.check(reply(choice("a", finish_reason=reason)))
    self.assertEqual([s.text for s in found.samples], ["a"])

  @parameterized.parameters(
    ("length", replies.CUT),
    ("MAX_TOKENS", replies.CUT),
    ("content_filter", replies.FILTERED),
    ("SAFETY", replies.FILTERED),
    ("refusal", replies.REFUSED),
    ("error", replies.BROKEN),
  )
  def test_reasons_to_stop_that_leave_none(self, reason, words):
    found = self.check(reply(choice("a", finish_reason=reason)))
    self.assertEqual((found.samples, found.dropped), ([], [words]))

  def test_a_refusal_among_the_parts(self):
    parts = [{"type": "refusal", "refusal": "No."}]
    self.assertEqual(self.check(reply(choice(parts))).dropped, ["refused: No."])

  def test_tool_calls_need_no_text(self):
    calls = [{"function": {"name": "f"}}]
    found = self.check(reply(choice(None, message={"tool_calls": calls})))
    (sample,) = found.samples
    self.assertEqual((sample.text, sample.trace), ("", calls))

  @parameterized.parameters(
    ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4)),
    ({"prompt_tokens": 3.0, "completion_tokens": 4.5}, (3, 5)),
    ({"prompt_tokens": 3}, None),
    ({"prompt_tokens": 3, "completion_tokens": float("nan")}, None),
    ({"prompt_tokens": 3, "completion_tokens": 10**400}, None),
    ([3, 4], None),
  )
  def test_usage(self, usage, expected):
    found = self.check({**reply(choice()), "usage": usage})
    self.assertEqual(found.usage, expected)


if __name__ == "__main__":
  absltest.main()
