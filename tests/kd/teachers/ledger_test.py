"""What a second run finds: other settings, torn lines, another's file."""

import fcntl
import json
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.teachers import ask
from tests.kd.chat_server import choice, reply
from tests.kd.teachers.ask_test import PRICE, ROOT, Asking


class FingerprintTest(Asking):
  @parameterized.parameters(
    (dict(temperature=0.5), "temperature = 1.0 then, 0.5 now"),
    (dict(samples=3), "samples = 2 then, 3 now"),
    (dict(samples=1), "samples = 2 then, 1 now"),
    (dict(system="be brief"), 'system = "" then, "be brief" now'),
    (dict(model="other"), 'model = "teacher" then, "other" now'),
    (dict(logprobs=True), "logprobs = null then, true now"),
    (dict(extra_body={"top_p": 0.9}), "top_p = null then, 0.9 now"),
    (
      dict(temperature=0.0, model="other"),
      'model = "teacher" then, "other" now; temperature = 1.0 then, 0.0 now',
    ),
  )
  def test_other_settings_are_refused_and_named(self, options, words):
    self.ask("one", "two")
    with self.assertRaisesRegex(UserError, f"asked for otherwise: {words};"):
      self.ask("one", "two", "three", **options)
    self.assertEqual(self.server.asked.total(), 2)
    self.assertEqual(self.ask("one", "two", "three")["answered"], 1)

  @parameterized.parameters(
    (dict(max_tokens=99),),
    (dict(max_tokens=0, extra_body={"max_completion_tokens": 9}),),
    (dict(tries=2, timeout=1.0, concurrency=1, one_by_one=True),),
  )
  def test_what_a_whole_answer_does_not_depend_on(self, options):
    self.ask("one")
    self.assertEqual(self.ask("one", "two", **options)["answered"], 1)

  def test_other_prompts_are_refused_and_named(self):
    self.ask("one", "two")
    with self.assertRaisesRegex(UserError, "prompts answered then, now q1 dif"):
      self.ask("one", "zwei")
    with self.assertRaisesRegex(UserError, "now q1 differ or are not asked"):
      self.ask("one")
    path = self.prompts("one", "two", reference="1")
    to = ask.Options(url=self.server.url, model="teacher", samples=2)
    with self.assertRaisesRegex(UserError, "now q0, q1 differ"):
      ask.ask(path, self.out, to)
    self.assertEqual(self.server.asked.total(), 2)

  def test_more_prompts_are_no_others(self):
    self.ask("one")
    self.assertEqual(self.ask("one", "two")["answered"], 1)

  def test_keep_asks_again_for_what_is_no_longer_valid(self):
    self.ask("one", "two", "three")
    self.server.usual = reply(choice("new"), choice("newer"))
    counts = self.ask("one", "zwei", keep=True, temperature=0.5)
    self.assertEqual(counts["answered"], 1)
    self.assertEqual(self.server.asked["zwei"], 1)
    found = self.answers()
    self.assertEqual(
      {k: (a.prompt, a.samples[0].text) for k, a in found.items()},
      {
        "q0": ("one", "answer 0 to one"),
        "q1": ("zwei", "new"),
        "q2": ("three", "answer 0 to three"),
      },
    )
    old = json.loads(pathlib.Path(self.out + ".old.jsonl").read_text())
    self.assertEqual((old["id"], old["prompt"]), ("q1", "two"))
    # And from now on these are the settings, and the prompts.
    again = self.ask("one", "zwei", temperature=0.5)
    self.assertEqual(again["answered"], 0)
    with self.assertRaisesRegex(UserError, "temperature = 0.5 then, 1.0 now"):
      self.ask("one", "zwei")

  def test_keep_with_more_samples_asks_all_again_and_with_fewer_none(self):
    self.ask("one", "two")
    self.assertEqual(self.ask("one", "two", samples=1, keep=True)["left"], 0)
    self.assertEqual(self.server.asked.total(), 2)
    counts = self.ask("one", "two", samples=3, keep=True)
    self.assertEqual(counts["answered"], 2)
    self.assertLen(self.answers()["q1"].samples, 3)

  def test_keep_takes_the_references_of_now(self):
    self.ask("one")
    path = self.prompts("one", reference="1")
    to = ask.Options(self.server.url, "teacher", samples=2, keep=True)
    self.assertEqual(ask.ask(path, self.out, to)["answered"], 0)
    self.assertEqual(self.answers()["q0"].reference, "1")

  def test_dollars_are_not_forgotten_with_other_settings(self):
    self.ask("one", **PRICE)
    counts = self.ask("one", keep=True, temperature=0.5, **PRICE)
    self.assertEqual(counts["usd"], 20.0)

  @parameterized.parameters(
    ("length", {}), ("content_filter", {}), ("stop", {"refusal": "I will not"})
  )
  def test_given_up_prompts_are_asked_again_if_that_may_help(self, why, more):
    usual = reply(*[choice("a", finish_reason=why, message=more)] * 2)
    self.server.usual = usual
    greedy = dict(temperature=0.0)
    self.assertEqual(self.ask("one", **greedy)["given_up"], 1)
    again = self.ask("one", **greedy)  # the same request, the same reply
    self.assertEqual((again["given_up"], again["skipped"]), (0, 1))
    self.assertEqual(self.server.asked["one"], 1)
    self.server.usual = None
    more = self.ask("one", max_tokens=999, **greedy)
    self.assertEqual((more["answered"], more["skipped"]), (1, 0))

  def test_sampling_may_help(self):
    self.server.say["one"] = [
      reply(*[choice("a", finish_reason="length")] * 2),
      reply(choice("b"), choice("c")),
    ]
    self.assertEqual(self.ask("one")["given_up"], 1)
    self.assertEqual(self.ask("one")["answered"], 1)

  def test_troubles_of_servers_are_asked_again_whatever_the_temperature(self):
    self.server.usual = (400, "no such model", {})
    self.assertEqual(self.ask("one", temperature=0.0)["given_up"], 1)
    self.server.usual = None
    self.assertEqual(self.ask("one", temperature=0.0)["answered"], 1)


class TornTest(Asking):
  @parameterized.parameters(1, 30, -2)
  def test_a_torn_line_is_cut_and_asked_again(self, length):
    self.ask("one", "two", concurrency=1)
    first, second = pathlib.Path(self.out).read_bytes().splitlines(True)
    pathlib.Path(self.out).write_bytes(first + second[:length])
    for left in (1, 0, 0):
      self.assertEqual(self.ask("one", "two")["answered"], left)
    self.assertCountEqual(self.answers(), ["q0", "q1"])

  @parameterized.parameters(1, 30, -2)
  def test_the_first_line_too_if_it_is_ours(self, length):
    self.ask("one", "two", concurrency=1)
    line = pathlib.Path(self.out).read_bytes()
    pathlib.Path(self.out).write_bytes(line[:length] if length > 0 else line)
    self.assertGreaterEqual(self.ask("one", "two")["answered"], 0)
    self.assertCountEqual(self.answers(), ["q0", "q1"])

  def test_an_answer_without_its_newline_was_paid_for(self):
    self.ask("one", "two", concurrency=1)
    whole = pathlib.Path(self.out).read_bytes()
    pathlib.Path(self.out).write_bytes(whole[:-1])
    self.assertEqual(self.ask("one", "two")["answered"], 0)
    self.assertEqual(pathlib.Path(self.out).read_bytes(), whole)

  @parameterized.parameters(1, 20, -2)
  def test_a_torn_log_forgets_no_dollar(self, length):
    self.ask("one", "two", **PRICE)
    with open(self.out + ".log.jsonl", "ab") as f:
      f.write(b'{"id": "q9", "tokens_in": 3, "tokens_out": 5}'[:length])
    for texts in ("one two three", "one two three four", "one two three four"):
      counts = self.ask(*texts.split(), **PRICE)
    self.assertEqual(counts["usd"], 80.0)

  def test_a_log_whose_beginning_is_torn(self):
    pathlib.Path(self.out + ".log.jsonl").write_text('{"settings": {"mo')
    self.assertEqual(self.ask("one")["answered"], 1)
    self.assertEqual(self.ask("one")["left"], 0)

  @parameterized.parameters("}{", "[1]", '{"usd": -1}', '{"usd": "3"}', "{}")
  def test_a_broken_line_within_a_log_is_named(self, line):
    self.ask("one", **PRICE)
    with open(self.out + ".log.jsonl", "a") as f:
      f.write(line + "\n")
    with self.assertRaisesRegex(UserError, "answers.jsonl.log.jsonl:3: "):
      self.ask("one", "two", **PRICE)

  def test_a_log_that_is_gone(self):
    self.ask("one")
    os.remove(self.out + ".log.jsonl")
    with self.assertLogs(level="WARNING") as logs:
      self.assertEqual(self.ask("one", "two")["answered"], 1)
    self.assertIn("no log says how its 1 answers were asked", logs.output[0])


class OtherFileTest(Asking):
  @parameterized.parameters(
    b"something else",
    b"something else\n",
    b'{"id":"q0","prompt":"one"}',  # the prompts themselves
    b'{"id":"q0","prompt":"one"}\n{"id":"q1","prompt":"two"}',
    b"{",
    b'{"id": "q0", "prom',
    b"\x00" * 40,
    b"\xff\xfe{\x00",
    b'[{"id": "q0"}]',
    b"x" * 100_000,
  )
  def test_what_does_not_begin_as_our_answers_do_is_left_alone(self, data):
    pathlib.Path(self.out).write_bytes(data)
    for keep in (False, True):
      with self.assertRaisesRegex(UserError, "answers.jsonl"):
        self.ask("one", keep=keep)
    self.assertEqual(pathlib.Path(self.out).read_bytes(), data)
    self.assertFalse(os.path.exists(self.out + ".log.jsonl"))
    self.assertEmpty(self.server.asked)

  @parameterized.parameters(
    b'{"id":"q0","prompt":"one"}', b"something else", b"{", b"x" * 100_000
  )
  def test_nor_with_a_log_of_ours(self, data):
    self.ask("one")
    pathlib.Path(self.out).write_bytes(data)
    if data != b"{":  # which is how ours begin
      with self.assertRaisesRegex(UserError, "line 1: "):
        self.ask("one", "two")
      self.assertEqual(pathlib.Path(self.out).read_bytes(), data)

  def test_the_prompts_are_no_output(self):
    path = self.prompts("one")
    before = pathlib.Path(path).read_bytes()
    to = ask.Options(url=self.server.url, model="teacher")
    for data in (before, before.rstrip(b"\n")):
      pathlib.Path(path).write_bytes(data)
      with self.assertRaisesRegex(UserError, "prompts.jsonl, line 1: schema"):
        ask.ask(path, path, to)
      self.assertEqual(pathlib.Path(path).read_bytes(), data)

  def test_a_log_that_is_no_log(self):
    log = pathlib.Path(self.out + ".log.jsonl")
    for text in ("dear diary", "dear diary\n", '{"a": 1}\n'):
      log.write_text(text)
      with self.assertRaisesRegex(UserError, "answers.jsonl.log.jsonl"):
        self.ask("one")
      self.assertEqual(log.read_text(), text)
    self.assertEmpty(self.server.asked)

  def test_outputs_that_cannot_be(self):
    file = self.root / "file"
    file.touch()
    (self.root / "folder.jsonl.log.jsonl").mkdir()
    for out, words in (
      (self.root, "expected a file"),
      (file / "below" / "a.jsonl", "cannot be used .*NotADirectoryError"),
      (self.root / "folder.jsonl", "cannot be used .*IsADirectoryError"),
      ("/dev/null", "expected a file"),
      (self.root / "a.jsonl.gz", "is appended to, expected plain JSONL"),
      (self.root / ("a" * 300), "cannot be used .*name too long"),
      ("", "is missing"),
    ):
      self.out = str(out)
      with self.assertRaisesRegex(UserError, f"^--out.*{words}"):
        self.ask("one")
    self.assertEmpty(self.server.asked)

  def test_two_clients_on_one_output(self):
    self.ask("one")
    alias = self.root / "alias.jsonl"
    alias.symlink_to(self.out)
    with open(self.out + ".log.jsonl") as other:
      fcntl.flock(other, fcntl.LOCK_EX)
      for name in (self.out, str(alias)):
        self.out = name
        with self.assertRaisesRegex(UserError, "in use by another process"):
          self.ask("one", "two")
    self.assertEqual(self.ask("one", "two")["answered"], 1)

  def test_two_clients_at_once(self):
    self.server.seconds = 0.2
    command = self.command(*map(str, range(10)), concurrency=2)
    pair = [
      subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
      for _ in range(2)
    ]
    words = [process.communicate()[1] for process in pair]
    self.assertCountEqual([p.returncode for p in pair], [0, 2], words)
    self.assertIn("in use by another process", "".join(words))
    self.assertEqual(self.server.asked.total(), 10)

  def test_a_full_disk_is_one_line(self):
    self.server.usual = reply(choice("long " * 10_000))
    limited = "import resource, signal, sys, runpy; "
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000,) * 2); "
    limited += "runpy.run_module('kd.teachers.ask', run_name='__main__')"
    command = [sys.executable, "-c", limited, *self.command("a", "b", "c")[3:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertRegex(done.stderr, r"^error: .*answers.jsonl: cannot be written")
    self.server.usual = None
    self.assertEqual(self.ask("a", "b", "c", samples=1)["given_up"], 0)
    self.assertCountEqual(self.answers(), ["q0", "q1", "q2"])


if __name__ == "__main__":
  absltest.main()
