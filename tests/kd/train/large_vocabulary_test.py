"""No compiled program of a large vocabulary holds the logits of a batch."""

import functools

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from kd import signals
from kd.bench import decoders
from kd.models.outputs import Outputs
from kd.objectives.registry import OBJECTIVES
from kd.train import arms

N, H, V, K = 1024, 8, 65536, 4
RANKED = dict(samples=K, scores="log_probs", candidates="sampled")
SOFT = dict(temperature=1.0, divergence="jsd", beta=0.5)
KEYS = {
  "hard": dict(target="truth"),
  "soft": SOFT,
  "top_k": dict(SOFT, k=K, tail="bucket"),
  "dkd": dict(alpha=1.0, beta=2.0, temperature=2.0, target="truth"),
  "partial_plackett_luce": dict(k=K),
  "frequencies": dict(samples=K, temperature=1.0),
  "acceptable": dict(samples=K, temperature=1.0),
  "preference": dict(samples=K),
  "list_net": dict(samples=K, scores="log_probs", temperature=1.0),
  "plackett_luce": dict(RANKED, ties="average"),
  "pairwise_logistic": dict(RANKED, weights=None),
  "sequence_kd": dict(several="mean", length="sum"),
}
# DIST compares a class between the rows of a batch, and holds all of them.
WHOLE = [name for name, o in OBJECTIVES.items() if o.couples]
# Others of completions begin with the same log-probabilities.
SEQUENCES = [name for name, o in OBJECTIVES.items() if o.sequences]

shape = jax.ShapeDtypeStruct
f32 = functools.partial(shape, dtype=jnp.float32)
i32 = functools.partial(shape, dtype=jnp.int32)


def signal(dense) -> signals.Signal:
  """Returns the shapes of what a teacher of text leaves."""
  return signals.Signal(
    truth=signals.Labels(i32((N,))),
    answer=signals.Labels(i32((N,))),
    dense=dense,
    samples=signals.Samples(i32((N, K)), f32((N, K))),
    rejected=i32((N, 2)),
    counts=shape((N,), bool),
    completions=signals.Completions(
      i32((N,)), i32(EACH), f32(EACH), f32(EACH), i32(EACH)
    ),
  )


EACH = N // 32, 2  # prompts, completions of 16 tokens
LIVE = Outputs(f32((N, 2 * H)), f32((2 * H, V)))
STORED = signals.TopK(i32((N, K)), f32((N, K)), f32((N, 1)), f32((N, 1)))


class LargeVocabularyTest(parameterized.TestCase):
  def check(self, name, keys, dense):
    static = {k: v for k, v in keys.items() if k != "temperature"}
    traced = {k: f32(()) for k in ("weight", *(keys.keys() - static.keys()))}
    part = arms.Part(("arm",), ((name, static),), ({},))
    student = Outputs(f32((N, H)), f32((H, V)), f32((V,)))
    step = jax.jit(jax.value_and_grad(part.loss))
    lowered = step.lower(student, signal(dense), [traced])
    text = lowered.compile().as_text()
    self.assertLess(decoders.largest(text)[0], N * V // 2)

  @parameterized.parameters(*KEYS.items())
  def test_a_loss_and_its_gradient(self, name, keys):
    self.check(name, keys, LIVE)

  @parameterized.parameters("top_k", "partial_plackett_luce")
  def test_of_a_stored_signal(self, name):
    self.check(name, KEYS[name], STORED)

  def test_every_objective_is_looked_at(self):
    self.assertEqual({*KEYS, *WHOLE, *SEQUENCES}, {*OBJECTIVES})

  @parameterized.parameters(*decoders.SIGNALS)
  def test_the_steps_of_a_decoder(self, kind):
    tiny = dict(name="decoder", layers=1, width=16, heads=2)
    size = decoders.Size(tiny, tiny, vocab_size=V, rows=8, length=N // 8)
    run, args = decoders.program(size, kind)
    text = run.lower(*args).compile().as_text()
    self.assertLess(decoders.largest(text)[0], N * V // 2)


if __name__ == "__main__":
  absltest.main()
