"""A study's whole program with decoders, for a TPU and a GPU not here.

Evidence of kind *compiled*, of models of one layer; those of full depth are in
docs/performance.md. Skipped without libtpu or the CUDA plugin.
"""

from absl.testing import absltest, parameterized

from kd.bench import decoder_memory, decoders


class LanguageTest(parameterized.TestCase):
  @parameterized.product(target=("v5e", "h100"), signal=decoders.SIGNALS)
  def test_the_steps_hold_no_logits_of_a_batch(self, target, signal):
    if reason := decoder_memory.unavailable(target):
      self.skipTest(reason)
    size = decoder_memory.size("bfloat16", layers=1)
    row = decoder_memory.compile_for(target, signal, size)
    self.assertLess(row["largest"], row["limit"] // 2, row["shape"])
    # In bfloat16 the logits alone would be 384 MiB for each model.
    self.assertLess(row["temp_bytes"], 1 << 30)


if __name__ == "__main__":
  absltest.main()
