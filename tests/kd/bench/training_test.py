"""The training bench: what it times trains the same, and it writes a page."""

import pathlib
import tempfile

from absl import flags
from absl.testing import absltest

from kd.bench import training


class BenchTest(absltest.TestCase):
  def test_all_ways_train_the_same_weights(self):
    hidden, arm, size = (8, 8), 2, training.Size(seeds=2, steps=6)
    (state,), _ = training.in_one_program(hidden, "vmap", size)[0]()
    kernel = state.params["head"]["kernel"][...][:, arm]  # [S, H, V]
    temperature = training.TEMPERATURES[arm]
    careful = training.careful_loop(hidden, size)(temperature)
    usual = training.nnx_loop(hidden, size)(temperature)
    for seed in range(size.seeds):
      (params, *_), _ = careful[seed]
      for weights in (params, usual[seed]):
        difference = abs(weights["head"]["kernel"][...] - kernel[seed])
        self.assertLess(float(difference.max()), 1e-5)

  def test_a_page(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    page = pathlib.Path(folder, "p.md")
    page.write_text("".join(f"<!-- {x} --><!-- /{x} -->" for x in MARKS))
    small = ["--repeats=1", "--seeds=1", "--steps=3", "--students=8-8"]
    training.main(
      flags.FLAGS(["training", *small, "--classes=12", f"--doc={page}"])
    )
    for row in ("| 784-8-8-10 | 1 |", "| 12 |", "5 arms x 1 seeds, 3 steps"):
      self.assertIn(row, page.read_text())


MARKS = ("arms", "classes")

if __name__ == "__main__":
  absltest.main()
