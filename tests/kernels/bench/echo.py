"""Serves jobs for process_test: gives them back, raises, or dies."""

import os
import sys

from kernels.bench import process


def work(job: dict) -> dict:
  if job["do"] == "die":
    print("Error: no more memory", file=sys.stderr, flush=True)
    os._exit(3)
  if job["do"] == "raise":
    raise ValueError(f"not {job['i']}")
  return job | {"pid": os.getpid()}


if __name__ == "__main__":
  process.serve(work)
