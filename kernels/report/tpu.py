"""What libtpu says of the TPU kernel and its peers, with no TPU.

Evidence of kind "compiled": nothing here ran on a TPU; cycles are the
compiler's static estimates, which do not charge HBM traffic. Jobs run in a
process beside this one, as libtpu reads its flags once and may abort.
"""

import dataclasses
import functools
import pathlib
import re
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
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
KERNELS = ("distill_rows", "head_scores", "head_gradients")
HEADS = (8192, 2048, 4096, 131072)  # N, H_s, H_t, V


# Children: what is compiled, and what the compiled program says of itself.


def kernel(job: dict) -> dict:
  """Compiles value_and_grad of given logits at a traced temperature.

  With a job's "soft_cap" the student is a Head of width 128: caps are heads'.
  """
  n, v, target = job["n"], job["v"], job["target"]
  gen = plans.GENERATIONS[target]
  phi = resolve(job["divergence"])

  cap = job.get("soft_cap")

  def fn(student, teacher, labels, temperature):
    kw: dict[str, Any] = dict(divergence=phi, temperature=temperature)
    kw["implementation"] = plans.plan(student, teacher, gen=gen)
    if job["hard"]:
      kw |= dict(labels=labels, hard_weight=0.5)
    return distill_loss(student, teacher, **kw)

  struct: Any = jax.ShapeDtypeStruct
  dtype = jnp.dtype(job["dtype"])
  z = struct((n, v), dtype)
  student: Any = Logits(z)
  if cap is not None:
    h, w = struct((n, 128), dtype), struct((128, v), dtype)
    student = Head(h, w, soft_cap=cap)
  shapes = struct((n,), jnp.int32), struct((), jnp.float32)
  elapsed = stopwatch()
  step = jax.value_and_grad(fn, has_aux=True)
  compiled = topologies.compile_for(target, step, student, Logits(z), *shapes)
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
  """Compiles value_and_grad of forward KL from hidden states.

  With a job's "gemms", by kernels.tpu.gemm on generations that need it not.
  """
  n, h_s, h_t, v = job["shape"]
  phi = resolve(job["divergence"])

  def fn(student, teacher):
    if job["kernel"] == "naive":
      lq, lp = (
        jax.nn.log_softmax((s.hidden @ s.kernel).astype(jnp.float32))
        for s in (student, teacher)
      )
      return phi(lq, lp).sum(1).mean()
    plan = xla.ACCELERATOR
    if job["kernel"] == "tpu":
      gen = plans.GENERATIONS[job["target"]]
      gen = dataclasses.replace(gen, gemms=gen.gemms or job.get("gemms", False))
      plan = plans.plan(student, teacher, gen=gen)
    kw: dict[str, Any] = dict(divergence=phi, implementation=plan)
    return distill_loss(student, teacher, **kw)[0]

  bf16 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
  bias = bf16((v,)) if job.get("bias") else None
  shapes = [
    Head(bf16((n, h)), bf16((h, v)), bias, soft_cap=job.get("soft_cap"))
    for h in (h_s, h_t)
  ]
  elapsed = stopwatch()
  step = jax.value_and_grad(fn)
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
  text = compiled.as_text()
  return dict(
    temp_bytes=memory.temp_size_in_bytes,
    beyond_bytes=beyond,
    copies=gpu.copies(text, shape[1]),
    kernels=[name for name in KERNELS if name in text],
  )


JOBS = {"kernel": kernel, "heads": heads}


# The parent.


def run(jobs: list[dict], flags: str = "", **kw) -> list[dict]:
  """Compiles jobs in a process; returns their results, or {"error": ...}."""
  environment = {**ENVIRONMENT, "LIBTPU_INIT_ARGS": flags}
  return process.run_each(
    "kernels.report.tpu", jobs, environment=environment, **kw
  )


def static(jobs: list[dict]) -> list[dict]:
  """Returns bundles per 1,024 pairs, and spills, of each kernel.

  libtpu's static profile counts loops' trips; the slope between one block of
  rows and two leaves out what happens once per call.
  """
  rows = 16
  blocks = [job | dict(n=rows * n) for job in jobs for n in (1, 2)]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    found = run(
      [job | dict(profile=folder) for job in blocks],
      f"--xla_jf_dump_static_llo_profile_to={folder} --xla_jf_dump_to={folder}"
      " --xla_jf_dump_llo_text=true",
      # libtpu's profile of some fusions aborts the process after the kernel's.
      ended=lambda error: {"error": error} | _profile(path),
    )
  out = []
  for job, one, two in zip(jobs, found[::2], found[1::2], strict=True):
    pairs = rows * job["v"] / 1024
    first, second = (x.get("cycles") for x in (one, two))
    known = first is not None and second is not None
    bundles = (second - first) / pairs if known else None
    out.append({"bundles": bundles, "spills": one.get("spills")})
  return out


def _profile(folder: pathlib.Path) -> dict:
  """Returns the kernel's cycles, and spills, from what libtpu dumped."""
  cycles = []
  for file in folder.glob("*distill_rows*_static_llo_profile.textproto"):
    cycles += re.findall(r"estimated_cycles: (\d+)", file.read_text())
  out: dict = {"cycles": int(cycles[0])} if len(cycles) == 1 else {}
  names = "*distill_rows*final_hlo-static-per-bundle-utilization.txt"
  for file in folder.glob(names):
    head, table = file.read_text().split("== UTILIZATION:")
    column = head.splitlines()[1].split(", ").index("VSTORE:SPILL")
    rows = [line.split() for line in table.splitlines() if line.strip()]
    out["spills"] = sum(int(r[column]) for r in rows if r[0].isdigit())
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
      NAMES. Beyond forward KL they are compiled at V = 128256 alone.
    cycle_targets: where cycles are counted, at V = 128256: about 6 s each.
    peers: whether XLA programs are compiled too.
  """
  names, jobs = [], []
  divergences = divergences or {name: name for name in NAMES}
  for target in targets:
    base = dict(target=target, dtype="bfloat16", n=256)
    for name, path in divergences.items():
      for v in shapes:
        for hard in (False, True):
          if v != 128256 and (hard or name != "forward_kl"):
            continue
          job = base | dict(kernel="tpu", job="kernel", divergence=path)
          jobs.append(job | dict(v=v, hard=hard))
          names.append(name)
    for peer in ("tpu", "xla", "naive") if peers else ():
      job = dict(target=target, kernel=peer, job="heads", shape=HEADS)
      jobs.append(job | dict(divergence="forward_kl"))
      names.append("forward_kl")
  out = []
  for name, job, found in zip(names, jobs, run(jobs), strict=True):
    row = dict(target=job["target"], kernel=job["kernel"], name=name)
    row |= dict(shape=job.get("shape") or [job["n"], job["v"]])
    row |= dict(hard=job.get("hard", False), compiles="error" not in found)
    out.append(row | found)
  counted = [
    i
    for i, job in enumerate(jobs)
    if job["target"] in cycle_targets and job.get("v") == 128256
    if out[i]["compiles"]
  ]
  cycles = static([jobs[i] for i in counted])
  for i, found in zip(counted, cycles, strict=True):
    floor = TARGETS[jobs[i]["target"]].bundles_floor
    out[i] |= found | {"bundles_floor": floor}
  return out


def _work(job: dict) -> dict:
  """Compiles a job; with its "profile", says what libtpu dumps there."""
  folder = pathlib.Path(job["profile"]) if "profile" in job else None
  for file in folder.iterdir() if folder else ():  # what the job before left
    file.unlink()
  out = JOBS[job["job"]](job)
  return out | (_profile(folder) if folder else {})


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  process.serve(_work)
