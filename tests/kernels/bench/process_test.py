"""Jobs in a process of their own, of which some end it."""

from absl.testing import absltest

from kernels.bench import process


class RunEachTest(absltest.TestCase):
  def test_the_others_go_on_in_another_process(self):
    does = ["echo", "raise", "die", "echo", "die"]
    jobs = [dict(do=do, i=i) for i, do in enumerate(does)]
    out = process.run_each("tests.kernels.bench.echo", jobs)
    self.assertEqual([x.get("i") for x in out], [0, None, None, 3, None])
    self.assertNotEqual(out[0]["pid"], out[3]["pid"])
    self.assertEqual(out[1], {"error": "ValueError: not 1"})
    self.assertEqual(out[2], {"error": "Error: no more memory"})
    self.assertEqual(out[4], out[2])

  def test_a_result_for_what_ended(self):
    out = process.run_each(
      "tests.kernels.bench.echo",
      [dict(do="die", i=0)],
      ended=lambda error: {"why": error.lower()},
    )
    self.assertEqual(out, [{"why": "error: no more memory"}])


if __name__ == "__main__":
  absltest.main()
