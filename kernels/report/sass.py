"""Instructions of the GPU kernel, counted in its machine code.

Evidence of kind "compiled", and a model: nothing here ran on a GPU. Targets are
described by kernels/report/targets/*.txtpb.
"""

import importlib.util
import pathlib
import re
import shutil
import subprocess

TARGETS = pathlib.Path(__file__).parent / "targets"


def find_tool(name: str) -> str | None:
  """Returns the path of a CUDA tool: on the PATH, or from pip's packages."""
  found = shutil.which(name)
  spec = importlib.util.find_spec("nvidia")
  roots = (spec.submodule_search_locations or []) if spec else []
  paths = [p for r in roots for p in pathlib.Path(r).glob(f"*/bin/{name}")]
  return found or (str(paths[0]) if paths else None)


def issue_slots(folder: pathlib.Path, target: str) -> float | None:
  """Returns the instructions per pair of logits in the kernel's loops.

  Counted in the machine code, the loops' own ends included, what is outside of
  loops and what a memory access waits for not: a lower bound of the time that
  an SM's schedulers need. None without nvdisasm (requirements-gpu.txt).
  """
  ptxas, nvdisasm = find_tool("ptxas"), find_tool("nvdisasm")
  sources = list(folder.glob("*.ptx"))
  if ptxas is None or nvdisasm is None or len(sources) != 1:
    return None
  arch = f"sm_{number(target, 'major'):.0f}0a"
  cubin = str(folder / "kernel.cubin")
  done = _run([ptxas, "-arch", arch, "-o", cubin, str(sources[0])])
  done = done and _run([nvdisasm, "-c", cubin])
  if done is None:
    return None
  return sum(loop_lengths(done)) / 4  # pairs of a thread: Tile.vector


def _run(command: list[str]) -> str | None:
  """Returns what a command says, or None where it fails."""
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  return None if done.returncode else done.stdout or "-"


def loop_lengths(sass: str) -> list[int]:
  """Returns the lengths of the innermost loops that read shared memory."""
  code, labels, out = [], {}, []
  for line in sass.splitlines():
    if label := re.match(r"\s*(\.L_\S+):", line):
      labels[label[1]] = len(code)
    elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
      code.append(instruction[1])
  for end, instruction in enumerate(code):
    target = re.search(r"BRA.*`\((\.L_\S+)\)", instruction)
    start = labels.get(target[1], end + 1) if target else end + 1
    body = code[start : end + 1]
    branches = sum("BRA" in i for i in body)
    if branches == 1 and any(re.search(r"\bLDS", i) for i in body):
      out.append(len(body))
  return out


def number(target: str, key: str) -> float:
  """Returns a number of a target's description."""
  text = (TARGETS / f"{target}.txtpb").read_text()
  found = re.search(rf"\b{key}: ([0-9.]+)", text)
  if found is None:
    raise ValueError(f"no {key} in kernels/report/targets/{target}.txtpb")
  return float(found[1])


def slots_at_floor(target: str, itemsize: int) -> float:
  """Returns the instructions per pair that fit into its 3 b bytes of traffic.

  Four schedulers an SM, 32 threads each, at the clock and the bandwidth of the
  target's description: 60 on an H100 in bfloat16.
  """
  clock = number(target, "clock_rate_ghz") * 1e9
  issued = number(target, "core_count") * 4 * 32 * clock
  return round(issued * 3 * itemsize / number(target, "memory_bandwidth"), 1)
