"""Records what the peers of docs/conventions.md compute, to recorded.json.

Run by hand where a line of the page or a peer's version changes:

  python3.11 -m venv peers
  peers/bin/pip install torch==2.13.0 trl==1.16.0 liger-kernel==0.8.5
  peers/bin/pip install triton==3.7.1 numpy==2.2.6
  peers/bin/python tests/conventions/record.py CLONES

CLONES is a folder with clones of DIST_KD, DistillKit, RepDistiller, distillm,
mdistiller and torchdistill at the commits of COMMITS. Their code is imported
from there; none of it is kept here. Each call is the page's own text, evaluated
with the names of `names`.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "conventions.md"
RECORDED = HERE / "recorded.json"
B, S, V, H, T = 2, 3, 6, 4, 4.0
SCALES = (2.0, 8.0)
COMMITS = {
  "DIST_KD": "2418f18",
  "DistillKit": "a61c2e7",
  "RepDistiller": "b84f547",
  "distillm": "d47e77f",
  "mdistiller": "a08d46f",
  "torchdistill": "3e4373c",
}
PACKAGES = ("torch", "trl", "liger-kernel", "triton", "numpy")


def lines(section: str) -> list[list[list[str]]]:
  """Returns a table of the page: for each line, the code of each cell."""
  text = PAGE.read_text().split(f"<!-- {section} -->")[1]
  text = text.split(f"<!-- /{section} -->")[0]
  rows = [row for row in text.splitlines() if row.startswith("|")][2:]
  cells = [row.strip("|").split(" | ") for row in rows]
  return [
    [re.findall(r"`([^`]+)`", c) or [c.strip()] for c in r] for r in cells
  ]


def base() -> dict[str, np.ndarray]:
  """Returns what the inputs are made of, which is recorded with the values."""
  rng, n = np.random.default_rng(7), B * S
  shapes = {"z": (n, V), "t": (n, V), "h_z": (n, H), "h_t": (n, H)}
  shapes |= {"W_z": (H, V), "W_t": (H, V)}
  arrays = {k: rng.normal(size=shape).round(3) for k, shape in shapes.items()}
  return arrays | {"y": rng.integers(0, V, n)}


def inputs(arrays, kind: str, scale: float) -> dict[str, np.ndarray]:
  """Returns the arrays that are the same for theirs and ours, in float64.

  Args:
    arrays: of `base`.
    kind: "plain", or one of the page's words for what a peer does not expect.
    scale: of the logits.
  """
  arrays = {k: np.array(v) for k, v in arrays.items()}
  for name in ("z", "t"):
    arrays[name] = scale * arrays[name]
    arrays[f"W_{name}"] = scale / 2 * arrays[f"W_{name}"]
    if kind == "padding":
      arrays[name][:, -2:] = -np.inf
    if kind == "huge":
      arrays[name] = 1e4 * np.sign(arrays[name])
    if kind == "rare":
      arrays[name][:, -3:] -= 30.0
  if kind == "sure":
    arrays["t"][:, :3] += 60.0
  y = arrays["y"]
  masked = np.where(np.arange(len(y)) % 3 == 0, -100, y)
  w = (masked >= 0) / (masked >= 0).sum()
  return arrays | {"masked": masked, "w": w}


def names(clones: pathlib.Path):
  """Returns (arrays, dtype) -> the names that their calls may use."""
  _interpret_triton()
  torch = importlib.import_module("torch")
  functional = torch.nn.functional
  of = importlib.import_module
  trainers = {
    "gkd": of("trl.experimental.gkd.gkd_trainer").GKDTrainer,
    "gold": of("trl.experimental.gold.gold_trainer").GOLDTrainer,
    "iw_opd": of("trl.experimental.iw_opd.iw_opd_trainer").IWOPDTrainer,
  }
  liger = of("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss
  liger_triton = of("liger_kernel.transformers")
  for folder in ("torchdistill", "DistillKit"):
    sys.path.append(str(clones / folder))
  middle = of("torchdistill.losses.mid_level")
  kit, signals = of("distillkit.lossfuncs"), of("distillkit.signals")
  ranking = kit.sparse_logistic_ranking_loss
  dkd = _by_path(clones / "mdistiller/mdistiller/distillers/DKD.py")
  kd = _by_path(clones / "mdistiller/mdistiller/distillers/KD.py")
  dist = _by_path(clones / "DIST_KD/segmentation/losses/dist_kd.py")
  zoo = _by_path(clones / "RepDistiller/distiller_zoo/KD.py")
  lm = _by_path(clones / "distillm/distillm/losses.py")

  def sequences(x):
    return x if x is None else x.reshape(B, S, *x.shape[1:])

  def trl(name):
    def call(z, t, labels=None, **keys):
      args = map(sequences, (z, t, labels))
      return trainers[name].generalized_jsd_loss(*args, **keys)

    return call

  def torchdistill(loss):
    def make(*args):
      def call(z, t, y=None):
        module = loss("m", "output", "m", "output", *args)
        return module(*({"m": {"output": x}} for x in (z, t)), y)

      return call

    return make

  def distillkit(loss):
    def make(temperature, missing="zero"):
      made = loss(temperature, kit.MissingProbabilityHandling(missing))

      def call(z, t, labels=None):
        student = types.SimpleNamespace(logits=sequences(z))
        mask = None if labels is None else sequences(labels) != -100
        if not isinstance(t, tuple):
          signal = signals.DenseSignal(1.0, None, V, sequences(t))
          return made(student, signal, mask)
        ids, log_probs, at = t
        signal = signals.SparseSignal(
          at, None, V, sequences(ids), sequences(log_probs), True
        )
        return made(student, signal, mask)

      return call

    return make

  def distillm(name):
    def call(z, t, labels, *args):
      return getattr(lm, name)(z, t, {"label": labels}, *args)

    return call

  def bind(arrays, dtype):
    tensors = {
      k: torch.tensor(v, dtype=dtype if v.dtype.kind == "f" else torch.int64)
      for k, v in arrays.items()
    }
    z, t, h = (tensors[k] for k in ("z", "t", "h_z"))
    leaves = {"z": z.requires_grad_(), "h_z": h.requires_grad_()}
    for k in ("W_z", "W_t"):
      tensors[k] = tensors[k].t()  # theirs are [V, H]

    def top(k, temperature):
      log_p = functional.log_softmax(t / temperature, -1)
      ids = torch.topk(t, k).indices
      return ids, log_p.gather(-1, ids), temperature

    log_q, log_p = (functional.log_softmax(x, -1) for x in (z, t))
    known = {
      **tensors,
      "T": T,
      "log_q": log_q,
      "log_p": log_p,
      "q": log_q.exp(),
      "p": log_p.exp(),
      "top": top,
      "DIST": dist.DIST,
      "DistillKL": zoo.DistillKL,
      "kd_loss": kd.kd_loss,
      "dkd_loss": dkd.dkd_loss,
      "sparse_logistic_ranking_loss": lambda z, top: ranking(
        sequences(z), *map(sequences, top[:2])
      ),
      "LigerFusedLinearJSDLoss": lambda *a, **k: liger(*a, compiled=False, **k),
    }
    for name in ("kl_div", "cross_entropy", "softmax", "log_softmax"):
      known[name] = getattr(functional, name)
    for name in ("LigerJSD", "LigerKLDIVLoss", "LigerTVDLoss"):
      known[name] = getattr(liger_triton, name)
    known |= {name: trl(name) for name in trainers}
    for name in ("KDLoss", "DISTLoss"):
      known[name] = torchdistill(getattr(middle, name))
    for name in ("KLDLoss", "JSDLoss", "TVDLoss"):
      known[name] = distillkit(getattr(kit, name))
    for name in DISTILLM:
      known[name] = distillm(name)
    return known, leaves

  return bind


DISTILLM = (
  "forward_kl",
  "reverse_kl",
  "symmetric_kl",
  "js_distance",
  "tv_distance",
  "skewed_forward_kl",
  "skewed_reverse_kl",
)


def _interpret_triton() -> None:
  """Lets kernels of Triton run on the CPU, those that take a float too.

  Compiled, they get a Python float as a float32 scalar; the interpreter of
  3.7.1 leaves it a float.
  """
  os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
  tl = importlib.import_module("triton.language")
  interpreter = importlib.import_module("triton.runtime.interpreter")
  convert = interpreter._implicit_cvt

  def converted(x):
    if not isinstance(x, float):
      return convert(x)
    handle = interpreter.TensorHandle(np.array([x], np.float32), tl.float32)
    return tl.tensor(handle, tl.float32)

  interpreter._implicit_cvt = converted


def _by_path(path: pathlib.Path):
  """Imports one file of a clone; a Distiller class is all that KD.py needs."""
  package = types.ModuleType(f"peer_{path.parts[-2]}_{path.stem}")
  base = types.ModuleType(f"{package.__name__}._base")
  package.__path__, base.Distiller = [str(path.parent)], object
  sys.modules |= {package.__name__: package, base.__name__: base}
  return importlib.import_module(f"{package.__name__}.{path.stem}")


def recorded(bind, arrays, call: str, kind: str, scale: float) -> dict:
  """Returns {"value", "gradient", "of"} of a call; null what is not finite."""
  torch = importlib.import_module("torch")
  dtype = torch.float32 if call.startswith("Liger") else torch.float64
  known, leaves = bind(inputs(arrays, kind, scale), dtype)
  value = eval(call, known)
  grads = torch.autograd.grad(
    value.sum(), tuple(leaves.values()), allow_unused=True
  )
  (of, gradient), *_ = [
    (k, g) for k, g in zip(leaves, grads, strict=True) if g is not None
  ]
  return {
    "value": _plain(value.detach().numpy()),
    "of": of,
    "gradient": _plain(gradient.numpy()),
  }


def _plain(x):
  """Returns lists of numbers of 6 digits, null where one is not finite."""
  if x.ndim:
    return [_plain(y) for y in x]
  return float(f"{x:.5e}") if np.isfinite(x) else None


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("clones", type=pathlib.Path)
  clones = parser.parse_args().clones
  for name, commit in COMMITS.items():
    command = ["git", "-C", str(clones / name), "rev-parse", "HEAD"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    if not found.stdout.startswith(commit):
      raise SystemExit(f"{name} is at {found.stdout.strip()}, not at {commit}")
  version = importlib.import_module("importlib.metadata").version
  bind, arrays = names(clones), base()
  same = {
    call: [recorded(bind, arrays, call, "plain", s) for s in SCALES]
    for _, calls, _, _ in lines("same")
    for call in calls
  }
  others = {
    f"{kind}: {call}": recorded(bind, arrays, call, kind, SCALES[0])
    for _, (kind,), calls, _, _ in lines("others")
    for call in calls
  }
  made = {
    "versions": {name: version(name) for name in PACKAGES} | COMMITS,
    "inputs": {k: v.tolist() for k, v in arrays.items()},
  }
  made |= {"same": same, "others": others}
  # A line for each entry, so that a change of one is seen as one.
  sections = (
    f"{json.dumps(k)}:{{\n"
    + ",\n".join(
      f"{json.dumps(name)}:{json.dumps(x, separators=(',', ':'))}"
      for name, x in section.items()
    )
    + "\n}"
    for k, section in made.items()
  )
  RECORDED.write_text("{\n" + ",\n".join(sections) + "\n}\n")


if __name__ == "__main__":
  main()
