"""What compilers make of a decoder's training step, for devices not here.

    python -m kd.bench.decoder_memory [--memory_targets=v5e,h100]
      [--memory_dtype=bfloat16] [--memory_doc=docs/performance.md]

The program is a study's (kd.train.loop.programs): an interval of steps with a
live SmolLM2-135M or a stored top-64, a student of 15.7 million parameters,
V = 49,152 and batches of 8 x 512 tokens; then a look at a validation split.
Weights are float32, whatever computes. Evidence of kind "compiled". Install:
requirements-tpu.txt, requirements-gpu.txt.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import NamedSharding, PartitionSpec

from kd.bench import decoders
from kd.report import markdown
from kernels import topologies
from kernels.bench import process
from kernels.bench.stopwatch import stopwatch
from kernels.report import gpu
from kernels.report.traffic import ENVIRONMENT

_TARGETS = flags.DEFINE_list("memory_targets", ["v5e", "h100"], "Devices.")
_JOB = flags.DEFINE_string("memory_job", "", "Target and signal of a child.")
_DTYPE = flags.DEFINE_string("memory_dtype", "float32", "Of computation.")
_DOC = flags.DEFINE_string(
  "memory_doc", "", "A file whose section <!-- decoder --> is the table's."
)
MIB = 1 << 20
LIMIT_S = 3600.0


def unavailable(target: str) -> str | None:
  """Returns why programs cannot be compiled for a target, or None."""
  tpu = target in topologies.TARGETS
  return topologies.available() if tpu else gpu.available()


def size(dtype: str, layers: int | None = None) -> decoders.Size:
  """Returns what is compiled; with `layers`, models of so many alone."""
  own = dict(dtype=dtype) | ({} if layers is None else dict(layers=layers))
  return decoders.Size({**decoders.SMOLLM2, **own}, {**decoders.STUDENT, **own})


def compile_for(target: str, signal: str, of: decoders.Size) -> dict[str, Any]:
  """Compiles the study's interval of steps.

  Returns:
    `temp_bytes`, `argument_bytes`; the `largest` array's numbers, its `shape`,
    the `limit` that it must be below, positions x V; and `seconds`.
  """
  tpu = target in topologies.TARGETS
  place: jax.sharding.Sharding
  if tpu:
    place = topologies.sharding(target)
  else:
    place = NamedSharding(gpu.mesh_of(target, 1), PartitionSpec())

  def put(x):
    return jax.ShapeDtypeStruct(
      jnp.shape(x), jnp.result_type(x), sharding=place
    )

  elapsed = stopwatch()
  run, arguments = decoders.program(of, signal)
  traced = run.trace(*jax.tree.map(put, arguments))
  compiled = topologies.compiled(traced, "tpu" if tpu else "cuda")
  memory = compiled.memory_analysis()
  numbers, shape = decoders.largest(compiled.as_text())
  return dict(
    target=target,
    signal=signal,
    temp_bytes=memory.temp_size_in_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    largest=numbers,
    shape=shape,
    limit=of.positions * of.vocab_size,
    seconds=elapsed(),
  )


def table(rows: Sequence[Mapping[str, Any]], of: decoders.Size) -> str:
  """Returns the rows as Markdown."""
  header = (
    *("target", "signal", "temporaries MiB", "arguments MiB"),
    *("largest array", "of positions x V"),
  )
  body = []
  for row in rows:
    if "error" in row:
      body.append([row["target"], row["signal"], row["error"], "", "", ""])
      continue
    body.append(
      [
        row["target"],
        row["signal"],
        f"{row['temp_bytes'] / MIB:,.0f}",
        f"{row['argument_bytes'] / MIB:,.0f}",
        f"`{row['shape']}`",
        f"{row['largest'] / row['limit']:.2f}",
      ]
    )
  words = (
    f"V = {of.vocab_size:,}, {of.rows} x {of.length} tokens, "
    f"{of.student['dtype']}, no rematerialisation. Evidence: compiled, "
    f"jax {jax.__version__}, by "
    "`python -m kd.bench.decoder_memory`."
  )
  return f"{words}\n\n{markdown.table(header, body)}"


def main(argv: list[str]) -> None:
  del argv
  of = size(_DTYPE.value)
  if _JOB.value:
    print(json.dumps(compile_for(*_JOB.value.split(","), of=of)))
    return
  rows = []
  for target in _TARGETS.value:
    for signal in decoders.SIGNALS:
      found, error = process.run(
        "kd.bench.decoder_memory",
        f"--memory_job={target},{signal}",
        f"--memory_dtype={_DTYPE.value}",
        environment=ENVIRONMENT,
        limit_s=LIMIT_S,
      )
      asked = dict(target=target, signal=signal)
      rows.append(found[-1] if found else asked | dict(error=error))
      print(json.dumps(rows[-1]), flush=True)
  made = table(rows, of)
  print(made)
  if _DOC.value:
    markdown.replace_section(_DOC.value, "decoder", made)


if __name__ == "__main__":
  app.run(main)
