r"""Says what the compilers make of every kernel, with no accelerator.

    python -m kernels.report
    python -m kernels.report --targets=v5e,v6e --json=report.json --no-cycles

Evidence of kind "compiled": no line here was run on a TPU or GPU. A target
whose compiler is not installed is listed as skipped.

- hbm: bytes moved, in units of N V b (b bytes per logit). Our tpu and gpu
  kernels: by construction, each block is fetched once. The floor is 3. Beside
  XLA programs: kernels.report.traffic.
- temporaries: memory_analysis().temp_size_in_bytes; "beyond" is what is
  allocated beyond arguments and outputs (temporaries may lie in an output).
- bundles: static VLIW bundles per 1,024 logit pairs, V = 128256, temperature
  traced; the bound is how many pass while HBM moves 3 N V b.
"""

import argparse
import json
import pathlib

from kernels import topologies
from kernels.bench import markdown
from kernels.report import gpu, parallel, tpu, traffic

GPUS = ("h100", "b200")


def table(rows: list[dict]) -> str:
  """Returns the rows as a Markdown table."""
  header = (
    *("target", "kernel", "divergence", "labels", "shape", "compiles"),
    *("VMEM MiB", "temporaries MiB", "beyond MiB", "hbm NVb", "spills"),
    *("bundles", "bound", "compile s"),
  )
  lines = [
    [
      r["target"],
      r["kernel"],
      r["name"],
      "yes" if r["hard"] else "",
      " x ".join(map(str, r["shape"])),
      "yes" if r["compiles"] else r["error"],
      _mib(r.get("vmem_bytes")),
      _mib(r.get("temp_bytes")),
      _mib(r.get("beyond_bytes")),
      _number(r.get("hbm_nvb"), 2),
      _number(r.get("spills"), 0),
      _number(r.get("bundles"), 2),
      _number(r.get("bundles_floor"), 2),
      _number(r.get("compile_s"), 1),
    ]
    for r in rows
  ]
  return markdown.table(header, lines)


def _number(x, digits: int) -> str:
  return "" if x is None else f"{x:.{digits}f}"


def _mib(x) -> str:
  return "" if x is None else f"{x / (1 << 20):.1f}"


def main(argv=None):
  parser = argparse.ArgumentParser(
    prog="python -m kernels.report",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  everything = (*topologies.TARGETS, *GPUS)
  parser.add_argument("--targets", default=",".join(everything))
  parser.add_argument("--shapes", default=",".join(map(str, tpu.SHAPES)))
  parser.add_argument("--no-cycles", action="store_true")
  parser.add_argument("--no-peers", action="store_true")
  parser.add_argument("--json", help="where to write the rows")
  flags = parser.parse_args(argv)
  targets = flags.targets.split(",")
  for t in targets:
    if t not in everything:
      parser.error(f"--targets: got {t!r}, expected {', '.join(everything)}")
  shapes = [int(v) for v in flags.shapes.split(",")]
  rows, skipped, ready = [], [], []
  for t in targets:
    reason = (gpu if t in GPUS else topologies).available()
    if reason is None:
      ready.append(t)
    else:
      skipped.append(f"{t}: skipped, {reason}")
  tpus = [t for t in ready if t not in GPUS]
  gpus = [t for t in ready if t in GPUS]
  if tpus:
    cycles = () if flags.no_cycles else ("v5e", "v6e")
    rows = tpu.rows(
      tpus, shapes, cycle_targets=cycles, peers=not flags.no_peers
    )
    print(table(rows))
  if gpus:
    new = gpu.rows(gpu.logits_jobs(gpus, [(1024, v) for v in shapes]))
    print(gpu.table(new))
    rows += new
  if ready and not flags.no_peers:
    print("\nHBM bytes of value_and_grad from bfloat16 logits, in N V b\n")
    new = traffic.rows(ready)
    print(traffic.table(new))
    rows += new
    setups = [t for t in ready if t in parallel.SETUPS]
    new = [parallel.row(t) for t in setups]
    print("\nV sharded over all devices, forward KL from hidden states\n")
    print(parallel.table(new))
    rows += new
  for line in skipped:
    print(line)
  if flags.json:
    result = {"evidence": "compiled", "rows": rows, "skipped": skipped}
    pathlib.Path(flags.json).write_text(json.dumps(result, indent=1) + "\n")
  failed = [r for r in rows if "error" in r]
  return 1 if failed else 0
