"""What libtpu says of the TPU kernel and its peers, with no TPU.

Evidence of kind "compiled": nothing here ran on a TPU; cycles are the
compiler's static estimates, which do not charge HBM traffic. Each job runs in a
process of its own, as libtpu reads its flags once and may abort.
"""

import functools
import json
import pathlib
import re
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from kernels import (
  Head,
  Logits,
  distill_loss,
  linear,
  topologies,
  xla,
)
from kernels.bench import process
from kernels.bench.divergences import NAMES, resolve
from kernels.bench.stopwatch import stopwatch
from kernels.phi import Phi
from kernels.report import gpu
from kernels.topologies import TARGETS
from kernels.tpu import plans

SHAPES = (32000, 128256, 151936, 262144)
GIB = 1 << 30
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
HEADS = (8192, 2048, 4096, 131072)  # N, H_s, H_t, V


# Children: what is compiled, and what the compiled program says of itself.


def kernel(job: dict) -> dict:
  """Compiles value_and_grad of given logits at a traced temperature."""
  n, v, target = job["n"], job["v"], job["target"]
  gen = plans.GENERATIONS[target]
  phi = resolve(job["divergence"])

  def fn(z, z_t, labels, temperature):
    student, teacher = Logits(z), Logits(z_t)
    kw: dict[str, Any] = dict(divergence=phi, temperature=temperature)
    kw["implementation"] = plans.plan(student, teacher, gen=gen)
    if job["hard"]:
      kw |= dict(labels=labels, hard_weight=0.5)
    return distill_loss(student, teacher, **kw)

  struct = jax.ShapeDtypeStruct
  z = struct((n, v), jnp.dtype(job["dtype"]))
  shapes = (z, z, struct((n,), jnp.int32), struct((), jnp.float32))
  elapsed = stopwatch()
  step = jax.value_and_grad(fn, has_aux=True)
  compiled = topologies.compile_for(target, step, *shapes)
  out = dict(compile_s=elapsed())
  out |= _memory(compiled, (n, v))
  itemsize = z.dtype.itemsize
  traced = Phi.of(phi, job["dtype"])
  found = linear.coefficients(traced)
  shape = plans.Kernel(
    traced, job["hard"], True, False, (), v, True, False, False, found
  )
  shape = plans.fit(shape, gen, v, [itemsize] * 3)
  passes = 7 if shape.block else 3
  return out | dict(
    vmem_bytes=plans.need(shape, v, [itemsize] * 3),
    rows=shape.rows,
    stash=shape.stash,
    phases=bool(shape.block),
    hbm_nvb=passes + (n * (plans.LANES * 4) * 2) / (n * v * itemsize),
  )


def heads(job: dict) -> dict:
  """Compiles value_and_grad of forward KL from hidden states."""
  n, h_s, h_t, v = job["shape"]
  phi = resolve(job["divergence"])

  def fn(h, w, h_t, w_t):
    student, teacher = Head(h, w), Head(h_t, w_t)
    if job["kernel"] == "naive":
      lq, lp = (
        jax.nn.log_softmax((s.hidden @ s.kernel).astype(jnp.float32))
        for s in (student, teacher)
      )
      return phi(lq, lp).sum(1).mean()
    plan = xla.ACCELERATOR
    if job["kernel"] == "tpu":
      gen = plans.GENERATIONS[job["target"]]
      plan = plans.plan(student, teacher, gen=gen)
    kw: dict[str, Any] = dict(divergence=phi, implementation=plan)
    return distill_loss(student, teacher, **kw)[0]

  bf16 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
  shapes = [bf16(s) for s in ((n, h_s), (h_s, v), (n, h_t), (h_t, v))]
  elapsed = stopwatch()
  step = jax.value_and_grad(fn, (0, 1))
  compiled = topologies.compile_for(job["target"], step, *shapes)
  out = dict(compile_s=elapsed())
  return out | _memory(compiled, (n, v))


def _memory(compiled, shape) -> dict:
  memory = compiled.memory_analysis()
  beyond = (
    memory.total_allocation_bytes
    - memory.argument_size_in_bytes
    - memory.output_size_in_bytes
  )
  return dict(
    temp_bytes=memory.temp_size_in_bytes,
    beyond_bytes=beyond,
    copies=gpu.copies(compiled.as_text(), shape[1]),
  )


JOBS = {"kernel": kernel, "heads": heads}


# The parent.


def run(job: dict, flags: str = "", limit_s: float = 180) -> dict:
  """Runs a job in a process; returns its results, or {"error": ...}."""
  environment = {**ENVIRONMENT, "LIBTPU_INIT_ARGS": flags}
  arguments = ("kernels.report.tpu", json.dumps(job))
  found, error = process.run(
    *arguments, environment=environment, limit_s=limit_s
  )
  # libtpu's profile of some fusions aborts the process after the kernel's own.
  return found[-1] if found else {"error": error}


def static(job: dict) -> dict:
  """Returns bundles per 1,024 pairs, and spills, of a kernel.

  libtpu's static profile counts loops' trips; the slope between one block of
  rows and two leaves out what happens once per call.
  """
  cycles, spills, rows = [], None, 16
  for blocks in (1, 2):
    with tempfile.TemporaryDirectory() as folder:
      flags = f"--xla_jf_dump_static_llo_profile_to={folder}"
      if blocks == 1:
        flags += f" --xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
      run(job | dict(n=rows * blocks), flags)
      path = pathlib.Path(folder)
      for file in path.glob("*distill_rows*_static_llo_profile.textproto"):
        cycles += re.findall(r"estimated_cycles: (\d+)", file.read_text())
      if blocks == 1:
        spills = _spills(path)
  if len(cycles) != 2:
    return {"bundles": None, "spills": spills}
  first, second = map(int, cycles)
  pairs = rows * job["v"] / 1024
  return {"bundles": (second - first) / pairs, "spills": spills}


def _spills(folder: pathlib.Path) -> int | None:
  """Returns the vector registers' spill instructions in the kernel's code."""
  names = "*distill_rows*final_hlo-static-per-bundle-utilization.txt"
  for file in folder.glob(names):
    head, table = file.read_text().split("== UTILIZATION:")
    column = head.splitlines()[1].split(", ").index("VSTORE:SPILL")
    rows = [line.split() for line in table.splitlines() if line.strip()]
    return sum(int(r[column]) for r in rows if r[0].isdigit())
  return None


def row(name: str, job: dict, cycles: bool = False) -> dict:
  """Returns one row of the report."""
  out = dict(target=job["target"], kernel=job["kernel"], name=name)
  out |= dict(shape=job.get("shape") or [job["n"], job["v"]])
  out["hard"] = job.get("hard", False)
  out |= run(job)
  out["compiles"] = "error" not in out
  floor = TARGETS[job["target"]].bundles_floor
  if cycles and out["compiles"]:
    out |= static(job) | {"bundles_floor": floor}
  return out


def rows(
  targets=tuple(TARGETS),
  shapes=SHAPES,
  divergences=None,
  cycle_targets=("v5e", "v6e"),
  peers=True,
) -> list[dict]:
  """Returns the rows of all targets.

  Args:
    targets: of TARGETS.
    shapes: V of the logits kernel.
    divergences: {name: path}, see kernels.bench.divergences; by default its
      NAMES.
      Beyond forward KL they are compiled at V = 128256 alone.
    cycle_targets: where cycles are counted, at V = 128256: about 12 s each.
    peers: whether XLA programs are compiled too.
  """
  out = []
  divergences = divergences or {name: name for name in NAMES}
  for target in targets:
    base = dict(target=target, dtype="bfloat16", n=256)
    for name, path in divergences.items():
      for v in shapes:
        for hard in (False, True):
          main = v == 128256
          if not main and (hard or name != "forward_kl"):
            continue
          job = base | dict(kernel="tpu", job="kernel", divergence=path)
          job |= dict(v=v, hard=hard)
          out.append(row(name, job, main and target in cycle_targets))
    if not peers:
      continue
    for peer in ("tpu", "xla", "naive"):
      job = dict(target=target, kernel=peer, job="heads", shape=HEADS)
      out.append(row("forward_kl", job | dict(divergence="forward_kl")))
  return out


if __name__ == "__main__":
  description = json.loads(sys.argv[1])
  jax.config.update("jax_platforms", "cpu")
  print(json.dumps(JOBS[description["job"]](description)), flush=True)
