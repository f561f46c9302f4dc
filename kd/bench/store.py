"""How many bytes a stored token takes, and how quickly they are read.

    python -m kd.bench.store [docs/top_k.md]

Writes top-128 signals with 8-bit logits, random ones, as a shard of a store,
and reads it as a study does: CRC-32 of every byte, records through grain,
arrays. The file is in the page cache, as one that is read again and again is.
"""

import os
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import app

from kd import config, files
from kd.signals import codec, store
from kernels.bench import markdown

VOCABULARIES = (32_000, 151_936, 262_144)
K = 128
TOKENS = 262_144
REPEATS = 9


def arrays(schema, vocabulary: int, rows: int) -> dict[str, np.ndarray]:
  """Returns random arrays that fit a schema."""
  rng = np.random.default_rng(0)
  out = {f.name: np.zeros((rows, *f.shape), f.dtype) for f in schema}
  ids = rng.integers(0, vocabulary - K, (rows, K))
  out["ids"] = (np.sort(ids, axis=-1) + np.arange(K)).astype(np.int32)
  out["logits"] = -rng.gamma(4.0, 2.0, (rows, K)).astype(np.float32)
  return out


def measure(vocabulary: int) -> dict[str, float]:
  """Writes and reads a store of one vocabulary."""
  section = config.defaults().signal.to_dict()
  section |= {"keep": "top_k", "k": K, "dtype": "int8", "samples": 0}
  schema = store.fields(section, vocabulary)
  part = arrays(schema, vocabulary, 64 * store.ROWS)
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "signal.array_record")
    repeats = [part] * (TOKENS // len(part["ids"]))
    began = time.perf_counter()
    about = store.write_shard(path, schema, repeats)
    wrote = time.perf_counter() - began
    files.write_json(
      os.path.join(folder, "metadata.json"),
      {
        "format": store.FORMAT,
        "schema": codec.describe(schema),
        "shards": [about],
      },
    )
    times, sums = [], []
    for _ in range(REPEATS):
      began = time.perf_counter()
      opened = store.Store(folder)
      sums.append(time.perf_counter() - began)
      opened.arrays()
      times.append(time.perf_counter() - began)
    rows = np.random.default_rng(0).integers(0, TOKENS, 2000)
    began = time.perf_counter()
    for row in rows:
      opened[int(row)]
    one = (time.perf_counter() - began) / len(rows)
  megabytes = about["bytes"] / 1e6
  return {
    "vocabulary": vocabulary,
    "bytes": about["bytes"] / TOKENS,
    "read": megabytes / statistics.median(times),
    "slowest": megabytes / max(times),
    "fastest": megabytes / min(times),
    "load": os.getloadavg()[0],
    "check": megabytes / statistics.median(sums),
    "write": megabytes / wrote,
    "random_us": 1e6 * one,
  }


def table(rows: list[dict[str, float]]) -> str:
  """Returns the measurements as Markdown."""
  header = [
    "V",
    "bytes a token",
    "read (MB/s): fastest / median / slowest",
    "of that CRC-32 alone (MB/s)",
    "packed and written (MB/s)",
    "a row at random (µs)",
  ]
  body = [
    [
      f"{r['vocabulary']:.0f}",
      f"{r['bytes']:.1f}",
      f"{r['fastest']:.0f} / **{r['read']:.0f}** / {r['slowest']:.0f}",
      f"{r['check']:.0f}",
      f"{r['write']:.0f}",
      f"{r['random_us']:.0f}",
    ]
    for r in rows
  ]
  words = (
    f"Top {K} with 8-bit logits, key, truth, answer, entropy and one "
    f"temperature, no samples; {TOKENS} tokens in one shard, {REPEATS} reads, "
    f"MB of the file. "
    f"Evidence: run, on {os.cpu_count()} cores (load "
    f"{min(r['load'] for r in rows):.1f} to "
    f"{max(r['load'] for r in rows):.1f}), from the page cache, jax "
    f"{jax.__version__}, by `python -m kd.bench.store`."
  )
  return f"{words}\n\n{markdown.table(header, body)}"


def main(argv: list[str]) -> None:
  if len(argv) > 2:
    raise app.UsageError("expected a page such as docs/top_k.md, or none")
  body = table([measure(v) for v in VOCABULARIES])
  print(body)
  for page in argv[1:]:
    files.replace_section(page, "store", body)


if __name__ == "__main__":
  app.run(main)
