"""Ask a teacher behind an OpenAI-compatible server.

    OPENAI_API_KEY=... python -m kd.teachers.ask PROMPTS.jsonl \
        --out=answers.jsonl --url=https://HOST/v1 --model=NAME --samples=8 \
        --spend_limit=5 --price_in=0.15 --price_out=0.60

PROMPTS.jsonl has {"id", "prompt", "reference"?} a line. Each prompt is one
request for K samples (or K requests for one, with --one_by_one). Answers are
appended as they come, in the form that `kd.teachers.ingest` reads;
OUT.log.jsonl has a line for every request's tokens and cost, and for every
prompt that was given up, with the reason. The same command again asks for what
is missing.

Requests that time out, break off, or meet 408, 409, 429 or 5xx are tried again
after up to 2^n seconds at random, or what Retry-After says. Any other status
gives the prompt up. A request starts only if the limit has room for what was
spent, what the running ones may cost at most, and what it may cost itself. (A
server may charge for a request that timed out: no one tells us.)
"""

import asyncio
import dataclasses
import json
import math
import os
import random
import sys
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec
from absl import app, flags, logging

from kd.errors import UserError, why
from kd.teachers import answers
from kd.teachers.answers import Answers, Sample

AGAIN = (408, 409, 429, *range(500, 600))
LONGEST_WAIT = 60.0  # seconds between two tries
BYTES_PER_TOKEN = 2  # at least, of a prompt: an upper bound on its tokens


class Prompt(msgspec.Struct, forbid_unknown_fields=True):
  """What is to be asked."""

  id: str
  prompt: str
  reference: str | None = None


@dataclasses.dataclass(frozen=True)
class Options:
  """How to ask.

  Attributes:
    url: of the server, up to and with /v1.
    model: its name there.
    samples: K.
    temperature, max_tokens: of the sampling.
    system: the system message, or "".
    logprobs: whether to ask for token log-probabilities (their sum is kept).
    one_by_one: K requests of one sample, for servers that ignore "n".
    concurrency: requests at once.
    timeout: seconds for one request.
    tries: of one request.
    price_in, price_out: US dollars for a million tokens.
    spend_limit: US dollars, over all runs with the same output.
    key: sent as a bearer token; "" sends none.
  """

  url: str
  model: str
  samples: int = 1
  temperature: float = 1.0
  max_tokens: int = 256
  system: str = ""
  logprobs: bool = False
  one_by_one: bool = False
  concurrency: int = 8
  timeout: float = 60.0
  tries: int = 6
  price_in: float = 0.0
  price_out: float = 0.0
  spend_limit: float = math.inf
  key: str = ""


class GaveUp(Exception):
  """One prompt gets no answer; the others may."""


class _Purse:
  """What was spent, and what the running requests may still cost."""

  def __init__(self, limit: float, spent: float):
    self.limit, self.spent, self.held = limit, spent, 0.0

  def hold(self, most: float) -> bool:
    if self.spent + self.held + most > self.limit:
      return False
    self.held += most
    return True

  def settle(self, most: float, cost: float) -> None:
    self.held -= most
    self.spent += cost


def read_prompts(path: str) -> list[Prompt]:
  """Reads the prompts.

  Raises:
    UserError: naming the file and the line that is none.
  """
  decode = msgspec.json.Decoder(Prompt).decode
  prompts, seen = [], set()
  try:
    with open(path, "rb") as f:
      for number, line in enumerate(f, 1):
        try:
          prompt = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
          raise UserError(f"{path}, line {number}: {error}") from error
        if prompt.id in seen:
          raise UserError(f"{path}, line {number}: id {prompt.id!r} again")
        seen.add(prompt.id)
        prompts.append(prompt)
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({why(error)})") from error
  return prompts


def done(out: str) -> set[str]:
  """Returns the ids answered so far; cuts off a line that a kill left torn."""
  if not os.path.exists(out):
    return set()
  found = set()
  with open(out, "rb+") as f:
    good = 0
    for number, line in enumerate(f, 1):
      if not line.endswith(b"\n"):
        break
      try:
        found.add(answers.parse(line).id)
      except ValueError as error:
        raise UserError(
          f"{out}, line {number}: {error}; expected answers of an earlier run"
        ) from error
      good += len(line)
    f.truncate(good)
  return found


def spent(log: str) -> float:
  """Returns the dollars that earlier runs have spent."""
  if not os.path.exists(log):
    return 0.0
  total = 0.0
  with open(log, "rb") as f:
    for line in f:
      if line.endswith(b"\n"):
        total += json.loads(line).get("usd", 0.0)
  return total


async def ask_all(
  prompts: list[Prompt], out: str, options: Options
) -> dict[str, Any]:
  """Asks for every prompt that `out` lacks.

  Returns:
    {"answered", "given_up", "left", "usd"}: counts of this run's prompts
    (`left` for want of money), and dollars over all runs.
  """
  log = f"{out}.log.jsonl"
  have = done(out)
  purse = _Purse(options.spend_limit, spent(log))
  waiting = [p for p in prompts if p.id not in have]
  counts = dict.fromkeys(("answered", "given_up", "left"), 0)
  headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
  queue = iter(waiting)
  # Line-buffered appends: a kill can tear the last line at most.
  with (
    open(out, "a", buffering=1, encoding="utf-8") as f,
    open(log, "a", buffering=1, encoding="utf-8") as logged,
  ):

    def note(**entry) -> None:
      logged.write(json.dumps(entry, ensure_ascii=False) + "\n")

    async def worker(client: httpx.AsyncClient) -> None:
      for prompt in queue:
        most = _most(prompt, options)
        if not purse.hold(most):
          counts["left"] += 1
          continue
        cost = _Cost()
        try:
          found = await _answers(client, prompt, options, cost)
          f.write(msgspec.json.encode(found).decode() + "\n")
          counts["answered"] += 1
          note(id=prompt.id, **cost.entry(options))
        except GaveUp as error:
          counts["given_up"] += 1
          note(id=prompt.id, gave_up=str(error), **cost.entry(options))
          logging.warning("%s: gave up (%s)", prompt.id, error)
        purse.settle(most, cost.usd(options))

    async with httpx.AsyncClient(
      headers=headers, timeout=options.timeout
    ) as client:
      workers = min(options.concurrency, max(1, len(waiting)))
      await asyncio.gather(*(worker(client) for _ in range(workers)))
  return {**counts, "usd": purse.spent}


@dataclasses.dataclass
class _Cost:
  """Tokens of one prompt's requests, those that failed late included."""

  tokens_in: int = 0
  tokens_out: int = 0

  def usd(self, options: Options) -> float:
    tokens = self.tokens_in * options.price_in
    return (tokens + self.tokens_out * options.price_out) / 1e6

  def entry(self, options: Options) -> dict[str, Any]:
    return {**dataclasses.asdict(self), "usd": self.usd(options)}


def _most(prompt: Prompt, options: Options) -> float:
  """Returns the dollars that a prompt may cost at most, if all goes well."""
  asked = len((options.system + prompt.prompt).encode()) // BYTES_PER_TOKEN + 16
  requests = options.samples if options.one_by_one else 1
  most = _Cost(asked * requests, options.max_tokens * options.samples)
  return most.usd(options)


async def _answers(client, prompt: Prompt, options: Options, cost) -> Answers:
  messages = [{"role": "user", "content": prompt.prompt}]
  if options.system:
    messages.insert(0, {"role": "system", "content": options.system})
  body = {
    "model": options.model,
    "messages": messages,
    "n": 1 if options.one_by_one else options.samples,
    "temperature": options.temperature,
    "max_tokens": options.max_tokens,
  }
  if options.logprobs:
    body["logprobs"] = True
  samples: list[Sample] = []
  for _ in range(options.samples if options.one_by_one else 1):
    reply = await _post(client, body, options)
    try:
      usage = reply.get("usage") or {}
      cost.tokens_in += int(usage.get("prompt_tokens", 0))
      cost.tokens_out += int(usage.get("completion_tokens", 0))
      samples += [_sample(choice) for choice in reply["choices"]]
    except (KeyError, TypeError, ValueError) as error:
      raise GaveUp(f"an answer of another form: {why(error)}") from error
  if len(samples) != options.samples:
    raise GaveUp(
      f"{len(samples)} choices for n = {options.samples}: try --one_by_one"
    )
  made = Answers(prompt.id, prompt.prompt, samples, reference=prompt.reference)
  try:
    return answers.checked(made)
  except ValueError as error:
    raise GaveUp(str(error)) from error


def _sample(choice: Mapping[str, Any]) -> Sample:
  message = choice["message"]
  tokens = (choice.get("logprobs") or {}).get("content")
  logprob = None
  if tokens is not None:
    logprob = min(0.0, float(sum(t["logprob"] for t in tokens)))
  return Sample(
    text=message.get("content") or "",
    logprob=logprob,
    rationale=message.get("reasoning_content"),
    trace=message.get("tool_calls"),
  )


async def _post(client, body, options: Options) -> dict[str, Any]:
  """Posts one request until it is answered; raises GaveUp."""
  reason = ""
  for attempt in range(options.tries):
    wait = random.uniform(0, min(LONGEST_WAIT, 2.0**attempt))
    try:
      url = f"{options.url.rstrip('/')}/chat/completions"
      # httpx's timeout is for a single read: a server may trickle.
      async with asyncio.timeout(options.timeout):
        response = await client.post(url, json=body)
      if response.status_code == 200:
        return response.json()
      reason = f"status {response.status_code}: {response.text[:200]}"
      if response.status_code not in AGAIN:
        raise GaveUp(reason)
      wait = _retry_after(response, wait)
    except (httpx.TransportError, TimeoutError, ValueError) as error:
      reason = why(error)
    if attempt + 1 < options.tries:
      await asyncio.sleep(wait)
  raise GaveUp(f"{options.tries} tries, the last: {reason}")


def _retry_after(response: httpx.Response, otherwise: float) -> float:
  try:
    return min(LONGEST_WAIT, float(response.headers["Retry-After"]))
  except (KeyError, ValueError):  # absent, or a date
    return otherwise


def ask(path: str, out: str, options: Options) -> dict[str, Any]:
  """As `ask_all`, from a file; see the module.

  Raises:
    UserError: bad prompts, options or an `out` of another kind; before any
      request is made.
  """
  for name, good, words in (
    ("url", options.url.startswith(("http://", "https://")), "http(s)://..."),
    ("model", bool(options.model), "the model's name at the server"),
    ("samples", options.samples >= 1, "a whole number >= 1"),
    ("concurrency", options.concurrency >= 1, "a whole number >= 1"),
    ("tries", options.tries >= 1, "a whole number >= 1"),
    ("timeout", options.timeout > 0, "seconds > 0"),
    ("max_tokens", options.max_tokens >= 1, "a whole number >= 1"),
    ("temperature", options.temperature >= 0, "a number >= 0"),
    ("price_in", options.price_in >= 0, "dollars >= 0"),
    ("price_out", options.price_out >= 0, "dollars >= 0"),
  ):
    if not good:
      raise UserError(
        f"--{name} = {getattr(options, name)!r}: expected {words}"
      )
  if not out:
    raise UserError("--out is missing: expected a file")
  limited = math.isfinite(options.spend_limit)
  if limited and not (options.price_in or options.price_out):
    raise UserError(
      f"--spend_limit = {options.spend_limit}: needs --price_in and --price_out"
    )
  prompts = read_prompts(path)
  os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
  return asyncio.run(ask_all(prompts, out, options))


def define_flags() -> None:
  """Defines one flag for each option."""
  flags.DEFINE_string("out", "", "Answers, JSONL; appended to.")
  flags.DEFINE_string("key_env", "OPENAI_API_KEY", "Variable with the key.")
  kinds = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
  }
  for field in dataclasses.fields(Options):
    if field.name != "key":
      usual = "" if field.default is dataclasses.MISSING else field.default
      words = f"See Options.{field.name}."
      kinds[field.type](field.name, usual, words)  # ty: ignore


def main(argv: list[str]) -> None:
  names = [f.name for f in dataclasses.fields(Options) if f.name != "key"]
  given: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
  options = Options(**given, key=os.environ.get(flags.FLAGS.key_env, ""))
  try:
    if len(argv) != 2:
      raise UserError("expected one file of prompts")
    made = ask(argv[1], flags.FLAGS.out, options)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  print(
    f"{made['answered']} answered, {made['given_up']} given up, "
    f"{made['left']} left for want of money; ${made['usd']:.4f} in all"
  )
  if made["given_up"] or made["left"]:
    sys.exit(1)


if __name__ == "__main__":
  define_flags()
  app.run(main)
