"""Time a study's training against Python loops over a jitted step.

    python -m kd.bench.training [--repeats=5] [--doc=docs/performance.md]

First table. All train the same: A arms (temperatures 1, 2, 4, 8, 20) x S seeds
of MLPs of several widths on the same random data, Adam, on the present device.

  nnx loop      Flax's usual way: nnx.jit, nnx.Optimizer, batches that NumPy
                gathers; one run after another
  careful loop  jax.jit of a function of donated state, which gathers its
                batch on the device; one run after another
  study         kd.train.program, from the initial state to the last weights,
                under train.runs = "vmap", "map" and "auto"

The loops are timed over the seeds of one arm and multiplied by A: their runs
follow one another and differ in a number. Compilation is left out (a first call
each), and all are timed in turn, so that ratios hold on a noisy machine.

Second table: the same study with one hidden layer and more and more classes,
its losses from logits or through kernels.distill_loss (`fused_from` of
kd.train.arms).
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import app, flags

from kd.bench.ways import (
  BATCH,
  TEMPERATURES,
  Size,
  careful_loop,
  in_one_program,
  nnx_loop,
)
from kd.report import markdown

_DOC = flags.DEFINE_string(
  "doc", "", "A file whose section <!-- arms --> is to hold the table."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Times that each is timed.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each arm.")
_STEPS = flags.DEFINE_integer("steps", 300, "Of each run, a multiple of 3.")
_STUDENTS = flags.DEFINE_list(
  "students", ["30-30", "100-100", "800-800"], "Hidden widths, first table."
)
_CLASSES = flags.DEFINE_list(
  "classes", ["10", "32", "100", "1000", "4000"], "Of the second table."
)

WIDTH = (64,)
SECONDS = 60  # that repeats may take for each student; at least one is timed


def seconds(run: Callable[[], Any]) -> float:
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def in_turn(
  ways: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
  """Times each way in turn, so that ratios hold on a noisy machine."""
  times: dict[str, list[float]] = {way: [] for way in ways}
  for _ in range(repeats):
    for way, run in ways.items():
      times[way].append(seconds(run))
  return times


def measure(
  hidden: tuple[int, ...], repeats: int, size: Size
) -> dict[str, Any]:
  """Times a student's ways in turn; returns medians and ratios."""
  loops = {
    "nnx": nnx_loop(hidden, size),
    "careful": careful_loop(hidden, size),
  }
  ways: dict[str, Callable[[], Any]] = {
    k: functools.partial(f, TEMPERATURES[0]) for k, f in loops.items()
  }
  for runs in ("vmap", "map"):
    ways[runs], _ = in_one_program(hidden, runs, size)
  _, chosen = in_one_program(hidden, "auto", size)
  scale = {way: len(TEMPERATURES) if way in loops else 1 for way in ways}
  first = {way: scale[way] * seconds(run) for way, run in ways.items()}
  count = max(1, min(repeats, int(SECONDS / sum(first.values()))))
  times = {
    way: [scale[way] * t for t in taken]
    for way, taken in in_turn(ways, count).items()
  }
  auto = times["map" if chosen == "one after another" else "vmap"]

  def ratio(way):
    pairs = zip(times[way], auto, strict=True)
    return statistics.median(a / b for a, b in pairs)

  return {
    "student": "-".join(map(str, (784, *hidden, 10))),
    "auto": chosen,
    "repeats": count,
    "seconds": {way: statistics.median(t) for way, t in times.items()},
    "first_seconds": first,
    "ratio": {way: ratio(way) for way in loops},
  }


def table(rows: list[dict[str, Any]], size: Size) -> str:
  """Returns the measurements as Markdown."""
  device = jax.devices()[0]
  header = [
    "student", "times", "nnx loop", "careful loop",
    "study, vmapped (with compilation)", "study, one after another",
    "auto takes", "nnx loop / auto", "careful loop / auto",
  ]  # fmt: skip
  body = []
  for row in rows:
    t, first, ratio = row["seconds"], row["first_seconds"], row["ratio"]
    body.append(
      [
        row["student"],
        str(row["repeats"]),
        f"{t['nnx']:.2f}",
        f"{t['careful']:.2f}",
        f"{t['vmap']:.2f} ({first['vmap']:.1f})",
        f"{t['map']:.2f} ({first['map']:.1f})",
        row["auto"],
        f"**{ratio['nnx']:.1f}**",
        f"**{ratio['careful']:.1f}**",
      ]
    )
  words = (
    f"{len(TEMPERATURES)} arms x {size.seeds} seeds, {size.steps} steps of "
    f"batch {BATCH}, Adam, float32; medians in seconds, timed in turn, "
    f"compilation left out. Evidence: run, on {jax.device_count()} x "
    f"{device.device_kind} ({os.cpu_count()} cores), jax {jax.__version__}, by "
    "`python -m kd.bench.training`."
  )
  return f"{words}\n\n{markdown.table(header, body)}"


def measure_classes(classes: int, repeats: int, size: Size) -> dict[str, Any]:
  """Times a study's losses from logits and through the kernels."""
  ways = {}
  for way, first in (("logits", classes + 1), ("kernels", classes)):
    ways[way], _ = in_one_program(
      WIDTH, "vmap", size, classes=classes, fused_from=first
    )
    ways[way]()  # compiled
  times = in_turn(ways, repeats)
  pairs = zip(times["kernels"], times["logits"], strict=True)
  return {
    "classes": classes,
    "seconds": {way: statistics.median(t) for way, t in times.items()},
    "ratio": statistics.median(a / b for a, b in pairs),
  }


def classes_table(rows: list[dict[str, Any]]) -> str:
  """Returns the measurements as Markdown."""
  hidden = "-".join(map(str, (784, *WIDTH, "V")))
  words = (
    f"The same arms, seeds, steps and batches of {hidden}, vmapped. Evidence: "
    "run, as above."
  )
  body = [
    [
      str(row["classes"]),
      f"{row['seconds']['logits']:.2f}",
      f"{row['seconds']['kernels']:.2f}",
      f"**{row['ratio']:.2f}**",
    ]
    for row in rows
  ]
  header = ["V", "from logits", "through the kernels", "ratio"]
  return f"{words}\n\n{markdown.table(header, body)}"


def main(argv: list[str]) -> None:
  del argv
  size, repeats = Size(_SEEDS.value, _STEPS.value), _REPEATS.value
  wide = [measure_classes(int(v), repeats, size) for v in _CLASSES.value]
  print(classes_table(wide), flush=True)
  rows = []
  for widths in _STUDENTS.value:
    hidden = tuple(map(int, widths.split("-")))
    rows.append(measure(hidden, repeats, size))
    print(table(rows[-1:], size).splitlines()[-1], flush=True)
  if _DOC.value:
    markdown.replace_section(_DOC.value, "arms", table(rows, size))
    markdown.replace_section(_DOC.value, "classes", classes_table(wide))


if __name__ == "__main__":
  app.run(main)
