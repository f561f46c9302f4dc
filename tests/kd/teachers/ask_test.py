"""Asking a real local server that fails, stalls, limits and talks nonsense."""

import collections
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

from absl.testing import absltest, parameterized

from kd.errors import UserError
from kd.teachers import ask, ingest

ROOT = pathlib.Path(__file__).resolve().parents[3]


class Server(http.server.ThreadingHTTPServer):
  """Answers by what a prompt says; keeps count."""

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.asked = collections.Counter()
    self.running = self.most = 0
    self.bodies, self.keys = [], []
    self.lock = threading.Lock()
    threading.Thread(target=self.serve_forever, daemon=True).start()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
  server: Server

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    prompt = body["messages"][-1]["content"]
    with self.server.lock:
      self.server.asked[prompt] += 1
      tries = self.server.asked[prompt]
      self.server.running += 1
      self.server.most = max(self.server.most, self.server.running)
      self.server.bodies.append(body)
      self.server.keys.append(self.headers.get("Authorization"))
    try:
      self.reply(body, prompt, tries)
    finally:
      with self.server.lock:
        self.server.running -= 1

  def reply(self, body, prompt, tries):
    if "fails twice" in prompt and tries <= 2:
      return self.send(500, "boom")
    if "always fails" in prompt:
      return self.send(503, "boom")
    if "limited" in prompt and tries == 1:
      return self.send(429, "slow down", {"Retry-After": "0.01"})
    if "stalls" in prompt and tries == 1:
      time.sleep(1.0)
    if "forbidden" in prompt:
      return self.send(400, "no such model")
    if "nonsense" in prompt and tries == 1:
      return self.send(200, "{ this is no JSON")
    if "other form" in prompt:
      return self.send(200, json.dumps({"data": []}))
    if "slow" in prompt:
      time.sleep(0.1)
    n = 1 if "lonely" in prompt else body["n"]
    choices = [
      {
        "message": {"content": f"answer {i} to {prompt}"},
        "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1.0}]}
        if body.get("logprobs")
        else None,
      }
      for i in range(n)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 5 * n}
    return self.send(200, json.dumps({"choices": choices, "usage": usage}))

  def send(self, status, text, headers=None):
    data = text.encode()
    try:
      self.send_response(status)
      for key, value in (headers or {}).items():
        self.send_header(key, value)
      self.send_header("Content-Length", str(len(data)))
      self.end_headers()
      self.wfile.write(data)
    except OSError:  # the client has hung up
      pass

  def log_message(self, *arguments):
    pass


class AskTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.server = Server()
    self.addCleanup(self.server.server_close)
    self.addCleanup(self.server.shutdown)
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.out = str(self.root / "answers.jsonl")
    self.enterContext(absltest.mock.patch.object(ask, "LONGEST_WAIT", 0.02))

  def prompts(self, *texts):
    path = self.root / "prompts.jsonl"
    lines = [
      json.dumps({"id": f"q{i}", "prompt": t}) for i, t in enumerate(texts)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)

  def ask(self, *texts, **options):
    options = {"samples": 2, "timeout": 0.5, "tries": 4, **options}
    made = ask.Options(url=self.server.url, model="teacher", **options)
    return ask.ask(self.prompts(*texts), self.out, made)

  def log(self):
    text = pathlib.Path(self.out + ".log.jsonl").read_text()
    return {e["id"]: e for e in map(json.loads, text.splitlines())}

  def test_answers_are_what_ingest_reads(self):
    counts = self.ask("one", "two", logprobs=True, system="be brief", key="k")
    self.assertEqual((counts["answered"], counts["given_up"]), (2, 0))
    store = str(self.root / "store")
    ingest.ingest([self.out], store)
    found = {a.id: a for a in ingest.read(store)}
    self.assertEqual(found["q0"].prompt, "one")
    self.assertEqual(
      [s.text for s in found["q1"].samples],
      ["answer 0 to two", "answer 1 to two"],
    )
    self.assertEqual(found["q0"].samples[0].logprob, -1.5)
    body = self.server.bodies[0]
    self.assertEqual(
      body["messages"][0], {"role": "system", "content": "be brief"}
    )
    self.assertEqual((body["n"], body["model"]), (2, "teacher"))
    self.assertEqual(set(self.server.keys), {"Bearer k"})

  @parameterized.parameters(
    ("fails twice", 3), ("limited", 2), ("stalls", 2), ("nonsense", 2)
  )
  def test_what_passes_is_tried_again(self, prompt, tries):
    counts = self.ask(prompt, "fine")
    self.assertEqual(counts["answered"], 2)
    self.assertEqual(self.server.asked[prompt], tries)

  @parameterized.parameters(
    ("always fails", 4, "4 tries, the last: status 503"),
    ("forbidden", 1, "status 400: no such model"),
    ("other form", 1, "an answer of another form"),
    ("lonely", 1, "1 choices for n = 2: try --one_by_one"),
  )
  def test_what_does_not_is_given_up_and_said(self, prompt, tries, words):
    counts = self.ask(prompt, "fine")
    self.assertEqual((counts["answered"], counts["given_up"]), (1, 1))
    self.assertEqual(self.server.asked[prompt], tries)
    self.assertIn(words, self.log()["q0"]["gave_up"])

  def test_one_by_one(self):
    counts = self.ask("lonely", one_by_one=True, samples=3)
    self.assertEqual(counts["answered"], 1)
    self.assertEqual(self.server.asked["lonely"], 3)

  def test_no_more_requests_at_once_than_allowed(self):
    self.ask(*(f"slow {i}" for i in range(12)), concurrency=3)
    self.assertEqual(self.server.most, 3)

  def test_a_spend_limit_holds_over_runs_and_is_never_passed(self):
    texts = [f"slow {i}" for i in range(10)]
    # 10 tokens in and 10 out cost $20; 20 + 18 in and 40 out at most $58.
    price = dict(price_in=1e6, price_out=1e6, max_tokens=20, concurrency=4)
    counts = self.ask(*texts, spend_limit=110.0, **price)
    self.assertLessEqual(counts["usd"], 110.0)
    self.assertGreater(counts["answered"], 0)
    self.assertEqual(counts["answered"] + counts["left"], 10)
    again = self.ask(*texts, spend_limit=110.0, **price)
    self.assertLessEqual(again["usd"], 110.0)
    more = self.ask(*texts, spend_limit=1000.0, **price)
    self.assertEqual((more["left"], more["usd"]), (0, 200.0))

  def test_a_kill_loses_and_repeats_no_answer(self):
    texts = [f"slow {i}" for i in range(40)]
    command = [
      sys.executable,
      *("-m", "kd.teachers.ask", self.prompts(*texts), f"--out={self.out}"),
      *(f"--url={self.server.url}", "--model=teacher", "--concurrency=2"),
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    while not (os.path.exists(self.out) and os.path.getsize(self.out) > 200):
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(self.out, "a") as f:
      f.write('{"id": "torn')  # as a kill in the middle of a line leaves it
    before = ask.done(self.out)
    self.assertBetween(len(before), 1, 39)
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    self.assertEqual(finished.returncode, 0, finished.stderr)
    lines = pathlib.Path(self.out).read_text().splitlines()
    ids = [json.loads(line)["id"] for line in lines]
    self.assertCountEqual(ids, [f"q{i}" for i in range(40)])
    self.assertLessEqual(sum(self.server.asked.values()), 42)  # 2 in flight

  @parameterized.parameters(
    (dict(samples=0), "--samples = 0"),
    (dict(timeout=0.0), "--timeout = 0.0"),
    (dict(spend_limit=1.0), "needs --price_in"),
  )
  def test_bad_options(self, options, words):
    with self.assertRaisesRegex(UserError, words):
      self.ask("one", **options)
    self.assertEmpty(self.server.asked)

  def test_bad_prompts_and_a_file_that_holds_something_else(self):
    options = ask.Options(url=self.server.url, model="teacher")
    path = self.root / "bad.jsonl"
    path.write_text('{"id": "a", "prompt": "b"}\n{"id": "a"}\n')
    with self.assertRaisesRegex(UserError, r"bad.jsonl, line 2: .*prompt"):
      ask.ask(str(path), self.out, options)
    path.write_text('{"id": "a", "prompt": "b"}\n' * 2)
    with self.assertRaisesRegex(UserError, "line 2: id 'a' again"):
      ask.ask(str(path), self.out, options)
    pathlib.Path(self.out).write_text("something else\n")
    with self.assertRaisesRegex(UserError, "line 1: not JSON.*; expected answ"):
      self.ask("one")
    self.assertEmpty(self.server.asked)


if __name__ == "__main__":
  absltest.main()
