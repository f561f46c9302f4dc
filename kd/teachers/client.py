"""Asks for prompts at a server, several at once; kd.teachers.ask says how."""

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import logging as stdlib_logging
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from absl import logging

from kd.errors import UserError, why
from kd.teachers import command, replies
from kd.teachers.answers import Answers, Prompt
from kd.teachers.ledger import Ledger
from kd.teachers.options import Options

AGAIN = (408, 409, 429, *range(500, 600))
ALIKE = (401, 402, 403, 404, 405)  # what one prompt meets, all will
LONGEST_WAIT = 60.0  # seconds between two tries
STOP_AFTER = 5  # prompts in a row
SHOWN = 5  # prompts given up that the terminal tells of
BETWEEN_LINES = 10.0  # seconds


class GaveUp(Exception):
  """One prompt gets no answer; the others may.

  Attributes:
    trouble: what is the server's and not the prompt's, or "".
  """

  def __init__(self, reason: str, trouble: str = ""):
    super().__init__(reason)
    self.trouble = trouble


class Purse:
  """What was spent, and what the running prompts may still cost; dollars."""

  def __init__(self, limit: float, spent: float):
    self.limit, self.spent, self.held = limit, spent, 0.0
    self._holders = 0
    self._settled = asyncio.Event()

  async def hold(self, most: float) -> bool:
    """Puts money aside, if need be when others have settled; False where even
    then there is too little."""
    while self.spent + self.held + most > self.limit:
      if not self._holders:
        return False
      self._settled.clear()
      await self._settled.wait()
    self._holders += 1
    self.held += most
    return True

  def settle(self, most: float, cost: float) -> None:
    self._holders -= 1
    self.held = self.held - most if self._holders else 0.0
    self.spent += cost
    self._settled.set()


@dataclasses.dataclass
class Bill:
  """Tokens of one prompt's requests; of `assumed` replies the most."""

  tokens_in: int = 0
  tokens_out: int = 0
  assumed: int = 0

  def add(self, used: tuple[int, int] | None, most: tuple[int, int]) -> None:
    self.assumed += used is None
    tokens_in, tokens_out = used or most
    self.tokens_in += tokens_in
    self.tokens_out += tokens_out


class Run:
  """Asks for prompts, several at once.

  Attributes:
    counts: answered and given_up prompts, dropped samples.
    stopped: why no more are asked, "" while they are.
    signal: the number of one that came, or 0.
  """

  def __init__(self, client: Any, ledger: Ledger, to: Options):
    self.counts = dict.fromkeys(("answered", "given_up", "dropped"), 0)
    self.stopped, self.signal = "", 0
    self._client, self._ledger, self._to = client, ledger, to
    self._purse = Purse(to.spend_limit, ledger.usd)
    self._trouble, self._in_a_row = "", 0
    self._said = time.monotonic()

  async def ask(self, prompts: list[Prompt]) -> None:
    """Asks for all of them, as far as the money lasts."""
    queue, tasks = iter(prompts), []
    count = min(self._to.concurrency, len(prompts))

    def interrupt(number: int) -> None:
      self.signal = number
      for task in tasks:
        task.cancel()

    try:
      with _handled(interrupt):
        async with asyncio.TaskGroup() as group:
          tasks += [group.create_task(self._work(queue)) for _ in range(count)]
    except ExceptionGroup as errors:
      raise errors.exceptions[0] from None

  async def _work(self, queue: Iterator[Prompt]) -> None:
    each = self._to.requests
    for prompt in queue:
      most = each * self._to.usd(*self._to.most(prompt))
      if self.stopped:
        return
      if await self._purse.hold(most):
        bill = Bill()
        try:
          await self._one(prompt, bill)
        finally:
          usd = self._to.usd(bill.tokens_in, bill.tokens_out)
          self._purse.settle(most, usd)

  async def _one(self, prompt: Prompt, bill: Bill) -> None:
    """Asks for one prompt, and writes what came of it."""
    try:
      found, dropped = await self._answers(prompt, bill)
    except GaveUp as error:
      self._note(prompt, bill, {"gave_up": str(error)})
      self._given_up(prompt, error)
    except asyncio.CancelledError:
      self._note(prompt, bill, {"interrupted": True})
      raise
    else:
      self._note(prompt, bill, {"dropped": dropped} if dropped else {}, found)
      self.counts["answered"] += 1
      self.counts["dropped"] += len(dropped)
      self._trouble, self._in_a_row = "", 0
    if time.monotonic() - self._said > BETWEEN_LINES:
      self._said = time.monotonic()
      logging.info("%s; $%.4f", words(self.counts), self._purse.spent)

  def _note(
    self,
    prompt: Prompt,
    bill: Bill,
    said: Mapping[str, Any],
    found: Answers | None = None,
  ) -> None:
    usd = self._to.usd(bill.tokens_in, bill.tokens_out)
    cost = {**dataclasses.asdict(bill), "usd": usd}
    self._ledger.note({"id": prompt.id, **said, **cost}, found)

  def _given_up(self, prompt: Prompt, error: GaveUp) -> None:
    self.counts["given_up"] += 1
    if self.counts["given_up"] <= SHOWN:
      logging.warning("%s: given up: %s", _plain(prompt.id), _plain(str(error)))
    same = error.trouble and error.trouble == self._trouble
    self._in_a_row = self._in_a_row + 1 if same else 1
    self._trouble = error.trouble
    if error.trouble and self._in_a_row >= STOP_AFTER:
      self.stopped = f"{STOP_AFTER} prompts in a row met {_plain(str(error))}"

  async def _answers(
    self, prompt: Prompt, bill: Bill
  ) -> tuple[Answers, list[str]]:
    """Returns a prompt's answers, and why its other choices are none.

    Raises:
      GaveUp: there is no answer. One that was paid for is kept, whatever the
        prompt's other requests meet.
    """
    samples, dropped = [], []
    for _ in range(self._to.requests):
      try:
        reply = await self._request(prompt)
      except GaveUp as error:
        if not samples:
          raise
        dropped.append(str(error))
        break
      bill.add(reply.usage, self._to.most(prompt))
      samples += reply.samples
      dropped += [reply.fault] if reply.fault else reply.dropped
    if not samples:
      raise GaveUp("; ".join(dict.fromkeys(dropped)))
    found = Answers(prompt.id, prompt.prompt, samples, [], prompt.reference)
    return found, dropped

  async def _request(self, prompt: Prompt) -> replies.Reply:
    """Posts one request until a try succeeds.

    Raises:
      GaveUp: none did, or the status is one that stays.
    """
    import openai  # late: it takes most of a second

    to, reason, trouble = self._to, "", ""
    messages = [{"role": "user", "content": prompt.prompt}]
    if to.system:
      messages.insert(0, {"role": "system", "content": to.system})
    headers = {} if to.key else {"Authorization": openai.Omit()}
    for attempt in range(to.tries):
      wait = random.uniform(0, min(LONGEST_WAIT, 2.0**attempt))
      try:
        # The client's own timeout is for a single read: a server may trickle.
        async with asyncio.timeout(to.timeout):
          raw = await self._client.chat.completions.with_raw_response.create(
            model=to.model,
            messages=messages,
            n=to.choices,
            extra_body=to.fields,
            extra_headers=headers,
          )
        reply = replies.read(json.loads(raw.http_response.content), to.choices)
        if not reply.is_error:
          return reply
        reason = trouble = reply.fault
      except openai.APIStatusError as error:
        status = error.status_code
        reason = f"status {status}: {error.response.text[:200]}"
        trouble = f"status {status}"
        if status not in AGAIN:
          raise GaveUp(reason, self._shared(status, reason)) from error
        wait = _retry_after(error.response.headers.get("Retry-After"), wait)
      except Exception as error:  # whatever one try meets ends it alone
        reason = trouble = why(error)
      if attempt + 1 < to.tries:
        await asyncio.sleep(wait)
    raise GaveUp(f"{to.tries} tries, the last: {reason}", trouble)

  def _shared(self, status: int, reason: str) -> str:
    """Returns what all prompts will meet, if one met it: a status that is about
    the caller; any other as long as nothing was ever answered."""
    if status in ALIKE:
      return f"status {status}"
    is_first = not self.counts["answered"] and not self._ledger.have
    return reason if is_first else ""


def _retry_after(header: str | None, otherwise: float) -> float:
  """Returns the seconds that a header says, as a number or a date."""
  try:
    wait = float(header or "")
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(header or "")
      wait = date.timestamp() - time.time()
    except (ValueError, OverflowError):
      return otherwise
  return min(wait, LONGEST_WAIT) if wait >= 0 else otherwise


@contextlib.contextmanager
def _handled(interrupt: Callable[[int], None]) -> Generator[None]:
  """Lets the running loop handle the signals, where it is Python's to do."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  loop = asyncio.get_running_loop()
  before = {number: signal.getsignal(number) for number in command.SIGNALS}
  for number in before:
    loop.add_signal_handler(number, interrupt, number)
  try:
    yield
  finally:
    for number, handler in before.items():
      loop.remove_signal_handler(number)
      signal.signal(number, handler)


def _plain(text: str) -> str:
  """Returns a server's words as a terminal may have them."""
  return "".join(c if c.isprintable() else " " for c in text)


def words(counts: Mapping[str, int]) -> str:
  """Says how many of each there are."""
  return ", ".join(f"{n} {key.replace('_', ' ')}" for key, n in counts.items())


def connect(to: Options) -> Any:
  """Returns openai's client, which carries one try at a time.

  Raises:
    UserError: it takes no such URL.
  """
  import openai

  for name in ("openai", "httpx2"):  # a line for each request is too many
    stdlib_logging.getLogger(name).setLevel(stdlib_logging.WARNING)
  try:
    # Its own tries have no time of their own, charge nothing, and end at an
    # error in a reply of status 200: `Run` has the tries.
    return openai.AsyncOpenAI(
      api_key=to.key or "none",
      base_url=to.url,
      timeout=to.timeout,
      max_retries=0,
    )
  except Exception as error:
    raise UserError(f"--url = {to.url!r}: {why(error)}") from error
