"""What compilers make of vocabulary-parallel heads.

value_and_grad of forward KL from hidden states, in bfloat16, with V sharded
over a TPU v5e 2x2 or eight H100 that are not here. Evidence of kind "compiled".
"""

import functools
import json
import re
import sys
from typing import Any

from kernels import topologies
from kernels.bench import markdown, process
from kernels.report import gpu
from kernels.report.traffic import ENVIRONMENT

# Target -> (devices, (N, H_s, H_t, V)).
SETUPS = {
  "v5e": (4, (8192, 2048, 4096, 131072)),
  "h100": (8, (4096, 2048, 2048, 131072)),
}
OPERATION = re.compile(
  r"= (.*?) (all-reduce|all-gather|reduce-scatter)[\w\-]*\("
)


def collectives(text: str) -> list[tuple[str, list[str], bool]]:
  """Returns (operation, its results' shapes, whether it runs once) of each."""
  before, entry = text.split("\nENTRY ", 1)
  out = []
  for part, once in ((before, False), (entry, True)):
    for line in part.splitlines():
      match = OPERATION.search(line)
      if match and "-done(" not in line:
        shapes = sorted(set(re.findall(r"\w+\[([\d,]*)\]", match[1])))
        out.append((match[2], shapes, once))
  return out


def _mesh(target: str, devices: int):
  import jax
  import numpy as np

  if target not in topologies.TARGETS:
    return gpu.mesh_of(target, devices)
  devices_there = topologies.topology(target).devices
  return jax.sharding.Mesh(np.array(devices_there), ("d",))


def compile_for(target: str) -> dict:
  """Compiles the setup of a target; returns its row."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from kernels import Head, distill_loss
  from kernels.bench import divergences

  devices, (n, h_s, h_t, v) = SETUPS[target]
  mesh = _mesh(target, devices)
  loss = functools.partial(
    distill_loss,
    divergence=divergences.forward_kl,
    temperature=2.0,
    vocab_axis="d",
  )

  def step(student, teacher):
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(student, teacher)
    return value, grads

  whole, columns = PartitionSpec(), PartitionSpec(None, "d")
  struct = lambda shape, spec: jax.ShapeDtypeStruct(
    shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)
  )
  head: Any = Head  # of shapes instead of arrays
  heads = [
    head(struct((n, h), whole), struct((h, v), columns)) for h in (h_s, h_t)
  ]
  specs = jax.tree.map(lambda x: x.sharding.spec, heads)
  step = jax.shard_map(
    step, mesh=mesh, in_specs=tuple(specs), out_specs=(whole, specs[0])
  )
  platform = "tpu" if target in topologies.TARGETS else "cuda"
  compiled = topologies.compiled(jax.jit(step).trace(*heads), platform)
  found = collectives(compiled.as_text())
  return dict(
    target=target,
    devices=devices,
    shape=[n, h_s, h_t, v],
    temp_bytes=compiled.memory_analysis().temp_size_in_bytes,
    collectives=found,
    dh_reductions=[x for x in found if f"{n},{h_s}" in x[1]],
  )


def row(target: str, limit_s: float = 180) -> dict:
  """Returns `compile_for` of a target from a process, or {"error": ...}."""
  arguments = ("kernels.report.parallel", target)
  found, error = process.run(
    *arguments, environment=ENVIRONMENT, limit_s=limit_s
  )
  return found[-1] if found else dict(target=target, error=error)


def table(rows: list[dict]) -> str:
  """Returns the rows as a Markdown table."""
  header = (
    *("target", "devices", "N, H_s, H_t, V", "temporaries MiB"),
    *("reductions of dh", "other collectives"),
  )
  lines = []
  for r in rows:
    if "error" in r:
      lines.append([r["target"], r["error"]])
      continue
    of_dh = len(r["dh_reductions"])
    cells = [
      r["target"],
      r["devices"],
      ", ".join(map(str, r["shape"])),
      f"{r['temp_bytes'] / (1 << 20):.0f}",
      of_dh,
      len(r["collectives"]) - of_dh,
    ]
    lines.append(cells)
  return markdown.table(header, lines)


if __name__ == "__main__":
  print(json.dumps(compile_for(sys.argv[1])), flush=True)
