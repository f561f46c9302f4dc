"""Time a CNN's training step with XLA's convolution, and with one product.

    python -m kd.bench.convolution [--cnn_doc=docs/performance.md]

Both take the same SGD steps in one loop (jax.lax.scan), as a study does; they
differ in what computes a convolution (kd.models.cnn.convolution).
"""

import os
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from kd.bench.training import in_turn
from kd.models import cnn
from kd.report import markdown

_CNN_DOC = flags.DEFINE_string(
  "cnn_doc", "", "A file whose section <!-- convolution --> holds the table."
)
_CNN_REPEATS = flags.DEFINE_integer("cnn_repeats", 5, "Times of each.")

KINDS = {
  "XLA's": jax.lax.conv_general_dilated,
  "a product over patches": cnn.convolution,
}


def steps(
  convolve: Callable, channels: tuple[int, ...], batch: int, count: int
) -> Callable[[], Any]:
  """Returns run(): `count` compiled SGD steps on images of 28 x 28."""
  model = cnn.CNN((28, 28, 1), 10, channels=channels, rngs=nnx.Rngs(0))
  for conv in model.convs:
    conv.conv_general_dilated = convolve
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  images = jax.random.normal(jax.random.key(0), (count, batch, 28, 28, 1))

  def loss(params, x):
    logits = nnx.merge(graphdef, params, rest)(x).logits
    return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

  @jax.jit
  def run(params):
    def body(params, x):
      grads = jax.grad(loss)(params, x)
      return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), None

    return jax.lax.scan(body, params, images)[0]

  return lambda: jax.block_until_ready(run(params))


def measure(
  channels: tuple[int, ...], batch: int, count: int, repeats: int
) -> dict[str, float]:
  """Times the kinds in turn; returns the median seconds of a step of each."""
  ways = {
    kind: steps(convolve, channels, batch, count)
    for kind, convolve in KINDS.items()
  }
  for run in ways.values():
    run()  # compiled
  times = in_turn(ways, repeats)
  return {kind: statistics.median(t) / count for kind, t in times.items()}


def table(
  rows: Mapping[tuple[int, ...], Mapping[str, float]], batch: int
) -> str:
  """Returns the measurements as Markdown."""
  header = ["channels", *(f"{k} (ms)" for k in KINDS), "times faster"]
  body = []
  for channels, row in rows.items():
    native, ours = row.values()
    times = [f"{1e3 * native:.1f}", f"{1e3 * ours:.1f}"]
    names = ", ".join(map(str, channels))
    body.append([names, *times, f"**{native / ours:.1f}**"])
  device = jax.devices()[0]
  words = (
    f"An SGD step on {batch} images of 28 x 28, in a loop; medians, timed in "
    f"turn. Evidence: run, on {jax.device_count()} x {device.device_kind} "
    f"({os.cpu_count()} cores), jax {jax.__version__}, by "
    "`python -m kd.bench.convolution`."
  )
  return f"{words}\n\n{markdown.table(header, body)}"


def main(argv: list[str]) -> None:
  del argv
  rows: dict[tuple[int, ...], dict[str, float]] = {
    channels: measure(channels, 64, 5, _CNN_REPEATS.value)
    for channels in ((4, 8), (16, 32))
  }
  made = table(rows, 64)
  print(made)
  if _CNN_DOC.value:
    markdown.replace_section(_CNN_DOC.value, "convolution", made)


if __name__ == "__main__":
  app.run(main)
