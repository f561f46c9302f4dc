"""What the compilers say of the GPU kernel, with no GPU and no driver.

jax's CUDA plugin compiles for a device that a text file describes
(kernels/report/targets), and Mosaic GPU leaves what ptxas said in a folder.
Evidence of kind "compiled": nothing here ran on a GPU. Install:
requirements-gpu.txt.

Each compile happens in a subprocess: the folder must be set before jax is
imported, and Mosaic GPU may abort. `python -m kernels.report.gpu` is it.
"""

import functools
import importlib.util
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from kernels.bench import markdown, process
from kernels.bench.stopwatch import stopwatch
from kernels.report import sass
from kernels.report.sass import TARGETS

SHAPES = tuple((1024, v) for v in (32000, 128256, 151936, 262144))
DIVERGENCES = {name: name for name in ("forward_kl", "reverse_kl", "jsd")}


def available() -> str | None:
  """Returns None if programs can be compiled for GPUs here, else why not."""
  if importlib.util.find_spec("jax_plugins") is None or (
    importlib.util.find_spec("jax_plugins.xla_cuda13") is None
  ):
    return (
      "no CUDA plugin: python -m pip install --no-deps -r requirements-gpu.txt"
    )
  if sass.find_tool("ptxas") is None:
    return (
      "no ptxas of CUDA 13: python -m pip install --no-deps nvidia-cuda-nvcc"
      " nvidia-nvvm"
    )
  return None


def logits_jobs(
  targets: Sequence[str] = ("h100", "b200"),
  shapes: Sequence[tuple[int, int]] = SHAPES,
  divergences: dict[str, str] | None = None,
  hard: Sequence[bool] = (False,),
  dtype: str = "bfloat16",
  arms: int | None = None,
  slots: bool = True,
) -> list[dict]:
  """Returns jobs: value_and_grad of the loss from logits.

  Args:
    targets: names of kernels/report/targets/*.txtpb.
    shapes: (N, V).
    divergences: name -> "module:attribute" or "module:maker(numbers)".
    hard: with hard labels in the same pass, or not.
    dtype: of both logits.
    arms: how many students, vmapped over one teacher; None is one, unmapped.
    slots: whether instructions are counted, which takes as long again.
  """
  return [
    {
      "kind": "logits",
      "target": target,
      "n": n,
      "v": v,
      "dtype": dtype,
      "divergence": name,
      "phi": phi,
      "hard": with_labels,
      "arms": arms,
      "slots": slots,
    }
    for target in targets
    for name, phi in (divergences or DIVERGENCES).items()
    for with_labels in hard
    for n, v in shapes
  ]


def table(rows: list[dict]) -> str:
  """Returns the rows of `logits_jobs` as a Markdown table."""
  keys = (
    "target", "divergence", "hard", "n", "v", "dtype", "kernel", "cluster",
    "registers", "spill_bytes", "smem_bytes", "temp_bytes", "hbm_nvb",
    "slots_per_pair", "slots_at_floor", "seconds",
  )  # fmt: skip
  lines = []
  for row in rows:
    cells = [row.get(key, "") for key in keys]
    lines.append(cells if row["compiles"] else [*cells, row["error"]])
  return markdown.table(keys, lines)


def head_jobs(
  shapes: Sequence[tuple[int, int, int, int]],
  targets: Sequence[str] = ("h100",),
  implementations: Sequence[str] = ("auto", "xla", "reference"),
  dtype: str = "bfloat16",
  devices: int = 1,
  parallel: str | None = None,
  soft_cap: float | None = None,
  divergence: str = "forward_kl",
) -> list[dict]:
  """Returns jobs: value_and_grad of a divergence from hidden states.

  Args:
    shapes: (N, H_s, H_t, V).
    soft_cap: of both heads.
    devices: of the target.
    parallel: "vocab" (heads sharded over V) or "data" (rows), in a shard_map.
  """
  return [
    {
      "kind": "head",
      "target": target,
      "n": n,
      "h_s": h_s,
      "h_t": h_t,
      "v": v,
      "dtype": dtype,
      "soft_cap": soft_cap,
      "divergence": divergence,
      "phi": divergence,
      "hard": False,
      "implementation": implementation,
      "devices": devices,
      "parallel": parallel,
      "slots": False,
    }
    for target in targets
    for implementation in implementations
    for n, h_s, h_t, v in shapes
  ]


def rows(jobs: list[dict]) -> list[dict]:
  """Compiles jobs, in a subprocess for each target.

  Returns:
    dicts with what was asked for, `compiles` (bool) and, if so, `kernel` ("gpu"
    or "xla": what "auto" took), `registers` per thread, `spill_bytes`,
    `smem_bytes` per CTA, `cluster`, `temp_bytes` (HBM temporaries of the whole
    program), `hbm_bytes`, `hbm_nvb`, `floor_bytes` (3 N V b),
    `wide_ops` (other operations with an [N, V] result: copies), `seconds`, and
    `slots_per_pair` (see kernels.report.sass) beside `slots_at_floor`: where
    the former is larger, instructions bound the kernel; otherwise `error`.
  """
  out: list[dict] = [{}] * len(jobs)
  for target in dict.fromkeys(job["target"] for job in jobs):
    at = [i for i, job in enumerate(jobs) if job["target"] == target]
    found = _subprocess([jobs[i] for i in at])
    for i, result in zip(at, found, strict=True):
      out[i] = {**jobs[i], "compiles": "error" not in result, **result}
  return out


def _subprocess(jobs: list[dict]) -> list[dict]:
  """Compiles jobs of one target.

  Mosaic GPU keeps kernels for the life of a process, those for another target
  too, and says nothing of one that it has.
  """
  with tempfile.TemporaryDirectory() as folder:
    return process.run_each(
      "kernels.report.gpu",
      jobs,
      folder,
      environment={
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "0",  # a hit would dump nothing
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "MOSAIC_GPU_DUMP_PTX": "1",
        "MOSAIC_GPU_DUMP_TO": folder,
      },
      limit_s=120,
    )


def read_dump(folder: pathlib.Path, target: str, count: bool) -> dict:
  """Returns what Mosaic GPU and ptxas left in a folder."""
  log = "".join(p.read_text() for p in folder.glob("*.ptxas"))
  resources = "".join(p.read_text() for p in folder.glob("*.resources.txt"))
  slots = sass.issue_slots(folder, target) if count else None
  if not log:
    return {}
  numbers = lambda pattern, text: [int(x) for x in re.findall(pattern, text)]
  return {
    "registers": max(numbers(r"Used (\d+) registers", log)),
    "spill_bytes": sum(numbers(r"(\d+) bytes spill (?:stores|loads)", log)),
    "smem_bytes": max(numbers(r"smem_scratch_bytes=(\d+)", resources)),
    "slots_per_pair": slots,
  }


def wide_ops(text: str, n: int, v: int) -> list[str]:
  """Returns the entry computation's operations with an [N, V] result.

  Other than the kernel itself and what costs nothing: each is a copy, or a
  sweep, through device memory.
  """
  entry = text[text.index("ENTRY ") :]
  free = {"parameter", "get-tuple-element", "tuple", "bitcast", "custom-call"}
  pattern = rf"= \(?[a-z0-9]+\[{n},{v}\]\S* ([a-z\-]+)\("
  return [op for op in re.findall(pattern, entry) if op not in free]


def copies(text: str, v: int) -> list[str]:
  """Returns the copies of anything with V columns, loops included."""
  return re.findall(rf"= \(?(\w+\[\d+,{v}\])\S* copy(?:-start)?\(", text)


def mesh_of(target: str, devices: int):
  """Returns a mesh of devices that are not here."""
  from jax.experimental import topologies

  topology = topologies.get_topology_desc(
    platform="cuda",
    topology_name=target,
    target_config=(TARGETS / f"{target}.txtpb").read_text(),
    topology=f"1x1x{devices}",
  )
  return topologies.make_mesh(topology, (devices,), ("d",))


def _compile(job: dict):
  """Returns the compiled program of a job."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from kernels import Head, Logits, distill_loss
  from kernels.bench import divergences

  n, v, none = job["n"], job["v"], PartitionSpec()
  mesh = mesh_of(job["target"], job.get("devices", 1))
  phi, parallel = divergences.resolve(job["phi"]), job.get("parallel")

  def loss(student, teacher, weights, labels):
    return distill_loss(
      student,
      teacher,
      divergence=phi,
      temperature=2.0,
      weights=weights,
      labels=labels,
      hard_weight=0.5 if job["hard"] else 0.0,
      implementation=job.get("implementation", "auto"),
      vocab_axis="d" if parallel == "vocab" else None,
    )

  def fn(*args):
    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(*args)
    return (jax.lax.psum(value, "d") if parallel == "data" else value), grads

  logits: Any = Logits  # of shapes and specs instead of arrays
  head: Any = Head
  row = PartitionSpec("d") if parallel == "data" else none
  column = PartitionSpec(None, "d") if parallel == "vocab" else none
  if job["kind"] == "logits":
    shapes, specs = [logits((n, v))] * 2, [logits(row)] * 2
  else:
    head = functools.partial(head, soft_cap=job["soft_cap"])
    shapes = [head((n, h), (h, v)) for h in (job["h_s"], job["h_t"])]
    specs = [head(row, column)] * 2
  struct = lambda shape, dtype, spec: jax.ShapeDtypeStruct(
    shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec)
  )
  args = [
    jax.tree.map(
      lambda shape, spec: struct(shape, job["dtype"], spec),
      *(shape, spec),
      is_leaf=lambda x: isinstance(x, tuple),
    )
    for shape, spec in zip(shapes, specs, strict=True)
  ]
  args.append(struct((n,), "float32", row))
  args.append(struct((n,), "int32", row) if job["hard"] else None)
  if arms := job.get("arms"):
    fn = jax.vmap(fn, (0, None, None, None))
    add = lambda x: struct((arms, *x.shape), x.dtype, none)
    args[0] = jax.tree.map(add, args[0])
  if parallel is None:
    with jax.set_mesh(mesh):
      return jax.jit(fn).lower(*args).compile()
  fn = jax.shard_map(
    fn,
    mesh=mesh,
    in_specs=(*specs, row, row),
    out_specs=(none, specs[0]),
  )
  return jax.jit(fn).lower(*args).compile()


def _result(job: dict, folder: pathlib.Path) -> dict:
  import jax.numpy as jnp

  from kernels.gpu import tiling

  elapsed = stopwatch()
  compiled = _compile(job)
  seconds = elapsed()
  memory, text = compiled.memory_analysis(), compiled.as_text()
  out = {
    "seconds": round(seconds, 2),
    "kernel": "gpu" if "mosaic_gpu" in text else "xla",
    "temp_bytes": memory.temp_size_in_bytes,
    "copies": copies(text, job["v"]),
    **read_dump(folder, job["target"], job["slots"]),
  }
  if job["kind"] == "logits" and not job["arms"]:
    n, v, b = job["n"], job["v"], jnp.dtype(job["dtype"]).itemsize
    cut = tiling.tiling(tiling.padded(v, [b, b]), [b, b])
    out["cluster"] = None if isinstance(cut, str) else cut.cluster
    out["floor_bytes"] = 3 * n * v * b
    out["slots_at_floor"] = round(sass.slots_at_floor(job["target"], b), 1)
    out["wide_ops"] = wide_ops(text, n, v)
    # By construction: two reads and one write of [N, V], plus what each CTA
    # reads of the row's scalars and writes of its statistics.
    out["hbm_bytes"] = out["floor_bytes"] + n * (2 * 4 + 4 + 8 * 4)
    out["hbm_bytes"] += 2 * n * v * b * len(out["wide_ops"])
    out["hbm_nvb"] = round(out["hbm_bytes"] / (n * v * b), 3)
  return out


def main(folder: str):
  """Serves jobs; what Mosaic GPU says of them is in the folder."""
  path = pathlib.Path(folder)

  def work(job: dict) -> dict:
    for file in path.iterdir():  # what the job before left
      file.unlink()
    return _result(job, path)

  process.serve(work)


if __name__ == "__main__":
  main(sys.argv[1])
