"""The training bench: what it times trains the same, and it writes a page."""

import pathlib
import tempfile

from absl import flags
from absl.testing import absltest

from kd.bench import training, ways


class BenchTest(absltest.TestCase):
  def test_all_ways_train_the_same_weights(self):
    hidden, arm, size = (8, 8), 2, ways.Size(seeds=2, steps=6)
    (state,), _ = ways.in_one_program(hidden, "vmap", size)[0]()
    kernel = state.params["head"]["kernel"][...][:, arm]  # [S, H, V]
    temperature = ways.TEMPERATURES[arm]
    careful = ways.careful_loop(hidden, size)(temperature)
    usual = ways.nnx_loop(hidden, size)(temperature)
    for seed in range(size.seeds):
      (params, *_), _ = careful[seed]
      for weights in (params, usual[seed]):
        difference = abs(weights["head"]["kernel"][...] - kernel[seed])
        self.assertLess(float(difference.max()), 1e-5)

  def test_a_page(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    page = pathlib.Path(folder, "p.md")
    page.write_text("".join(f"<!-- {x} --><!-- /{x} -->" for x in MARKS))
    training.main(flags.FLAGS(["training", *SMALL, f"--doc={page}"]))
    for row in ("| 784-8-8-10 | 1 |", "| 12 |", "5 arms x 2 seeds, 6 steps"):
      self.assertIn(row, page.read_text())


MARKS = ("arms", "classes")
# Of the sizes of the other test, whose compiled programs are cached.
SMALL = (
  "--repeats=1",
  "--seeds=2",
  "--steps=6",
  "--students=8-8",
  "--classes=12",
)

if __name__ == "__main__":
  absltest.main()
