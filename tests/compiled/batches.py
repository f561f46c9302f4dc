"""Jobs of a test file, compiled in one process when the first test asks."""

import functools
import json
from collections.abc import Callable

NAMED = {  # kd.divergences' own forms
  name.split("(")[0]: f"kd.divergences:{name}"
  for name in (
    "forward_kl",
    "reverse_kl",
    "tvd",
    "jsd(0.5)",
    "skew_kl(0.1)",
    "skew_reverse_kl(0.1)",
    "alpha_divergence(0.5)",
  )
}


def tpu_job(target, divergence, v=128256, hard=False, **kw):
  return dict(
    job="kernel", kernel="tpu", target=target, divergence=divergence, n=256,
    v=v, hard=hard, dtype="bfloat16",
  ) | kw  # fmt: skip


def batch(run: Callable[[list[dict]], list[dict]], jobs: list[dict]):
  """Returns job -> its result; equal jobs are compiled once."""
  key = lambda job: json.dumps(job, sort_keys=True)
  unique = {key(job): job for job in jobs}

  @functools.cache
  def results():
    return dict(zip(unique, run(list(unique.values())), strict=True))

  return lambda job: results()[key(job)]
