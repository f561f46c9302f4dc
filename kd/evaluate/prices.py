"""What a study's students cost: kd.evaluate.break_even on what it measured.

Made of results.json and of the config's prices; no model is asked here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from kd.config import leaves, made
from kd.evaluate import stats
from kd.evaluate.break_even import (
  HOUR,
  Estimate,
  estimate,
  falling,
  payback,
  request,
  total,
  traffic,
)
from kd.evaluate.design import Design
from kd.objectives import terms

SECONDS = "throughput_seconds"  # of an example, at the best batch

Section = Mapping[str, Any]  # `cost` of a config


def of(
  results: Mapping[str, Any], cost: Section, seconds: Mapping[str, float]
) -> dict[str, Any]:
  """Returns what a study's students cost beside their teacher.

  Args:
    results: what results.json holds.
    cost: the config's section; `cost.requests` > 0.
    seconds: of each phase of the study.

  Returns:
    `teacher`, the Estimate of a request; `arms`: arm -> `request`, `making`
    (its parts and `total`), `requests` (N), `requests_a_month` (n),
    `payback_months`, `a_month` at the traffic given, and `deferred` of a
    cascade; and `samples`, of `samples_axis`.
  """
  design, runs = Design.of(results), len(results["seeds"])
  teacher_c = _teacher(results, cost, runs)
  arms: dict[str, Any] = {}
  for arm, entry in results["arms"].items():
    own = _of_arm(entry, results, cost, teacher_c)
    if own is None:
      continue
    saved = design.means(teacher_c - own)
    if not np.isfinite(saved).any():
      continue  # all its runs diverged
    spent = estimate(design.means(own))
    spent = spent._replace(low=max(spent.low, 0.0))  # no price is below it
    made = making(entry, results, cost, seconds)
    arms[arm] = {
      "request": spent.said(),
      "making": made,
      **_pays(made["total"], cost, estimate(saved)),
      "a_month": cost["requests"] * spent.value + cost["yearly"] / 12,
    }
  return {
    **{k: cost[k] for k in ("unit", "requests", "months", "yearly", "count")},
    "teacher": {
      "request": estimate(design.means(teacher_c)).said(),
      "a_month": cost["requests"] * float(np.mean(teacher_c)),
    },
    "arms": arms,
    "samples": samples_axis(results, cost),
  }


def _pays(made: float, cost: Section, saving: Estimate) -> dict[str, Any]:
  """Says when a student pays that was made for so much."""
  yearly, months, requests = (cost[k] for k in ("yearly", "months", "requests"))
  return {
    "saving": saving.said(),
    "requests": falling(lambda s: total(made, s), saving).said(),
    "requests_a_month": falling(
      lambda s: traffic(made, yearly, months, s), saving
    ).said(),
    "payback_months": falling(
      lambda s: payback(made, yearly, requests, s), saving
    ).said(),
  }


def _teacher(
  results: Mapping[str, Any], cost: Section, runs: int
) -> Float[np.ndarray, " U"]:
  """Returns what a request to the teacher costs, for each run."""
  seconds: Any = 0.0
  if cost["teacher"]["hour"]:
    plain = [
      entry
      for entry in results["arms"].values()
      if entry["config"]["objective"] == "teacher"
      and not entry["config"].get("compress")
    ]
    if plain:
      seconds = stats.floats(plain[0]["metrics"][SECONDS]["values"])
    else:
      seconds = results["provenance"]["latency_seconds"]["teacher"]["example"]
  c = request(
    cost["teacher"], cost["prompt_tokens"], cost["completion_tokens"], seconds
  )
  return np.broadcast_to(np.asarray(c, np.float64), (runs,))


def _of_arm(
  entry: Mapping[str, Any],
  results: Mapping[str, Any],
  cost: Section,
  teacher: Float[np.ndarray, " U"],
) -> Float[np.ndarray, " U"] | None:
  """Returns what a request to an arm costs, for each run: a cascade's is its
  student's, and the teacher's for the share that it hands on."""
  seconds: Any = 0.0
  of = entry["config"].get("of") if made.is_made(entry["config"]) else None
  first = results["arms"][of] if of else entry
  if cost["student"]["hour"]:
    if SECONDS not in first["metrics"]:
      return None
    seconds = stats.floats(first["metrics"][SECONDS]["values"])
  c = request(
    cost["student"], cost["prompt_tokens"], cost["completion_tokens"], seconds
  )
  c = np.broadcast_to(np.asarray(c, np.float64), teacher.shape)
  if first is not entry:
    c = c + stats.floats(entry["metrics"]["deferred"]["values"]) * teacher
  return c


def making(
  entry: Mapping[str, Any],
  results: Mapping[str, Any],
  cost: Section,
  seconds: Mapping[str, float],
) -> dict[str, float]:
  """Returns what it costs to make an arm's student, and its parts.

  Args:
    entry: the arm's, of results.json.
    results, cost, seconds: as of `of`.

  Returns:
    `teacher`: for what it said of the transfer set, each sample a request, and
    for the seconds of the phase `label` at its hardware's price. `labels`: of
    people, where the loss reads the truth. `training` and `evaluation`: the
    study's measured seconds at their prices, a run's share of them where
    `cost.count` is "run". `people`; and the `total`. The teacher's own training
    is in none.
  """
  config = entry["config"]
  trained = made.trained({a: x["config"] for a, x in results["arms"].items()})
  runs = len(results["seeds"]) * len(trained)
  share = 1.0 if cost["count"] == "study" else 1.0 / runs
  hours = {k: share * v / HOUR for k, v in seconds.items()}
  examples, asked, read = _asked(config, results)
  prices = cost["teacher"]
  each = request(prices, cost["prompt_tokens"], cost["completion_tokens"], 0.0)
  label = hours.get("label", 0.0) * prices["hour"] / prices["utilization"]
  parts = {
    "teacher": asked * float(each) + (label if asked else 0.0),
    "labels": examples * cost["labelling"] if read else 0.0,
    "training": hours.get("train", 0.0) * cost["training"],
    "evaluation": hours.get("evaluate", 0.0) * cost["evaluation"],
    "people": cost["people"],
  }
  return {**parts, "total": sum(parts.values())}


def _asked(
  config: Mapping[str, Any], results: Mapping[str, Any]
) -> tuple[int, int, bool]:
  """Returns an arm's examples, the requests that its teacher answered for
  them, and whether its loss reads the truth."""
  if made.is_made(config):
    if "of" not in config:
      return 0, 0, False
    return _asked(results["arms"][config["of"]]["config"], results)
  parts = terms.parts(config)
  signal, train = config["signal"], config["train"]
  examples = signal["size"] or np.max(results["signal"].get("examples", 0))
  if signal["live"]:
    examples = train["steps"] * train["batch_size"]
  # Of a sum's parts, or of the loss itself; a black box drew all beforehand.
  samples = [
    v
    for k, v in leaves(terms.loss_keys(config))
    if k.split(".")[-1] == "samples"
  ]
  usual = signal["samples"] if "answers" in results["signal"] else 1
  asks = bool(parts - {"truth"}) * max(samples, default=usual)
  return int(examples), int(examples) * asks, "truth" in parts


def samples_axis(
  results: Mapping[str, Any], cost: Section
) -> list[dict[str, Any]]:
  """Says what more sampled answers cost and bring.

  Returns:
    Of arms that differ in `samples` alone, in its order: `arm`, `samples`,
    `cost` (the teacher's part of the making, without its hardware), `mean` of
    the primary metric; and from the second on `more`, its cost over the one
    before, and `brings`, the paired comparison with that one.
  """
  metric, design = results["metric"], Design.of(results)
  families: dict[str, list[tuple[int, str]]] = {}
  for arm, entry in results["arms"].items():
    config = entry["config"]
    if "samples" in config:
      rest = json.dumps({**config, "samples": None, "baseline": None})
      families.setdefault(rest, []).append((config["samples"], arm))
  each = float(
    request(
      cost["teacher"], cost["prompt_tokens"], cost["completion_tokens"], 0.0
    )
  )
  rows: list[dict[str, Any]] = []
  for members in families.values():
    last = None
    for samples, arm in sorted(members) if len(members) > 1 else ():
      entry = results["arms"][arm]
      own = entry["metrics"][metric]
      row = {
        "arm": arm,
        "samples": samples,
        "cost": _asked(entry["config"], results)[1] * each,
        "mean": own["mean"],
      }
      if last is not None:
        before = results["arms"][last["arm"]]["metrics"][metric]
        found = stats.compare(
          own["values"],
          before["values"],
          design=design,
          worth=own.get("worth", 0.0),
        )
        row["more"] = row["cost"] - last["cost"]
        row["brings"] = {
          k: v for k, v in dataclasses.asdict(found).items() if k != "p"
        }
      rows.append(row)
      last = row
  return rows
