"""Time a decoder's training and labelling against torch and transformers.

    python -m kd.bench.language --torch=PYTHON [--language_cases=label,...]
      [--language_repeats=5] [--language_doc=docs/performance.md]

PYTHON has torch (a CPU wheel does) and transformers 5. Ours
(kd/bench/language_case.py) is what a study runs: an interval of its training
program, or its labelling. Theirs (kd/bench/torch_step.py) is the same model,
from the same weights, on the same batch, with the same loss and optimiser; the
losses of the first steps must agree to 1e-3, or nothing is written.

Each side is a process of its own. They work in turn, one idle while the other
works, so that ratios hold on a noisy machine. Their first call is left out.
Peak memory is what a process has resident at most after that, its weights and
all it has loaded included.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from kd.bench import decoders
from kd.errors import UserError
from kd.report import markdown

_TORCH = flags.DEFINE_string("torch", "", "A Python with torch.")
_CASES = flags.DEFINE_list("language_cases", [], "Those to time; none is all.")
_REPEATS = flags.DEFINE_integer("language_repeats", 5, "Turns of each side.")
_DOC = flags.DEFINE_string(
  "language_doc", "", "A file whose section <!-- language --> is the table's."
)

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).with_name("torch_step.py")
REST_S = 0.3  # between turns: OpenMP's threads spin for 0.2 s
TOLERANCE = 1e-3  # of losses, relative

SMALL: Mapping[str, Any] = dict(name="decoder", layers=4, width=128, heads=4)
MEDIUM: Mapping[str, Any] = dict(name="decoder", layers=6, width=384, heads=6)
TINY: Mapping[str, Any] = dict(
  teacher=MEDIUM, student=SMALL, vocab_size=4096, rows=8, length=256
)
LARGE: Mapping[str, Any] = dict(
  teacher=decoders.SMOLLM2,
  student=decoders.STUDENT,
  vocab_size=49_152,
  rows=2,
  length=512,
)
CASES: Mapping[str, Mapping[str, Any]] = {
  "small_live": dict(TINY, signal="live", steps=4),
  "small_top_k": dict(TINY, signal="top_k", steps=4),
  "large_live": dict(LARGE, signal="live", steps=1),
  "large_top_k": dict(LARGE, signal="top_k", steps=2),
  "label": dict(LARGE, signal="label", steps=1),
}
WORDS = {
  "live": "step, forward KL to a live teacher",
  "top_k": "step, forward KL to a stored top-64",
  "label": "labelling: top-64 of the teacher",
}


class Side:
  """A process that works once for each line."""

  def __init__(self, command: Sequence[str], cwd: str):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    self._process = subprocess.Popen(
      command,
      cwd=cwd,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**env, "HF_HUB_OFFLINE": "1"},
    )

  def answer(self) -> dict[str, Any]:
    assert self._process.stdout
    assert self._process.stderr
    for line in self._process.stdout:
      if line.startswith("{"):
        return json.loads(line)
    raise RuntimeError(self._process.stderr.read()[-2000:])

  def work(self) -> dict[str, Any]:
    assert self._process.stdin
    with contextlib.suppress(BrokenPipeError):  # `answer` says why
      self._process.stdin.write("\n")
      self._process.stdin.flush()
    return self.answer()

  def close(self) -> None:
    self._process.communicate()


def measure(case: Mapping[str, Any], torch: str, repeats: int) -> dict:
  """Times both sides of a case in turn; torch of "" leaves ours alone."""
  sides = {}
  with tempfile.TemporaryDirectory() as folder:
    module = "kd.bench.language_case"
    own = [sys.executable, "-m", module, folder, _json(case)]
    sides["ours"] = Side(own, str(ROOT))
    sides["ours"].answer()
    if torch:
      # Elsewhere: transformers would take our `kernels` for its own.
      sides["torch"] = Side([torch, str(SCRIPT), folder], folder)
    try:
      first = {name: side.work() for name, side in sides.items()}
      _check(first)
      turns = []
      for _ in range(repeats):
        turn = {}
        for name, side in sides.items():
          time.sleep(REST_S)
          turn[name] = side.work()
        turns.append(turn)
    finally:
      for side in sides.values():
        side.close()
  tokens = case["rows"] * case["length"] * case["steps"]
  found: dict[str, Any] = {"load": os.getloadavg()[0], "losses": first}
  for name in sides:
    seconds, cpu = (
      statistics.median(turn[name][key] for turn in turns)
      for key in ("seconds", "cpu")
    )
    found[name] = {
      "seconds": seconds / case["steps"],
      "cpu": cpu / case["steps"],
      "tokens_per_s": tokens / seconds,
      "mib": max(turn[name]["kib"] for turn in turns) / 1024,
    }
  if torch:
    found["ratio"] = {
      key: statistics.median(
        turn["torch"][key] / turn["ours"][key] for turn in turns
      )
      for key in ("seconds", "cpu")
    }
  return found


def _json(case: Mapping[str, Any]) -> str:
  return json.dumps({**case, "learning_rate": 1e-3})


def _check(first: Mapping[str, Mapping[str, Any]]) -> None:
  """Raises UserError unless both sides computed the same."""
  losses = [np.asarray(side["losses"]) for side in first.values()]
  for other in losses[1:]:
    if not np.allclose(other, losses[0], rtol=TOLERANCE):
      raise UserError(f"losses differ: {losses[0]} and {other}")


def millions(name: str, case: Mapping[str, Any]) -> str:
  """Returns how many weights a case's model has."""
  size = decoders.Size(vocab_size=case["vocab_size"], length=case["length"])
  shapes = jax.tree.leaves(decoders.abstract(case[name], size)["params"])
  return f"{sum(x.size for x in shapes) / 1e6:.1f} M"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the measurements as Markdown."""
  header = (
    *("what", "teacher", "student", "V", "rows x tokens"),
    *("ours ms", "torch ms", "ours tokens/s", "torch tokens/s"),
    *("ours peak MiB", "torch peak MiB"),
    *("torch / ours, time", "torch / ours, CPU time"),
  )
  body = []
  for name, row in rows.items():
    case, ours, torch = CASES[name], row["ours"], row["torch"]
    signal, ratio = case["signal"], row["ratio"]
    body.append(
      [
        WORDS[signal],
        "" if signal == "top_k" else millions("teacher", case),
        "" if signal == "label" else millions("student", case),
        f"{case['vocab_size']:,}",
        f"{case['rows']} x {case['length']}",
        *(f"{1e3 * x['seconds']:,.0f}" for x in (ours, torch)),
        *(f"{x['tokens_per_s']:,.0f}" for x in (ours, torch)),
        *(f"{x['mib']:,.0f}" for x in (ours, torch)),
        *(f"**{ratio[key]:.2f}**" for key in ("seconds", "cpu")),
      ]
    )
  load = max(row["load"] for row in rows.values())
  words = (
    "float32, AdamW, medians of a step, timed in turn; torch is eager, and its "
    "labelling leaves logits alone. Evidence: run, on "
    f"{jax.device_count()} x {jax.devices()[0].device_kind} "
    f"({os.cpu_count()} cores, load {load:.1f} at most), jax "
    f"{jax.__version__}, by `python -m kd.bench.language`."
  )
  return f"{words}\n\n{markdown.table(header, body)}"


def main(argv: list[str]) -> None:
  del argv
  rows = {}
  for name in _CASES.value or CASES:
    rows[name] = measure(CASES[name], _TORCH.value, _REPEATS.value)
    print(json.dumps({"case": name, **rows[name]}), flush=True)
  if not _TORCH.value:
    return
  made = table(rows)
  print(made)
  if _DOC.value:
    markdown.replace_section(_DOC.value, "language", made)


if __name__ == "__main__":
  app.run(main)
