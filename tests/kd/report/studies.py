"""Synthetic studies, and readers of what reports say of them."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from kd.config import sections as config_sections
from kd.evaluate import outside_stats, prices, stats
from kd.evaluate.design import Design
from kd.evaluate.outside import COVERAGE, Found, Scores

BINS = 15


REMOVED = {"id": "q7", "prompt": "route this", "samples": ["a", "b"]}


def funnel_step(name, came, left, removed):
  """Makes a funnel's entry for examples of four samples each."""
  counts = {"in": came, "out": left}
  samples = {"samples_in": 4 * came, "samples_out": 4 * left}
  return {"step": name, **counts, **samples, "removed": removed}


REPLICATES = {
  "count": 5,
  "vary": ["split", "signal"],
  "levels": [{"name": "split + signal", "of": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]}],
  "fixed": ["teacher"],
}  # of ten seeds


def searched(arms, replicates=1):
  """Makes what a study of `synthetic` says of its search, {key: value}."""
  points = [
    {"temperature": t, "train.learning_rate": rate}
    for t in (1.0, 4.0)
    for rate in (1e-3, 0.003)
  ]
  which = [r % 3 for r in range(replicates)]
  return {
    "budget": 4,
    "space": {
      "temperature": [1.0, 4.0],
      "train": {"learning_rate": ["log", 1e-3, 1e-2]},
    },
    "seeds": 2,
    "points": points,
    "choices": dict.fromkeys(arms, which),
    "scores": {
      arm: [[0.9 + 0.01 * (i == c) for i in range(4)] for c in which]
      for arm in arms
    },
  }


def synthetic(
  gains, seeds=10, classes=10, diverged=None, omit=(), noise=0.004, steps=400,
  contrasts=(), replicates=None, strata=None,
):  # fmt: skip
  """Makes the files of a study: arm -> gain in accuracy over the first arm.

  `strata` is arm -> its budget; an arm's baseline is the first of its stratum.
  """
  rng = np.random.default_rng(0)
  diverged, names = diverged or {}, list(gains)
  shared = noise * rng.normal(size=seeds)
  values, arms = {}, {}
  for arm, gain in gains.items():
    lost = [int(s) for s in diverged.get(arm, {})]
    accuracy = 0.93 + gain + shared + noise * rng.normal(size=seeds)
    metrics = {
      "accuracy": accuracy,
      "accuracy_best": accuracy + 0.3 * noise * rng.normal(size=seeds),
      "agreement": accuracy + 0.01 + noise * rng.normal(size=seeds),
      "nll": 0.26 - 2 * gain + 0.01 * rng.normal(size=seeds),
      "kl_to_teacher": 0.2 - 2 * gain + 0.01 * rng.normal(size=seeds),
      "ece": 0.03 - 0.5 * gain + 0.003 * rng.normal(size=seeds),
      "brier": 0.1 - gain + 0.003 * rng.normal(size=seeds),
      "validation_accuracy": accuracy,
      "train_seconds": rng.uniform(1, 2, seeds),
    }
    for c in range(classes):
      low = 0.15 - 10 * min(gain, 0.02) if c in omit else 0.0
      metrics[f"recall_{c}"] = np.clip(accuracy - 3 * low, 0, 1)
    values[arm] = {
      m: [None if s in lost else float(v) for s, v in enumerate(x)]
      for m, x in metrics.items()
    }
  strata = strata or dict.fromkeys(names, "")
  bases = {s: next(a for a in names if strata[a] == s) for s in strata.values()}
  baselines = {
    a: None if a in bases.values() else bases[strata[a]] for a in names
  }
  summary, told = stats.summarise(
    values,
    baselines,
    metric="accuracy",
    design=Design.of({"replicates": replicates}),
    contrasts=contrasts,
    worth={"accuracy": 1 / 360},
    each={
      a: [
        None if v is None else rng.uniform(size=360) < v for v in m["accuracy"]
      ]
      for a, m in values.items()
    },
  )
  for arm, gain in gains.items():
    config = {"objective": arm.split("[")[0], "temperature": 4.0}
    if arm == names[0]:
      config = {"objective": "hard"}
    arms[arm] = {
      "config": config,
      "baseline": baselines[arm],
      "diverged": diverged.get(arm, {}),
      "metrics": summary[arm],
      **({"stratum": strata[arm]} if strata[arm] else {}),
      "reliability": _reliability(rng, 0.05 - gain, seeds),
    }
  teacher = {"accuracy": 0.972, "nll": 0.11, "ece": 0.012, "brier": 0.04}
  teacher |= {f"recall_{c}": 0.97 for c in range(classes)}
  results = {
    "study": "digits",
    "metric": "accuracy",
    "selection": "last",
    "teacher": teacher,
    "baseline": names[0],
    "seeds": list(range(seeds)),
    "arms": arms,
    **({"contrasts": told} if contrasts else {}),
    **({"replicates": replicates} if replicates else {}),
    "teacher_reliability": _reliability(rng, 0.01, 1),
    "signal": {
      "examples": 1078,
      "samples": 16,
      "funnels": {
        "clean": [
          funnel_step("agreement", 1078, 971, [REMOVED]),
          funnel_step("closed set", 971, 971, []),
        ]
      },
    },
    "provenance": {
      "command": "python main.py --config=configs/digits.py --workdir=/tmp/d",
      "device": "cpu (2 cores)",
      "versions": {"jax": "0.12.0", "flax": "0.15"},
      "commit": "0123abc",
      "wall_seconds": 81.25,
      "evidence": "run",
    },
  }
  config = {
    "config": {"study": "digits", "signal": {"omit_classes": list(omit)}},
    "question": "Does the *order* of a teacher's samples teach more than "
    "its answers?\n\nAsked of <10 classes & 1 teacher.",
  }
  lines = []
  for k, (arm, gain) in enumerate(gains.items()):
    for seed in range(seeds):
      for step in range(0, steps, 20):
        rise = 1 - np.exp(-(step + 20) / 60)
        lost = step >= diverged.get(arm, {}).get(str(seed), steps)
        accuracy = (0.93 + gain) * rise + 0.006 * rng.normal()
        loss = (1.2 + 0.2 * k) * (1.06 - rise) * np.exp(0.1 * rng.normal())
        lines.append(
          {
            "arm": arm,
            "seed": seed,
            "step": step,
            "loss": None if lost else float(loss),
            "grad_norm": None if lost else 1.0,
            "validation_accuracy": None if lost else float(accuracy),
            "validation_nll": None if lost else 0.3,
          }
        )
  return results, config, lines


def measured(results, sizes, seed=1):
  """Gives the arms of `synthetic` what their models ask of a device.

  Args:
    results: of `synthetic`, changed in place.
    sizes: arm -> bytes of its folder; times and memory follow them.
    seed: of the times' noise.
  """
  rng, seeds = np.random.default_rng(seed), len(results["seeds"])
  design = Design.of(results)
  for arm, entry in results["arms"].items():
    size = float(sizes[arm])
    slower = 1.3 if "int4" in arm else 1.0
    asked = {
      "bytes": np.full(seeds, size),
      "parameters": np.full(seeds, size / 4),
      "peak_bytes": np.full(seeds, 1.5 * size + 2e5),
      "latency_seconds": slower * size * 1e-9 * rng.uniform(0.9, 1.2, seeds),
      "throughput_seconds": size * 1e-10 * rng.uniform(0.95, 1.1, seeds),
    }
    values = {arm: {m: v.tolist() for m, v in asked.items()}}
    made, _ = stats.summarise(values, {arm: None}, design=design)
    entry["metrics"] |= made[arm]


PNG = (
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGOoBwAAgQCAVz+ySQAA"
  "AABJRU5ErkJggg=="
)  # a grey pixel


def disagreeing(results, count=12):
  """Gives a study examples where teacher and students disagree."""
  rng = np.random.default_rng(3)
  kinds = (
    {"kind": "image", "png": PNG},
    {"kind": "text", "text": "a text of some words"},
    {"kind": "bytes", "text": "PK\xb7", "hex": "50 4b 03"},
    {"kind": "tokens", "text": "def f(x):"},
    {"kind": "numbers", "text": "1, 2, ..."},
  )
  said = lambda: {
    "answer": str(rng.integers(3)),
    "confidence": round(float(rng.uniform(0.4, 1)), 4),
  }
  results["disagreements"] = {
    "measure": "total variation",
    "examples": [
      {
        "label": 3 * i,
        "distance": 0.9 - i / 50,
        "input": kinds[i % len(kinds)],
        "truth": "1",
        "teacher": said(),
        "arms": {a: {**said(), "distance": 0.9} for a in results["arms"]},
      }
      for i in range(count)
    ],
  }


def priced(results, **keys):
  """Gives a study of `synthetic` prices: of a call 0.001 to the teacher."""
  results["signal"]["examples"] = 500
  for arm in results["arms"].values():
    arm["config"] |= {
      "objective": "hard",
      "target": "answer",
      "signal": {"size": None, "live": False, "samples": 0},
      "train": {"steps": 10, "batch_size": 5},
    }
    arm["versus_teacher"] = {
      "difference": -0.01, "low": -0.02, "high": 0.0, "n": 10, "lost": 0,
    }  # fmt: skip
  of = {"requests": 1e5, "people": 100.0, "teacher": {"call": 0.001}, **keys}
  section = config_sections.fill("cost", of)
  results["provenance"]["cost"] = prices.of(results, section, {})


# Set -> (words, its name in the config, severity, whether it has labels).
SETS = {
  "test": ("test split", "test", 0, True),
  "noise_1": ("noise, severity 1", "noise", 1, True),
  "noise_5": ("noise, severity 5", "noise", 5, True),
  "photos": ("photographs", "photos", 0, False),
}
LABELLED = (
  *("accuracy", "nll", "nll_tempered", "ece", "ece_equal_mass"),
  *("ece_tempered", "brier"),
)
OF_ALL = ("wrong_confident", "aurc", "agreement", "mean_confidence")
DETECTION = ("auroc", "fpr95", "auroc_energy", "fpr95_energy")


def outside(results):
  """Asks a study of `synthetic` about sets outside of its task."""
  rng, seeds = np.random.default_rng(3), len(results["seeds"])

  def scores(runs):
    made = Scores({}, {}, {}, {})
    for name, (_, _, severity, labelled) in SETS.items():
      metrics = OF_ALL + LABELLED * labelled + DETECTION * (name != "test")
      made.values[name] = {
        m: (0.9 - 0.1 * severity - 0.05 * rng.uniform(size=runs)).tolist()
        for m in metrics
      }
      made.curves[name] = np.linspace(1, 0.9, len(COVERAGE)).tolist()
      made.reliability[name] = _reliability(rng, 0.05, runs)
      if severity:
        made.parts[name] = {"blur": 0.8, "shot_noise": 0.7}
    return made

  facts = {
    name: {
      "words": words,
      "of": of,
      "severity": severity,
      "examples": 200,
      "labelled": labelled,
    }
    for name, (words, of, severity, labelled) in SETS.items()
  }
  arms = {a: scores(seeds) for a in results["arms"]}
  results["outside"] = outside_stats.summary(
    [Found(facts, scores(1), arms)],
    {a: entry["baseline"] for a, entry in results["arms"].items()},
    [seeds],
    Design.of(results),
    COVERAGE.tolist(),
  )


def handed_on(results, first):
  """Makes the last arm a cascade, of which `first` answers first."""
  arm, entry = list(results["arms"].items())[-1]
  seeds = len(results["seeds"])
  shares = np.linspace(0, 1, 21)
  rise = 0.93 + 0.04 * shares
  values = {arm: {"deferred": [0.2] * seeds}}
  made, _ = stats.summarise(values, {arm: None}, design=Design.of(results))
  entry["metrics"] |= made[arm]
  results["cascades"] = {
    arm: {
      "of": first,
      "margin": 0.01,
      "thresholds": [0.8] * seeds,
      "curve": {
        "deferred": shares.tolist(),
        "accuracy": rise.tolist(),
        "low": (rise - 0.003).tolist(),
        "high": (rise + 0.003).tolist(),
      },
    }
  }


def compressed(arms=30, seeds=5, **options):
  """Makes a study of arms that differ in size: plain, quantized and pruned,
  with all that a report has a section for."""
  steps = ("", " int8", " int4", " pruned 50 %", " pruned 50 % int8")
  names = [
    f"{taught}{step}"
    for taught in ("hard", "soft", "rank", "dkd", "dist", "list_net")
    for step in steps
  ][:arms]
  rng = np.random.default_rng(2)
  loss = dict(zip(steps, (0, 0.004, 0.009, 0.006, 0.015), strict=True))
  share = dict(zip(steps, (1, 0.26, 0.14, 0.5, 0.13), strict=True))
  of = {n: next(s for s in reversed(steps) if n.endswith(s)) for n in names}
  gains = {
    n: EIGHT[n.split()[0]] - loss[of[n]] - 0.002 * rng.uniform() for n in names
  }
  study = synthetic(gains, seeds=seeds, **options)
  measured(study[0], {n: 1.2e6 * share[of[n]] for n in names})
  disagreeing(study[0])
  handed_on(study[0], names[0])
  outside(study[0])
  priced(study[0])
  return study


def _reliability(rng, tilt, seeds):
  edges = (np.arange(BINS) + 0.5) / BINS
  count = np.round(360 * seeds * edges**6 / np.sum(edges**6)).astype(int)
  jitter = rng.normal(size=BINS) / np.sqrt(count + 1) / 2
  accuracy = np.clip(edges - tilt * (1 - edges) * 8 + jitter, 0, 1)
  empty = [int(c) == 0 for c in count]
  return {
    "confidence": _masked(edges, empty),
    "accuracy": _masked(accuracy, empty),
    "count": count.tolist(),
  }


def _masked(values, empty):
  return [None if e else float(v) for v, e in zip(values, empty, strict=True)]


def leave(folder, results, config, lines):
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "results.json").write_text(json.dumps(results))
  (folder / "config.json").write_text(json.dumps(config))
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)
  return folder


EIGHT = {
  "hard": 0.0, "soft": 0.012, "rank": 0.02, "dkd": 0.019, "dist": 0.004,
  "list_net": 0.0, "pairwise_logistic": -0.004, "plackett_luce": 0.01,
}  # fmt: skip


def long_names(arms=36, characters=60):
  """Makes gains as a sweep of several keys would name its arms."""
  gains = {"hard": 0.0}
  for i in range(arms - 1):
    name = f"soft[divergence=skew_kl,temperature={1 + i / 7:.4f},train.rate="
    gains[f"{name:0<{characters - 1}}]"] = i / 2500
  return gains


class Page(HTMLParser):
  """Checks that tags nest, and collects what a reader would rely on."""

  VOID = ("meta", "br", "img", "link")

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.attributes, self.words = [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.attributes += attrs
    self.ids += [v for k, v in attrs if k == "id"]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.attributes += attrs
    self.ids += [v for k, v in attrs if k == "id"]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag

  def handle_data(self, data):
    self.words.append(data)


def tables(markdown):
  """Parses GitHub tables: lists of rows of cells."""
  found, rows = [], []
  for line in [*markdown.split("\n"), ""]:
    if line.startswith("|"):
      cells = re.split(r"(?<!\\)\|", line)[1:-1]
      rows.append([c.strip() for c in cells])
    elif rows:
      found.append(rows)
      rows = []
  return found
