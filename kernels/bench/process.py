"""Work in a process of its own: for compilers that read their flags once, may
abort, or whose peak memory is to be measured.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

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


def _reason(text: str) -> str:
  """Returns the last line that speaks of an error, or the last."""
  lines = text.strip().splitlines()
  errors = [x for x in lines if "Error" in x or "RESOURCE" in x]
  return (errors or lines or ["no output"])[-1][:300]
