r"""Ask a teacher behind an OpenAI-compatible server.

    OPENAI_API_KEY=... python -m kd.teachers.ask PROMPTS.jsonl \
        --out=answers.jsonl --url=https://HOST/v1 --model=NAME --samples=8 \
        --spend_limit=5 --price_in=0.15 --price_out=0.60

PROMPTS.jsonl has {"id", "prompt", "reference"?} a line. Each prompt is one
request for K samples (or K requests for one, with --one_by_one). Answers are
appended as they come, in the form that `kd.teachers.ingest` reads;
OUT.log.jsonl says what each prompt cost, or why it was given up. The same
command again asks for what is missing; with other settings it is refused,
unless --keep says that the answers so far may stay (kd.teachers.ledger). What
becomes of a prompt:

    waiting -> left          no money for it, or the run stops
            -> asked -> answered   some of its choices are answers
                     -> given up   none is; or its last try failed, or the
                                   server's status says that all will fail

A try fails that times out, breaks off, meets 408, 409, 429 or 5xx, or is
answered by an error or no JSON. The next one comes after up to 2^n seconds at
random, or what Retry-After says. Where STOP_AFTER prompts in a row are given up
for one trouble of the server's, the run stops.

A request starts only if the limit has room for what was spent, what the running
ones may cost at most, and what it may cost itself. A reply that does not say
what it used costs the most that it may. (A server may charge for a request that
timed out or was interrupted: no one tells us.)

Exit code: 0 all is answered, 1 something is not, 2 an argument or a file is
refused, 130 and 143 for SIGINT and SIGTERM.
"""

import asyncio
import dataclasses
import os
import re
import sys
from typing import Any

from absl import flags

from kd.errors import UserError, why
from kd.teachers import command, options, replies
from kd.teachers.answers import read_prompts
from kd.teachers.client import Run, connect, words
from kd.teachers.ledger import Ledger, claim
from kd.teachers.options import Options


def ask(path: str, out: str, to: Options) -> dict[str, Any]:
  """Asks for every prompt that an output lacks; see the module.

  Args:
    path: of the prompts.
    out: of the answers; its log stands beside it.
    to: how to ask.

  Returns:
    {"answered", "given_up", "dropped", "left", "skipped", "usd", "stopped"}:
    prompts of this run; samples that were none; prompts that were not asked,
    and those given up earlier for what the same request would meet again;
    dollars over all runs; why prompts are left, or "".

  Raises:
    UserError: bad prompts or options, or an output of another kind, before any
      request is made; an output that cannot be written.
    command.Interrupted: by a signal.
  """
  to.check()
  if not out:
    raise UserError("--out is missing: expected a file")
  prompts = read_prompts(path)
  with claim(out, prompts, to.settings, to.keep) as ledger:
    missing = [p for p in prompts if p.id not in ledger.have]
    waiting = [p for p in missing if not _is_lasting(ledger, p.id, to)]
    waiting.sort(key=lambda p: p.id in ledger.given_up)  # new ones first

    async def run() -> Run:
      async with connect(to) as client:
        made = Run(client, ledger, to)
        await made.ask(waiting)
        return made

    try:
      made = asyncio.run(run())
    except OSError as error:
      raise UserError(f"{out}: cannot be written ({why(error)})") from error
    finished = made.counts["answered"] + made.counts["given_up"]
    if made.signal:
      have = len(ledger.have & {p.id for p in prompts})
      raise command.Interrupted(
        made.signal,
        f"{have} of {len(prompts)} prompts are answered in {out}; the same "
        "command goes on from there",
      )
  left = len(waiting) - finished
  return {
    **made.counts,
    "left": left,
    "skipped": len(missing) - len(waiting),
    "usd": ledger.usd,
    "stopped": made.stopped or ("--spend_limit" if left else ""),
  }


def _is_lasting(ledger: Ledger, prompt: str, to: Options) -> bool:
  """Whether a prompt was given up for what the same request would meet again:
  sampled once more, a reply may be whole."""
  reason = ledger.given_up.get(prompt, "")
  is_sampled = to.fields.get("temperature") != 0
  return reason.startswith(replies.LASTING) and not is_sampled


def define_flags() -> None:
  """Defines one flag for each option, with the words of its docstring."""
  described = re.findall(r"^    (\w+): (.*)$", Options.__doc__ or "", re.M)
  said = {name: about[0].upper() + about[1:] for name, about in described}
  flags.DEFINE_string("out", "", "Answers, JSONL; appended to.")
  flags.DEFINE_string("key_env", "OPENAI_API_KEY", "Variable with the key.")
  flags.DEFINE_string("extra_body", "{}", f"JSON. {said['extra_body']}")
  kinds = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
  }
  for field in dataclasses.fields(Options):
    if field.name not in ("key", "extra_body"):
      usual = "" if field.default is dataclasses.MISSING else field.default
      kinds[field.type](field.name, usual, said[field.name])  # ty: ignore


def main(argv: list[str]) -> int:
  if len(argv) != 2:
    raise UserError("expected one file of prompts")
  given = flags.FLAGS
  variable = given["key_env"]
  if variable.present and variable.value not in os.environ:
    raise UserError(
      f"--key_env = {variable.value!r}: there is no such variable"
    )
  names = [f.name for f in dataclasses.fields(Options)]
  values: dict[str, Any] = {n: given[n].value for n in names if n != "key"}
  values["extra_body"] = options.extra_body(given.extra_body)
  values["key"] = os.environ.get(given.key_env, "")
  paths = map(os.path.expanduser, (argv[1], given.out))
  made = ask(*paths, Options(**values))
  usd, stopped = made.pop("usd"), made.pop("stopped")
  print(f"{words(made)}; ${usd:.4f} in all")
  if stopped:
    print(f"stopped by: {stopped}", file=sys.stderr)
  return 1 if made["given_up"] or made["left"] or made["skipped"] else 0


if __name__ == "__main__":
  define_flags()
  command.run(main)
