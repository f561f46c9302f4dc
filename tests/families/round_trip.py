"""Loads a model of transformers', saves it again, and leaves its logits."""

import pathlib
import sys

import jax
import numpy as np

from kd import models


def main(folder: str, out: str) -> None:
  path = pathlib.Path(out)
  model = models.load_pretrained(folder, "float32")
  models.save_pretrained(model, path)
  ids = np.load(path / "ids.npy")
  logits = jax.jit(lambda model, ids: model.logits(ids))(model, ids)
  np.save(path / "logits.npy", logits[0])


if __name__ == "__main__":
  main(*sys.argv[1:])
