"""Asking a real local server that fails, stalls, limits and talks nonsense."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.teachers import ask, client, ingest
from tests.kd.chat_server import Server, choice, reply
from tests.kd.teachers.ingest_test import cpu_seconds

ROOT = pathlib.Path(__file__).resolve().parents[3]
PRICE = dict(price_in=1e6, price_out=1e6)  # a dollar a token


class Asking(parameterized.TestCase):
  """A server, a folder, and the shortest of waits."""

  def setUp(self):
    super().setUp()
    self.server = Server()
    self.addCleanup(self.server.server_close)
    self.addCleanup(self.server.shutdown)
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.out = str(self.root / "answers.jsonl")
    self.enterContext(absltest.mock.patch.object(client, "LONGEST_WAIT", 0.02))

  def prompts(self, *texts, **fields):
    path = self.root / "prompts.jsonl"
    rows = [{"id": f"q{i}", "prompt": t, **fields} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)

  def ask(self, *texts, **options):
    options = {"samples": 2, "timeout": 0.5, "tries": 4, **options}
    to = ask.Options(**{"url": self.server.url, "model": "teacher", **options})
    return ask.ask(self.prompts(*texts), self.out, to)

  def log(self):
    """Returns the log's entries of prompts, the last of each."""
    text = pathlib.Path(self.out + ".log.jsonl").read_text()
    return {e["id"]: e for e in map(json.loads, text.splitlines()) if "id" in e}

  def answers(self):
    """Returns what ingest makes of the output, by id."""
    store = tempfile.mkdtemp(dir=self.root) + "/store"
    ingest.ingest([self.out], store)
    return {a.id: a for a in ingest.read(store)}

  def command(self, *texts, **options):
    options = {"url": self.server.url, "model": "teacher", **options}
    return [
      *(sys.executable, "-m", "kd.teachers.ask", self.prompts(*texts)),
      f"--out={self.out}",
      *(f"--{key}={value}" for key, value in options.items()),
    ]


class AskTest(Asking):
  def test_answers_are_what_ingest_reads(self):
    tokens = {"content": [{"logprob": -0.5}, {"logprob": -1.0}]}
    self.server.say["two"] = reply(
      choice("one of two", logprobs=tokens), choice("two of two")
    )
    counts = self.ask("one", "two", logprobs=True, system="be brief", key="k")
    self.assertEqual((counts["answered"], counts["given_up"]), (2, 0))
    found = self.answers()
    self.assertEqual(found["q0"].prompt, "one")
    texts = [s.text for s in found["q1"].samples]
    self.assertEqual(texts, ["one of two", "two of two"])
    self.assertEqual(found["q1"].samples[0].logprob, -1.5)
    self.assertIsNone(found["q1"].samples[1].logprob)
    body = self.server.bodies[0]
    system = {"role": "system", "content": "be brief"}
    self.assertEqual(body["messages"][0], system)
    self.assertEqual((body["n"], body["model"]), (2, "teacher"))
    self.assertIs(body["logprobs"], True)
    self.assertEqual(set(self.server.keys), {"Bearer k"})

  def test_without_a_key_none_is_sent(self):
    self.ask("one")
    self.assertEqual(self.server.keys, [None])

  @parameterized.parameters(
    (dict(max_tokens=0), {"temperature": 1.0}),
    (
      dict(max_tokens=0, extra_body={"max_completion_tokens": 400}),
      {"temperature": 1.0, "max_completion_tokens": 400},
    ),
    (
      dict(extra_body={"temperature": None, "response_format": {"type": "x"}}),
      {"max_tokens": 256, "response_format": {"type": "x"}},
    ),
  )
  def test_any_field_is_passed_through(self, options, expected):
    self.ask("one", **options)
    (body,) = self.server.bodies
    for key in ("model", "messages", "n"):
      del body[key]
    self.assertEqual(body, expected)

  @parameterized.parameters(
    ([(500, "boom", {}), (500, "boom", {}), None], 3),
    ([(429, "slow down", {"Retry-After": "0.01"}), None], 2),
    ([(429, "slow down", {"Retry-After": "nan"}), None], 2),
    ([(429, "slow down", {"Retry-After": "-1"}), None], 2),
    ([(503, "", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), None], 2),
    ([(503, "", {"Retry-After": "Wed, 21 Oct 2055 07:28:00 GMT"}), None], 2),
    ([(503, "", {"Retry-After": "soon"}), None], 2),
    ([(200, "", {"stall": 1.0}), None], 2),
    ([(200, "{ this is no JSON", {}), None], 2),
    ([(200, "[" * 100_000, {}), None], 2),
    ([{"error": {"message": "overloaded", "code": 529}}, None], 2),
    ([{"error": "overloaded"}, None], 2),
    ([{"object": "error", "message": "overloaded"}, None], 2),
    ([{"error": {"message": "overloaded"}, "choices": []}, None], 2),
  )
  def test_what_passes_is_tried_again(self, said, tries):
    self.server.say["bad"] = said
    counts = self.ask("bad", "fine")
    self.assertEqual((counts["answered"], counts["usd"]), (2, 0.0))
    self.assertEqual(self.server.asked["bad"], tries)

  @parameterized.parameters(
    ((503, "boom", {}), 4, "4 tries, the last: status 503: boom"),
    ((400, "no such model", {}), 1, "status 400: no such model"),
    ({"error": {"message": "no"}}, 4, "4 tries, the last: an error in the "),
    ({"data": []}, 1, 'an answer of another form: {"data": []}'),
    (reply(), 1, "an answer without choices"),
    (reply(choice()), 1, "1 choices for n = 2: try --one_by_one"),
    ((200, "[]", {}), 1, "an answer of another form: []"),
    ((200, "null", {}), 1, "an answer of another form: null"),
    ((200, "3", {}), 1, "an answer of another form: 3"),
    ((200, '{"choices": "none"}', {}), 1, "an answer of another form"),
    (reply(None, None), 1, "of another form: null"),
    (reply(*[{"message": None}] * 2), 1, "of another form"),
    (reply(*[{"message": "hello"}] * 2), 1, "of another form"),
    (reply(*[choice("half", finish_reason="length")] * 2), 1, "cut off at"),
    (
      reply(
        *[choice(None, message={"reasoning": "hm"}, finish_reason="length")] * 2
      ),
      1,
      "cut off at the limit of tokens (max_tokens) while reasoning",
    ),
    (reply(*[choice("", finish_reason="content_filter")] * 2), 1, "held back"),
    (reply(*[choice(message={"refusal": "I won't"})] * 2), 1, "refused: I wo"),
    (reply(*[choice(None)] * 2), 1, "without text"),
  )
  def test_what_does_not_is_given_up_alone_and_said(self, said, tries, words):
    self.server.say["bad"] = said
    counts = self.ask("bad", "fine", "well")
    self.assertEqual((counts["answered"], counts["given_up"]), (2, 1))
    self.assertEqual(self.server.asked["bad"], tries)
    self.assertIn(words, self.log()["q0"]["gave_up"])
    self.assertCountEqual(self.answers(), ["q1", "q2"])
    self.ask("bad", "fine", "well")  # the file is read again as it was written

  def test_choices_that_are_no_answers_do_not_cost_the_others(self):
    self.server.say["mixed"] = reply(
      choice("yes"), choice("ye", finish_reason="length"), choice("no")
    )
    counts = self.ask("mixed", samples=3)
    self.assertEqual((counts["answered"], counts["dropped"]), (1, 1))
    texts = [s.text for s in self.answers()["q0"].samples]
    self.assertEqual(texts, ["yes", "no"])
    (reason,) = self.log()["q0"]["dropped"]
    self.assertIn("cut off", reason)

  def test_half_a_surrogate_pair(self):
    self.server.say["half"] = (
      200,
      r'{"choices": [{"message": {"content": "a \ud83d b", "tool_calls": '
      r'[{"\ude00": "\ud83d\ude00"}]}}], "usage": {"prompt_tokens": 1}}',
      {},
    )
    counts = self.ask("half", "fine", samples=1)
    self.assertEqual(counts["answered"], 2)
    (sample,) = self.answers()["q0"].samples
    self.assertEqual(sample.text, "a \ufffd b")
    self.assertEqual(sample.trace, [{"\ufffd": "\U0001f600"}])

  def test_reasons_come_with_the_answer(self):
    self.server.say["parts"] = reply(
      choice([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
      choice("c", message={"reasoning_content": "because"}),
      choice("d", message={"reasoning": [{"text": "since "}, {"text": "so"}]}),
      choice([
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "e"},
      ]),
    )  # fmt: skip
    self.ask("parts", samples=4)
    self.assertEqual(
      [(s.text, s.rationale) for s in self.answers()["q0"].samples],
      [("ab", None), ("c", "because"), ("d", "since so"), ("e", "hm")],
    )

  @parameterized.parameters(
    ([], None),
    (None, None),
    ([{"logprob": -1.0}, {}], None),
    ([{"logprob": float("nan")}], None),
    ([{"logprob": 0.5}, {"logprob": -2.0}], None),
    ([{"logprob": float("-inf")}], None),
    ([{"logprob": "-1"}], None),
    ([{"logprob": 1e-7}], 0.0),
  )
  def test_log_probabilities_that_are_none(self, tokens, expected):
    self.server.say["p"] = reply(choice("a", logprobs={"content": tokens}))
    counts = self.ask("p", samples=1, logprobs=True)
    self.assertEqual(counts["answered"], 1)
    self.assertEqual(self.answers()["q0"].samples[0].logprob, expected)

  def test_one_by_one(self):
    counts = self.ask("lonely", one_by_one=True, samples=3)
    self.assertEqual(counts["answered"], 1)
    self.assertEqual(self.server.asked["lonely"], 3)
    self.assertLen(self.answers()["q0"].samples, 3)

  @parameterized.parameters(
    (reply(choice("half", finish_reason="length")), 3, 2),
    (reply(), 3, 2),
    ((400, "no", {}), 2, 1),
    ((503, "no", {}), 5, 1),
  )
  def test_one_by_one_keeps_what_was_paid_for(self, said, requests, kept):
    self.server.say["a"] = [reply(choice("1")), said, reply(choice("3"))]
    if isinstance(said, tuple):  # and it goes on so
      self.server.say["a"] = self.server.say["a"][:2]
    counts = self.ask("a", one_by_one=True, samples=3)
    self.assertEqual((counts["answered"], counts["dropped"]), (1, 1))
    self.assertEqual(self.server.asked["a"], requests)
    self.assertLen(self.answers()["q0"].samples, kept)

  def test_no_more_requests_at_once_than_allowed(self):
    self.server.seconds = 0.1
    self.ask(*map(str, range(12)), concurrency=3)
    self.assertEqual(self.server.most, 3)

  @parameterized.parameters(
    ((401, "wrong key", {}), 20),
    ((403, "not yours", {}), 20),
    ((404, "no such page", {}), 20),
    ((400, "no such model", {}), 20),
    ((503, "gone", {}), 80),
  )
  def test_a_trouble_of_all_stops_the_run(self, usual, most):
    self.server.usual = usual
    counts = self.ask(*map(str, range(100)))
    self.assertLess(self.server.asked.total(), most)
    self.assertIn("5 prompts in a row met", counts["stopped"])
    self.assertIn(f"status {usual[0]}: {usual[1]}", counts["stopped"])
    self.assertEqual(counts["left"] + counts["given_up"], 100)
    self.server.usual = None
    self.assertEqual(self.ask(*map(str, range(100)))["answered"], 100)

  def test_prompts_that_are_too_long_stop_nothing(self):
    for i in range(10):
      self.server.say[f"long {i}"] = (400, "too long", {})
    texts = ["fine", *(f"long {i}" for i in range(10)), *map(str, range(20))]
    counts = self.ask(*texts, concurrency=1)
    self.assertEqual((counts["answered"], counts["given_up"]), (21, 10))

  def test_nobody_is_there(self):
    self.server.shutdown()
    self.server.server_close()
    counts = self.ask(*map(str, range(30)), tries=2)
    self.assertIn("onnect", counts["stopped"])
    self.assertEqual(counts["left"] + counts["given_up"], 30)


class MoneyTest(Asking):
  def test_a_limit_holds_over_runs_and_is_never_passed(self):
    self.server.seconds = 0.05
    texts = [f"slow {i}" for i in range(10)]
    # 10 tokens in and 10 out cost $20; 22 in and 40 out at most $62.
    options = dict(max_tokens=20, concurrency=4, **PRICE)
    counts = self.ask(*texts, spend_limit=110.0, **options)
    # Money that is held is waited for: 20 + 20 + 20 + 62 are too much.
    self.assertEqual((counts["answered"], counts["usd"]), (3, 60.0))
    self.assertEqual((counts["left"], counts["stopped"]), (7, "--spend_limit"))
    again = self.ask(*texts, spend_limit=110.0, **options)
    self.assertEqual((again["answered"], again["usd"]), (0, 60.0))
    more = self.ask(*texts, spend_limit=1000.0, **options)
    self.assertEqual((more["left"], more["usd"]), (0, 200.0))

  @parameterized.parameters(
    ({},),
    (dict(usage=None),),
    (dict(usage="none"),),
    (dict(usage={"prompt_tokens": 3, "completion_tokens": None}),),
    (dict(usage={"prompt_tokens": True, "completion_tokens": 1}),),
    (dict(usage={"prompt_tokens": -3, "completion_tokens": 1}),),
  )
  def test_a_reply_that_does_not_say_costs_the_most(self, usage):
    said = reply(choice("a"), choice("b"))
    del said["usage"]
    self.server.usual = {**said, **usage}
    options = dict(max_tokens=20, concurrency=1, spend_limit=150.0, **PRICE)
    counts = self.ask(*"abcdefgh", **options)
    # 1 byte, 16 tokens of a chat and 40 out.
    self.assertEqual((counts["answered"], counts["usd"]), (2, 114.0))
    self.assertEqual(self.log()["q0"]["assumed"], 1)

  def test_what_was_given_up_was_paid_for(self):
    self.server.usual = reply(choice("half", finish_reason="length"))
    counts = self.ask("a", samples=1, **PRICE)
    self.assertEqual((counts["given_up"], counts["usd"]), (1, 15.0))

  def test_a_reply_of_another_form_is_charged_too(self):
    self.server.usual = (200, "[]", {})
    counts = self.ask("a", "b", samples=1, max_tokens=10, **PRICE)
    self.assertEqual((counts["given_up"], counts["usd"]), (2, 54.0))

  def test_one_by_one_costs_k_requests(self):
    options = dict(one_by_one=True, samples=3, max_tokens=10, **PRICE)
    # 3 times 17 in and 10 out, at most.
    self.assertEqual(self.ask("a", spend_limit=80.0, **options)["left"], 1)
    made = self.ask("a", spend_limit=81.0, **options)
    self.assertEqual((made["answered"], made["usd"]), (1, 45.0))


class InterruptionTest(Asking):
  def started(self, command):
    process = subprocess.Popen(
      command, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not (os.path.exists(self.out) and os.path.getsize(self.out) > 200):
      time.sleep(0.02)
    return process

  def ids(self):
    lines = pathlib.Path(self.out).read_text().splitlines()
    return [json.loads(line)["id"] for line in lines]

  def test_a_kill_loses_and_repeats_no_answer(self):
    self.server.seconds = 0.1
    command = self.command(*map(str, range(40)), concurrency=2)
    process = self.started(command)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = self.ids()
    self.assertBetween(len(before), 1, 39)
    for path in (self.out, f"{self.out}.log.jsonl"):
      with open(path, "a") as f:
        f.write('{"id": "torn')  # as a kill in the middle of a line leaves it
    for _ in range(3):
      done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
      self.assertEqual(done.returncode, 0, done.stderr)
    self.assertCountEqual(self.ids(), [f"q{i}" for i in range(40)])
    self.assertLessEqual(self.server.asked.total(), 42)  # 2 in flight

  @parameterized.parameters((signal.SIGINT, 130), (signal.SIGTERM, 143))
  def test_a_signal_is_one_line(self, number, code):
    self.server.seconds = 0.1
    command = self.command(*map(str, range(40)), concurrency=2, **PRICE)
    process = self.started(command)
    process.send_signal(number)
    _, words = process.communicate()
    self.assertEqual(process.returncode, code, words)
    have = len(self.ids())
    self.assertEqual(
      words,
      f"interrupted ({number.name}): {have} of 40 prompts are answered in "
      f"{self.out}; the same command goes on from there\n",
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertCountEqual(self.ids(), [f"q{i}" for i in range(40)])
    self.assertIn("$600.0000 in all", done.stdout)

  def test_what_was_spent_is_not_forgotten(self):
    """Of three requests for a prompt one was paid for when the signal came."""
    slow = (200, reply(choice()), {"stall": 5.0})
    self.server.say["a"] = [reply(choice()), slow]
    command = self.command("a", one_by_one=True, samples=3, **PRICE)
    process = subprocess.Popen(
      command, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while self.server.asked["a"] < 2:
      time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    self.assertEqual(process.returncode, 143)
    entry = self.log()["q0"]
    self.assertEqual((entry["interrupted"], entry["usd"]), (True, 15.0))

  def test_a_signal_before_anything_is_asked(self):
    os.mkfifo(self.root / "prompts.fifo")
    process = subprocess.Popen(
      [
        *(sys.executable, "-m", "kd.teachers.ask"),
        *(self.root / "prompts.fifo", f"--out={self.out}"),
        *(f"--url={self.server.url}", "--model=m"),
      ],
      **dict(cwd=ROOT, stderr=subprocess.PIPE, text=True),
    )
    with open(self.root / "prompts.fifo", "w"):  # it waits to read
      time.sleep(0.2)
      process.send_signal(signal.SIGINT)
      _, words = process.communicate()
    self.assertEqual(process.returncode, 130)
    self.assertEqual(
      words,
      "interrupted (SIGINT): nothing was done; give the same command again\n",
    )


class RefusalTest(Asking):
  @parameterized.parameters(
    (dict(samples=0), "--samples = 0"),
    (dict(samples=5000), "--samples = 5000: expected .* to 4,096"),
    (dict(timeout=0.0), "--timeout = 0.0"),
    (dict(timeout=float("nan")), "--timeout = nan"),
    (dict(temperature=float("nan")), "--temperature = nan"),
    (dict(temperature=-1.0), "--temperature = -1.0"),
    (dict(max_tokens=-1), "--max_tokens = -1"),
    (dict(price_in=float("inf")), "--price_in = inf"),
    (dict(price_out=-1.0), "--price_out = -1.0"),
    (dict(concurrency=0), "--concurrency = 0"),
    (dict(tries=0), "--tries = 0"),
    (dict(model=" "), "--model = ' '"),
    (dict(model="m\udcfc"), "--model = "),
    (dict(system="be k\udcfchl"), "--system = .*expected a text in UTF-8"),
    (dict(spend_limit=1.0), "needs --price_in"),
    (dict(spend_limit=float("nan"), price_in=1.0), "--spend_limit = nan"),
    (dict(spend_limit=-1.0, price_in=1.0), "--spend_limit = -1.0"),
    (
      dict(spend_limit=1.0, price_out=1.0, max_tokens=0),
      "needs a limit of tokens",
    ),
    (dict(url="ftp://host/v1"), "--url = 'ftp://host/v1': expected http"),
    (dict(url="http://host:port/v1"), "--url = 'http://host:port/v1'"),
    (dict(url="http://host:99999/v1"), "--url = 'http://host:99999/v1'"),
    (dict(url="http://host:0/v1"), "--url = 'http://host:0/v1'"),
    (dict(url="http://[::1/v1"), "--url = "),
    (dict(url="http://"), "--url = "),
    (dict(url="http://a b/v1"), "--url = "),
    (dict(url="http://a\n/v1"), "--url = "),
    (dict(url="http://" + "a" * 70 + ".de/v1"), "--url = |"),
    (dict(key="schlüssel"), "API key .--key_env.: expected printable ASCII"),
    (dict(key="key\n"), "API key .--key_env.: expected printable ASCII"),
    (dict(extra_body={"n": 3}), "--extra_body: n is not for it"),
    (dict(extra_body={"messages": []}), "--extra_body: messages is not"),
    (dict(extra_body={"stream": True}), "--extra_body: stream is not"),
  )
  def test_bad_options(self, options, words):
    if words.endswith("|"):  # a name that only a look-up can refuse
      self.assertTrue(self.ask("one", tries=1, **options)["given_up"])
    else:
      with self.assertRaisesRegex(UserError, words):
        self.ask("one", **options)
      self.assertFalse(os.path.exists(self.out))
    self.assertEmpty(self.server.asked)

  @parameterized.parameters(
    ('{"id": "a"}', "line 2: schema: .*prompt"),
    ('{"id": "a", "prompt": "c"}', "line 2: id 'a' again"),
    ('{"id": "b", "prompt": " "}', 'line 2: schema: "prompt" is empty'),
    ('{"id": " ", "prompt": "b"}', 'line 2: schema: "id" is empty'),
    ('{"id": "b", "prompt": "\\ud83d"}', "line 2: not JSON"),
    ("", "line 2: empty line"),
  )
  def test_prompts_that_are_none(self, line, words):
    path = self.root / "bad.jsonl"
    path.write_text('{"id": "a", "prompt": "b"}\n' + line + "\n")
    to = ask.Options(url=self.server.url, model="teacher")
    with self.assertRaisesRegex(UserError, f"bad.jsonl, {words}"):
      ask.ask(str(path), self.out, to)
    self.assertEmpty(self.server.asked)
    self.assertFalse(os.path.exists(self.out))

  def test_a_byte_order_mark_costs_no_prompt(self):
    path = self.root / "marked.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "prompt": "b"}\r\n')
    to = ask.Options(url=self.server.url, model="teacher")
    self.assertEqual(ask.ask(str(path), self.out, to)["answered"], 1)

  @parameterized.parameters(
    ((), "expected one file of prompts"),
    (("p", "--samples=x"), "flag --samples=x"),
    (("p", "--sample=3"), "Unknown command line flag 'sample'"),
    (("p", "--extra_body={"), "--extra_body = '{': expected a JSON object"),
    (("p", "--extra_body=[1]"), r"--extra_body = '\[1\]': expected a JSON ob"),
    (("p", '--extra_body={"a": "\\ud83d"}'), "--extra_body = .*: expected a "),
    (("p", '--extra_body={"a": NaN}'), "--extra_body = .*: expected a JSON ob"),
    (("p", "--key_env=NO_SUCH"), "--key_env = 'NO_SUCH': there is no such"),
    (("p", "--url=http://h:x/v1"), "--url = 'http://h:x/v1'"),
    (("p",), "--url = ''"),
    (
      ("nowhere.jsonl", "--out=o", "--url=http://h", "--model=m"),
      "nowhere.jsonl: cannot be read",
    ),
  )
  def test_from_the_command_line(self, arguments, words):
    began = cpu_seconds()
    done = subprocess.run(
      [sys.executable, "-m", "kd.teachers.ask", *arguments],
      **dict(cwd=ROOT, capture_output=True, text=True),
    )
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertRegex(done.stderr, f"^error: {words}")
    self.assertLen(done.stderr.splitlines(), 1)
    self.assertLess(cpu_seconds() - began, 2.0)

  def test_it_needs_no_jax(self):
    code = "import sys, kd.teachers.ask; print('jax' in sys.modules)"
    done = subprocess.run(
      [sys.executable, "-c", code],
      **dict(cwd=ROOT, capture_output=True, text=True),
    )
    self.assertEqual(done.stdout, "False\n")

  def test_a_home_folder_is_found(self):
    self.out = "~/answers.jsonl"
    command = self.command("one")
    with absltest.mock.patch.dict(os.environ, HOME=str(self.root)):
      done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertTrue((self.root / "answers.jsonl").exists())

  def test_a_run_tells_what_it_did(self):
    self.server.say["bad"] = (400, "no \x1b[31msuch\x1b[0m thing", {})
    command = self.command("fine", "bad", samples=1)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    self.assertEqual(done.returncode, 1, done.stderr)
    self.assertEqual(
      done.stdout,
      "1 answered, 1 given up, 0 dropped, 0 left, 0 skipped; $0.0000 in all\n",
    )
    (line,) = done.stderr.splitlines()  # no line for each request
    self.assertIn("q1: given up: status 400: no  [31msuch", line)


if __name__ == "__main__":
  absltest.main()
