"""Work in a process of its own: for compilers that read their flags once, may
abort, or whose peak memory is to be measured.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

ROOT = str(pathlib.Path(__file__).parents[2])


def run(
  module: str,
  *arguments: str,
  environment: Mapping[str, str] | None = None,
  stdin: str | None = None,
  limit_s: float = 600,
) -> tuple[list[dict], str]:
  """Runs `python -m module` and reads the JSON objects that it prints.

  Returns:
    (one dict for each line of stdout that begins with a brace, why it stopped
    before its end or "").
  """
  path = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
  try:
    done = subprocess.run(
      [sys.executable, "-m", module, *arguments],
      input=stdin,
      capture_output=True,
      text=True,
      env={**os.environ, "PYTHONPATH": path, **(environment or {})},
      timeout=limit_s,
      check=False,
    )
    printed = done.stdout
    error = _reason(done.stderr) if done.returncode else ""
  except subprocess.TimeoutExpired as stopped:
    printed = (stopped.stdout or b"").decode()
    error = f"more than {limit_s:.0f} s"
  lines = [line for line in printed.splitlines() if line.startswith("{")]
  return [json.loads(line) for line in lines], error


def run_each(
  module: str,
  jobs: Sequence[dict],
  *arguments: str,
  environment: Mapping[str, str] | None = None,
  limit_s: float = 180,
  ended: Callable[[str], dict] = lambda error: {"error": error},
) -> list[dict]:
  """Runs jobs one after another in one process; returns an object for each.

  After a job that ended its process, the others run in a new one.

  Args:
    module: reads jobs from stdin and prints a line for each: `serve`.
    jobs: what JSON can hold.
    *arguments, environment: as in `run`.
    limit_s: seconds for each job, on average.
    ended: why -> the result of a job that ended its process.
  """
  out: list[dict] = []
  while len(out) < len(jobs):
    todo = jobs[len(out) :]
    done, error = run(
      module,
      *arguments,
      environment=environment,
      stdin=json.dumps(todo),
      limit_s=limit_s * len(todo),
    )
    out += done
    if len(done) < len(todo):
      out.append(ended(error))
  return out


def serve(work: Callable[[dict], dict]) -> None:
  """Prints work(job), or {"error": why}, for each job of stdin, as JSON."""
  for job in json.load(sys.stdin):
    try:
      out = work(job)
    except Exception as e:
      out = {"error": f"{type(e).__name__}: {e}"[:500]}
    print(json.dumps(out), flush=True)


def _reason(text: str) -> str:
  """Returns the last line that speaks of an error, or the last."""
  lines = text.strip().splitlines()
  errors = [x for x in lines if "Error" in x or "RESOURCE" in x]
  return (errors or lines or ["no output"])[-1][:300]
