r"""How far top-k and sampled targets are from the teacher's whole distribution.

    python -m kd.bench.targets WORKDIR docs/top_k.md

Takes the dense signal that a study stored (configs/top_k.py) and computes what
each kind of target loses before any training. The gradient of forward KL in the
student's logits is q - t, with t the target; over rows n we give

    bias  = |E t - p| / |q - p|,   noise = sqrt(E |t - E t|^2) / |q - p|,

the norms being over rows and classes. By target, with S the top k of p:

    zero         t = p / p(S) on S, else 0
    bucket       t = p on S, else p(rest) q / q(rest): what the loss's gradient
                 is, since only the student says how the rest is spread
    renormalize  q - t = q / q(S) - p / p(S) on S, else 0
    sampled      t = counts / K of K draws from p: E t = p, and
                 E |t - p|^2 = (1 - sum p^2) / K

Drawing from r instead of p, with weights p / r, has E |t - p|^2 =
(sum p^2 / r - sum p^2) / K, which is least at r = p, by Cauchy and Schwarz: so
no other proposal is offered. Source: Anshumann et al. (2025), 2503.16870.
"""

import functools
import json
import os
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from absl import app
from matplotlib.figure import Figure
from scipy import special

from kd.errors import UserError
from kd.report import markdown, style
from kd.signals import codec, store

softmax = functools.partial(special.softmax, axis=-1)
norm = np.linalg.norm  # over rows and classes
KS = (8, 32, 128)
ROWS = 2000
DRAWS = 256  # of which the mean is compared with p
PROPOSALS = (0.5, 0.8, 1.25)  # r proportional to p to this power
STUDENTS: dict[str, Callable] = {
  "uniform": np.zeros_like,  # at the start
  "softened": lambda z: z / 2,  # on the way to the teacher
}


def target(kind: str, p: np.ndarray, q: np.ndarray, k: int) -> np.ndarray:
  """Returns E t [N, V] of a kind of target; see the module."""
  order = np.argsort(-p, axis=-1)[:, :k]
  inside = np.zeros(p.shape, bool)
  np.put_along_axis(inside, order, True, axis=-1)
  if kind == "sampled":
    return p
  if kind == "zero":
    kept = np.where(inside, p, 0)
    return kept / kept.sum(-1, keepdims=True)
  rest_p, rest_q = (
    np.where(inside, 0, x).sum(-1, keepdims=True) for x in (p, q)
  )
  if kind == "bucket":
    return np.where(inside, p, rest_p * q / np.maximum(rest_q, 1e-300))
  slope = np.where(inside, q / (1 - rest_q) - p / (1 - rest_p), 0)
  return q - slope


def measure(z: np.ndarray) -> dict:
  """Returns the numbers of the page from a teacher's logits [N, V]."""
  p = softmax(z)
  rng = np.random.default_rng(0)
  out: dict = {"rows": len(p), "classes": p.shape[-1], "targets": []}
  out["confidence"] = float(p.max(-1).mean())
  out["entropy"] = float(-(p * np.log(np.maximum(p, 1e-300))).sum(-1).mean())
  students = {name: softmax(make(z)) for name, make in STUDENTS.items()}
  sizes = {name: norm(q - p) for name, q in students.items()}
  for k in KS:
    tail = float(1 - np.sort(p, axis=-1)[:, -k:].sum(-1).mean())
    for kind in ("sampled", "bucket", "zero", "renormalize"):
      biases = {
        name: norm(target(kind, p, q, k) - p) / sizes[name]
        for name, q in students.items()
      }
      t = target(kind, p, students["softened"], k)
      is_target = kind != "renormalize"  # there no distribution over V is meant
      out["targets"].append(
        {
          "k": k,
          "kind": kind,
          "tail": tail,
          "tv": float(0.5 * np.abs(t - p).sum(-1).mean())
          if is_target
          else None,
          "confidence": float(t.max(-1).mean()) if is_target else None,
          "bias": biases,
          "noise": _noise(p, p, k) / sizes["softened"]
          if kind == "sampled"
          else 0.0,
        }
      )
    mean = rng.multinomial(k * DRAWS, p[:200]) / (k * DRAWS)
    off, expected = norm(mean - p[:200]), _noise(p[:200], p[:200], k * DRAWS)
    out.setdefault("unbiased", {})[k] = off / expected
  out["proposals"] = {}
  for power in PROPOSALS:
    r = p**power
    r /= r.sum(-1, keepdims=True)
    out["proposals"][power] = _noise(p, r, 1) / _noise(p, p, 1)
  out["fewer_bits"] = [
    _bits(z, k, d) for k in (0, 128) for d in ("bfloat16", "int8")
  ]
  return out


def _noise(p: np.ndarray, r: np.ndarray, draws: int) -> float:
  """Returns sqrt(sum_n E |t - p|^2) of draws from r."""
  second = np.where(p > 0, p * p / np.maximum(r, 1e-300), 0).sum()
  return float(np.sqrt((second - (p * p).sum()) / draws))


def _bits(z: np.ndarray, k: int, dtype: str) -> dict:
  """Measures KL(p || p~) of logits stored in fewer bits; k = 0 keeps all."""
  z = z - z.max(-1, keepdims=True)
  if k:  # in the order of a store, by class
    z = np.take_along_axis(z, np.sort(np.argsort(-z)[:, :k], -1), -1)
  kept = z.astype(np.float32)
  field = codec.Field("logits", dtype, kept.shape[1:], "float32")
  found = field.unpack(field.pack(kept)).astype(np.float64)
  p, p_found = softmax(kept.astype(np.float64)), softmax(found)
  kl = (p * (np.log(p) - np.log(p_found))).sum(-1)
  return {
    "k": kept.shape[-1],
    "dtype": dtype,
    "bytes": field.width,
    "mean": float(kl.mean()),
    "max": float(kl.max()),
  }


def page(found: dict, source: str) -> str:
  """Returns the numbers as Markdown."""
  rows = []
  for t in found["targets"]:
    rows.append(
      [
        str(t["k"]),
        f"`{t['kind']}`",
        f"{100 * t['tail']:.2f}",
        "-" if t["tv"] is None else f"{t['tv']:.4f}",
        "-" if t["confidence"] is None else f"{t['confidence']:.3f}",
        f"{t['bias']['uniform']:.4f}",
        f"{t['bias']['softened']:.4f}",
        f"{t['noise']:.2f}",
      ]
    )
  header = [
    "k or K",
    "target",
    "tail mass (%)",
    "TV of E t to p",
    "confidence of E t",
    "bias, student uniform",
    "bias, student softmax(z/2)",
    "noise of one draw",
  ]
  unbiased = ", ".join(f"{v:.2f}" for v in found["unbiased"].values())
  others = ", ".join(
    f"p^{power:g}: {ratio:.2f}" for power, ratio in found["proposals"].items()
  )
  bits = [
    [
      str(b["k"]),
      b["dtype"],
      str(b["bytes"]),
      f"{b['mean']:.1e}",
      f"{b['max']:.1e}",
    ]
    for b in found["fewer_bits"]
  ]
  return "\n\n".join(
    [
      f"{found['rows']} rows, V = {found['classes']}, T = 1; the teacher's "
      f"entropy is {found['entropy']:.2f} nats, its confidence "
      f"{found['confidence']:.3f}. Bias and noise are relative to the dense "
      f"gradient. Evidence: computed in float64 from the stored signal of "
      f"{source}, by `python -m kd.bench.targets`.",
      markdown.table(header, rows),
      "![Bias of the gradient, and the noise of one draw](top_k.png)",
      f"That draws are unbiased was also measured: the mean of {DRAWS} targets "
      f"is as far from p as chance says, {unbiased} times the expected "
      f"distance at K = {', '.join(map(str, KS))}. Other proposals than p give "
      f"more noise: {others} times that of p.",
      "Logits in fewer bits, all of them or the top 128 by class, in nats:",
      markdown.table(
        ["logits", "stored as", "bytes a row", "mean KL", "largest KL"], bits
      ),
    ]
  )


def draw(found: dict) -> Figure:
  """Draws bias against k, and the noise of a draw."""
  with mpl.rc_context(style.RC):
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    marks = {"bucket": "#0072b2", "zero": "#d55e00", "renormalize": "#009e73"}
    for kind, colour in marks.items():
      own = [t for t in found["targets"] if t["kind"] == kind]
      y = [t["bias"]["softened"] for t in own]
      axes.plot(KS, y, "o-", color=colour, label=f"{kind}: bias")
    own = [t["noise"] for t in found["targets"] if t["kind"] == "sampled"]
    axes.plot(KS, own, "s--", color="#68707e", label="sampled: noise, no bias")
    axes.set(xscale="log", yscale="log", xlabel="k or K")
    axes.set_xticks(KS, [str(k) for k in KS])
    axes.minorticks_off()
    axes.set_ylabel("relative to the dense gradient")
    axes.legend()
  return figure


def dense_store(workdir: str) -> store.Store:
  """Opens the dense signal of a study.

  Raises:
    UserError: there is none.
  """
  parent = os.path.join(workdir, "signals")
  for name in sorted(os.listdir(parent)) if os.path.isdir(parent) else ():
    folder = os.path.join(parent, name)
    kept = store.check(folder, {})["signal"]
    if kept["keep"] == "dense" and kept["dtype"] == "float32":
      return store.Store(folder)
  raise UserError(
    f"{parent}: no dense float32 signal; expected that of a study"
  )


def main(argv: list[str]) -> None:
  if len(argv) != 3:
    raise app.UsageError("expected a workdir and a page such as docs/top_k.md")
  workdir, path = argv[1:]
  logits = dense_store(workdir).arrays()["logits"][:ROWS]
  found = measure(logits.astype(np.float64))
  with open(os.path.join(workdir, "config.json")) as f:
    source = f"study `{json.load(f)['config']['study']}`"
  picture = os.path.join(os.path.dirname(path), "top_k.png")
  draw(found).savefig(picture, dpi=130)
  markdown.replace_section(path, "bias", page(found, source))


if __name__ == "__main__":
  app.run(main)
