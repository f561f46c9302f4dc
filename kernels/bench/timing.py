r"""Times the losses and their peers on the present device.

    python -m kernels.bench
    python -m kernels.bench --shapes=1024,64,64,65536 --variants=xla,naive \
      --divergences=forward_kl,jsd --labels=0,1 --json=b.json --plot=b.png

One step is value_and_grad of the mean over rows, from hidden states (N, H_s,
H_t, V). Each variant runs in a process of its own, so that its peak memory
(resident set, inputs included) is its own. Times are wall on a CPU; on an
accelerator device time from the profiler (that path is not run: the machines
that build this have none). The floor is the GEMMs' time, 2 N V (3 H_s + H_t)
operations at the rate of a square GEMM, plus, on an accelerator, 3 N V logits
moved at the rate of a copy; both rates are measured in the same run. On a CPU
the logits stay in cache.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from kernels.bench import markdown, peers, process

SHAPES = "1024,64,64,65536 512,128,256,131072 1024,512,1024,65536"


def quantiles(seconds) -> dict[str, float]:
  p20, p50, p80 = np.quantile(seconds, (0.2, 0.5, 0.8))
  return {"p20_s": float(p20), "p50_s": float(p50), "p80_s": float(p80)}


def wall_times(run, repeats: int) -> list[float]:
  run()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  return times


def device_times(run, repeats: int) -> list[float]:
  """Returns seconds of XLA modules on the device, from the profiler."""
  run()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(repeats):
        run()
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(path))
    times = [
      event.duration_ns * 1e-9
      for plane in profile.planes
      if plane.name.startswith("/device:")
      for line in plane.lines
      if line.name == "XLA Modules"
      for event in line.events
    ]
  if not times:
    raise RuntimeError("the profile holds no line 'XLA Modules' of a device")
  return times


def times_of(run, repeats: int) -> list[float]:
  on_cpu = jax.default_backend() == "cpu"
  return (wall_times if on_cpu else device_times)(run, repeats)


def rates(dtype: str, side: int | None = None) -> dict[str, float]:
  """Returns the device's GEMM rate (FLOP/s) and copy rate (bytes/s).

  Args:
    dtype: of the GEMM.
    side: of its square operands; None: 2048 on a CPU, else 8192. Below 2048
      the copy is smaller as well.
  """
  m = side or (2048 if jax.default_backend() == "cpu" else 8192)
  a = jnp.ones((m, m), dtype)
  dot = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
  b = jnp.ones((min(16 * m**2, 64 << 20),), jnp.float32)
  copy = jax.jit(lambda b: b + 1)
  gemm = min(times_of(lambda: jax.block_until_ready(dot(a)), 7))
  move = min(times_of(lambda: jax.block_until_ready(copy(b)), 7))
  return {"gemm_flop_s": 2 * m**3 / gemm, "copy_byte_s": 2 * b.nbytes / move}


def floor_seconds(shape, dtype: str, measured, backend: str) -> float:
  n, h_s, h_t, v = shape
  seconds = 2 * n * v * (3 * h_s + h_t) / measured["gemm_flop_s"]
  if backend != "cpu":
    size = jnp.dtype(dtype).itemsize
    seconds += 3 * n * v * size / measured["copy_byte_s"]
  return seconds


def peak_mib() -> float:
  """Returns the peak resident set of this process, MiB.

  From /proc where there is one: ru_maxrss includes what the parent had before
  it started this program.
  """
  try:
    status = pathlib.Path("/proc/self/status").read_text()
  except OSError:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  (line,) = [x for x in status.splitlines() if x.startswith("VmHWM")]
  return int(line.split()[1]) / 1024


def worker(case: dict) -> dict:
  """Measures one case; meant to be alone in its process."""
  inputs = peers.make_inputs(*case["shape"], case["dtype"])
  variant = peers.VARIANTS[case["variant"]]
  start = time.perf_counter()
  step = variant(inputs, case["divergence"], case["labels"])
  step.run()
  compile_s = time.perf_counter() - start
  before = resource.getrusage(resource.RUSAGE_SELF)
  timer = wall_times if "torch" in sys.modules else times_of
  seconds = timer(step.run, case["repeats"])
  usage = resource.getrusage(resource.RUSAGE_SELF)
  cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
  return quantiles(seconds) | {
    "min_s": min(seconds),
    "compile_s": compile_s,
    "cpu_s_per_step": cpu / (case["repeats"] + 1),  # all cores together
    "temp_mib": None if step.temp_bytes is None else step.temp_bytes / 2**20,
    "peak_mib": peak_mib(),
  }


def in_process(case: dict, timeout: float = 600) -> dict:
  """Runs `worker` in a new process; returns its result or {"error": why}."""
  reason = peers.absent(case["variant"])
  if reason:
    return {"error": reason}
  arguments = ("kernels.bench", "--worker", json.dumps(case))
  found, error = process.run(*arguments, limit_s=timeout)
  return {"error": error} if error else found[-1]


def table(results: list[dict]) -> str:
  columns = ("N,H_s,H_t,V", "divergence", "variant", "p20 / p50 / p80 ms",
             "temp MiB", "peak MiB", "% of floor", "vs best peer")  # fmt: skip
  rows = []
  for r in results:
    name = r["divergence"] + (" + CE" if r["labels"] else "")
    head = [",".join(map(str, r["shape"])), name, r["variant"]]
    if "error" in r:
      rows.append([*head, r["error"], "", "", "", ""])
      continue
    ms = " / ".join(f"{1e3 * r[k]:.0f}" for k in ("p20_s", "p50_s", "p80_s"))
    temp = "" if r["temp_mib"] is None else f"{r['temp_mib']:.0f}"
    ratio = best_peer(results, r)
    ratio = "" if ratio is None else f"{r['p50_s'] / ratio:.2f}x"
    floor = f"{100 * r['floor_s'] / r['p50_s']:.0f}"
    rows.append([*head, ms, temp, f"{r['peak_mib']:.0f}", floor, ratio])
  return markdown.table(columns, rows)


def best_peer(results, result) -> float | None:
  """Returns the best peer's median seconds on the same case."""
  keys = ("shape", "divergence", "labels", "dtype")
  times = [
    r["p50_s"]
    for r in results
    if r["variant"] in peers.PEERS
    and "error" not in r
    and all(r[k] == result[k] for k in keys)
  ]
  return min(times, default=None)


def plot(results: list[dict], path: str):
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  done = [r for r in results if "error" not in r]
  label = lambda r: (
    f"{r['variant']}, {r['divergence']}{' + CE' if r['labels'] else ''}\n"
    f"{r['shape']}"
  )
  figure, axes = plt.subplots(
    1, 2, figsize=(11, 1 + 0.45 * len(done)), sharey=True, layout="constrained"
  )
  y = np.arange(len(done))
  axes[0].barh(y, [1e3 * r["p50_s"] for r in done])
  axes[0].scatter([1e3 * r["floor_s"] for r in done], y, marker="|", color="k")
  axes[0].set_xlabel("median time of value_and_grad, ms (bar: floor)")
  axes[1].barh(y, [r["peak_mib"] for r in done], color="tab:orange")
  axes[1].set_xlabel("peak memory of the process, MiB")
  axes[0].set_yticks(y, [label(r) for r in done], fontsize=7)
  axes[0].invert_yaxis()
  figure.savefig(path, dpi=150)
  plt.close(figure)


def words(about: dict, measured: dict, args) -> str:
  """Returns what must be known to read the table."""
  return (
    f"value_and_grad of the mean over rows, from hidden states, {args.dtype}, "
    f"{args.repeats} repeats, {about['clock']} time. Evidence: run, on "
    f"{about['device']} ({os.cpu_count()} cores, {about['machine']}), jax "
    f"{about['jax']}, {measured['gemm_flop_s'] / 1e9:.0f} GFLOP/s of a square "
    f"GEMM, {measured['copy_byte_s'] / 1e9:.1f} GB/s of a copy, by "
    "`python -m kernels.bench`."
  )


def main(argv=None):
  parser = argparse.ArgumentParser(
    prog="python -m kernels.bench", description=__doc__.splitlines()[0]
  )
  parser.add_argument("--shapes", default=SHAPES, help="N,H_s,H_t,V by spaces")
  parser.add_argument(
    "--divergences", default="forward_kl", help="paths, see bench.divergences"
  )
  parser.add_argument(
    "--variants", default="xla,naive,optax,torch,torch_compiled,liger"
  )
  parser.add_argument("--labels", default="0", help="0, 1 or 0,1")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--side", type=int, help="of the floor's GEMM")
  parser.add_argument("--json", help="path to write")
  parser.add_argument("--plot", help="path to write")
  parser.add_argument("--doc", help="page with <!-- kernels --> to write into")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.worker:
    print(json.dumps(worker(json.loads(args.worker))))
    return
  measured = rates(args.dtype, args.side)
  backend = jax.default_backend()
  results = []
  for shape in args.shapes.split():
    shape = tuple(int(x) for x in shape.split(","))
    for divergence in args.divergences.split(","):
      for labels in args.labels.split(","):
        for variant in args.variants.split(","):
          case = dict(
            shape=shape,
            divergence=divergence,
            labels=labels == "1",
            variant=variant,
            dtype=args.dtype,
            repeats=args.repeats,
          )
          results.append(case | in_process(case))
          print(results[-1], file=sys.stderr)
  again = rates(args.dtype, args.side)  # the machine may have been busy
  measured = {k: max(v, again[k]) for k, v in measured.items()}
  for r in results:
    r["floor_s"] = floor_seconds(r["shape"], args.dtype, measured, backend)
  device = jax.devices()[0]
  about = {
    "device": device.device_kind,
    "backend": backend,
    "machine": platform.processor() or platform.machine(),
    "jax": jax.__version__,
    "clock": "wall" if backend == "cpu" else "device, from the profiler",
  }
  page = f"{words(about, measured, args)}\n\n{table(results)}"
  print(page)
  if args.doc:
    markdown.replace_section(args.doc, "kernels", page)
  if args.json:
    with open(args.json, "w") as f:
      json.dump({"about": about, "rates": measured, "results": results}, f)
  if args.plot:
    plot(results, args.plot)
