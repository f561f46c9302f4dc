"""A real local server of chat completions, which says what a test wants."""

import collections
import http.server
import json
import threading
import time


def choice(text="fine", **fields):
  """Returns one choice; `message` is merged into its message."""
  message = {"role": "assistant", "content": text, **fields.pop("message", {})}
  return {"message": message, "finish_reason": "stop", **fields}


def reply(*choices, **fields):
  """Returns a reply of choices, 10 tokens in and 5 out for each."""
  usage = {"prompt_tokens": 10, "completion_tokens": 5 * len(choices)}
  return {"choices": list(choices), "usage": usage, **fields}


class Server(http.server.ThreadingHTTPServer):
  """Answers each prompt by `say`, and others well; keeps count.

  Attributes:
    say: {prompt: (status, text or JSON, headers) or JSON, or a list of them
      for its tries, whose last is repeated}.
    usual: what all other prompts get; None: n answers.
    seconds: that it takes to answer.
  """

  daemon_threads = True
  request_queue_size = 128

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.say, self.usual, self.seconds = {}, None, 0.0
    self.asked = collections.Counter()
    self.running = self.most = 0
    self.bodies, self.keys = [], []
    self.lock = threading.Lock()
    threading.Thread(target=self.serve_forever, daemon=True).start()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
  server: Server

  def do_POST(self):
    sent = self.rfile.read(int(self.headers["Content-Length"]))
    if not sent:  # the client has hung up
      return
    body = json.loads(sent)
    prompt = body["messages"][-1]["content"]
    with self.server.lock:
      self.server.asked[prompt] += 1
      tries = self.server.asked[prompt]
      self.server.running += 1
      self.server.most = max(self.server.most, self.server.running)
      self.server.bodies.append(body)
      self.server.keys.append(self.headers.get("Authorization"))
    try:
      time.sleep(self.server.seconds)
      self.answer(body, prompt, tries)
    finally:
      with self.server.lock:
        self.server.running -= 1

  def answer(self, body, prompt, tries):
    said = self.server.say.get(prompt, self.server.usual)
    if isinstance(said, list) and said and isinstance(said[0], dict | tuple):
      said = said[min(tries, len(said)) - 1]
    if said is None:
      texts = (f"answer {i} to {prompt}" for i in range(body["n"]))
      said = reply(*map(choice, texts))
    status, text, headers = said if isinstance(said, tuple) else (200, said, {})
    if headers.get("stall"):
      time.sleep(headers.pop("stall"))
    data = (text if isinstance(text, str) else json.dumps(text)).encode()
    try:
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      for key, value in headers.items():
        self.send_header(key, value)
      self.send_header("Content-Length", str(len(data)))
      self.end_headers()
      for start in range(0, len(data), 1 << 16):
        self.wfile.write(data[start : start + (1 << 16)])
    except OSError:  # the client has hung up
      pass

  def log_message(self, *arguments):
    pass
