"""Jobs in a process of their own, of which some end it."""

from absl.testing import absltest

from kernels.bench import process


class RunEachTest(absltest.TestCase):
  def test_the_others_go_on_in_another_process(self):
    does = ["echo", "raise", "die", "echo"]
    out = process.run_each(
      "tests.kernels.bench.echo",
      [dict(do=do, i=i) for i, do in enumerate(does)],
      ended=lambda error: {"why": error},
    )
    self.assertEqual([x.get("i") for x in out], [0, None, None, 3])
    self.assertNotEqual(out[0]["pid"], out[3]["pid"])
    self.assertEqual(out[1], {"error": "ValueError: not 1"})
    self.assertEqual(out[2], {"why": "Error: no more memory"})


if __name__ == "__main__":
  absltest.main()
