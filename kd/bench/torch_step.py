"""What torch and transformers make of a case of kd.bench.language.

Run by that, as a script, with a Python that has both: it imports nothing else
of ours. For each line of stdin it works once, and prints {"seconds",
"losses"}. Eager, float32, the fused AdamW; rows have no padding, so that no
mask is needed.
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch  # ty: ignore[import-not-found]
import transformers  # ty: ignore[import-not-found]


def load(folder: pathlib.Path):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="sdpa"
  )


def live(student, teacher, batch):
  """Returns the mean of KL(p || q) over the positions that count."""
  with torch.inference_mode():
    lp = teacher(batch["ids"], use_cache=False).logits.log_softmax(-1)
  lq = student(batch["ids"], use_cache=False).logits.log_softmax(-1)
  each = torch.nn.functional.kl_div(lq, lp, reduction="none", log_target=True)
  return (each.sum(-1) * batch["weights"]).sum()


def top_k(student, teacher, batch):
  """Returns the same of the likeliest tokens, and one bucket for the rest."""
  del teacher
  z = student(batch["ids"], use_cache=False).logits
  z_k = z.gather(-1, batch["top_ids"])
  lq = z_k - z.logsumexp(-1, keepdim=True)
  lp = batch["top_log_probs"]
  inside = (lp.exp() * (lp - lq)).sum(-1)
  rest_p, rest_q = (-torch.expm1(x.logsumexp(-1)) for x in (lp, lq))
  rest = rest_p * (rest_p.log() - rest_q.clamp_min(1e-30).log())
  return ((inside + rest) * batch["weights"]).sum()


def train(folder: pathlib.Path, case: dict, batch):
  """Returns work(): some steps, and the loss before each."""
  student = load(folder / "student").train()
  teacher = (
    load(folder / "teacher").eval() if case["signal"] == "live" else None
  )
  optimizer = torch.optim.AdamW(
    student.parameters(),
    lr=case["learning_rate"],
    weight_decay=0.0,
    fused=True,
  )
  loss_of = {"live": live, "top_k": top_k}[case["signal"]]

  def work() -> list[float]:
    losses = []
    for _ in range(case["steps"]):
      optimizer.zero_grad(set_to_none=True)
      loss = loss_of(student, teacher, batch)
      loss.backward()
      optimizer.step()
      losses.append(float(loss))
    return losses

  return work


def label(folder: pathlib.Path, case: dict, batch):
  """Returns work(): the teacher's logits, and nothing made of them."""
  del case
  teacher = load(folder / "teacher").eval()

  def work() -> list[float]:
    with torch.inference_mode():
      z = teacher(batch["ids"], use_cache=False).logits
    return [float(z[0, -1].logsumexp(-1) - z[0, -1].max())]

  return work


def main(folder: pathlib.Path) -> None:
  case = json.loads((folder / "case.json").read_text())
  arrays = np.load(folder / "batch.npz")
  batch = {name: torch.from_numpy(arrays[name]) for name in arrays}
  work = (label if case["signal"] == "label" else train)(folder, case, batch)
  own = pathlib.Path("/proc/self")
  for i, _ in enumerate(sys.stdin):
    began = time.perf_counter(), time.process_time()
    losses = work()
    seconds = time.perf_counter() - began[0]
    cpu = time.process_time() - began[1]  # of all threads
    if i == 0:  # the peak is of what follows
      (own / "clear_refs").write_text("5")
    (peak,) = [
      x for x in (own / "status").read_text().splitlines() if "VmHWM" in x
    ]
    kib = int(peak.split()[1])
    out = {"seconds": seconds, "cpu": cpu, "losses": losses, "kib": kib}
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
