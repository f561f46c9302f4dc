"""How many bytes a stored token takes, and how quickly they are read.

    python -m kd.bench.store [--tokens=262144] [docs/top_k.md]

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
from absl import app, flags

from kd import config, files
from kd.report import markdown
from kd.signals import codec, schema, store

_TOKENS = flags.DEFINE_integer("tokens", 262_144, "Rows of a store.")
_VOCABULARIES = flags.DEFINE_list(
  "vocabularies", ["32000", "151936", "262144"], "One store each."
)

K = 128
REPEATS = 9


def arrays(schema, vocabulary: int, rows: int) -> dict[str, np.ndarray]:
  """Returns random arrays that fit a schema."""
  rng = np.random.default_rng(0)
  out = {f.name: np.zeros((rows, *f.shape), f.dtype) for f in schema}
  ids = rng.integers(0, vocabulary - K, (rows, K))
  out["ids"] = (np.sort(ids, axis=-1) + np.arange(K)).astype(np.int32)
  out["logits"] = -rng.gamma(4.0, 2.0, (rows, K)).astype(np.float32)
  return out


def measure(vocabulary: int, tokens: int) -> dict[str, float]:
  """Writes and reads a store of one vocabulary.

  Args:
    vocabulary: V.
    tokens: rows; those of a shard's part, 64 * store.ROWS, divide them.
  """
  section = config.defaults().signal.to_dict()
  section |= {"keep": "top_k", "k": K, "dtype": "int8", "samples": 0}
  fields = schema.fields(section, vocabulary)
  part = arrays(fields, vocabulary, 64 * store.ROWS)
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "signal.array_record")
    repeats = [part] * (tokens // len(part["ids"]))
    began = time.perf_counter()
    about = store.write_shard(path, fields, repeats)
    wrote = time.perf_counter() - began
    files.write_json(
      os.path.join(folder, "metadata.json"),
      {
        "format": store.FORMAT,
        "schema": codec.describe(fields),
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
    rows = np.random.default_rng(0).integers(0, tokens, 2000)
    began = time.perf_counter()
    for row in rows:
      opened[int(row)]
    one = (time.perf_counter() - began) / len(rows)
  megabytes = about["bytes"] / 1e6
  return {
    "vocabulary": vocabulary,
    "bytes": about["bytes"] / tokens,
    "read": megabytes / statistics.median(times),
    "slowest": megabytes / max(times),
    "fastest": megabytes / min(times),
    "load": os.getloadavg()[0],
    "check": megabytes / statistics.median(sums),
    "write": megabytes / wrote,
    "random_us": 1e6 * one,
  }


def table(rows: list[dict[str, float]], tokens: int) -> str:
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
    f"temperature, no samples; {tokens} tokens in one shard, {REPEATS} reads, "
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
  tokens = _TOKENS.value
  rows = [measure(int(v), tokens) for v in _VOCABULARIES.value]
  body = table(rows, tokens)
  print(body)
  for page in argv[1:]:
    markdown.replace_section(page, "store", body)


if __name__ == "__main__":
  app.run(main)
