"""Counts what one value_and_grad from logits moves through device memory.

In units of N V b (b bytes per logit): our kernel (its floor is 3), our XLA
implementation, plain JAX and optax, each compiled for a target that is not
here. Evidence of kind "compiled".

The programs hold no loops. Each of the entry computation's operations reads its
[N, V] operands and writes its [N, V] results once; a gather alone reads N
numbers. N is such that [N, V] is beyond a TPU's VMEM: of smaller arrays XLA
keeps copies there (its own cost_analysis then says 11 for 7, at N 256).

What XLA makes of plain JAX's JSD for H100 is 18 or more: it keeps both
logarithms in float32 (`softmax.row_sums` keeps it from that).
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

from kernels import topologies
from kernels.bench import markdown, process
from kernels.report import gpu

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": ""}
N, V = 2048, 128256
PROGRAMS = ("kernel", "xla", "plain", "optax")
CASES = (  # divergence, labels, T
  ("forward_kl", False, 1.0),
  ("forward_kl", True, 1.0),
  ("forward_kl", True, 2.0),
  ("jsd", False, 1.0),
)
EVERYTHING = tuple((name, case) for case in CASES for name in PROGRAMS)
FREE = frozenset(
  ["parameter", "get-tuple-element", "tuple", "bitcast", "constant",
   "copy-done", "slice-done", "opt-barrier"]
)  # fmt: skip
BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "u16": 2, "pred": 1}


def wide_bytes(text: str, n: int, v: int) -> int:
  """Returns the bytes of [N, V] arrays that the entry computation moves."""
  array = re.compile(rf"(\w+)\[{n},{v}\](?:\{{([^}}]*)\}})?")
  before, entry = text.split("\nENTRY ", 1)
  bodies = {b.split(None, 1)[0]: b for b in before.split("\n\n") if b.strip()}
  sizes: dict[str, int] = {}
  total = 0
  for line in entry.splitlines()[1:]:
    match = re.match(r"\s*(?:ROOT )?(%\S+) = (.*)", line)
    if match is None:
      continue
    name, rest = match.groups()
    # A result's shape ends where " operation(" begins; S(1) is VMEM.
    result, op, rest = re.split(r" ([a-z][a-z\-]*)\(", rest, maxsplit=1)
    arrays = [a for a in array.findall(result) if "S(1)" not in a[1]]
    size = sum(BYTES[dtype] * n * v for dtype, _ in arrays)
    if op == "copy-start":  # its result is a pair (to, from)
      total += size
    elif op not in FREE:
      called = re.search(r"calls=(%[\w.\-]+)", rest)
      body = bodies.get(called[1], "") if called else ""
      if " gather(" in body and " reduce(" not in body:
        continue
      operands = re.findall(r"%[\w.\-]+", rest.split(")")[0])
      total += size + sum(sizes.get(x, 0) for x in operands)
    sizes[name] = size
  return total


def program(name: str, target: str, divergence: str, hard: bool, t: float):
  """Returns the loss as a function of z_s, z_t [N, V] and labels [N]."""
  import jax
  import jax.numpy as jnp
  import optax

  from kernels import Logits, distill_loss, xla
  from kernels.bench import divergences
  from kernels.tpu import plans

  phi = divergences.resolve(divergence)

  def ours(z_s, z_t, labels):
    student, teacher = Logits(z_s), Logits(z_t)
    plan: Any = xla.ACCELERATOR
    if name == "kernel":  # "auto": the GPU that is compiled for decides
      gen = plans.GENERATIONS.get(target)
      plan = "auto" if gen is None else plans.plan(student, teacher, gen=gen)
    kw: dict[str, Any] = dict(temperature=t, implementation=plan)
    kw |= dict(labels=labels, hard_weight=0.5) if hard else {}
    return distill_loss(student, teacher, divergence=phi, **kw)[0]

  def theirs(z_s, z_t, labels):
    z_s, z_t = (z.astype(jnp.float32) for z in (z_s, z_t))
    lq, lp = (jax.nn.log_softmax(z / t) for z in (z_s, z_t))
    if name == "optax" and divergence == "forward_kl":
      soft = optax.losses.kl_divergence_with_log_targets(lq, lp).mean()
    else:
      soft = phi(lq, lp).sum(1).mean()
    if not hard:
      return soft
    if name == "optax":
      ce = optax.softmax_cross_entropy_with_integer_labels(z_s, labels)
    else:
      onehot = jax.nn.one_hot(labels, z_s.shape[1])
      ce = -(onehot * jax.nn.log_softmax(z_s)).sum(1)
    return t**2 * soft + 0.5 * ce.mean()

  return ours if name in ("kernel", "xla") else theirs


def compile_for(target: str, step, shapes) -> Any:
  """Returns the jax.stages.Compiled of a function for a TPU or GPU target."""
  import jax

  if target in topologies.TARGETS:
    return topologies.compile_for(target, step, *shapes)
  mesh = gpu.mesh_of(target, 1)
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  put = functools.partial(jax.ShapeDtypeStruct, sharding=place)
  with jax.set_mesh(mesh):
    args = [put(s.shape, s.dtype) for s in shapes]
    return topologies.compiled(jax.jit(step).trace(*args), "cuda")


def count(target: str, name: str, case, n: int = N, v: int = V) -> dict:
  """Compiles a program and returns a row of `rows`."""
  import jax
  import jax.numpy as jnp

  step = jax.value_and_grad(program(name, target, *case))
  z = jax.ShapeDtypeStruct((n, v), jnp.bfloat16)
  shapes = (z, z, jax.ShapeDtypeStruct((n,), jnp.int32))
  compiled = compile_for(target, step, shapes)
  divergence, hard, temperature = case
  return dict(
    target=target,
    program=name,
    divergence=divergence,
    hard=hard,
    temperature=temperature,
    shape=[n, v],
    hbm_nvb=wide_bytes(compiled.as_text(), n, v) / (2 * n * v),
    temp_bytes=compiled.memory_analysis().temp_size_in_bytes,
  )


def rows(targets: Sequence[str], programs=EVERYTHING) -> list[dict]:
  """Returns a dict for each target and program; "error" where it failed.

  About 5 s each, a target's in a process of its own.

  Args:
    targets: TPUs of topologies.TARGETS and GPUs of report/targets.
    programs: pairs (of PROGRAMS, of CASES).
  """
  out = []
  for target in targets:
    jobs = [dict(target=target, name=n, case=c) for n, c in programs]
    found = process.run_each(
      "kernels.report.traffic", jobs, environment=ENVIRONMENT, limit_s=60
    )
    out += [dict(target=target) | row for row in found]
  return out


def table(rows: list[dict]) -> str:
  """Returns the rows as a Markdown table, programs side by side."""
  lines = []
  found: dict[tuple, dict] = {}
  for r in rows:
    if "error" in r:
      lines.append([r["target"], r["error"]])
      continue
    loss = r["divergence"] + (" and labels" if r["hard"] else "")
    key = (r["target"], f"{loss}, T = {r['temperature']:g}")
    found.setdefault(key, {})[r["program"]] = f"{r['hbm_nvb']:.2f}"
  lines += [
    [*key, *(cells.get(p, "") for p in PROGRAMS)]
    for key, cells in found.items()
  ]
  return markdown.table(("target", "loss", *PROGRAMS), lines)


if __name__ == "__main__":
  process.serve(lambda job: count(**job))
